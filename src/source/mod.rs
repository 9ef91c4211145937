//! Sources: where the bytes of an image come from.
//!
//! A [`Source`] answers ranges of one image and knows its [`Identity`]. It never retries and never decides
//! policy: it says whether a failure may pass ([`FetchError::Transient`]) or never can ([`FetchError::Fatal`]),
//! and the planner decides what to do. What a source hands to its [`Sink`] is what the guest will see, so a
//! source checks everything that can be checked *before* the first byte goes there.

use std::time::Duration;

use crate::error::Error;

/// What pins an image: the same identity means the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Size of the image, in bytes.
    pub size: u64,
    /// Strong ETag (with its quotes) or Last-Modified date as the origin sent it; for a file its device, inode,
    /// size and modification time; for a pattern its seed. `None` when the origin gives nothing to pin.
    pub validator: Option<String>,
    /// Modification time of the published image, in seconds since 1970, where the origin says it.
    pub mtime_s: Option<i64>,
}

/// Why a range could not be fetched.
#[derive(Debug)]
pub enum FetchError {
    /// May pass: a cut link, a stalled or overloaded server. Worth a retry, after `retry_after` if the server
    /// asked for that.
    Transient {
        /// One line for a person.
        message: String,
        /// The server's own wish (Retry-After).
        retry_after: Option<Duration>,
    },
    /// Can never succeed: not found, forbidden, a changed image, a server that cannot send ranges.
    Fatal(Error),
    /// The sink refused more data.
    Stopped,
}

impl FetchError {
    /// A failure that may pass.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), retry_after: None }
    }
}

/// The sink asks the source to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// Takes what a source delivers.
///
/// Offsets are absolute in the image, begin at the start of the range that was asked for and go on without a
/// gap; pieces may be of any length.
pub trait Sink {
    /// The next bytes of the range.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop>;
    /// The next `length` bytes of the range are zero and were not transferred.
    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop>;
}

/// Where the bytes of one image come from. All methods may be called from several threads at once.
pub trait Source: Send + Sync {
    /// A name for messages, without credentials.
    fn name(&self) -> String;

    /// What this image is, as learnt when the source was opened.
    fn identity(&self) -> &Identity;

    /// Delivers `length` bytes from `offset` into `sink`, in order. Blocks; gives up by itself when the peer
    /// sends nothing for the stall limit. What was delivered before an error is good.
    ///
    /// `lane` is the number of the calling worker: a source may keep one connection for each.
    fn fetch(&self, lane: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError>;

    /// Makes a connection ready for `lane` ahead of its next fetch, if none is. Failing is no error.
    fn warm(&self, lane: usize) {
        let _ = lane;
    }

    /// Makes fetches that are under way return soon, and later ones at once: the image is closing.
    fn abort(&self) {}

    /// Number of requests that went to a server so far, for statistics.
    fn requests(&self) -> u64 {
        0
    }
}
