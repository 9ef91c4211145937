//! Where a run keeps things: the cache, which stays, and in it a directory of this run, which goes.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmstream::error::{Error, Result, errno};

use crate::mount;
use crate::signals::Last;

/// The monitor's socket, in the directory of a run.
pub const SOCKET: &str = "qmp";
/// The directory of a run.
const RUN: &str = "run";
/// What a run has in its directory besides its mount: so a killed one is told from a directory that is called the same.
const LEFT: [&str; 5] = [SOCKET, "disk.qcow2", "disk.cow", "kept", "uml"];
/// Where the image is shown, in the directory of a run.
const MOUNT: &str = "mnt";
/// Hex digits of a name in the default cache: enough to tell all images apart.
const NAME_DIGITS: usize = 16;
/// A guest's writes are nobody else's business.
const MODE: u32 = 0o700;

/// The cache of an image.
pub struct Place {
    cache: PathBuf,
}

/// The directory of one run, which goes when this is dropped.
pub struct Work {
    /// The directory itself.
    pub directory: PathBuf,
    /// Where the image is shown.
    pub mount: PathBuf,
    /// What the guest writes to its disk.
    pub overlay: PathBuf,
    handle: File,
    made: Arc<Made>,
    _last: Last,
}

/// What was made for a run.
struct Made {
    /// The directory of the run.
    run: PathBuf,
    /// The directory of `--keep-writes`.
    keep: Option<Keep>,
}

/// A directory for what a guest writes. It stays only once there is a guest.
struct Keep {
    /// Those that were not there before, the outermost first. Nothing else is ever removed.
    made: Vec<PathBuf>,
    /// The file that is made in the last of them.
    overlay: PathBuf,
    stays: AtomicBool,
}

impl Place {
    /// The cache that was asked for, or the user's own for this source: named after the root hash, so that an image has one
    /// cache whichever server it comes from.
    pub fn of(cache: Option<&Path>, source: &str) -> Result<Self> {
        let cache = match cache {
            Some(cache) => cache.to_owned(),
            None => base()?.join(name(source)),
        };
        make(&cache)?;
        // QEMU and qemu-img are given paths in it, and an overlay would take a relative one as relative to itself.
        let cache = cache.canonicalize().map_err(|e| Error::io(format_args!("cannot find {}", cache.display()), e))?;
        Ok(Self { cache })
    }

    /// The cache's directory.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A fresh directory for a run, and one for what is to be kept, if anything is; in one of them is to be the file `overlay`. The
    /// caller has the cache's lock. After an error, as after a run without a guest, what was made here is gone again.
    pub fn begin(&self, keep_writes: Option<&Path>, overlay: &str) -> Result<Work> {
        let directory = self.cache.join(RUN);
        let mount = directory.join(MOUNT);
        clear(&directory)?;
        let keep = keep_writes.map(|keep| Keep::make(keep, overlay)).transpose()?;
        let made = Arc::new(Made { run: directory.clone(), keep });
        make(&mount)?;
        let overlay = made.keep.as_ref().map_or_else(|| directory.join(overlay), |keep| keep.overlay.clone());
        let handle = File::open(&directory);
        let handle = handle.map_err(|e| Error::io(format_args!("cannot open {}", directory.display()), e))?;
        let ended = made.clone();
        // Behind the end of the guest and the mount, which are said later and therefore done before.
        let last = Last::new(move || drop(ended.remove()));
        Ok(Work { directory, mount, overlay, handle, made, _last: last })
    }
}

impl Work {
    /// A path of the monitor's socket that is short enough for one, for other processes to use while this one lives.
    pub fn socket(&self) -> Result<String> {
        Ok(format!("/proc/{}/fd/{}/{SOCKET}", std::process::id(), self.handle.as_raw_fd()))
    }

    /// There is a guest: what it writes stays where that was asked for, however it ends.
    pub fn keep(&self) {
        if let Some(keep) = &self.made.keep {
            keep.stays.store(true, Ordering::Release);
        }
    }
}

impl Made {
    /// Takes all of it away that is not to stay. May be done again.
    fn remove(&self) -> Result<()> {
        if let Some(keep) = &self.keep {
            keep.remove();
        }
        remove(&self.run)
    }
}

