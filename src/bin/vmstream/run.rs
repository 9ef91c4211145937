//! `vmstream run`: from a link to a running machine.
//!
//! The image is opened in a cache of the user's, read-only, and shown as files (FUSE); QEMU runs on these. What the guest
//! writes never comes near the cache: its disk is an overlay in a directory of this run, its memory is a private map. So the cache
//! holds what the publisher published and nothing else, and every run, also one after a crash, starts from the same
//! point with whatever arrived before.

mod command;
mod link;
mod place;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::Args;
use fuser::SessionUnmounter;
use serde_json::json;
use vmstream::Image;
use vmstream::error::{Error, Result, errno};

use crate::mount::wait::Wait;
use crate::mount::{self, Access, NAME, Parking};
use crate::point::machine::{MACHINE_BYTES_MAX, Machine};
use crate::point::qmp::Qmp;
use crate::point::regions::{self, Regions};
use crate::point::{DISK, MACHINE, STATE};
use crate::publish::stop::Stop;
use crate::rehearse::{exit_code, pass_on};
use crate::report::{REPORT_EVERY, ReportArgs, Reporter};
use crate::{Outcome, progress};
use command::Paths;
use place::{Place, Work};

/// How often to look whether QEMU has ended, or is ready.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long QEMU takes to end after it has said why.
const END_MAX: Duration = Duration::from_secs(1);
/// Bytes of the devices' state that are fetched at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Most state of devices that is believed, in bytes: video memory and the like, not the guest's.
const STATE_BYTES_MAX: u64 = 1 << 30;

/// Run a machine from a link: restored where its restore point was taken, or booted
///
/// LINK is that of 'vmstream publish', or vmstream://HOST/PATH#HASH for the same by https. The machine starts while its memory
/// and disk are still on the server. What it writes is thrown away when it ends. The exit status is that of QEMU.
#[derive(Args)]
pub struct RunArgs {
    /// The published image
    #[arg(value_name = "LINK")]
    pub link: String,

    /// More options for QEMU, put behind all others
    #[arg(last = true, value_name = "QEMU-OPTIONS")]
    pub extra: Vec<String>,

    /// Keep what arrives in this directory instead of one in ~/.cache/vmstream; one run at a time
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Let the guest go on only when the risk of a stall within a time is low, or after the longest wait
    #[arg(long, value_name = "risk=5%[,for=30s][,max=60s]", value_parser = Wait::parse)]
    pub wait: Option<Wait>,

    /// Leave what the guest wrote to its disk in this new directory, as an overlay (qcow2)
    #[arg(long, value_name = "DIR")]
    pub keep_writes: Option<PathBuf>,

    /// Set an option of the image, such as mirror=URL or fill=off; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,

    #[command(flatten)]
    pub report: ReportArgs,
}

/// Runs the machine to its end.
pub fn run(args: &RunArgs) -> Result<Outcome> {
    let stop = Stop::on_signals()?;
    let mut reporter = Reporter::new(&args.report)?;
    let source = link::source(&args.link)?;
    let place = Place::of(args.cache.as_deref(), &source)?;
    let mut options = vec![format!("source={source}"), format!("cache={}", place.cache().display())];
    options.push("read_only=on".to_owned());
    options.extend(args.options.iter().cloned());
    let parking = Arc::new(Parking::default());
    let image = mount::open(&options, &parking)?;
    reporter.report(&image);
    let outcome = on_image(args, &image, parking, &place, &mut reporter, &stop);
    reporter.report(&image);
    drop(reporter);
    let closed = mount::close(image);
    let outcome = stop.outcome(outcome)?;
    closed.map(|()| outcome)
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
    let regions = regions::find(image)?;
    let machine = regions.as_ref().map(|regions| read_machine(image, regions)).transpose()?;
    let program = match &machine {
        Some(machine) => command::check(machine)?,
        None => command::PROGRAM.to_owned(),
    };
    // The lock of the cache is ours, so what an earlier run has left there is nobody's.
    let work = place.begin(args.keep_writes.as_deref())?;
    let mounted = Mounted::new(image, parking, &work.mount, regions.as_ref())?;
    let disk = work.mount.join(if regions.is_some() { DISK } else { NAME });
    let disk_bytes = regions.as_ref().and_then(|regions| regions.of(DISK)).map_or(image.size(), |r| r.end - r.start);
    command::overlay(&disk, disk_bytes, &work.overlay)?;
    if let Some(regions) = &regions {
        // QEMU reads it on its only thread; it should not stand still there for a link.
        fetch_state(image, regions, stop)?;
    }

    let paths = Paths { overlay: &work.overlay, mount: &work.mount, socket: &work.socket()? };
    let mut words = command::words(machine.as_ref(), &paths);
    words.extend(args.extra.iter().cloned());
    if let Some(machine) = &machine {
        // Behind the user's: serial lines are numbered in the order in which they are given.
        words.extend(command::serial_lines(machine, &args.extra));
    }
    words.extend(command::display(&args.extra).iter().map(|word| (*word).to_owned()));
    log::debug!("{program} {}", words.join(" "));
    let mut guest = Guest::start(&program, &words)?;
    let begun = begin(&mut guest, machine.as_ref(), &work, stop, &mut || {
        if let Some(wait) = &args.wait {
            wait.hold(image, reporter, &mut |time, _| {
                std::thread::sleep(time);
                stop.signal()
            });
        }
        stop.check()
    });
    begun.map_err(|error| guest.explain(error))?;
    say(format_args!(
        "the guest {} after {:.1} s; {} fetched so far",
        if machine.is_some() { "goes on" } else { "starts" },
        began.elapsed().as_secs_f64(),
        progress::size(image.stats().bytes_fetched)
    ));
    let code = guest.wait(image, reporter, stop)?;
    mounted.end(stop)?;
    work.end();
    Ok(Outcome::Ended(code))
}

