//! A bounded ring from many producers to one consumer, after D. Vyukov's bounded queue.
//!
//! A producer never blocks, never allocates and never enters the kernel: a full ring is an answer. Entries are four
//! words kept in atomics, so the ring needs no `unsafe`: the sequence number of a slot, stored with Release after the
//! words and loaded with Acquire before them, is what makes them whole.

use crate::sync::{AtomicU64, Ordering};

/// An entry: four words whose meaning is the user's.
pub type Entry = [u64; 4];

#[derive(Debug)]
#[repr(align(64))]
struct Slot {
    sequence: AtomicU64,
    entry: [AtomicU64; 4],
}

#[derive(Debug)]
#[repr(align(64))]
struct Cursor(AtomicU64);

/// The ring. [`Ring::push`] may be called by any thread at any time; [`Ring::pop`] by one thread at a time.
#[derive(Debug)]
pub struct Ring {
    slots: Box<[Slot]>,
    tail: Cursor,
    head: Cursor,
}

impl Ring {
    /// A ring of `capacity` entries, a power of two of at least 2.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two() && capacity >= 2);
        let slot = |i| Slot { sequence: AtomicU64::new(i), entry: std::array::from_fn(|_| AtomicU64::new(0)) };
        Self {
            slots: (0..capacity as u64).map(slot).collect(),
            tail: Cursor(AtomicU64::new(0)),
            head: Cursor(AtomicU64::new(0)),
        }
    }

    fn slot(&self, position: u64) -> &Slot {
        &self.slots[position as usize & (self.slots.len() - 1)]
    }

    /// Adds an entry; false when the ring is full.
    pub fn push(&self, entry: Entry) -> bool {
        let mut position = self.tail.0.load(Ordering::Relaxed);
        loop {
            let slot = self.slot(position);
            let sequence = slot.sequence.load(Ordering::Acquire);
            if sequence == position {
                let next = position.wrapping_add(1);
                match self.tail.0.compare_exchange_weak(position, next, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => {
                        for (cell, word) in slot.entry.iter().zip(entry) {
                            cell.store(word, Ordering::Relaxed);
                        }
                        slot.sequence.store(next, Ordering::Release);
                        return true;
                    }
                    Err(seen) => position = seen,
                }
            } else if sequence < position {
                return false; // the consumer has not freed this slot yet
            } else {
                position = self.tail.0.load(Ordering::Relaxed);
            }
        }
    }

    /// Takes the oldest entry.
    pub fn pop(&self) -> Option<Entry> {
        let position = self.head.0.load(Ordering::Relaxed);
        let slot = self.slot(position);
        if slot.sequence.load(Ordering::Acquire) != position + 1 {
            return None;
        }
        let entry = std::array::from_fn(|i| slot.entry[i].load(Ordering::Relaxed));
        slot.sequence.store(position + self.slots.len() as u64, Ordering::Release);
        self.head.0.store(position + 1, Ordering::Relaxed);
        Some(entry)
    }

    /// True when [`Ring::pop`] would find nothing; any thread may ask.
    pub fn is_empty(&self) -> bool {
        let position = self.head.0.load(Ordering::Relaxed);
        self.slot(position).sequence.load(Ordering::Acquire) <= position
    }
}

#[cfg(all(test, not(vmstream_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn entries_come_out_in_order_and_a_full_ring_says_so() {
        let ring = Ring::new(4);
        for round in 0..10 {
            assert!(ring.is_empty() && ring.pop().is_none());
            for i in 0..4 {
                assert!(ring.push([round, i, 0, 0]));
            }
            assert!(!ring.push([9, 9, 9, 9]));
            for i in 0..4 {
                assert_eq!(ring.pop(), Some([round, i, 0, 0]));
            }
        }
    }

    #[test]
    fn four_producers_lose_nothing_and_tear_nothing() {
        let ring = Ring::new(8);
        let per_thread = 20_000;
        std::thread::scope(|scope| {
            for t in 0..4u64 {
                let ring = &ring;
                scope.spawn(move || {
                    for i in 0..per_thread {
                        while !ring.push([t, i, t ^ i, t.wrapping_mul(i)]) {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut next = [0; 4];
            let mut got = 0;
            while got < 4 * per_thread {
                let Some([t, i, x, m]) = ring.pop() else {
                    std::thread::yield_now();
                    continue;
                };
                assert_eq!((x, m), (t ^ i, t.wrapping_mul(i)));
                assert_eq!(i, next[t as usize], "entries of one producer keep their order");
                next[t as usize] += 1;
                got += 1;
            }
        });
    }
}
