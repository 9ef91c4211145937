//! Places where callers of the blocking form sleep.
//!
//! The words lie in the library's memory, not on the caller's stack: a virtual machine monitor may kill a thread that
//! sleeps here and reuse its stack, and the engine's answer must never land there. The place of a killed thread is
//! lost, nothing else.

use crate::sync::{Futex, Ordering};

const FREE: u32 = 0;
const WAITING: u32 = 1;
const ANSWERED: u32 = 2;

/// A fixed number of sleeping places.
#[derive(Debug)]
pub struct Waiters {
    places: Box<[Futex]>,
}

impl Waiters {
    /// `count` places.
    pub fn new(count: usize) -> Self {
        Self { places: (0..count).map(|_| Futex::default()).collect() }
    }

    /// Takes a place; `None` when all are taken.
    pub fn take(&self) -> Option<usize> {
        self.places.iter().position(|place| {
            place.word().load(Ordering::Relaxed) == FREE
                && place.word().compare_exchange(FREE, WAITING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Gives a place back that no answer will come to.
    pub fn release(&self, place: usize) {
        self.places[place].word().store(FREE, Ordering::Release);
    }

    /// Sleeps until the answer is there and gives the place back. 0 or a negative errno.
    pub fn wait(&self, place: usize) -> i32 {
        let futex = &self.places[place];
        loop {
            let word = futex.word().load(Ordering::Acquire);
            if word != WAITING {
                futex.word().store(FREE, Ordering::Release);
                return -((word - ANSWERED) as i32);
            }
            futex.wait(WAITING, None);
        }
    }

    /// Answers with 0 or a negative errno and wakes the sleeper.
    pub fn answer(&self, place: usize, result: i32) {
        self.places[place].word().store(ANSWERED + result.unsigned_abs(), Ordering::Release);
        self.places[place].wake(1);
    }
}
