//! What a guest's own past says of it: how often it stalls, and how long it waits.
//!
//! Sums that fade, so that they tell of the last minutes: a guest that has finished to boot is another one.

use std::time::Duration;

use crate::stats::STALL;
use crate::time::Moment;

/// What lies so far back counts by e less: long enough to see a few rare stalls, short enough to forget a boot.
const MEMORY: Duration = Duration::from_secs(60);
/// A guest is watched at least for so long before its rate of stalls means anything: a single stall in the first
/// millisecond is not a thousand a second.
const WATCH_MIN: Duration = Duration::from_secs(1);

/// The habits of one guest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habits {
    /// When the sums were brought up to date last; `None` before the guest's first access.
    seen: Option<Moment>,
    /// Seconds watched.
    watched_s: f64,
    /// Waits longer than [`STALL`].
    stalls: f64,
    /// Seconds waited.
    stood_s: f64,
}

impl Habits {
    /// Brings the sums up to date: when the guest does something, and when somebody wants to know.
    pub fn look(&mut self, now: Moment) {
        let passed_s = self.seen.map_or(0.0, |seen| now.since(seen).as_secs_f64());
        let kept = (-passed_s / MEMORY.as_secs_f64()).exp();
        self.watched_s = self.watched_s * kept + passed_s;
        self.stalls *= kept;
        self.stood_s *= kept;
        self.seen = Some(now);
    }

    /// The guest has waited for bytes for so long on end.
    pub fn waited(&mut self, lasted: Duration, now: Moment) {
        self.look(now);
        self.stood_s += lasted.as_secs_f64();
        if lasted > STALL {
            self.stalls += 1.0;
        }
    }

    /// Stalls in a second.
    pub fn stalls_a_second(&self) -> f64 {
        self.stalls / self.watched_s.max(WATCH_MIN.as_secs_f64())
    }

    /// The share of its time, from 0 to 1, that the guest waits.
    pub fn share_waited(&self) -> f64 {
        (self.stood_s / self.watched_s.max(WATCH_MIN.as_secs_f64())).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_stalls_is_that_of_the_last_minutes() {
        let at = |seconds: u64| Moment(0) + Duration::from_secs(seconds);
        let mut habits = Habits::default();
        assert_eq!((habits.stalls_a_second(), habits.share_waited()), (0.0, 0.0));
        habits.look(at(1));
        for second in 2..=21 {
            habits.waited(if second % 2 == 0 { STALL * 5 } else { STALL / 2 }, at(second));
        }
        assert!((habits.stalls_a_second() - 0.5).abs() < 0.05, "{habits:?}");
        assert!((habits.share_waited() - 0.275).abs() < 0.03, "{habits:?}");
        habits.look(at(321));
        assert!(habits.stalls_a_second() < 0.001, "five minutes without one: {habits:?}");
    }
}
