//! `vmstream mount`: an image on a web server as an ordinary file, `DIR/disk`.

mod attributes;
mod disk;
mod faults;
mod parked;
pub mod wait;
mod windows;
mod written;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use clap::Args;
use fuser::{Filesystem, MountOption, Session, SessionACL, SessionUnmounter};
use vmstream::Image;
use vmstream::error::{Error, Result, errno};

use crate::point::MEMORY;
use crate::point::regions::{self, Regions};
use crate::report::{REPORT_EVERY, ReportArgs, Reporter};
use crate::{Outcome, link, signals};
use disk::Disk;
pub use disk::NAME;
pub use parked::Parking;
use wait::{End, Wait};
use windows::Windows;

/// Threads that take requests from the kernel. They never wait for the network, so a few are enough.
const SESSION_THREADS: usize = 4;

/// Mount a disk image that lies on a web server as the file DIR/disk
///
/// Blocks are fetched when they are first read; what the guest writes stays in the cache. Runs in the
/// foreground until the file system is unmounted or SIGINT, SIGTERM or SIGHUP comes; a second signal ends it at once.
#[derive(Args)]
pub struct MountArgs {
    /// The raw image (http://, https://, file: or pattern:SIZE), or the link to a published one: URL.vmp#HASH, or vmstream://HOST/PATH.vmp#HASH
    pub url: String,

    /// Existing directory to mount on
    pub dir: PathBuf,

    /// Keep what arrives in this directory, across runs; without it a temporary file is used
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,

    /// Show the parts of an image as files, which nobody can write to: disk.raw and machine, and of a restore point memory.raw and state.bin as well
    #[arg(long)]
    pub regions: bool,

    /// Let other users use the mount (needs user_allow_other in /etc/fuse.conf, or root)
    #[arg(long)]
    pub allow_other: bool,

    /// Mount only when the risk of a stall within a time is low, or after the longest wait
    #[arg(long, value_name = "risk=5%[,for=30s][,max=60s]", value_parser = Wait::parse)]
    pub wait: Option<Wait>,

    /// Set an option of the image, such as mirror=URL or connections=4; repeatable
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,

    #[command(flatten)]
    pub report: ReportArgs,
}

enum News {
    Signal(signals::Event),
    /// The image's parts are known, or nobody can tell them.
    Regions(Result<Regions>),
    /// The session ended: somebody unmounted, or the kernel's side broke.
    Ended(io::Result<()>),
}

/// Lets time pass before there is a mount; answers a signal that asks for the end.
fn pause(inbox: &Receiver<News>, time: Duration, reporter: &mut Reporter, image: &Image) -> Option<i32> {
    match inbox.recv_timeout(time) {
        Ok(News::Signal(signals::Event::Stop(signal))) => return Some(signal),
        Ok(News::Signal(signals::Event::Report)) => reporter.report(image),
        // There is no session yet that could end, and the other end of the channel is ours.
        Ok(News::Ended(_) | News::Regions(_)) | Err(_) => {}
    }
    None
}

/// What becomes of asking for an image's parts.
enum Parts {
    Known(Regions),
    /// This signal came first.
    Stopped(i32),
}

/// Asks for the parts of the image, on another thread: the origin, which may be away, is waited for as long as it takes.
fn parts(image: &Arc<Image>, news: Sender<News>, inbox: &Receiver<News>, reporter: &mut Reporter) -> Result<Parts> {
    let asked = image.clone();
    let ask = move || {
        let found = regions::of_image(&asked);
        // Whoever hears of it may close the image, and the process may end with that.
        drop(asked);
        drop(news.send(News::Regions(found)));
    };
    thread::Builder::new().name("regions".into()).spawn(ask).map_err(|e| Error::io("cannot start a thread", e))?;
    let mut stopped = None;
    loop {
        match inbox.recv_timeout(REPORT_EVERY) {
            Ok(News::Signal(signals::Event::Stop(signal))) => {
                stopped = Some(signal);
                image.cancel();
            }
            Ok(News::Regions(found)) => {
                return stopped.map_or_else(|| found.map(Parts::Known), |by| Ok(Parts::Stopped(by)));
            }
            _ => reporter.report(image),
        }
    }
}

