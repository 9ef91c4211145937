//! The read-only map of the sparse image that a driver may read resident blocks from.

use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};

/// A shared read-only map of a whole file.
#[derive(Debug)]
pub struct FileMap {
    map: memmap2::Mmap,
}

impl FileMap {
    /// Maps `length` bytes of `fd` from its start.
    pub fn new(fd: BorrowedFd<'_>, length: u64) -> Result<Self> {
        use std::os::fd::AsRawFd;
        let length =
            usize::try_from(length).map_err(|_| Error::new(crate::error::errno::EFBIG, "image too large to map"))?;
        // SAFETY: the file is our own sparse image, locked against other users and never truncated while it is open.
        // Its bytes change under the map when blocks arrive or the guest writes; so this module never makes a slice of
        // it and hands out the address only.
        let map = unsafe { memmap2::MmapOptions::new().len(length).map(fd.as_raw_fd()) };
        map.map(|map| Self { map }).map_err(|e| Error::io("cannot map the sparse image", e))
    }

    /// Address of the first byte; valid as long as `self`.
    pub fn address(&self) -> *const u8 {
        self.map.as_ptr()
    }
}
