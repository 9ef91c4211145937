//! `vmstream rehearse`: a guest is watched once, on a throw-away copy of a published image, so that all later ones start
//! as if they had been there before.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use clap::Args;
use vmstream::error::{Error, Result, errno};

use crate::mount::{self, Access, NAME, Parking};
use crate::publish::learn::{self, Learning};
use crate::publish::pack;
use crate::publish::site::Site;
use crate::publish::stop::Stop;
use crate::{Outcome, progress};

/// What stands for the path of the disk in the command.
const DISK: &str = "{disk}";
/// How often to look whether the command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the disk may still be open when the command has ended; then it is unmounted under whoever has it.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// Run a guest on a throw-away copy of a published image and publish what it needed
///
/// The copy is mounted, COMMAND runs with {disk} replaced by the path of the disk, and what the guest did is learnt. What it
/// wrote is thrown away. The exit status is that of COMMAND; when that is not 0, nothing is published.
#[derive(Args)]
pub struct RehearseArgs {
    /// The published image: the directory it was published to, and its name there
    #[arg(value_name = "SITE/NAME")]
    pub image: PathBuf,

    /// Do it so many times, each time with a fresh copy
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub times: u16,

    /// Learn and publish even if COMMAND fails
    #[arg(long)]
    pub even_if_failed: bool,

    /// What to run; {disk} in its arguments is the path of the disk
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Rehearses, learns, publishes.
pub fn run(args: &RehearseArgs) -> Result<Outcome> {
    let stop = Stop::on_signals()?;
    stop.outcome(rehearse(args, &stop))
}

fn rehearse(args: &RehearseArgs, stop: &Stop) -> Result<Outcome> {
    let (site, name) = find(&args.image)?;
    if !args.command.iter().any(|word| word.contains(DISK)) {
        let text = format!("COMMAND does not say where the disk goes: put {DISK} where its path belongs");
        return Err(Error::new(errno::EINVAL, text));
    }
    let Some(pointer) = site.pointer(&name)? else {
        let text = format!("{} is not there: publish the image first", site.pointer_path(&name).display());
        return Err(Error::new(errno::ENOENT, text));
    };
    let link = format!("{}#{}", site.pointer_path(&name).display(), pointer.root);
    let place = temporary()?;
    let sessions = place.path().join("sessions");
    for time in 1..=args.times {
        log::info!("rehearsal {time} of {}", args.times);
        let copy = place.path().join(format!("copy-{time}"));
        let status = on_a_copy(&link, &copy, &sessions, &args.command, stop)?;
        stop.check()?;
        // What the guest wrote is of no use to anybody, and may be large.
        std::fs::remove_dir_all(&copy).map_err(|e| Error::io(format_args!("cannot remove {}", copy.display()), e))?;
        if !status.success() {
            let code = exit_code(status);
            if !args.even_if_failed {
                log::warn!("{} ended with {code}: nothing was learnt", args.command[0]);
                return Ok(Outcome::Ended(code));
            }
            log::warn!("{} ended with {code}", args.command[0]);
            if time == args.times {
                publish(&site, &name, &sessions, stop)?;
                return Ok(Outcome::Ended(code));
            }
        }
    }
    publish(&site, &name, &sessions, stop)?;
    Ok(Outcome::Done)
}

/// Learns what was recorded, on top of what the readers have, and publishes it.
fn publish(site: &Site, name: &str, sessions: &Path, stop: &Stop) -> Result<()> {
    let desk = site.desk(name)?;
    let Some(pointer) = desk.pointer()? else {
        return Err(Error::new(errno::ESTALE, format!("{name} was taken away while it was rehearsed")));
    };
    let tree = learn::read_tree(&desk, &pointer)?;
    let kept = pack::published_model(site, name, &pointer)?;
    let mut learning = Learning::new(kept.clone(), &tree);
    if let Some(kept) = &kept {
        learning.remember(&desk, kept, true)?;
    }
    let new = if sessions.is_dir() { learning.learn(sessions)? } else { 0 };
    let Some(lesson) = learning.finish(None).filter(|_| new > 0) else {
        let text =
            format!("nothing to learn: the guest did not read {name}, or another version was published meanwhile");
        return Err(Error::new(errno::EINVAL, text));
    };
    lesson.announce(&desk)?;
    let done = learn::republish_at(&desk, &lesson.model, stop)?;
    lesson.keep(&desk)?;
    log::info!("{new} sessions learnt; {} has {}", done.packs.name, progress::size(done.packs.bytes));
    Ok(())
}

/// One run of the command on a fresh copy in the directory `copy`.
fn on_a_copy(link: &str, copy: &Path, sessions: &Path, command: &[String], stop: &Stop) -> Result<ExitStatus> {
    let dir = copy.join("mnt");
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(format_args!("cannot make {}", dir.display()), e))?;
    let options = [
        format!("source={link}"),
        format!("cache={}", copy.join("cache").display()),
        format!("sessions={}", sessions.display()),
        // Only what the guest does is of interest, and the image is near.
        "fill=off".to_owned(),
        "model=off".to_owned(),
    ];
    let parking = Arc::new(Parking::default());
    let image = mount::open(&options, &parking)?;
    let (sender, ended) = channel();
    let mut unmounter = mount::show(&image, parking, &dir, Access::default(), move |result| drop(sender.send(result)))?;
    let disk = dir.join(NAME);
    let status = run_command(command, &disk, stop);