/// Mounts and serves until it is unmounted or told to stop.
pub fn run(args: &MountArgs) -> Result<Outcome> {
    check_directory(&args.dir)?;
    let (news, inbox) = channel();
    let sender = news.clone();
    let opening = signals::Opening::default();
    let opened = opening.clone();
    signals::handle(move |event| {
        opening.end_on(event);
        drop(sender.send(News::Signal(event)));
    })?;

    let mut reporter = Reporter::new(&args.report)?;
    let parking = Arc::new(Parking::default());
    let image = open(&args.image_options()?, &parking)?;
    opened.done();
    // What this command reads itself is no session if there never is a mount.
    image.hold_session();
    reporter.report(&image);

    if let Some(wait) = &args.wait
        && let End::Stopped(signal) =
            wait.hold(&image, &mut reporter, &mut |time, reporter| pause(&inbox, time, reporter, &image))
    {
        reporter.report(&image);
        close(image)?;
        return Ok(Outcome::Interrupted(signal));
    }

    let regions = match args.regions.then(|| parts(&image, news.clone(), &inbox, &mut reporter)).transpose()? {
        None => None,
        Some(Parts::Known(regions)) => Some(regions),
        Some(Parts::Stopped(signal)) => {
            reporter.report(&image);
            close(image)?;
            return Ok(Outcome::Interrupted(signal));
        }
    };
    let ended = move |ended| drop(news.send(News::Ended(ended)));
    let mut unmounter = if let Some(regions) = regions {
        show_regions(&image, parking, &args.dir, args.access(), &regions, ended)?
    } else {
        show(&image, parking, &args.dir, args.access(), ended)?
    };
    image.keep_session();
    let shown = if args.regions { args.dir.clone() } else { args.dir.join(NAME) };
    log::info!("{} is ready", shown.display());

    let ended = loop {
        match inbox.recv_timeout(REPORT_EVERY) {
            Ok(News::Ended(result)) => break result,
            Ok(News::Signal(signals::Event::Stop(_))) => {
                if let Err(error) = unmounter.unmount() {
                    // Out of sight now, gone when the last user closes it: a guest on it must not lose its disk.
                    log::warn!(
                        "{} is in use ({error}); unmounting it now and ending when it is closed, or at a second signal",
                        shown.display()
                    );
                    detach(&args.dir);
                }
            }
            Ok(News::Signal(signals::Event::Report) | News::Regions(_)) | Err(RecvTimeoutError::Timeout) => {
                reporter.report(&image);
            }
            Err(RecvTimeoutError::Disconnected) => break Ok(()),
        }
    };
    reporter.report(&image);
    drop(reporter);
    close(image)?;
    ended.map_err(|e| Error::io(format_args!("the mount on {} ended", args.dir.display()), e))?;
    Ok(Outcome::Done)
}

impl MountArgs {
    fn image_options(&self) -> Result<Vec<String>> {
        let mut options = vec![format!("source={}", link::source(&self.url)?)];
        options.extend(self.cache.as_ref().map(|dir| format!("cache={}", dir.display())));
        options.extend((self.read_only || self.regions).then(|| "read_only=on".to_owned()));
        options.extend(self.options.iter().cloned());
        Ok(options)
    }

    fn access(&self) -> Access {
        Access { read_only: self.read_only, all_users: self.allow_other }
    }
}

/// Who may do what with a mounted disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// Nobody may write.
    pub read_only: bool,
    /// Other users may use it as well.
    pub all_users: bool,
}

/// Shows an image as the file `disk` in a directory, until the answer is told to unmount it or somebody else does; then
/// `ended` is called, on a thread of its own.
pub fn show(
    image: &Arc<Image>,
    parking: Arc<Parking>,
    dir: &Path,
    access: Access,
    ended: impl FnOnce(io::Result<()>) + Send + 'static,
) -> Result<SessionUnmounter> {
    serve(Disk::new(image.clone(), parking, access.read_only), image, dir, access, ended)
}

