//! A machine of User-Mode Linux: a kernel that is a program of the host, with the image under a COW file as its disk.
//!
//! It is not one process but many, at least one for each of the guest's, and those go on or hang when the first is killed. So it runs in a
//! namespace of processes of its own (unshare(1)), which the kernel ends with the first of them.
//!
//! That namespace is no wall. User-Mode Linux has none against its own root, who mounts the host's files (hostfs) and can load code
//! into a kernel that is a program like any other. Whoever publishes such an image could as well hand out a program, so it is run
//! only when the user has said that he knows.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use vmstream::error::{Error, Result, errno};

use super::Scene;
use super::guest::{Guest, Manner};
use super::terminal::Terminal;
use crate::point::DISK;
use crate::point::boot::Root;

/// The kernel, as Debian's package calls it.
const PROGRAM: &str = "linux.uml";
/// Where it keeps the guest's memory, as far as it is used.
const MEMORY_PLACE: &str = "/dev/shm";
/// The link in the directory of a run to the directory of `--keep-writes`: the names of both may hold commas and blanks, which end
/// a word of the kernel's.
const KEPT: &str = "kept";
/// What makes a namespace of processes that ends with this process's child; for root, and for others, who need a namespace of
/// users for it.
const NAMESPACES: [&[&str]; 2] = [
    &["unshare", "--pid", "--fork", "--kill-child=KILL", "--"],
    &["unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child=KILL", "--"],
];

/// Runs the kernel as its child, and ends as that did. The first process of a namespace does not die of its own SIGABRT, with
/// which the kernel ends when it panics: it would try for ever.
const FIRST: [&str; 4] = ["sh", "-c", r#""$@"; exit $?"#, "sh"];

/// A machine that can be started.
pub struct Uml {
    root: Root,
    memory_bytes: u64,
    namespace: &'static [&'static str],
}

impl Uml {
    /// Makes sure that it may be and can be.
    ///
    /// Errors: `EACCES` when the user has not allowed it, `ENOENT` without the program, `ENOTSUP` without namespaces.
    pub fn find(root: Root, memory_bytes: u64, allowed: bool) -> Result<Self> {
        if !allowed {
            let text = "the image is to be booted in User-Mode Linux, whose guest can do on this computer what you can: give --allow-uml \
                if you would run a program of whoever made the link";
            return Err(Error::new(errno::EACCES, text));
        }
        match said(&[PROGRAM, "--version"]) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = format!("this machine cannot boot it: no {PROGRAM} (install Debian's user-mode-linux)");
                return Err(Error::new(errno::ENOENT, text));
            }
            Err(e) => return Err(Error::io(format_args!("cannot run {PROGRAM}"), e)),
            Ok((_, said)) => log::debug!("{PROGRAM} {}", said.trim()),
        }
        let mut refused = String::new();
        for namespace in NAMESPACES {
            match said(&[namespace, &["true"]].concat()) {
                Ok((true, _)) => return Ok(Self { root, memory_bytes, namespace }),
                Ok((false, said)) => refused = said,
                Err(e) => refused = format!("unshare (Debian's util-linux): {e}"),
            }
        }
        let text = format!(
            "this machine cannot boot it: User-Mode Linux needs a namespace of processes to end with this command: {}",
            refused.trim()
        );
        Err(Error::new(errno::ENOTSUP, text))
    }

    /// Starts it.
    pub fn start(self, scene: &mut Scene<'_>) -> Result<Guest> {
        scene.hold()?;
        let work = scene.work;
        let overlay = work.overlay.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let overlay = match work.overlay.parent().filter(|folder| *folder != work.directory) {
            Some(kept) => {
                let link = work.directory.join(KEPT);
                let linked = std::os::unix::fs::symlink(kept, &link);
                linked.map_err(|e| Error::io(format_args!("cannot make {}", link.display()), e))?;
                format!("{KEPT}/{overlay}")
            }
            None => overlay.to_owned(),
        };
        let mount = work.mount.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut words: Vec<_> = self.namespace.iter().map(|word| (*word).to_owned()).collect();
        words.extend(FIRST.iter().chain([&PROGRAM]).map(|word| (*word).to_owned()));
        words.extend(self.words(&overlay, mount));
        words.extend(scene.args.extra.iter().cloned());
        log::debug!("{}", words.join(" "));
        let terminal = Terminal::save();
        let guest = Guest::start(PROGRAM, &words, Manner::MustBeKilled, |command| {
            command.current_dir(&work.directory);
            if Path::new(MEMORY_PLACE).is_dir() {
                command.env("TMPDIR", MEMORY_PLACE);
            }
        })?;
        scene.goes_on();
        Ok(guest.on(terminal))
    }

    /// The kernel's command line; the files are named from the directory of the run.
    fn words(&self, overlay: &str, mount: &str) -> Vec<String> {
        vec![
            format!("ubd0={overlay},{mount}/{DISK}"),
            format!("root=/dev/{}", self.root),
            "rw".to_owned(),
            format!("mem={}M", self.memory_bytes >> 20),
            // One console, which is this command's input and output.
            "con=null".to_owned(),
            "con0=fd:0,fd:1".to_owned(),
            "uml_dir=uml".to_owned(),
        ]
    }
}

/// Runs a short command; answers whether it succeeded and what it said.
fn said(words: &[&str]) -> io::Result<(bool, String)> {
    let (first, rest) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let output = Command::new(first).args(rest).stdin(Stdio::null()).output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::boot::{Boot, Monitor};

    fn find(option: &str, allowed: bool) -> Result<Uml> {
        let boot = Boot::option(option).unwrap();
        let Monitor::Uml(root) = boot.monitor else { unreachable!() };
        Uml::find(root, boot.memory_bytes(), allowed)
    }

    #[test]
    fn nobody_runs_it_by_following_a_link() {
        let error = find("uml", false).err().unwrap();
        assert_eq!(error.errno(), errno::EACCES);
        assert!(error.to_string().contains("--allow-uml"), "{error}");
    }

    #[test]
    fn the_kernel_gets_the_image_under_a_file_of_the_run() {
        let Monitor::Uml(root) = Boot::option("uml,root=ubda1").unwrap().monitor else { unreachable!() };
        let uml = Uml { root, memory_bytes: 64 << 20, namespace: NAMESPACES[0] };
        let line = uml.words("disk.cow", "mnt").join(" ");
        assert!(line.starts_with("ubd0=disk.cow,mnt/disk.raw root=/dev/ubda1 rw mem=64M "), "{line}");
    }
}
