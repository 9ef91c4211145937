//! The synchronisation that the gate is made of: atomics and a raw futex.
//!
//! With `--cfg vmstream_shuttle` the same names are those of the shuttle model checker, which runs the gate's code
//! under many thread schedules; there a futex is a mutex and a condition variable, and a time limit never ends, so
//! that a lost wake-up shows as a deadlock.

#[cfg(vmstream_shuttle)]
pub use model::*;
#[cfg(not(vmstream_shuttle))]
pub use real::*;

#[cfg(not(vmstream_shuttle))]
mod real {
    use std::time::Duration;

    use rustix::thread::futex;
    pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

    /// A word that threads can sleep on. Private to the address space, not to the process: it also works between
    /// threads of different thread groups that share their memory (`clone(CLONE_VM)`).
    #[derive(Debug, Default)]
    pub struct Futex(AtomicU32);

    impl Futex {
        /// The word itself.
        pub fn word(&self) -> &AtomicU32 {
            &self.0
        }

        /// Sleeps while the word is `expected`, until a wake-up, a signal or the limit; may wake for no reason.
        pub fn wait(&self, expected: u32, limit: Option<Duration>) {
            let limit = limit.map(|d| futex::Timespec {
                tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: d.subsec_nanos().into(),
            });
            // Every error (changed word, signal, limit) means: look again.
            let _ = futex::wait(&self.0, futex::Flags::PRIVATE, expected, limit.as_ref());
        }

        /// Wakes up to `count` sleepers.
        pub fn wake(&self, count: u32) {
            let _ = futex::wake(&self.0, futex::Flags::PRIVATE, count);
        }
    }

    /// Lets others run; between attempts at something that another thread is about to finish.
    pub fn pause() {
        rustix::thread::sched_yield();
    }
}

#[cfg(vmstream_shuttle)]
mod model {
    use std::time::Duration;

    pub use shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

    /// A futex in the model.
    #[derive(Debug, Default)]
    pub struct Futex {
        word: AtomicU32,
        lock: shuttle::sync::Mutex<()>,
        bell: shuttle::sync::Condvar,
    }

    impl Futex {
        /// The word itself.
        pub fn word(&self) -> &AtomicU32 {
            &self.word
        }

        /// Sleeps while the word is `expected`; the limit never ends.
        pub fn wait(&self, expected: u32, _limit: Option<Duration>) {
            let guard = self.lock.lock().unwrap();
            if self.word.load(Ordering::SeqCst) == expected {
                drop(self.bell.wait(guard).unwrap());
            }
        }

        /// Wakes up to `count` sleepers.
        pub fn wake(&self, count: u32) {
            let _guard = self.lock.lock().unwrap();
            for _ in 0..count.min(64) {
                self.bell.notify_one();
            }
        }
    }

    /// Lets others run.
    pub fn pause() {
        shuttle::thread::yield_now();
    }
}
