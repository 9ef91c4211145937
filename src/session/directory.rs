//! The directory of an image's sessions, which never grows beyond its limits.
//!
//! A file is called by the moment its session began, `20261122T150448.123456Z.vms`, so the order of names is the order of
//! time. When a session begins the oldest files go, until what is left and a session of the largest size fit in
//! together; so nothing needs to be looked at while one is recorded. Only files with such names are ever removed: what
//! somebody copied here under a name of his own stays.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::WallTime;
use super::file::FILE_BYTES_MAX;
use crate::config::{Config, Sessions};
use crate::error::{Error, Result, errno};

/// Ending of a session file's name.
const ENDING: &str = ".vms";
/// Most sessions that are kept: as many as a model remembers the paths of.
const FILES_MAX: usize = 256;
/// One session gets at most this share of the directory, so that a long one does not drive out all others.
const SHARE: u64 = 4;
/// Sessions that may begin in the same microsecond.
const NAMES_MAX: u32 = 100;
/// Modes of new directories and files: which blocks a guest used is its owner's business.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Where sessions are kept.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    files_max: usize,
    bytes_max: u64,
}

/// The name of a session that began at `started`; `again` sets those of one microsecond apart.
fn file_name(started: WallTime, again: u32) -> String {
    let stamp: String = started.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    if again == 0 { format!("{stamp}{ENDING}") } else { format!("{stamp}.{again}{ENDING}") }
}

/// True for the names that [`file_name`] gives.
fn is_ours(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(ENDING) else { return false };
    let (stamp, again) = stem.split_once("Z.").map_or((stem.strip_suffix('Z'), "1"), |(at, n)| (Some(at), n));
    let shape = |stamp: &str| {
        stamp.len() == 22
            && stamp.bytes().enumerate().all(|(at, byte)| match at {
                8 => byte == b'T',
                15 => byte == b'.',
                _ => byte.is_ascii_digit(),
            })
    };
    stamp.is_some_and(shape) && !again.is_empty() && again.bytes().all(|byte| byte.is_ascii_digit())
}

impl Directory {
    /// The directory at `path`, which need not exist; `bytes_max` for all sessions together.
    pub fn new(path: &Path, bytes_max: u64) -> Self {
        Self { path: path.to_owned(), files_max: FILES_MAX, bytes_max }
    }

    /// The directory that the options name; `None` when nothing is to be recorded.
    pub fn of(config: &Config) -> Option<Self> {
        let path = match (&config.sessions, &config.cache) {
            (Sessions::In(path), _) => path.clone(),
            (Sessions::Beside, Some(cache)) => cache.join(DIRECTORY_NAME),
            (Sessions::Beside, None) | (Sessions::Off, _) => return None,
        };
        Some(Self::new(&path, config.sessions_bytes_max))
    }

    /// The directory, which need not exist.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Most bytes of all sessions together.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Most bytes of one session.
    pub fn file_bytes_max(&self) -> u64 {
        FILE_BYTES_MAX.min(self.bytes_max / SHARE)
    }

    /// All session files, the oldest first as far as their names say when they began. None when there is no directory.
    pub fn list(&self) -> Result<Vec<PathBuf>> {
        let unreadable = |e| Error::io(format_args!("cannot list {}", self.path.display()), e);
        let entries = match std::fs::read_dir(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let named = entry.file_name().to_str().is_some_and(|name| name.ends_with(ENDING));
            // Not a link or a pipe that somebody put there.
            if named && entry.file_type().map_err(unreadable)?.is_file() {
                paths.push(entry.path());
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// Makes the directory, for its owner alone, if there is none.
    pub fn make(&self) -> Result<()> {
        let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&self.path);
        made.map_err(|e| Error::io(format_args!("cannot make the directory {}", self.path.display()), e))
    }

    /// Makes room for a session and makes its file, and the directory if there is none.
    pub fn create(&self, started: WallTime) -> Result<(File, PathBuf)> {
        self.make()?;
        self.make_room()?;
        let mut again = 0;
        loop {
            let path = self.path.join(file_name(started, again));
            again += 1;
            match OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && again < NAMES_MAX => {}
                Err(e) => return Err(Error::io(format_args!("cannot create {}", path.display()), e)),
                Ok(file) => return Ok((file, path)),
            }
        }
    }

    /// Removes the oldest sessions until one more of the largest size fits in.
    fn make_room(&self) -> Result<()> {
        let mut sessions = Vec::new();
        for path in self.list()? {
            let ours = path.file_name().and_then(|name| name.to_str()).is_some_and(is_ours);
            // One that is gone meanwhile was removed by somebody who makes room as well.
            if let (true, Ok(metadata)) = (ours, path.symlink_metadata()) {
                sessions.push((path, metadata.len()));
            }
        }
        let mut bytes: u64 = sessions.iter().map(|session| session.1).sum();
        let mut count = sessions.len();
        for (path, length) in sessions {
            if count < self.files_max && bytes <= self.bytes_max - self.file_bytes_max() {
                break;
            }
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(format_args!("cannot remove the old session {}", path.display()), e));
                }
                _ => (count, bytes) = (count - 1, bytes - length),
            }
        }
        Ok(())
    }
}

