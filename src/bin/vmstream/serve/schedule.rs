//! When to learn: after so many new sessions, or some time after the first of fewer.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What waits to be learnt. All methods may be called from several threads at once.
#[derive(Debug)]
pub struct Schedule {
    after: u32,
    every: Duration,
    /// By image: how many sessions are new, and when the first of them came.
    waiting: Mutex<BTreeMap<String, (u32, Instant)>>,
    news: Condvar,
}

impl Schedule {
    /// A lesson is due after `after` new sessions of an image, or when the first of them is `every` old.
    pub fn new(after: u32, every: Duration) -> Self {
        Self { after, every, waiting: Mutex::default(), news: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (u32, Instant)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is one more new session of an image.
    pub fn heard(&self, image: &str) {
        self.lock().entry(image.to_owned()).or_insert((0, Instant::now())).0 += 1;
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
    waiting: &BTreeMap<String, (u32, Instant)>,
    after: u32,
    every: Duration,
    now: Instant,
) -> Result<String, Option<Duration>> {
    let mut pause = None;
    for (image, (new, since)) in waiting {
        let rest = every.saturating_sub(now.saturating_duration_since(*since));
        if *new >= after || rest.is_zero() {
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
        waiting.insert("b".to_owned(), (2, at(0)));
        waiting.insert("a".to_owned(), (1, at(5)));
        assert_eq!(due(&waiting, at(6)), Err(Some(Duration::from_secs(4))));
        assert_eq!(due(&waiting, at(10)), Ok("b".to_owned()));
        waiting.insert("a".to_owned(), (3, at(5)));
        assert_eq!(due(&waiting, at(6)), Ok("a".to_owned()));
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