/// Brings the machine to where the guest goes on; `hold` keeps it there for a while.
fn begin(
    guest: &mut Guest,
    machine: Option<&Machine>,
    work: &Work,
    stop: &Stop,
    hold: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut qmp = guest.monitor(&work.directory.join(place::SOCKET), stop)?;
    if machine.is_some() {
        restore(&mut qmp, guest, &work.mount.join(STATE), stop)?;
    }
    tell_screen(&mut qmp);
    hold()?;
    qmp.ask("cont", json!({}))?;
    if let Some(machine) = machine.filter(|machine| machine.has_balloon()) {
        // Before the restore point was taken it may have been squeezed.
        let _ = qmp.ask("balloon", json!({"value": machine.memory_bytes()}));
    }
    Ok(())
}

fn read_machine(image: &Image, regions: &Regions) -> Result<Machine> {
    let range = regions.of(MACHINE).cloned().unwrap_or_default();
    let mut text = vec![0; (range.end - range.start).min(MACHINE_BYTES_MAX + 1) as usize];
    image.read_at(range.start, &mut text)?;
    Machine::parse(&text)
}

/// Has all of the devices' state in the cache.
fn fetch_state(image: &Image, regions: &Regions, stop: &Stop) -> Result<()> {
    let range = regions.of(STATE).cloned().unwrap_or_default();
    if range.end - range.start > STATE_BYTES_MAX {
        return Err(Error::new(errno::EFBIG, "the state of the devices is larger than any can be"));
    }
    let mut at = range.start;
    while at < range.end {
        stop.check()?;
        let length = PIECE_BYTES.min(range.end - at);
        image.block_wait(vmstream::Op::Read, at, length)?;
        at += length;
    }
    Ok(())
}

