//! Where a cache lives.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::directory::{self, Directory};
use super::medium::Folder;
use crate::config::Config;
use crate::error::{Error, Result, errno};

/// Name of the image in a cache directory.
pub(super) const IMAGE_NAME: &str = "disk";
/// Where nameless images go when `TMPDIR` does not say. Not `/tmp`, which is often held in memory.
const TEMPORARY_DEFAULT: &str = "/var/tmp";
/// Names to try for a temporary file on a filesystem that has no nameless ones.
const TEMPORARY_ATTEMPTS_MAX: u32 = 100;

/// Where the image and its journal are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a nameless file in `$TMPDIR` or `/var/tmp`, without a journal: gone with the last who has it open.
    Ephemeral,
    /// `DIR/disk`, its journal beside it. The directory is made if there is none.
    Directory(PathBuf),
    /// The image itself, its journal beside it as `PATH.vmj`.
    File(PathBuf),
}

impl Place {
    /// The place that the options name.
    pub fn of(config: &Config) -> Self {
        match (&config.file, &config.cache) {
            (Some(file), _) => Self::File(file.clone()),
            (None, Some(directory)) => Self::Directory(directory.clone()),
            (None, None) => Self::Ephemeral,
        }
    }
}

impl Place {
    /// Path of a file that goes with the image, under its name with `ending` behind it; `None` for an ephemeral one.
    pub fn beside(&self, ending: &str) -> Option<PathBuf> {
        let mut path = match self {
            Self::Ephemeral => return None,
            Self::Directory(path) => path.join(IMAGE_NAME),
            Self::File(path) => path.clone(),
        }
        .into_os_string();
        path.push(ending);
        Some(path.into())
    }
}

/// The file name of an image given by its path.
pub(super) fn image_name(path: &Path) -> Result<&OsStr> {
    path.file_name().ok_or_else(|| {
        Error::new(errno::EINVAL, format!("{} names no file: give the path of the image", path.display()))
    })
}

/// Makes a nameless file; answers its directory as well, for messages.
pub(super) fn temporary() -> Result<(File, PathBuf)> {
    let path = std::env::var_os("TMPDIR").filter(|path| !path.is_empty()).unwrap_or_else(|| TEMPORARY_DEFAULT.into());
    let path = PathBuf::from(path);
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(&path, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(fd) => return Ok((fd.into(), path)),
        // The ways in which filesystems and kernels say that they have no nameless files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(e) => {
            let what = format!("cannot make a temporary image in {} (TMPDIR names another directory)", path.display());
            return Err(Error::io(what, e.into()));
        }
    }
    let folder = Directory::open(&path)?;
    let mut last = None;
    for attempt in 0..TEMPORARY_ATTEMPTS_MAX {
        let name = format!(".vmstream-{}-{attempt}", std::process::id());
        match folder.create(name.as_ref()) {
            Ok(file) => {
                folder.remove(name.as_ref())?;
                return Ok((file, path));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(errno::EIO, format!("cannot make a file in {}", path.display()))))
}

/// The directory and name of a kept image; `None` for an ephemeral one.
pub(super) fn split(place: &Place) -> Result<Option<(PathBuf, &OsStr)>> {
    match place {
        Place::Ephemeral => Ok(None),
        Place::Directory(path) => Ok(Some((path.clone(), OsStr::new(IMAGE_NAME)))),
        Place::File(path) => Ok(Some((directory::parent(path).to_owned(), image_name(path)?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_the_place() {
        let place = |options: &[&str]| Place::of(&Config::parse([&["url=pattern:1M"], options].concat()).unwrap());
        assert_eq!(place(&[]), Place::Ephemeral);
        assert_eq!(place(&["cache=/c"]), Place::Directory("/c".into()));
        assert_eq!(place(&["file=/c/i"]), Place::File("/c/i".into()));
        assert_eq!(place(&["cache=/c"]).beside(".x"), Some("/c/disk.x".into()));
        assert_eq!(place(&["file=/c/i.raw"]).beside(".x"), Some("/c/i.raw.x".into()));
        assert_eq!(place(&[]).beside(".x"), None);
    }

    #[test]
    fn a_bare_name_lies_in_the_current_directory() {
        let place = Place::File("image".into());
        assert_eq!(split(&place).unwrap(), Some((".".into(), OsStr::new("image"))));
        for path in ["/", "..", "a/.."] {
            assert!(split(&Place::File(path.into())).unwrap_err().to_string().contains("names no file"), "{path}");
        }
    }

    #[test]
    fn a_temporary_image_has_no_name() {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(temporary().unwrap().0.metadata().unwrap().nlink(), 0);
    }
}
