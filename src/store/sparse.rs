//! The sparse image: an ordinary raw disk image in which what has not arrived yet is a hole.
//!
//! Data goes in by `pwrite`, never by a store through a map, so that a full disk is an error to handle and not a
//! signal that kills the guest. After every write the file's modification time is put back to that of the published
//! image: a copy-on-write file on top of it (User-Mode Linux's `ubd0=cow,backing`) remembers and checks it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{FallocateFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::lock::Lock;
use super::medium::Medium;
use crate::error::{Error, Result, errno};

/// What is written at once where a hole cannot be punched, in bytes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The sparse image of a cache: cheap to clone, usable from any thread.
///
/// While a clone lives, the cache stays locked.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// `None` for a nameless file.
    path: Option<PathBuf>,
    /// What messages call it.
    shown: String,
    size: u64,
    /// Modification time of the image, in seconds since 1970: that of a kept file is put back to it.
    mtime_s: i64,
    /// Held during a sync, see [`Store::sync`].
    syncing: Mutex<()>,
    /// The first sync that failed.
    failed: OnceLock<String>,
    _lock: Option<Lock>,
}

impl Store {
    /// The image of a kept cache.
    pub(super) fn kept(file: File, path: PathBuf, size: u64, mtime_s: i64, lock: Lock) -> Self {
        let shown = path.display().to_string();
        let store = Self::new(file, Some(path), shown, size, mtime_s, Some(lock));
        if let Err(e) = store.keep_mtime() {
            // Somebody else's file that we may write: everything but copy-on-write files works.
            log::warn!("{}: cannot set its modification time: {e}", store.0.shown);
        }
        store
    }

    /// The image of an ephemeral cache; `shown` is what messages call it.
    pub(super) fn nameless(file: File, shown: String, size: u64, mtime_s: i64) -> Self {
        Self::new(file, None, shown, size, mtime_s, None)
    }

    fn new(file: File, path: Option<PathBuf>, shown: String, size: u64, mtime_s: i64, lock: Option<Lock>) -> Self {
        let (syncing, failed) = (Mutex::new(()), OnceLock::new());
        Self(Arc::new(Inner { file, path, shown, size, mtime_s, syncing, failed, _lock: lock }))
    }

