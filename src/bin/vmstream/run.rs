//! `vmstream run`: from a link to a running machine.
//!
//! The image is opened in a cache of the user's, read-only, and shown as files (FUSE); QEMU runs on these, or User-Mode Linux where
//! the image asks for it. What the guest writes never comes near the cache: its disk is an overlay in a directory of this run, its
//! memory is a private map. So the cache
//! holds what the publisher published and nothing else, and every run, also one after a crash, starts from the same
//! point with whatever arrived before.

mod command;
mod guest;
mod mounted;
mod place;
mod qemu;
mod stay;
mod terminal;
mod uml;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use vmstream::Image;
use vmstream::error::Result;

use crate::mount::wait::Wait;
use crate::mount::{self, Parking};
use crate::point::boot::Monitor;
use crate::point::regions::{self, Regions};
use crate::point::start::Start;
use crate::publish::stop::Stop;
use crate::report::{ReportArgs, Reporter};
use crate::{Outcome, link, progress, signals};
use mounted::Mounted;
use place::{Place, Work};
use qemu::What;
use uml::Uml;

/// How often to look whether a machine has ended, or is ready.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Run a machine from a link: restored where its restore point was taken, or booted
///
/// LINK is that of 'vmstream publish', or vmstream://HOST/PATH#HASH for the same by https. The machine starts while its memory
/// and disk are still on the server. What it writes is thrown away when it ends. The exit status is that of QEMU or User-Mode Linux.
#[derive(Args)]
pub struct RunArgs {
    /// The published image
    #[arg(value_name = "LINK")]
    pub link: String,

    /// More options for QEMU, or words for the kernel of User-Mode Linux, put behind all others
    #[arg(last = true, value_name = "OPTIONS")]
    pub extra: Vec<String>,

    /// Keep what arrives in this directory instead of one in ~/.cache/vmstream; one run at a time
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Let the guest go on only when the risk of a stall within a time is low, or after the longest wait
    #[arg(long, value_name = "risk=5%[,for=30s][,max=60s]", value_parser = Wait::parse)]
    pub wait: Option<Wait>,

    /// Boot in User-Mode Linux if the image asks for it: its guest can do on this computer what you can
    #[arg(long)]
    pub allow_uml: bool,

    /// Leave what the guest wrote to its disk in this new directory, as an overlay (qcow2, or COW of User-Mode Linux)
    #[arg(long, value_name = "DIR")]
    pub keep_writes: Option<PathBuf>,

    /// When the run has failed, wait for Enter: for a terminal that closes with this command
    #[arg(long)]
    pub stay: bool,

    /// Set an option of the image, such as mirror=URL or fill=off; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// Runs the machine to its end.
pub fn run(args: &RunArgs) -> Result<Outcome> {
    let stop = Stop::on_signals()?;
    let outcome = on_link(args, &stop);
    if args.stay { stay::after(outcome, &stop) } else { outcome }
}

fn on_link(args: &RunArgs, stop: &Stop) -> Result<Outcome> {
    let mut reporter = Reporter::new(&args.report)?;
    let source = link::source(&args.link)?;
    let place = Place::of(args.cache.as_deref(), &source)?;
    let mut options = vec![format!("source={source}"), format!("cache={}", place.cache().display())];
    options.push("read_only=on".to_owned());
    options.extend(args.options.iter().cloned());
    let parking = Arc::new(Parking::default());
    let image = open(&options, &parking, stop)?;
    // What is read to find out which machine it is shall not be learnt from if none ever runs.
    image.hold_session();
    reporter.report(&image);
    let outcome = on_image(args, &image, parking, &place, &mut reporter, stop);
    reporter.report(&image);
    drop(reporter);
    let closed = mount::close(image);
    let outcome = stop.outcome(outcome)?;
    closed.map(|()| outcome)
}

/// Opens the image; nothing is lost when a signal ends the process meanwhile.
fn open(options: &[String], parking: &Arc<Parking>, stop: &Stop) -> Result<Arc<Image>> {
    let _ending = stop.interrupts(|signal| signals::end_before_open(signal));
    mount::open(options, parking)
}

/// All that a machine needs to be started.
struct Scene<'a> {
    args: &'a RunArgs,
    image: &'a Arc<Image>,
    regions: Option<&'a Regions>,
    work: &'a Work,
    reporter: &'a mut Reporter,
    stop: &'a Stop,
}

