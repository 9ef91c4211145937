//! Where a run keeps things: the cache, which stays, and in it a directory of this run, which goes.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vmstream::error::{Error, Result, errno};

use crate::mount;

/// The monitor's socket, in the directory of a run.
pub const SOCKET: &str = "qmp";
/// The overlay, in the directory of a run or that of `--keep-writes`.
const OVERLAY: &str = "disk.qcow2";
/// The directory of a run.
const RUN: &str = "run";
/// Hex digits of a name in the default cache: enough to tell all images apart.
const NAME_DIGITS: usize = 16;
/// A guest's writes are nobody else's business.
const MODE: u32 = 0o700;

/// The cache of an image.
pub struct Place {
    cache: PathBuf,
}

/// The directory of one run.
pub struct Work {
    /// The directory itself.
    pub directory: PathBuf,
    /// Where the image is shown.
    pub mount: PathBuf,
    /// What the guest writes to its disk.
    pub overlay: PathBuf,
    handle: File,
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

    /// A fresh directory for a run, and one for what is to be kept. The caller has the cache's lock.
    pub fn begin(&self, keep_writes: Option<&Path>) -> Result<Work> {
        let directory = self.cache.join(RUN);
        let mount = directory.join("mnt");
        if directory.exists() {
            // Of a run that was killed, perhaps with its mount.
            mount::check_directory(&mount)?;
            remove(&directory)?;
        }
        make(&mount)?;
        let overlay = match keep_writes {
            None => directory.join(OVERLAY),
            Some(keep) => {
                if keep.exists() {
                    let text = format!("--keep-writes {}: exists; name a directory that does not", keep.display());
                    return Err(Error::new(errno::EINVAL, text));
                }
                make(keep)?;
                let keep = keep.canonicalize();
                keep.map_err(|e| Error::io("cannot find the directory of --keep-writes", e))?.join(OVERLAY)
            }
        };
        let handle = File::open(&directory);
        let handle = handle.map_err(|e| Error::io(format_args!("cannot open {}", directory.display()), e))?;
        Ok(Work { directory, mount, overlay, handle })
    }
}

impl Work {
    /// A path of the monitor's socket that is short enough for one, for other processes to use while this one lives.
    pub fn socket(&self) -> Result<String> {
        Ok(format!("/proc/{}/fd/{}/{SOCKET}", std::process::id(), self.handle.as_raw_fd()))
    }

    /// The run is over, and its mount gone.
    pub fn end(self) {
        // The next one would do it too.
        if let Err(error) = remove(&self.directory) {
            log::warn!("{error}");
        }
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

    #[test]
    fn what_a_killed_run_left_is_gone_and_what_is_kept_is_not_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let place = Place::of(Some(&home.path().join("c")), "x").unwrap();
        let work = place.begin(None).unwrap();
        fs::write(&work.overlay, "mine").unwrap();
        let work = place.begin(None).unwrap();
        assert!(!work.overlay.exists() && work.mount.is_dir());
        work.end();
        assert!(!place.cache().join(RUN).exists());
        let keep = home.path().join("keep");
        assert!(place.begin(Some(&keep)).unwrap().overlay.starts_with(keep.canonicalize().unwrap()));
        assert!(place.begin(Some(&keep)).is_err());
    }
}
