//! What the tests of all sources use.

use super::{Sink, Stop};

/// Collects a range and insists that it comes in order and without a gap.
#[derive(Debug)]
pub(crate) struct Collector {
    start: u64,
    /// What arrived.
    pub bytes: Vec<u8>,
    /// How much of it was reported as zero and not delivered.
    pub zeroed: u64,
}

impl Collector {
    /// Expects a range that begins at `start`.
    pub fn at(start: u64) -> Self {
        Self { start, bytes: Vec::new(), zeroed: 0 }
    }

    fn expect(&self, offset: u64) {
        assert_eq!(offset, self.start + self.bytes.len() as u64, "a piece out of order");
    }
}

impl Sink for Collector {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.expect(offset);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        self.expect(offset);
        self.bytes.resize(self.bytes.len() + length as usize, 0);
        self.zeroed += length;
        Ok(())
    }
}