    /// Writes all of `bytes` at byte `offset`. After an error any part may have been written; on a full disk
    /// ([`Error::is_full`]) the same call may be repeated later.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_within("write", offset, bytes.len() as u64)?;
        let written = self.0.file.write_at(offset, bytes);
        self.put_mtime_back();
        written.map_err(|e| self.error("cannot write", offset, bytes.len() as u64, e))
    }

    /// Makes `length` bytes at `offset` zero: as a hole, or where the filesystem has none, by writing.
    pub fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.check_within("zero", offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zeroed = loop {
            match rustix::fs::fallocate(&self.0.file, hole, offset, length) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => break self.write_zeroes(offset, length),
                done => break done.map_err(io::Error::from),
            }
        };
        self.put_mtime_back();
        zeroed.map_err(|e| self.error("cannot zero", offset, length, e))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(ZEROES.len() as u64);
            self.0.file.write_at(offset + done, &ZEROES[..piece as usize])?;
            done += piece;
        }
        Ok(())
    }

    /// Fills `bytes` from byte `offset`. What never arrived reads as zeroes: ask the gate first.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check_within("read", offset, bytes.len() as u64)?;
        let mut done = 0;
        while done < bytes.len() {
            let (at, left) = (offset + done as u64, bytes.len() - done);
            match self.0.file.read_at(at, &mut bytes[done..]) {
                Ok(0) => return Err(self.error("cannot read", at, left as u64, cut_short())),
                Ok(got) => done += got,
                Err(e) => return Err(self.error("cannot read", at, left as u64, e)),
            }
        }
        Ok(())
    }

    /// Makes durable all that was written before the call, by whichever descriptor.
    ///
    /// The kernel reports a page that could not be written *once* and then calls it clean. So the first failure
    /// is final: every later sync fails too, and [`super::Journal::record`] records nothing any more. Syncs go one
    /// at a time, or of two at once one could get the report and the other claim success.
    pub fn sync(&self) -> Result<()> {
        self.sync_by(File::sync_data)
    }

    /// As [`Store::sync`], and the file's times as well.
    pub(super) fn sync_all(&self) -> Result<()> {
        self.sync_by(File::sync_all)
    }

    fn sync_by(&self, sync: impl Fn(&File) -> io::Result<()>) -> Result<()> {
        let _one_at_a_time = self.0.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_sound()?;
        sync(&self.0.file).map_err(|e| {
            let error = Error::io(format_args!("cannot make durable {}", self.0.shown), e);
            // Set here only, under the mutex and after the check above: it is always the first.
            let _ = self.0.failed.set(error.to_string());
            error
        })
    }

    /// An error if any sync has failed in this session.
    pub(super) fn check_sound(&self) -> Result<()> {
        match self.0.failed.get() {
            None => Ok(()),
            Some(first) => Err(Error::new(
                errno::EIO,
                format!(
                    "nothing written to {} since the last good sync can be called durable ({first}): check the disk, \
                     then open the cache anew; what is not recorded is fetched again",
                    self.0.shown
                ),
            )),
        }
    }

    /// Puts right what writes that did not go through this store may have changed: a length beyond the image's, and
    /// the modification time. Nothing happens to an ephemeral image.
    pub fn tidy(&self) -> Result<()> {
        if self.ephemeral() {
            return Ok(());
        }
        let length =
            self.0.file.metadata().map_err(|e| Error::io(format_args!("cannot examine {}", self.0.shown), e))?.len();
        if length > self.size() {
            lengthen(&self.0.file, &self.0.shown, self.size())?;
        }
        self.put_mtime_back();
        Ok(())
    }

    /// Puts the published modification time back, for writes that did not go through [`Store::write`]. Nothing happens
    /// to an ephemeral image.
    pub fn keep_mtime(&self) -> io::Result<()> {
        if self.ephemeral() {
            return Ok(());
        }
        let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let last_modification = Timespec { tv_sec: self.0.mtime_s, tv_nsec: 0 };
        Ok(rustix::fs::futimens(&self.0.file, &Timestamps { last_access, last_modification })?)
    }

    /// That it can be done was seen, or said, when the store was made; the data counts more.
    fn put_mtime_back(&self) {
        let _ = self.keep_mtime();
    }

    /// The image's descriptor: close-on-exec, for reading and writing at the offsets of the image.
    ///
    /// Whoever writes through it bypasses the bounds and the modification time kept here.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }

    /// The image's path as it was given; `None` when it has no name.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Modification time of the image, in seconds since 1970: that of the published one where it is known, else when the cache
    /// was made. The file's own is another for a moment whenever bytes arrive.
    pub fn mtime_s(&self) -> i64 {
        self.0.mtime_s
    }

    /// True when the image goes away with its last descriptor.
    pub fn ephemeral(&self) -> bool {
        self.0.path.is_none()
    }

    /// Size of the image, in bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    fn check_within(&self, what: &str, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.0.size) {
            return Ok(());
        }
        let Inner { shown, size, .. } = &*self.0;
        let text = format!("cannot {what} {length} bytes at byte {offset} of {shown}: it has {size} bytes");
        Err(Error::new(errno::EINVAL, text))
    }

    fn error(&self, what: &str, offset: u64, length: u64, e: io::Error) -> Error {
        let advice = match e.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => " (free some space; nothing is lost)",
            _ => "",
        };
        Error::io(format_args!("{what} {length} bytes at byte {offset} of {}{advice}", self.0.shown), e)
    }
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut short by someone else")
}

