//! Errors: what failed, on what, and what to do; each carries the `errno` a C caller sees.

use std::io;

/// The `errno` values this library answers with, by their names on Linux.
pub mod errno {
    #![allow(missing_docs, reason = "the names are those of errno(3)")]
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EAGAIN: i32 = 11;
    pub const EACCES: i32 = 13;
    pub const EBUSY: i32 = 16;
    pub const EINVAL: i32 = 22;
    pub const EFBIG: i32 = 27;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const ENOSYS: i32 = 38;
    pub const EPROTO: i32 = 71;
    pub const ENOTSUP: i32 = 95;
    pub const ESTALE: i32 = 116;
    pub const ETIMEDOUT: i32 = 110;
    pub const EHOSTUNREACH: i32 = 113;
    pub const ECANCELED: i32 = 125;
    pub const ENOTRECOVERABLE: i32 = 131;
}

/// What failed, on what, and what to do.
///
/// The text is one line for a person and does not end in a full stop; [`Error::errno`] is the positive
/// error number for a program.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    errno: i32,
    message: String,
    #[source]
    source: Option<io::Error>,
}

/// [`std::result::Result`] with this library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with a positive `errno` and a one-line text.
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        debug_assert!(errno > 0);
        Self { errno, message: message.into(), source: None }
    }

    /// A refused option: names the option, its value and the reason.
    pub fn option(key: &str, value: &str, reason: impl std::fmt::Display) -> Self {
        Self::new(errno::EINVAL, format!("option {key}={value}: {reason}"))
    }

    /// A failed system call; `what` says what was tried on what ("cannot write /path/to/file").
    pub fn io(what: impl std::fmt::Display, source: io::Error) -> Self {
        let errno = source.raw_os_error().unwrap_or(errno::EIO);
        Self { errno, message: format!("{what}: {source}"), source: Some(source) }
    }

    /// The positive error number, never 0.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// True for a full disk or an exhausted quota: may pass when space returns.
    pub fn is_full(&self) -> bool {
        const EDQUOT: i32 = 122;
        matches!(self.errno, errno::ENOSPC | EDQUOT)
    }
}
