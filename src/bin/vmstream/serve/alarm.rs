//! Timers that are exact to about a tenth of a millisecond.
//!
//! The runtime's own timers count in whole milliseconds, which is much of a 5 ms round trip and more than a piece
//! lasts on a fast link. Here one thread sleeps until the earliest of all moments somebody waits for and wakes
//! whoever that is; its sleep is as exact as the kernel's.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

/// The thread that wakes; it ends when the clock is dropped.
#[derive(Debug)]
pub struct Clock {
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Rung when a moment is set that comes before all others, and at the end.
    earlier: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By moment, then by alarm, as two alarms may share a moment.
    waiting: BTreeMap<(Instant, u64), Waker>,
    ended: bool,
}

/// One timer, for one waiter at a time.
#[derive(Debug)]
pub struct Alarm {
    clock: Arc<Clock>,
    id: u64,
    set_to: Option<Instant>,
}

impl Clock {
    /// Starts the thread.
    pub fn start() -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::default());
        let run = shared.clone();
        thread::Builder::new().name("link-clock".into()).spawn(move || run.run())?;
        Ok(Arc::new(Self { shared, next_id: AtomicU64::new(0) }))
    }

    /// A timer that is not set.
    pub fn alarm(self: &Arc<Self>) -> Alarm {
        Alarm { clock: self.clone(), id: self.next_id.fetch_add(1, Ordering::Relaxed), set_to: None }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.earlier.notify_one();
    }
}

impl Shared {
    /// No panic can leave the state half changed, so a poisoned lock is a sound one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.ended {
            let now = Instant::now();
            if let Some(waker) = state.take_due(now) {
                // Not under the lock: the woken task may set its alarm again at once.
                drop(state);
                waker.wake();
                state = self.lock();
                continue;
            }
            state = match state.waiting.keys().next() {
                None => self.earlier.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some((first, _)) => {
                    let wait = first.saturating_duration_since(now);
                    self.earlier.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl State {
    fn take_due(&mut self, now: Instant) -> Option<Waker> {
        let first = self.waiting.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

impl Alarm {
    /// Ready at `when` or later, never before. The moment may change from call to call.
    pub fn poll_until(&mut self, cx: &mut Context<'_>, when: Instant) -> Poll<()> {
        if Instant::now() >= when {
            self.unset();
            return Poll::Ready(());
        }
        if self.set_to != Some(when) {
            self.unset();
            self.set_to = Some(when);
        }
        let mut state = self.clock.shared.lock();
        let earliest = state.waiting.keys().next().is_none_or(|(first, _)| when < *first);
        // Also when it was set before: the waker may be another one, or may have been used up just now.
        state.waiting.insert((when, self.id), cx.waker().clone());
        drop(state);
        if earliest {
            self.clock.shared.earlier.notify_one();
        }
        Poll::Pending
    }

    /// Waits until `when`.
    pub async fn until(&mut self, when: Instant) {
        std::future::poll_fn(|cx| self.poll_until(cx, when)).await;
    }

    fn unset(&mut self) {
        if let Some(when) = self.set_to.take() {
            self.clock.shared.lock().waiting.remove(&(when, self.id));
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.unset();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn never_early_and_reusable() {
        let clock = Clock::start().unwrap();
        let (mut a, mut b) = (clock.alarm(), clock.alarm());
        for us in [0, 1, 300, 2000] {
            let when = Instant::now() + Duration::from_micros(us);
            tokio::join!(a.until(when), b.until(when));
            assert!(Instant::now() >= when);
        }
        assert!(clock.shared.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_moment_can_be_moved_up_after_the_alarm_was_set() {
        let clock = Clock::start().unwrap();
        let mut alarm = clock.alarm();
        let far = Instant::now() + Duration::from_secs(3600);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(alarm.poll_until(&mut cx, far).is_pending());
        alarm.until(Instant::now() + Duration::from_millis(1)).await;
        assert!(clock.shared.lock().waiting.is_empty(), "the first setting is gone");
    }

    #[test]
    fn a_dropped_alarm_wakes_nobody() {
        let clock = Clock::start().unwrap();
        let mut alarm = clock.alarm();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(alarm.poll_until(&mut cx, Instant::now() + Duration::from_secs(3600)).is_pending());
        drop(alarm);
        assert!(clock.shared.lock().waiting.is_empty());
    }
}
