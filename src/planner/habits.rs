//! What a guest's own past says of it: how often it stalls, how long it waits, how fast it goes, how much of what it does
//! is new.
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
/// Pieces of a way, in seconds of the guest's own time, whose speed is measured: shorter ones are all jumps.
const LEG_MIN_S: f64 = 0.5;
/// A guest that has got further than this in a piece of way, in seconds of the remembered session for each of its own,
/// did not go there but was recognised elsewhere.
const TEMPO_MAX: f64 = 10.0;
/// Slowest guest that is believed in.
const TEMPO_MIN: f64 = 0.1;
/// So many seconds of going as fast as the remembered guests are taken for seen: nobody knows better at the start.
const TEMPO_PRIOR_S: f64 = 1.0;

/// The habits of one guest. Times are in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habits {
    /// When the sums were brought up to date last; `None` before the guest's first access.
    seen: Option<Moment>,
    /// The guest's last access, or the end of its last wait.
    acted: Option<Moment>,
    watched_s: f64,
    /// Waits, and those longer than [`STALL`].
    waits: f64,
    stalls: f64,
    stood_s: f64,
    /// All that the guest waited, never forgotten: its own clock is the time less this.
    stood_ever: Duration,
    /// Accesses to what no session knows; never forgotten while the sessions are the same.
    news: f64,
    /// Where it was seen last: session, time in it, and when that was on the guest's own clock.
    place: Option<(usize, f32, f64)>,
    /// Time of the sessions that the guest has gone through, and its own time meanwhile.
    gone_s: f64,
    going_s: f64,
}

impl Habits {
    /// Brings the sums up to date.
    pub fn look(&mut self, now: Moment) {
        let passed_s = self.seen.map_or(0.0, |seen| now.since(seen).as_secs_f64());
        let kept = (-passed_s / MEMORY.as_secs_f64()).exp();
        self.watched_s = self.watched_s * kept + passed_s;
        for sum in [&mut self.waits, &mut self.stalls, &mut self.stood_s, &mut self.gone_s, &mut self.going_s] {
            *sum *= kept;
        }
        self.seen = Some(now);
    }

    /// The guest does something.
    pub fn acted(&mut self, now: Moment) {
        self.look(now);
        self.acted = Some(now);
    }

    /// The guest has waited for bytes for so long on end.
    pub fn waited(&mut self, lasted: Duration, now: Moment) {
        self.acted(now);
        self.stood(lasted);
    }

    /// Counts a wait, as one that has ended or as the present one in a copy.
    pub fn stood(&mut self, lasted: Duration) {
        self.stood_s += lasted.as_secs_f64();
        self.stood_ever += lasted;
        self.waits += 1.0;
        if lasted > STALL {
            self.stalls += 1.0;
        }
    }

    /// The guest touches what no session knows, so many times.
    pub fn met_news(&mut self, touches: usize) {
        self.news += touches as f64;
    }

    /// The guest is followed by other sessions now: what was news and where it is has to be told anew.
    pub fn follow_anew(&mut self) {
        self.news = 0.0;
        self.place = None;
    }

    /// The guest has got to this place: number of a session, and seconds in it. `waiting` is how long its present wait
    /// has lasted.
    pub fn located(&mut self, place: Option<(usize, f32)>, waiting: Duration, now: Moment) {
        let Some((session, at)) = place else { return };
        let own_s = (Duration::from_nanos(now.0).saturating_sub(self.stood_ever + waiting)).as_secs_f64();
        if self.acted.is_none() {
            return;
        }
        if let Some((before, from, since_s)) = self.place
            && before == session
        {
            let (gone_s, going_s) = (f64::from(at - from), own_s - since_s);
            if going_s < LEG_MIN_S {
                return;
            }
            if (0.0..=going_s * TEMPO_MAX).contains(&gone_s) {
                self.gone_s += gone_s;
                self.going_s += going_s;
            }
        }
        self.place = Some((session, at, own_s));
    }

