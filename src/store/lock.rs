//! The lock of a cache: one user at a time, and the second is told who the first is.
//!
//! It is an advisory lock (`flock`) on a file of its own, held by a descriptor of its own: the kernel drops it with
//! the last process that has the descriptor, however that one ends. Not a POSIX record lock: those vanish when the
//! process closes *any* descriptor of the file, and a guest's monitor may open and close what it likes.
//!
//! The holder writes who it is into the file. That text may outlive it, so it is believed only while the process it
//! names lives and started when it says. The file goes when the lock is given back; whoever got hold of a file that
//! has lost its name meanwhile starts over, so two can never hold two different files.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::directory::Directory;
use super::medium::{Folder, Medium};
use crate::error::{Error, Result, errno};

/// Longest text of a holder that is written or read, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// How often a file that lost its name is tried anew. Each time somebody else gave the lock back in just that moment.
const ATTEMPTS_MAX: usize = 100;

/// Who uses a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of the program, without its arguments: those may hold passwords.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

/// A lock that is held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    folder: Directory,
    name: OsString,
}

impl Lock {
    /// Takes the lock or says who has it; never waits. `image` is for messages.
    pub fn take(folder: &Directory, name: &OsStr, image: &OsStr) -> Result<Self> {
        for _ in 0..ATTEMPTS_MAX {
            let flags = OFlags::RDWR | OFlags::CREATE;
            let Some(file) = folder.open_with(name, flags)? else {
                let text = format!("cannot create {}: its directory is gone", folder.show(name));
                return Err(Error::new(errno::ENOENT, text));
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(busy(folder, name, image)),
                Err(e) => return Err(Error::io(format_args!("cannot lock {}", folder.show(name)), e.into())),
            }
            let lock = Self { file, folder: folder.clone(), name: name.to_owned() };
            if lock.is_named() {
                lock.sign();
                return Ok(lock);
            }
        }
        Err(busy(folder, name, image))
    }

    /// True while the file that is locked is the one that has the name.
    fn is_named(&self) -> bool {
        let own = self.file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
        own.is_some() && own == self.folder.inode(&self.name)
    }

    /// Writes who holds the lock. It holds without that too, so a full disk does not matter.
    fn sign(&self) {
        let text = format!("{} {} {}\n", std::process::id(), started(std::process::id()).unwrap_or(0), own_command());
        let written = self.file.set_len(0).and_then(|()| self.file.write_at(0, text.as_bytes()));
        if let Err(e) = written {
            log::debug!("{}: cannot write who holds the lock: {e}", self.folder.show(&self.name));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_named()
            && let Err(error) = self.folder.remove(&self.name)
        {
            log::debug!("{error}; it does no harm there");
        }
    }
}

impl Holder {
    /// Who holds a lock, as far as can be told without touching it; `None` when nobody is known to.
    pub(super) fn of(folder: &Directory, name: &OsStr) -> Option<Self> {
        let file = folder.open_with(name, OFlags::RDONLY).ok()??;
        let mut text = String::new();
        file.take(TEXT_BYTES_MAX as u64).read_to_string(&mut text).ok()?;
        let mut words = text.strip_suffix('\n')?.splitn(3, ' ');
        let pid = words.next()?.parse().ok()?;
        let since: u64 = words.next()?.parse().ok()?;
        let command = words.next()?.to_owned();
        (started(pid) == Some(since)).then_some(Self { pid, command })
    }
}

fn busy(folder: &Directory, name: &OsStr, image: &OsStr) -> Error {
    let (image, lock) = (folder.show(image), folder.show(name));
    let text = match Holder::of(folder, name) {
        Some(holder) => format!("{image} is in use by {holder}: end that first, or give another cache"),
        // Another host or container, a child that outlived the holder, or a holder that is about to sign.
        None => format!(
            "{image} is in use by a process whose name is not known: `fuser -v {lock}` may find it; end it first, or \
             give another cache"
        ),
    };
    Error::new(errno::EBUSY, text)
}

/// When a process started, in clock ticks since the boot: with the pid it names one process for good.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything; the start is the 22nd.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn own_command() -> String {
    let arg = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&arg).file_name().unwrap_or(OsStr::new("?")).to_string_lossy();
    // Room for the numbers; no character has more than four bytes.
    name.chars().filter(|c| !c.is_control()).take((TEXT_BYTES_MAX - 64) / 4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(folder: &Directory) -> Result<Lock> {
        Lock::take(folder, "disk.vmj.lock".as_ref(), "disk".as_ref())
    }

    #[test]
    fn the_second_is_told_who_the_first_is_and_gets_it_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let folder = Directory::open(root.path()).unwrap();
        let first = take(&folder).unwrap();
        let error = take(&folder).unwrap_err();
        assert_eq!(error.errno(), errno::EBUSY);
        let text = error.to_string();
        assert!(text.contains(&format!("(pid {})", std::process::id())) && text.contains(&own_command()), "{text}");
        drop(first);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0, "the lock leaves nothing behind");
        drop(take(&folder).unwrap());
    }

    #[test]
    fn the_text_of_a_dead_or_other_process_names_nobody() {
        let root = tempfile::tempdir().unwrap();
        let folder = Directory::open(root.path()).unwrap();
        let own = std::process::id();
        let stale = [
            // A pid that cannot live, one that lives but started at another time, and texts cut short.
            "4194305 77 ghost\n".to_owned(),
            format!("{own} 1 ghost\n"),
            format!("{own} {}", started(own).unwrap()),
            "\u{0}\n".to_owned(),
            String::new(),
        ];
        for text in stale {
            std::fs::write(root.path().join("disk.vmj.lock"), &text).unwrap();
            assert_eq!(Holder::of(&folder, "disk.vmj.lock".as_ref()), None, "{text:?}");
            let lock = take(&folder).expect("a dead holder's file does not lock");
            std::fs::write(root.path().join("disk.vmj.lock"), &text).unwrap();
            let error = take(&folder).unwrap_err().to_string();
            assert!(!error.contains("ghost") && error.contains("not known"), "{error}");
            drop(lock);
        }
    }

    #[test]
    fn many_threads_never_hold_it_twice() {
        let root = tempfile::tempdir().unwrap();
        let folder = Directory::open(root.path()).unwrap();
        let holders = std::sync::atomic::AtomicUsize::new(0);
        let taken = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    use std::sync::atomic::Ordering::SeqCst;
                    for _ in 0..500 {
                        if let Ok(lock) = take(&folder) {
                            assert_eq!(holders.fetch_add(1, SeqCst), 0);
                            taken.fetch_add(1, SeqCst);
                            holders.fetch_sub(1, SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(taken.into_inner() > 0);
    }
}
