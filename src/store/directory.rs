//! The real files behind [`Folder`] and [`Medium`].
//!
//! All names are looked up in a directory that is opened once, so that moving or replacing that directory while it
//! is in use cannot make journal and image part company. A name that is a symbolic link, or anything but a regular
//! file, is refused: two links to one image would have two locks.
//!
//! New files can be read and written by their owner alone (0600): a guest's disk holds passwords and keys whatever
//! the published image held. Whoever wants to share one may `chmod` it; files that exist keep their mode.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::medium::{Folder, Medium};
use crate::error::{Error, Result, errno};

/// Mode of new files.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Mode of new directories.
const DIRECTORY_MODE: u32 = 0o700;

impl Medium for File {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, bytes, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A directory of the filesystem, opened; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    fd: Arc<File>,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory that exists.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::io(format_args!("cannot open the directory {}", path.display()), e.into()))?;
        Ok(Self { fd: Arc::new(fd.into()), path: path.to_owned() })
    }

    /// Makes a directory, and those above it, where they do not exist, durably; then opens it.
    pub fn make(path: &Path) -> Result<Self> {
        let missing: Vec<_> = path.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
        for path in missing.into_iter().rev() {
            match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io(format_args!("cannot make the directory {}", path.display()), e));
                }
                _ => Self::open(parent(path))?.sync()?,
            }
        }
        Self::open(path)
    }

    /// The path of a name in this directory.
    pub fn path(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a regular file, creating it if `flags` say so; `None` when there is none.
    pub fn open_with(&self, name: &OsStr, flags: OFlags) -> Result<Option<File>> {
        // NONBLOCK: opening a pipe that someone put there must not wait for its other end.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let refuse = |what: &str| {
            let text = format!("{} is {what}: give the path of a regular file", self.show(name));
            Err(Error::new(errno::EINVAL, text))
        };
        let fd = match rustix::fs::openat(&self.fd, name, flags, FILE_MODE) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return refuse("a symbolic link"),
            Err(Errno::ISDIR) => return refuse("a directory"),
            Err(e) => return Err(Error::io(format_args!("cannot open {}", self.show(name)), e.into())),
        };
        let file = File::from(fd);
        let metadata = file.metadata().map_err(|e| Error::io(format_args!("cannot examine {}", self.show(name)), e))?;
        if metadata.is_file() { Ok(Some(file)) } else { refuse("no regular file") }
    }

    /// Device and inode of what has this name now.
    pub fn inode(&self, name: &OsStr) -> Option<(u64, u64)> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// True when a regular file has this name.
    pub fn has_file(&self, name: &OsStr) -> bool {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    }
}

/// The directory a path lies in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

impl Folder for Directory {
    type File = File;

    fn show(&self, name: &OsStr) -> String {
        self.path(name).display().to_string()
    }

    fn open(&self, name: &OsStr) -> Result<Option<File>> {
        self.open_with(name, OFlags::RDWR)
    }

    fn create(&self, name: &OsStr) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.fd, name, flags, FILE_MODE)
            .map(File::from)
            .map_err(|e| Error::io(format_args!("cannot create {}", self.show(name)), e.into()))
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to)
            .map_err(|e| Error::io(format_args!("cannot rename {} to {}", self.show(from), self.show(to)), e.into()))
    }

    fn remove(&self, name: &OsStr) -> Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::io(format_args!("cannot remove {}", self.show(name)), e.into())),
        }
    }

    fn sync(&self) -> Result<()> {
        match rustix::fs::fsync(&self.fd) {
            // A filesystem that has no such thing; names are then as durable there as they ever are.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(e) => Err(Error::io(format_args!("cannot make durable {}", self.path.display()), e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_directories_and_pipes_are_refused_and_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("real"), b"x").unwrap();
        symlink("real", root.path().join("link")).unwrap();
        std::fs::create_dir(root.path().join("sub")).unwrap();
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let folder = Directory::open(root.path()).unwrap();
        for (name, what) in [("link", "symbolic link"), ("sub", "directory"), ("pipe", "no regular file")] {
            let text = folder.open(name.as_ref()).unwrap_err().to_string();
            assert!(text.contains(what) && text.contains(name), "{text}");
        }
        assert!(folder.open("real".as_ref()).unwrap().is_some());
        assert!(folder.open("nothing".as_ref()).unwrap().is_none());
        assert!(!folder.has_file("link".as_ref()) && folder.has_file("real".as_ref()));
    }

    #[test]
    fn what_is_made_is_its_owners_alone() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b/c");
        let folder = Directory::make(&deep).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&root.path().join("a")), mode(&deep)), (0o700, 0o700));
        folder.create("f".as_ref()).unwrap();
        assert_eq!(mode(&deep.join("f")), 0o600);
        assert!(folder.create("f".as_ref()).is_err(), "creating never takes over");
        assert!(Directory::make(&deep.join("f/g")).unwrap_err().to_string().contains("f/g"));
    }
}