    /// The guest has done something.
    pub fn has_begun(&self) -> bool {
        self.acted.is_some()
    }

    /// How long it was watched, in seconds, as far as that is remembered.
    pub fn watched_s(&self) -> f64 {
        self.watched_s
    }

    /// Stalls in a second.
    pub fn stalls_a_second(&self) -> f64 {
        self.stalls / self.watched_s.max(WATCH_MIN.as_secs_f64())
    }

    /// The share of its time, from 0 to 1, that the guest waits.
    pub fn share_waited(&self) -> f64 {
        (self.stood_s / self.watched_s.max(WATCH_MIN.as_secs_f64())).min(1.0)
    }

    /// The share of its waits that are stalls; `expected`, as if that had been seen in `weight` waits.
    pub fn share_stalled(&self, expected: f64, weight: f64) -> f64 {
        (self.stalls + expected * weight) / (self.waits + weight)
    }

    /// Seconds of remembered sessions in one of the guest's own.
    pub fn tempo(&self) -> f64 {
        ((self.gone_s + TEMPO_PRIOR_S) / (self.going_s + TEMPO_PRIOR_S)).clamp(TEMPO_MIN, TEMPO_MAX)
    }

    /// Accesses so far to what no session knows.
    pub fn news(&self) -> f64 {
        self.news
    }

    /// How long the guest has done nothing that was new to it, in seconds.
    pub fn quiet_s(&self, now: Moment) -> f64 {
        self.acted.map_or(0.0, |acted| now.since(acted).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn the_rate_of_stalls_is_that_of_the_last_minutes() {
        let mut habits = Habits::default();
        assert_eq!((habits.stalls_a_second(), habits.share_waited()), (0.0, 0.0));
        habits.acted(at(1));
        for second in 2..=21 {
            habits.waited(if second % 2 == 0 { STALL * 5 } else { STALL / 2 }, at(second));
        }
        assert!((habits.stalls_a_second() - 0.5).abs() < 0.05, "{habits:?}");
        assert!((habits.share_waited() - 0.275).abs() < 0.03, "{habits:?}");
        habits.look(at(321));
        assert!(habits.stalls_a_second() < 0.001, "five minutes without one: {habits:?}");
    }

    #[test]
    fn the_tempo_is_that_of_the_way_gone_without_jumps_and_waits() {
        let mut habits = Habits::default();
        assert_eq!(habits.tempo(), 1.0);
        habits.acted(at(1));
        for second in 1..=40 {
            // Half of each second is a wait; in the other half goes what took the session a second and a half.
            habits.waited(Duration::from_millis(500), at(second));
            habits.located(Some((7, 1.5 * second as f32)), Duration::ZERO, at(second));
        }
        assert!((habits.tempo() - 3.0).abs() < 0.3, "{habits:?}");
        let before = habits.tempo();
        habits.located(Some((7, 900.0)), Duration::ZERO, at(41));
        habits.located(Some((8, 1.0)), Duration::ZERO, at(42));
        assert!((habits.tempo() - before).abs() < 1e-9, "a jump is no speed");
    }

    #[test]
    fn a_wait_that_has_not_ended_does_not_slow_the_tempo() {
        let mut habits = Habits::default();
        habits.acted(at(1));
        habits.located(Some((7, 1.0)), Duration::ZERO, at(1));
        habits.acted(at(3));
        // The guest goes as fast as the session did, and then stands for a minute, in the middle of which it is looked for.
        for second in 3..=63 {
            habits.located(Some((7, 3.0)), Duration::from_secs(second - 3), at(second));
        }
        habits.waited(Duration::from_secs(60), at(63));
        habits.located(Some((7, 5.0)), Duration::ZERO, at(65));
        assert!((habits.tempo() - 1.0).abs() < 1e-9, "{habits:?}");
    }
}
