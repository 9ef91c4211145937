//! Counters that any thread adds to and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. Relaxed: counters order nothing.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the engine counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that came from the source, those dropped included.
    pub bytes_fetched: Counter,
    /// Bytes known to be zero that were not transferred.
    pub bytes_zero: Counter,
    /// Fetched bytes that were dropped because the guest had written the block meanwhile.
    pub bytes_dropped: Counter,
    /// Fetches that failed.
    pub fetch_errors: Counter,
    /// Requests that the gate sent to the engine.
    pub misses: Counter,
    /// Flushes asked for.
    pub flushes: Counter,
    /// Times the journal was made durable.
    pub checkpoints: Counter,
}