/// The directory of sessions that a person means: `path` itself, or `sessions` in the cache at `path`.
pub fn find(path: &Path) -> Result<PathBuf> {
    let inside = path.join(DIRECTORY_NAME);
    if inside.is_dir() {
        return Ok(inside);
    }
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    Err(Error::new(
        errno::ENOENT,
        format!("there is no directory {}: give a cache, or sessions=DIR of one", path.display()),
    ))
}

/// Name of the directory in a cache.
pub const DIRECTORY_NAME: &str = "sessions";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const START: u64 = 1_795_359_888_123_456;

    fn names(directory: &Directory) -> Vec<String> {
        let paths = directory.list().unwrap();
        paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn options_name_the_directory() {
        let of = |options: &[&str]| {
            let config = Config::parse([&["url=pattern:1M"], options].concat()).unwrap();
            Directory::of(&config).map(|directory| (directory.path, directory.bytes_max))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["cache=/c"]), Some(("/c/sessions".into(), 64 << 20)));
        assert_eq!(of(&["cache=/c", "sessions=off"]), None);
        assert_eq!(of(&["cache=/c", "sessions=/s", "sessions_max=1M"]), Some(("/s".into(), 1 << 20)));
        assert_eq!(of(&["file=/c/d"]), None);
        assert_eq!(of(&["file=/c/d", "sessions=s"]), Some(("s".into(), 64 << 20)));
    }

    #[test]
    fn names_tell_the_time_and_sort_by_it() {
        assert_eq!(file_name(WallTime(START), 0), "20261122T150448.123456Z.vms");
        for again in [0, 1, 99] {
            assert!(is_ours(&file_name(WallTime(START), again)));
        }
        for other in [
            "",
            ".vms",
            "mine.vms",
            "20261122T150448.123456Z",
            "20261122T150448.123456Z.x.vms",
            "20261122T150448.123456Z..vms",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn a_full_directory_loses_the_oldest_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/sessions");
        let directory = Directory { path: path.clone(), files_max: 3, bytes_max: 4000 };
        assert_eq!(directory.file_bytes_max(), 1000);
        let make = |n: u64, length: usize| {
            let (file, path) = directory.create(WallTime(START + n)).unwrap();
            file.set_len(length as u64).unwrap();
            path
        };
        make(0, 10);
        std::fs::write(path.join("mine.vms"), [0; 9000]).unwrap();
        std::fs::write(path.join("20261122T150448.123456Z.txt"), b"").unwrap();
        for n in 1..4 {
            make(n, 10);
        }
        assert_eq!(names(&directory).len(), 4, "three and the one that is not ours: the fourth pushed out the first");
        assert!(!path.join(file_name(WallTime(START), 0)).exists());
        // By bytes: 10 + 2991 leave less than the 1000 that the next one may need.
        make(4, 2991);
        make(5, 1);
        let kept = [4, 5].map(|n| file_name(WallTime(START + n), 0));
        assert_eq!(names(&directory)[..2], kept, "after {:?}", names(&directory));
        assert!(path.join("mine.vms").exists() && path.join("20261122T150448.123456Z.txt").exists());
    }

    #[test]
    fn sessions_of_one_moment_get_names_of_their_own_and_are_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sessions");
        let directory = Directory::new(&path, 1 << 20);
        assert_eq!(directory.list().unwrap(), [] as [PathBuf; 0]);
        let (file, first) = directory.create(WallTime(START)).unwrap();
        let (_, second) = directory.create(WallTime(START)).unwrap();
        assert_ne!(first, second);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_person_may_name_the_cache_or_the_directory() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(find(root.path()).unwrap(), root.path());
        std::fs::create_dir(root.path().join("sessions")).unwrap();
        assert_eq!(find(root.path()).unwrap(), root.path().join("sessions"));
        assert!(find(&root.path().join("no")).unwrap_err().to_string().contains("/no"));
    }
}