impl Scene<'_> {
    /// Keeps the guest from going on for as long as the user has asked for.
    fn hold(&mut self) -> Result<()> {
        let stop = self.stop;
        if let Some(wait) = &self.args.wait {
            wait.hold(self.image, self.reporter, &mut |time, _| {
                std::thread::sleep(time);
                stop.signal()
            });
        }
        stop.check()
    }

    /// There is a guest from now on: its session and what it writes are kept, however it ends.
    fn goes_on(&self) {
        self.image.keep_session();
        self.work.keep();
    }
}

fn on_image(
    args: &RunArgs,
    image: &Arc<Image>,
    parking: Arc<Parking>,
    place: &Place,
    reporter: &mut Reporter,
    stop: &Stop,
) -> Result<Outcome> {
    let began = Instant::now();
    // Who waits for a block, be it this process or QEMU, cannot look at signals, and the origin may be away.
    let waiting = image.clone();
    let ending = stop.interrupts(move |_| waiting.cancel());
    // What is broken off may fail for another reason in the same moment, such as a connection that could not be made in time.
    let ended = |error| stop.check().err().unwrap_or(error);
    let regions = regions::find(image).map_err(ended)?;
    let start = Start::of_image(image, regions.as_ref()).map_err(ended)?;
    let kind = Kind::of(&start, args)?;
    // The lock of the cache is ours, so what an earlier run has left there is nobody's.
    let work = place.begin(args.keep_writes.as_deref(), kind.overlay())?;
    let mounted = Mounted::new(image, parking, &work.mount, regions.as_ref())?;
    let mut scene = Scene { args, image, regions: regions.as_ref(), work: &work, reporter: &mut *reporter, stop };
    let mut guest = match kind {
        Kind::Qemu(program, what) => qemu::start(&mut scene, &program, what)?,
        Kind::Uml(uml) => uml.start(&mut scene)?,
    };
    say(format_args!(
        "the guest {} after {:.1} s; {} fetched so far",
        if matches!(start, Start::Restore(_)) { "goes on" } else { "starts" },
        began.elapsed().as_secs_f64(),
        progress::size(image.stats().bytes_fetched)
    ));
    // From here on the guest is asked first.
    drop(ending);
    let code = guest.wait(image, reporter, stop)?;
    // What it still has open would keep the mount.
    drop(guest);
    mounted.end(stop);
    Ok(Outcome::Ended(code))
}

/// What an image is run in, which is there.
enum Kind<'a> {
    /// This program of QEMU.
    Qemu(String, What<'a>),
    Uml(Uml),
}

impl<'a> Kind<'a> {
    fn of(start: &'a Start, args: &RunArgs) -> Result<Self> {
        match start {
            Start::Restore(machine) => Ok(Self::Qemu(command::check(machine)?, What::Restored(machine))),
            Start::Boot(boot) => match boot.monitor {
                Monitor::Qemu => Ok(Self::Qemu(command::PROGRAM.to_owned(), What::Booted(boot.memory_bytes()))),
                Monitor::Uml(root) => Uml::find(root, boot.memory_bytes(), args.allow_uml).map(Self::Uml),
            },
        }
    }

    /// The name of the file that takes the guest's writes.
    fn overlay(&self) -> &'static str {
        match self {
            Self::Qemu(..) => "disk.qcow2",
            Self::Uml(_) => "disk.cow",
        }
    }
}

/// Tells the user what he waits for: it is shown unless he asked for quiet.
fn say(what: fmt::Arguments<'_>) {
    if log::log_enabled!(log::Level::Warn) {
        // There is nobody to tell that nobody can be told.
        let _ = writeln!(std::io::stderr(), "vmstream: {what}");
    }
}