/// The same for a restore point: its regions are files in the directory, none of which can be written to. The image should
/// be opened with `read_only=on`.
pub fn show_regions(
    image: &Arc<Image>,
    parking: Arc<Parking>,
    dir: &Path,
    access: Access,
    regions: &Regions,
    ended: impl FnOnce(io::Result<()>) + Send + 'static,
) -> Result<SessionUnmounter> {
    if let Some(memory) = regions.of(MEMORY) {
        // It is a small part of the image and waited for page by page, while a disk is read in longer pieces.
        image.fill_from(memory.start)?;
    }
    serve(Windows::new(image.clone(), parking, regions), image, dir, access, ended)
}

fn serve(
    files: impl Filesystem,
    image: &Image,
    dir: &Path,
    access: Access,
    ended: impl FnOnce(io::Result<()>) + Send + 'static,
) -> Result<SessionUnmounter> {
    let mut session = Session::new(files, dir, &session_config(access, image))
        .map_err(|e| Error::io(format_args!("cannot mount on {} (is fuse3 installed?)", dir.display()), e))?;
    let unmounter = session.unmount_callable();
    // A mount whose process is gone answers everybody with an error until somebody takes it away.
    let place = dir.to_owned();
    let last = signals::Last::new(move || detach(&place));
    let serve = move || {
        let result = session.run();
        drop(last);
        ended(result);
    };
    thread::Builder::new().name("fuse".into()).spawn(serve).map_err(|e| Error::io("cannot start a thread", e))?;
    Ok(unmounter)
}

/// Opens an image with these options, for [`show`].
pub fn open(options: &[String], parking: &Arc<Parking>) -> Result<Arc<Image>> {
    // Completions need the image, which is there only after it was opened; none comes before something is asked.
    let slot: Arc<OnceLock<Weak<Image>>> = Arc::default();
    let (seen, parking) = (slot.clone(), parking.clone());
    let image = Image::open_with(options, move |completion| {
        if let Some(image) = seen.get().and_then(Weak::upgrade) {
            parking.complete(&image, completion);
        }
    })?;
    let image = Arc::new(image);
    let _ = slot.set(Arc::downgrade(&image));
    Ok(image)
}

/// Closes the image once the session's threads have let go of it.
pub fn close(mut image: Arc<Image>) -> Result<()> {
    loop {
        match Arc::try_unwrap(image) {
            Ok(image) => return image.close(),
            Err(shared) => {
                image = shared;
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn session_config(access: Access, image: &Image) -> fuser::Config {
    let mut config = fuser::Config::default();
    let name = image.source_name().replace(',', "%2C"); // a comma would end the mount option
    config.mount_options = vec![
        MountOption::FSName(name),
        MountOption::Subtype("vmstream".into()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    if access.read_only {
        config.mount_options.push(MountOption::RO);
    }
    config.acl = if access.all_users { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(SESSION_THREADS);
    config.clone_fd = true;
    config
}

/// Takes the mount out of the tree; its open files live on.
pub fn detach(dir: &Path) {
    if rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH).is_err() {
        // An ordinary user unmounts through the helper.
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(dir).status();
    }
}

/// Makes sure that the directory can be mounted on. What a killed mount left there is removed.
pub fn check_directory(dir: &Path) -> Result<()> {
    let broken = |e: &io::Error| e.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error());
    let mut found = std::fs::metadata(dir);
    if found.as_ref().is_err_and(broken) {
        log::warn!("{} is the mount of a process that was killed; unmounting it", dir.display());
        detach(dir);
        found = std::fs::metadata(dir);
    }
    let found = found.map_err(|e| Error::io(format_args!("cannot mount on {}", dir.display()), e))?;
    if !found.is_dir() {
        return Err(Error::new(errno::EINVAL, format!("cannot mount on {}: not a directory", dir.display())));
    }
    Ok(())
}
