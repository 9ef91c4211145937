//! A sink that keeps what it is given, up to a length that its owner knows.

use crate::source::{Sink, Stop};

/// Bytes in order, no more than were asked for.
pub(super) struct Collector {
    bytes: Vec<u8>,
    due: u64,
}

impl Collector {
    /// Expects `due` bytes. Room is made as they come.
    pub fn new(due: u64) -> Self {
        Self { bytes: Vec::new(), due }
    }

    /// The bytes, if all are here.
    pub fn whole(self) -> Option<Vec<u8>> {
        (self.bytes.len() as u64 == self.due).then_some(self.bytes)
    }

    fn room(&self, more: u64) -> Result<(), Stop> {
        if more <= self.due - self.bytes.len() as u64 { Ok(()) } else { Err(Stop) }
    }
}

impl Sink for Collector {
    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.room(bytes.len() as u64)?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn zeroes(&mut self, _: u64, length: u64) -> Result<(), Stop> {
        self.room(length)?;
        self.bytes.resize(self.bytes.len() + length as usize, 0);
        Ok(())
    }
}