impl Drop for Made {
    /// The run is over, and its mount gone.
    fn drop(&mut self) {
        // The next one would do it too.
        if let Err(error) = self.remove() {
            log::warn!("{error}");
        }
    }
}

impl Keep {
    /// Makes the directory, and those that it is to lie in. Errors: `EINVAL` when it is there already; those of the system.
    fn make(directory: &Path, overlay: &str) -> Result<Self> {
        let there = |path: &Path| path.symlink_metadata().is_ok();
        let mut missing: Vec<_> = directory.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        missing.truncate(missing.iter().position(|path| there(path)).unwrap_or(missing.len()));
        if missing.is_empty() {
            let text = format!("--keep-writes {}: exists; name a directory that does not", directory.display());
            return Err(Error::new(errno::EINVAL, text));
        }
        let mut keep = Self { made: Vec::new(), overlay: PathBuf::new(), stays: AtomicBool::new(false) };
        for path in missing.into_iter().rev() {
            match DirBuilder::new().mode(MODE).create(path) {
                Ok(()) => keep.made.push(path.to_owned()),
                // Of a path such as new/../other, or somebody else's who was faster: not ours to remove.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path != directory => {}
                Err(e) => return Err(Error::io(format_args!("cannot make {}", path.display()), e)),
            }
        }
        let place = directory.canonicalize();
        let place = place.map_err(|e| Error::io(format_args!("cannot find {}", directory.display()), e))?;
        keep.overlay = place.join(overlay);
        Ok(keep)
    }

    /// Takes away what was made, unless it is to stay. A directory into which somebody else has put something stays too.
    fn remove(&self) {
        if self.stays.load(Ordering::Acquire) {
            return;
        }
        if !self.overlay.as_os_str().is_empty() {
            // As a rule it was not made yet.
            let _ = fs::remove_file(&self.overlay);
        }
        for directory in self.made.iter().rev() {
            match fs::remove_dir(directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    log::warn!("cannot remove {}: {e}", directory.display());
                    return;
                }
                _ => {}
            }
        }
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Where caches lie unless told otherwise.
fn base() -> Result<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = given("XDG_CACHE_HOME").or_else(|| Some(given("HOME")?.join(".cache")));
    let base = base.ok_or_else(|| Error::new(errno::ENOENT, "neither HOME nor XDG_CACHE_HOME is set: give --cache"))?;
    Ok(base.join("vmstream"))
}

