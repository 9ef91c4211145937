//! When to learn: after so many new sessions, or some time after the first of fewer.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What waits to be learnt. All methods may be called from several threads at once.
#[derive(Debug)]
pub struct Schedule {
    after: u32,
    every: Duration,
    waiting: Mutex<BTreeMap<String, Waiting>>,
    news: Condvar,
}

/// What of one image waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// How many sessions are new.
    new: u32,
    /// When the first of them came.
    since: Instant,
    /// A lesson failed: none before then.
    not_before: Instant,
}

impl Schedule {
    /// A lesson is due after `after` new sessions of an image, or when the first of them is `every` old.
    pub fn new(after: u32, every: Duration) -> Self {
        Self { after, every, waiting: Mutex::default(), news: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is one more new session of an image.
    pub fn heard(&self, image: &str) {
        self.add(image, Duration::ZERO);
    }

    /// A lesson of an image failed. It is due as if one session were new, but not before this pause is over.
    pub fn failed(&self, image: &str, pause: Duration) {
        self.add(image, pause);
    }

    fn add(&self, image: &str, pause: Duration) {
        let now = Instant::now();
        let mut waiting = self.lock();
        let entry = waiting.entry(image.to_owned()).or_insert(Waiting { new: 0, since: now, not_before: now });
        entry.new = entry.new.saturating_add(1);
        entry.not_before = entry.not_before.max(now + pause);
        self.news.notify_one();
    }

    /// Waits until a lesson is due and takes it: the name of the image.
    pub fn next(&self) -> String {
        let mut waiting = self.lock();
        loop {
            match due(&waiting, self.after, self.every, Instant::now()) {
                Ok(image) => {
                    waiting.remove(&image);
                    return image;
                }
                Err(None) => waiting = self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Err(Some(pause)) => {
                    waiting = self.news.wait_timeout(waiting, pause).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

/// An image that is due, or how long until one is.
fn due(
    waiting: &BTreeMap<String, Waiting>,
    after: u32,
    every: Duration,
    now: Instant,
) -> Result<String, Option<Duration>> {
    let mut pause = None;
    for (image, Waiting { new, since, not_before }) in waiting {
        let young = every.saturating_sub(now.saturating_duration_since(*since));
        let rest = if *new >= after { Duration::ZERO } else { young };
        let rest = rest.max(not_before.saturating_duration_since(now));
        if rest.is_zero() {
            return Ok(image.clone());
        }
        pause = Some(pause.map_or(rest, |pause: Duration| pause.min(rest)));
    }
    Err(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_due_at_once_and_few_after_a_while() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let due = |waiting: &BTreeMap<_, _>, now| due(waiting, 3, Duration::from_secs(10), now);
        let mut waiting = BTreeMap::new();
        assert_eq!(due(&waiting, start), Err(None));
        let of = |new, since| Waiting { new, since: at(since), not_before: start };
        waiting.insert("b".to_owned(), of(2, 0));
        waiting.insert("a".to_owned(), of(1, 5));
        assert_eq!(due(&waiting, at(6)), Err(Some(Duration::from_secs(4))));
        assert_eq!(due(&waiting, at(10)), Ok("b".to_owned()));
        waiting.insert("a".to_owned(), of(3, 5));
        assert_eq!(due(&waiting, at(6)), Ok("a".to_owned()));
        // One that has failed waits for its pause, and holds up no other.
        waiting.insert("a".to_owned(), Waiting { not_before: at(20), ..of(3, 5) });
        assert_eq!(due(&waiting, at(6)), Err(Some(Duration::from_secs(4))));
        assert_eq!(due(&waiting, at(10)), Ok("b".to_owned()));
        assert_eq!(due(&waiting, at(20)), Ok("a".to_owned()));
    }

    #[test]
    fn a_lesson_is_taken_once() {
        let schedule = Schedule::new(2, Duration::from_secs(3600));
        schedule.heard("a");
        schedule.heard("b");
        schedule.heard("b");
        assert_eq!(schedule.next(), "b");
        schedule.heard("a");
        assert_eq!(schedule.next(), "a");
        assert!(schedule.lock().is_empty());
    }
}
