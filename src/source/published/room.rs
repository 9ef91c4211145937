//! Room for what was asked for and is not open yet: all lanes together take so many bytes of memory and no more.
//!
//! A frame may be long, and how long is the word of an index that nobody vouches for. So before a lane asks for frames it
//! takes room for them, and waits while others have it; what is unpacked has room of its own. Nobody waits for ever:
//! whoever has room of the first kind gives it back when its transfer ends, which has its own limits, or when what it
//! laid aside is open, for which it waits a moment at most; whoever has some of the second kind waits for nothing. Who fits
//! goes first, as every lane has one request at a time and none can be overtaken for long.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// So many bytes.
pub(super) struct Room {
    all: u64,
    free: Mutex<u64>,
    news: Condvar,
}

/// Some of them, until it is dropped.
pub(super) struct Taken<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Room {
    pub fn new(bytes: u64) -> Self {
        Self { all: bytes, free: Mutex::new(bytes), news: Condvar::new() }
    }

    /// Takes room for so many bytes, or all of it for more; waits until there is some. `None` when `stopped` says so; it is
    /// asked again after [`Room::tell`].
    pub fn take(&self, bytes: u64, stopped: &dyn Fn() -> bool) -> Option<Taken<'_>> {
        let bytes = bytes.min(self.all);
        let wait = |free: &mut u64| *free < bytes && !stopped();
        let mut free = self.news.wait_while(self.free(), wait).unwrap_or_else(PoisonError::into_inner);
        if *free < bytes {
            return None;
        }
        *free -= bytes;
        Some(Taken { room: self, bytes })
    }

    /// Has all who wait ask whether they are to stop.
    pub fn tell(&self) {
        // Under the lock, so that nobody is about to fall asleep.
        let free = self.free();
        self.news.notify_all();
        drop(free);
    }

    fn free(&self) -> MutexGuard<'_, u64> {
        // Each change is one assignment.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.room.free() += self.bytes;
        self.room.news.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;

    const GO_ON: &dyn Fn() -> bool = &|| false;

    #[test]
    fn no_more_is_taken_than_there_is_and_everybody_has_a_turn() {
        let (room, taken, most) = (Room::new(100), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for lane in 0..16 {
                let (room, taken, most) = (&room, &taken, &most);
                scope.spawn(move || {
                    // From what fits many times to what is more than all.
                    for bytes in [1, 30, 60, 90 + 2 * lane] {
                        let _room = room.take(bytes, GO_ON).unwrap();
                        let bytes = bytes.min(100);
                        most.fetch_max(taken.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                        std::thread::yield_now();
                        taken.fetch_sub(bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 100);
        assert_eq!(*room.free(), 100);
    }

    #[test]
    fn who_is_told_to_stop_waits_no_longer() {
        let (room, stop) = (Room::new(100), AtomicBool::new(false));
        let all = room.take(1000, GO_ON).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| room.take(1, &|| stop.load(Ordering::SeqCst)).is_none());
            stop.store(true, Ordering::SeqCst);
            room.tell();
            assert!(waits.join().unwrap());
        });
        drop(all);
        assert!(room.take(100, &|| true).is_some(), "what is there may be had");
    }
}