/// Gives the devices their state; the guest stands still afterwards.
fn restore(qmp: &mut Qmp, guest: &mut Guest, state: &Path, stop: &Stop) -> Result<()> {
    let unreadable = |e| Error::io(format_args!("cannot open {}", state.display()), e);
    let file = std::fs::File::open(state).map_err(unreadable)?;
    qmp.ask("migrate-set-capabilities", json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]}))?;
    qmp.ask_with("getfd", json!({"fdname": "state"}), Some(std::os::fd::AsFd::as_fd(&file)))?;
    qmp.ask("migrate-incoming", json!({"uri": "fd:state"}))?;
    loop {
        stop.check()?;
        guest.check()?;
        match qmp.migrated(LOOK_EVERY) {
            Err(e) if e.errno() == errno::ETIMEDOUT => {}
            ended => return ended,
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

/// Says where the screen is, when nobody asked for another.
fn tell_screen(qmp: &mut Qmp) {
    if let Ok(vnc) = qmp.ask("query-vnc", json!({}))
        && let (true, Some(host), Some(port)) = (vnc["enabled"] == true, vnc["host"].as_str(), vnc["service"].as_str())
    {
        say(format_args!("the screen is at VNC {host}:{port}"));
    }
}

/// A mount that goes when it is dropped.
struct Mounted {
    unmounter: SessionUnmounter,
    ended: Receiver<std::io::Result<()>>,
    dir: PathBuf,
}

impl Mounted {
    fn new(image: &Arc<Image>, parking: Arc<Parking>, dir: &Path, regions: Option<&Regions>) -> Result<Self> {
        mount::check_directory(dir)?;
        let (sender, ended) = channel();
        let tell = move |result| drop(sender.send(result));
        let unmounter = match regions {
            Some(regions) => mount::show_regions(image, parking, dir, Access::default(), regions, tell)?,
            None => mount::show(image, parking, dir, Access { read_only: true, all_users: false }, tell)?,
        };
        Ok(Self { unmounter, ended, dir: dir.to_owned() })
    }

    /// Unmounts, and waits for whoever still has a file open.
    fn end(mut self, stop: &Stop) -> Result<()> {
        self.unmount();
        while matches!(self.ended.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout)) {
            stop.check()?;
        }
        Ok(())
    }

    fn unmount(&mut self) {
        if self.unmounter.unmount().is_err() {
            mount::detach(&self.dir);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// The process that is the machine. It does not outlive this.
struct Guest {
    child: Child,
    program: String,
    told: bool,
}

impl Guest {
    fn start(program: &str, words: &[String]) -> Result<Self> {
        // When this process is killed, the mount goes with it, and a machine that lives on is of no use to anybody.
        let child = match Command::new("setpriv").args(["--pdeathsig", "KILL", "--", program]).args(words).spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Command::new(program).args(words).spawn(),
            child => child,
        };
        let child = child.map_err(|e| Error::io(format_args!("cannot run {program}"), e))?;
        Ok(Self { child, program: program.to_owned(), told: false })
    }

    /// Connects to the monitor as soon as it is there.
    fn monitor(&mut self, socket: &Path, stop: &Stop) -> Result<Qmp> {
        while !socket.exists() {
            stop.check()?;
            self.check()?;
            std::thread::sleep(LOOK_EVERY);
        }
        // A path of a socket may have 107 bytes only; that of an open directory is always short.
        let directory = socket.parent().unwrap_or(Path::new("."));
        let open = std::fs::File::open(directory);
        let open = open.map_err(|e| Error::io(format_args!("cannot open {}", directory.display()), e))?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&open);
        let socket = format!("/proc/self/fd/{number}/{}", place::SOCKET);
        loop {
            match Qmp::connect_patiently(Path::new(&socket)) {
                // Its name is there a moment before QEMU listens.
                Err(error) if error.errno() == rustix::io::Errno::CONNREFUSED.raw_os_error() => {
                    stop.check()?;
                    self.check()?;
                    std::thread::sleep(LOOK_EVERY);
                }
                connected => return connected,
            }
        }
    }

    /// Fails when it has ended.
    fn check(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(code) => {
                let text = format!("{} ended with {code} before the guest could go on; it said why", self.program);
                Err(Error::new(errno::EIO, text))
            }
        }
    }

    /// The reason for an error of the monitor's: as a rule QEMU has found something that it cannot do, and ends.
    fn explain(&mut self, error: Error) -> Error {
        if error.errno() == errno::ECANCELED {
            return error;
        }
        let began = Instant::now();
        while began.elapsed() < END_MAX {
            if let Err(ended) = self.check() {
                return ended;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        error
    }

    fn ended(&mut self) -> Result<Option<u8>> {
        let status = self.child.try_wait();
        let status = status.map_err(|e| Error::io(format_args!("cannot wait for {}", self.program), e))?;
        Ok(status.map(exit_code))
    }

    /// Waits for its end, passing a signal on; answers its exit code.
    fn wait(&mut self, image: &Image, reporter: &mut Reporter, stop: &Stop) -> Result<u8> {
        let mut reported = Instant::now();
        loop {
            if let Some(code) = self.ended()? {
                return Ok(code);
            }
            if let Some(signal) = stop.signal()
                && !std::mem::replace(&mut self.told, true)
            {
                pass_on(signal, &self.child);
            }
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                reporter.report(image);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // Ended already is all that can go wrong.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
