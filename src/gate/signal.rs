//! Waking whoever can take work: idle workers first, the engine thread when all of them are busy.
//!
//! Every thread that may sleep has a seat: a bit in one word that says it is idle, and a futex of its own. A producer
//! publishes its work, then looks for an idle seat; a sleeper sets its bit, then looks for work; with a sequentially
//! consistent fence between the two steps on both sides one of them always sees the other. Whoever clears the bit owns
//! the wake-up, so a burst of misses does not pay one system call each. Low seats are taken first: the same worker, with
//! the warmest connection, serves a guest that reads one block after the other; the engine sits last.

use std::time::Duration;

use crate::sync::{AtomicU64, Futex, Ordering, fence};

/// Number of seats.
pub const SEATS: usize = 64;
/// The engine thread's seat: the last one to be woken.
pub const ENGINE_SEAT: usize = SEATS - 1;

/// The seats of one image's threads.
#[derive(Debug)]
pub struct Signal {
    idle: AtomicU64,
    seats: Box<[Futex]>,
}

impl Default for Signal {
    fn default() -> Self {
        Self { idle: AtomicU64::new(0), seats: (0..SEATS).map(|_| Futex::default()).collect() }
    }
}

impl Signal {
    /// Wakes one idle thread, the lowest seat first; false when nobody is idle. The work must be published before.
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        let mut idle = self.idle.load(Ordering::Relaxed);
        while idle != 0 {
            let seat = idle.trailing_zeros() as usize;
            match self.idle.compare_exchange_weak(idle, idle & !(1 << seat), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    self.seats[seat].word().store(1, Ordering::Release);
                    self.seats[seat].wake(1);
                    return true;
                }
                Err(seen) => idle = seen,
            }
        }
        false
    }

    /// Wakes one seat if it is idle.
    pub fn ring_seat(&self, seat: usize) {
        fence(Ordering::SeqCst);
        if self.idle.fetch_and(!(1 << seat), Ordering::AcqRel) & (1 << seat) != 0 {
            self.seats[seat].word().store(1, Ordering::Release);
            self.seats[seat].wake(1);
        }
    }

    /// Wakes everybody.
    pub fn ring_all(&self) {
        while self.ring() {}
    }

    /// Sleeps on `seat` until a ring or the limit, unless `has_work` says there is something to do already.
    /// One thread a seat. The caller looks for work again in every case.
    pub fn sleep(&self, seat: usize, limit: Option<Duration>, has_work: impl Fn() -> bool) {
        let futex = &self.seats[seat];
        futex.word().store(0, Ordering::Relaxed);
        self.idle.fetch_or(1 << seat, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if !has_work() {
            futex.wait(0, limit);
        }
        // If the bit is gone already, somebody rang us and may still be about to wake this futex: a wake-up too many.
        self.idle.fetch_and(!(1 << seat), Ordering::AcqRel);
    }
}
