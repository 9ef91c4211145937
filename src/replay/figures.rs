//! What came of a replay.

use std::time::Duration;

use crate::stats::STALL;

/// Figures of one replay. Bytes are those of blocks, without headers, that arrived before the guest's last step ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Steps that the guest did. Fewer than it was to do: what it waited for was never fetched, a defect of the planner.
    pub steps: usize,
    /// From the start to the end of the last step.
    pub total: Duration,
    /// Time that the guest waited.
    pub stalled: Duration,
    /// Times that it waited.
    pub stalls: u64,
    /// Times that it waited more than a tenth of a second.
    pub long_stalls: u64,
    /// Bytes that arrived for demand and by foresight.
    pub bytes: u64,
    /// Those of `bytes` that the guest needed.
    pub used_bytes: u64,
    /// Bytes that arrived to fill the image.
    pub fill_bytes: u64,
    /// Bytes that the origin sent: blocks, packed or not, and the hashes to check them by.
    pub wire_bytes: u64,
    /// Requests sent.
    pub requests: u64,
}

impl Figures {
    /// Bytes that nobody needed: guesses that failed, gaps that were not worth a request, blocks that came twice.
    pub fn wasted_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.used_bytes)
    }

    /// The guest waited for so long.
    pub(super) fn stall(&mut self, lasted: Duration) {
        if lasted > Duration::ZERO {
            self.stalled += lasted;
            self.stalls += 1;
            self.long_stalls += u64::from(lasted > STALL);
        }
    }
}