    // Whatever came of it, the mount goes.
    if unmounter.unmount().is_err() {
        mount::detach(&dir);
    }
    match ended.recv_timeout(RELEASE_MAX) {
        Ok(result) => result.map_err(|e| Error::io(format_args!("the mount on {} ended", dir.display()), e))?,
        Err(RecvTimeoutError::Disconnected) => {}
        Err(RecvTimeoutError::Timeout) => {
            log::warn!(
                "{} is still in use, perhaps by something that COMMAND left behind; waiting for it",
                disk.display()
            );
            while ended.try_recv().is_err_and(|e| e == std::sync::mpsc::TryRecvError::Empty) {
                stop.check()?;
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
    mount::close(image)?;
    status
}

/// Runs the command to its end. A signal for us is passed on to it.
fn run_command(command: &[String], disk: &Path, stop: &Stop) -> Result<ExitStatus> {
    let words: Vec<_> = command.iter().map(|word| word.replace(DISK, &disk.display().to_string())).collect();
    let child = Command::new(&words[0]).args(&words[1..]).spawn();
    let mut child = child.map_err(|e| Error::io(format_args!("cannot run {}", words[0]), e))?;
    let failed = |e| Error::io(format_args!("cannot wait for {}", words[0]), e);
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        if let Some(signal) = stop.signal()
            && !std::mem::replace(&mut told, true)
        {
            pass_on(signal, &child);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Sends a signal to a process that was started here.
pub fn pass_on(signal: i32, child: &Child) {
    let process = rustix::process::Pid::from_raw(child.id() as i32);
    let signal = rustix::process::Signal::from_named_raw(signal);
    if let (Some(process), Some(signal)) = (process, signal) {
        // It may just have ended.
        let _ = rustix::process::kill_process(process, signal);
    }
}

/// The exit code of a command as a shell would say it.
pub fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => crate::signals::exit_code(signal),
        (None, None) => u8::MAX,
    }
}

/// The site and the name in `SITE/NAME`, also when the pointer's whole name is given.
fn find(image: &Path) -> Result<(Site, String)> {
    let name = image.file_name().and_then(|name| name.to_str()).map(|name| name.strip_suffix(".vmp").unwrap_or(name));
    let Some(name) = name else {
        let text = format!("{} names no published image: give SITE/NAME", image.display());
        return Err(Error::new(errno::EINVAL, text));
    };
    crate::publish::site::check_name(name)?;
    let directory = image.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((Site::open(directory)?, name.to_owned()))
}

/// A place for the copies. Not `/tmp`, which is often held in memory.
fn temporary() -> Result<tempfile::TempDir> {
    let place = std::env::var_os("TMPDIR").filter(|path| !path.is_empty()).unwrap_or_else(|| "/var/tmp".into());
    let made = tempfile::Builder::new().prefix("vmstream-rehearsal-").tempdir_in(&place);
    made.map_err(|e| Error::io(format_args!("cannot make a directory in {}", Path::new(&place).display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_by_name_and_by_pointer() {
        let site = tempfile::tempdir().unwrap();
        for given in ["disk", "disk.vmp"] {
            let (found, name) = find(&site.path().join(given)).unwrap();
            assert_eq!((found.directory(), name.as_str()), (site.path(), "disk"));
        }
        assert!(find(Path::new("/")).unwrap_err().to_string().contains("SITE/NAME"));
        assert!(find(&site.path().join("none/disk")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_command_ends_as_in_a_shell() {
        let code = |script: &str| {
            let command = ["sh", "-c", script, "{disk}"].map(str::to_owned);
            exit_code(run_command(&command, Path::new("/d/disk"), &Stop::default()).unwrap())
        };
        assert_eq!(code("exit 7"), 7);
        assert_eq!(code("kill -9 $$"), 137);
        assert_eq!(code("test $0 = /d/disk"), 0, "the path is put in");
        let none = run_command(&["/no/such/program".to_owned()], Path::new("/d"), &Stop::default());
        assert!(none.unwrap_err().to_string().contains("/no/such/program"));
    }
}