/// Gives a new image its size, as one hole.
pub(super) fn lengthen(file: &impl Medium, shown: &str, size: u64) -> Result<()> {
    file.set_length(size).map_err(|e| {
        let what = match e.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::FBIG) => format!(
                "the filesystem cannot hold a file as long as {shown} must be ({size} bytes; ext4 ends at 16 TiB - \
                 4 KiB): put the cache on XFS or Btrfs"
            ),
            _ => format!("cannot give {shown} its size of {size} bytes"),
        };
        Error::io(what, e)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// One that has a name, as far as it knows, when it has a time to keep.
    fn store(size: u64, mtime_s: Option<i64>) -> Store {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let path = mtime_s.map(|_| "x".into());
        let store = Store::new(file, path, "x".into(), size, mtime_s.unwrap_or(77), None);
        store.keep_mtime().unwrap();
        store
    }

    #[test]
    fn bytes_come_back_and_holes_are_zero() {
        let store = store(1 << 20, None);
        store.write(1000, b"hello").unwrap();
        store.write((1 << 20) - 3, b"end").unwrap();
        let mut bytes = [9; 7];
        store.read(999, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0hello\0");
        store.zero(1001, 3).unwrap();
        store.read(999, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0h\0\0\0o\0");
        store.zero(0, 0).unwrap();
        store.zero(0, 1 << 20).unwrap();
        assert_eq!((store.0.file.metadata().unwrap().len(), store.0.file.metadata().unwrap().blocks()), (1 << 20, 0));
    }

    #[test]
    fn written_zeroes_are_as_good_as_a_hole() {
        let store = store(200_000, None);
        store.write(0, &[7; 200_000]).unwrap();
        store.write_zeroes(1, 199_998).unwrap();
        let mut bytes = vec![9; 200_000];
        store.read(0, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[199_999]), (7, 7));
        assert!(bytes[1..199_999].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn nothing_reaches_beyond_the_image() {
        let store = store(100, None);
        assert_eq!(store.write(99, b"ab").unwrap_err().errno(), errno::EINVAL);
        assert_eq!(store.write(u64::MAX, b"ab").unwrap_err().errno(), errno::EINVAL);
        assert_eq!(store.zero(50, u64::MAX).unwrap_err().errno(), errno::EINVAL);
        let text = store.read(60, &mut [0; 41]).unwrap_err().to_string();
        assert!(text.contains("41 bytes at byte 60") && text.contains("100 bytes"), "{text}");
        assert_eq!(store.0.file.metadata().unwrap().len(), 100);
    }

    #[test]
    fn the_time_of_the_published_image_stays() {
        for mtime_s in [1_234_567_890, 0, -86_400] {
            let store = store(8192, Some(mtime_s));
            let times = || {
                let metadata = store.0.file.metadata().unwrap();
                (metadata.mtime(), metadata.mtime_nsec())
            };
            store.write(10, b"x").unwrap();
            assert_eq!(times(), (mtime_s, 0));
            store.zero(0, 4096).unwrap();
            assert_eq!(times(), (mtime_s, 0));
            store.0.file.write_at(0, b"somebody else").unwrap();
            assert_ne!(times(), (mtime_s, 0));
            assert_eq!(store.mtime_s(), mtime_s, "whatever the file shows");
            store.keep_mtime().unwrap();
            assert_eq!(times(), (mtime_s, 0));
        }
    }

    #[test]
    fn the_first_failed_sync_is_final() {
        // A device that takes data and cannot sync it.
        let null = File::options().write(true).open("/dev/null").unwrap();
        let store = Store::new(null, None, "/dev/null".into(), 1 << 20, 0, None);
        store.check_sound().unwrap();
        let first = store.sync().unwrap_err().to_string();
        assert!(first.contains("/dev/null"));
        let later = store.sync().unwrap_err();
        assert_eq!(later.errno(), errno::EIO);
        assert!(later.to_string().contains(&first) && store.check_sound().is_err(), "{later}");
    }
}