/// The name of a source's cache: the beginning of its root hash, or of the hash of what is known of it.
fn name(source: &str) -> String {
    let root = source.rsplit_once('#').map(|(_, root)| root);
    let root = root.filter(|root| root.len() == 64 && root.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let hash = match root {
        Some(root) => root.to_ascii_lowercase(),
        None => format!("by-name-{}", blake3::hash(source.as_bytes()).to_hex()),
    };
    hash.chars().take(NAME_DIGITS + if root.is_some() { 0 } else { "by-name-".len() }).collect()
}

fn make(directory: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(MODE).create(directory);
    made.map_err(|e| Error::io(format_args!("cannot make {}", directory.display()), e))
}

/// Takes away what a killed run has left, perhaps with its mount, perhaps before it had one; somebody else's directory of that name
/// stays as it is. Errors: `EINVAL` for such a one.
fn clear(directory: &Path) -> Result<()> {
    let unreadable = |e| Error::io(format_args!("cannot read {}", directory.display()), e);
    let foreign = |what: &str| {
        let text =
            format!("{} is {what}, and no run has left it: give another --cache, or move it away", directory.display());
        Error::new(errno::EINVAL, text)
    };
    match directory.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if !found.is_dir() => return Err(foreign("no directory")),
        Ok(_) => {}
        Err(e) => return Err(unreadable(e)),
    }
    let mut mounted = false;
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        mounted |= name == MOUNT;
        if name != MOUNT && !LEFT.iter().any(|left| name == *left) {
            return Err(foreign(&format!("a directory with '{}' in it", name.display())));
        }
    }
    if mounted {
        let mount = directory.join(MOUNT);
        mount::check_directory(&mount)?;
        fs::remove_dir(&mount).map_err(|e| Error::io(format_args!("cannot remove {}", mount.display()), e))?;
    }
    remove(directory)
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format_args!("cannot remove {}", directory.display()), e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_called_after_the_root() {
        let root = "00112233445566778899AABBccddeeff00112233445566778899aabbccddeeff";
        assert_eq!(name(&format!("https://h/a.vmp#{root}")), "0011223344556677");
        assert_eq!(name(&format!("other/b.vmp#{root}")), "0011223344556677");
        assert_ne!(name("https://h/a.vmp"), name("https://h/b.vmp"));
        assert!(name("https://h/a.vmp#../../x").starts_with("by-name-"));
    }

    fn place(home: &Path) -> Place {
        Place::of(Some(&home.join("c")), "x").unwrap()
    }

    #[test]
    fn what_a_killed_run_left_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let place = place(home.path());
        let run = place.cache().join(RUN);
        fs::create_dir_all(run.join("mnt")).unwrap();
        fs::write(run.join("disk.cow"), "a guest's").unwrap();
        let work = place.begin(None, "disk.cow").unwrap();
        assert!(!work.overlay.exists() && work.mount.is_dir());
        drop(work);
        assert!(!run.exists());
        // Killed before it had a place for its mount.
        fs::create_dir(&run).unwrap();
        assert!(place.begin(None, "o").unwrap().mount.is_dir());
    }

    #[test]
    fn a_directory_that_no_run_has_left_stays() {
        let home = tempfile::tempdir().unwrap();
        let place = place(home.path());
        let run = place.cache().join(RUN);
        for mine in ["results", "mnt/mine", "mnt/mnt"] {
            let mine = run.join(mine);
            fs::create_dir_all(mine.parent().unwrap()).unwrap();
            fs::write(&mine, "mine").unwrap();
            let keep = home.path().join("keep");
            let error = place.begin(Some(&keep), "o").err().unwrap();
            assert!(error.to_string().contains("run"), "{error}");
            assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
            assert!(!keep.exists());
            fs::remove_dir_all(&run).unwrap();
        }
        std::os::unix::fs::symlink(home.path(), &run).unwrap();
        assert!(place.begin(None, "o").is_err() && run.is_symlink());
    }

    #[test]
    fn what_a_guest_wrote_is_kept_and_not_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let (place, keep) = (place(home.path()), home.path().join("new/keep"));
        let work = place.begin(Some(&keep), "o").unwrap();
        assert_eq!(work.overlay, keep.canonicalize().unwrap().join("o"));
        fs::write(&work.overlay, "mine").unwrap();
        work.keep();
        drop(work);
        let error = place.begin(Some(&keep), "o").err().unwrap();
        assert!(error.to_string().contains("--keep-writes"), "{error}");
        assert!(!place.cache().join(RUN).exists(), "nothing is left of a run that did not begin");
        assert_eq!(fs::read_to_string(keep.join("o")).unwrap(), "mine");
    }

    #[test]
    fn without_a_guest_nothing_is_left_and_nothing_of_the_user_s_is_touched() {
        let home = tempfile::tempdir().unwrap();
        let (place, own) = (place(home.path()), home.path().join("own"));
        fs::create_dir(&own).unwrap();
        let keep = own.join("a/b");
        let begin = || {
            let work = place.begin(Some(&keep), "o").unwrap();
            fs::write(&work.overlay, "empty").unwrap();
            work
        };
        drop(begin());
        assert_eq!(fs::read_dir(&own).unwrap().count(), 0, "what was made is gone, and what was there is not");
        assert!(!place.cache().join(RUN).exists());
        // What somebody else put there meanwhile is not ours.
        let work = begin();
        fs::write(own.join("a/mine"), "mine").unwrap();
        drop(work);
        assert!(own.join("a/mine").exists() && !keep.exists());
        // A cache that cannot be used is no reason to leave the other directory.
        fs::remove_dir_all(own.join("a")).unwrap();
        fs::write(place.cache().join(RUN), "no directory").unwrap();
        assert!(place.begin(Some(&keep), "o").is_err());
        assert!(!own.join("a").exists());
    }
}
