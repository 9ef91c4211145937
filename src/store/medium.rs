//! What the journal needs of a filesystem, and nothing more.
//!
//! [`Folder`] and [`Medium`] are the seam of the crash tests: the real ones are [`super::directory`], the others
//! live in memory and know what a power failure would leave (see `super::memory`). The obligations written here
//! are all that the crash argument in [`super`] may lean on.

use std::ffi::{OsStr, OsString};
use std::io;

use crate::error::Result;

/// One regular file.
///
/// Errors are bare system errors: whoever calls knows the path and says what was tried.
pub(super) trait Medium {
    /// Reads at `offset` as far as the file goes; 0 at and behind its end.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`. After an error any part of them may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Length of the file, in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Cuts the file, or lengthens it with zeroes that take no room.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes content and length durable, but not the name. After an error nothing is known about what was written
    /// since the last success, and a later success says nothing about it either.
    fn sync(&self) -> io::Result<()>;
}

/// One directory. Names are plain file names; none is ever followed if it is a symbolic link.
///
/// Errors carry their whole text.
pub(super) trait Folder: Clone {
    /// What the directory holds.
    type File: Medium;

    /// The path of `name`, for messages.
    fn show(&self, name: &OsStr) -> String;

    /// Opens a regular file for reading and writing; `None` when there is nothing by that name.
    fn open(&self, name: &OsStr) -> Result<Option<Self::File>>;

    /// Creates a file that must not exist, for its owner alone.
    fn create(&self, name: &OsStr) -> Result<Self::File>;

    /// Gives a file another name, at once and in place of what had that name.
    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()>;

    /// Removes a name; fine when there is none.
    fn remove(&self, name: &OsStr) -> Result<()>;

    /// Makes all names durable.
    fn sync(&self) -> Result<()>;
}

/// The names of one cache's files, all in one directory.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The sparse image.
    pub image: OsString,
    /// Its journal: `IMAGE.vmj`.
    pub journal: OsString,
    /// The journal's successor while it is being written: `IMAGE.vmj.new`.
    pub fresh: OsString,
    /// The lock: `IMAGE.vmj.lock`. A file of its own, because the journal is replaced by renaming and the image may
    /// be locked by whoever reads it.
    pub lock: OsString,
}

/// What is appended to an image's name to name its journal.
pub(super) const JOURNAL_SUFFIX: &str = ".vmj";

impl Names {
    /// The names that go with an image.
    pub fn of(image: &OsStr) -> Self {
        let with = |suffix: &str| {
            let mut name = image.to_owned();
            name.push(JOURNAL_SUFFIX);
            name.push(suffix);
            name
        };
        Self { image: image.to_owned(), journal: with(""), fresh: with(".new"), lock: with(".lock") }
    }
}
