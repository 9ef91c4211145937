//! The link estimator: rate and round-trip time, measured from the fetches that happen anyway.
//!
//! As in BBR (Cardwell et al. 2016) the two are taken from opposite moments. The *rate* is the greatest delivery rate
//! seen lately: bytes that arrived on all connections between the start and the end of a fetch, over that time. The
//! *round-trip time* comes from the first bytes of fetches that began while nothing else was on the way; one that began
//! behind other bytes only ever lowers the estimate, because it also measured our own queue. From both follows the
//! *window*: how many bytes to have on the way so that the link is full and its queue short.

use std::time::Duration;

use crate::time::Moment;

/// Queue that prefetch may build at the far end of the link, as time: what a demand may find before it.
pub const QUEUE_TARGET: Duration = Duration::from_millis(10);
/// Smallest window, in bytes: enough to measure a link with.
pub const WINDOW_MIN: u64 = 64 << 10;
/// Largest window, in bytes.
pub const WINDOW_MAX: u64 = 64 << 20;
/// The greatest rate is forgotten after one to two of these.
const RATE_MEMORY: Duration = Duration::from_secs(5);
/// After so long without an undisturbed sample the round-trip time is measured on purpose.
const ROUND_TRIP_MEMORY: Duration = Duration::from_secs(60);
/// Growth of the rate below this in [`STARTUP_ROUNDS`] rounds on end ends the start phase.
const STARTUP_GROWTH: f64 = 1.15;
const STARTUP_ROUNDS: u32 = 3;
/// One round in so many has a larger window, to notice when the link has become faster, or was never full.
const PROBE_ROUNDS: u32 = 8;
/// How much larger.
const PROBE_GAIN: f64 = 1.25;

/// What a fetch remembers of its start.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    at: Moment,
    delivered: u64,
    clean: bool,
    filled: bool,
    first_seen: bool,
}

/// The estimator. Pure: the caller brings the time.
#[derive(Debug, Default)]
pub struct Link {
    delivered: u64,
    in_flight: u64,
    rate_now: f64,
    rate_before: f64,
    rate_turned: Moment,
    round_trip: Option<Duration>,
    round_trip_at: Moment,
    /// Rounds without growth; the start phase doubles the window until there are enough.
    flat: u32,
    best: f64,
    /// A round is over when a fetch ends that began after this much had been delivered: then all that the window of the
    /// round before let out has come back.
    round_end: u64,
    rounds: u32,
    /// The greatest rate seen in this round, and whether the link was full in it.
    round_best: f64,
    round_filled: bool,
}

impl Link {
    /// A fetch of `bytes` goes out.
    pub fn start(&mut self, bytes: u64, now: Moment) -> Token {
        let clean = self.in_flight == 0;
        self.in_flight += bytes;
        let filled = self.in_flight * 4 >= self.window() * 3;
        Token { at: now, delivered: self.delivered, clean, filled, first_seen: false }
    }

    /// Bytes of it arrived. What came without any, as the holes of a published image do, says nothing of the link.
    pub fn arrive(&mut self, token: &mut Token, bytes: u64, now: Moment) {
        if bytes == 0 {
            return;
        }
        if !token.first_seen {
            token.first_seen = true;
            self.round_trip_sample(now.since(token.at), token.clean, now);
        }
        self.delivered += bytes;
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// It ended, with `missing` bytes that will not come.
    pub fn end(&mut self, token: Token, missing: u64, now: Moment) {
        self.in_flight = self.in_flight.saturating_sub(missing);
        let elapsed = now.since(token.at).as_secs_f64();
        // One that brought no bytes lasted as long as a processor or a server took, and not the link.
        if elapsed <= 0.0 || !token.first_seen {
            return;
        }
        let rate = (self.delivered - token.delivered) as f64 / elapsed;
        if token.filled && now.since(self.rate_turned) > RATE_MEMORY {
            self.rate_before = self.rate_now;
            self.rate_now = 0.0;
            self.rate_turned = now;
        }
        // A fetch on a half-empty link says how much was asked for, not how much could be had.
        if token.filled || rate > self.rate() {
            self.rate_now = self.rate_now.max(rate);
        }
        self.round_best = self.round_best.max(rate);
        self.round_filled |= token.filled;
        if token.delivered >= self.round_end {
            self.end_round();
        }
    }

    fn end_round(&mut self) {
        if self.round_best > self.best * STARTUP_GROWTH {
            self.best = self.round_best;
            self.flat = 0;
        } else if self.round_filled {
            self.flat = (self.flat + 1).min(STARTUP_ROUNDS);
        }
        self.rounds = self.rounds.wrapping_add(1);
        self.round_end = self.delivered;
        self.round_best = 0.0;
        self.round_filled = false;
    }

    fn round_trip_sample(&mut self, sample: Duration, clean: bool, now: Moment) {
        let old = self.round_trip.unwrap_or(sample);
        if sample <= old {
            self.round_trip = Some(sample);
            self.round_trip_at = now;
        } else if clean {
            self.round_trip = Some(old + (sample - old) / 4);
            self.round_trip_at = now;
        }
    }

    /// Estimated rate, in bytes a second; 0 when nothing is known.
    pub fn rate(&self) -> f64 {
        self.rate_now.max(self.rate_before)
    }

    /// Estimated round-trip time.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Time to send `bytes` at the estimated rate.
    pub fn time_of(&self, bytes: u64) -> Duration {
        let rate = self.rate();
        if rate > 0.0 { Duration::from_secs_f64((bytes as f64 / rate).min(1e6)) } else { Duration::ZERO }
    }

    /// Bytes to have on the way, all classes together.
    pub fn window(&self) -> u64 {
        let gain = match self.rounds % PROBE_ROUNDS {
            _ if self.flat < STARTUP_ROUNDS => 2.0,
            0 => PROBE_GAIN,
            _ => 1.0,
        };
        let trip = self.round_trip.unwrap_or_default().as_secs_f64() * gain + QUEUE_TARGET.as_secs_f64();
        ((self.rate() * trip) as u64).clamp(WINDOW_MIN, WINDOW_MAX)
    }

    /// True when the link should be left to run empty once, so that the round-trip time can be measured again. Without
    /// this a link that never idles would take its own queue for distance and let it grow.
    pub fn wants_calm(&self, now: Moment) -> bool {
        self.round_trip.is_some() && now.since(self.round_trip_at) > ROUND_TRIP_MEMORY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of one FIFO pipe, kept full up to the window with fetches of a fixed size.
    fn run(rate: f64, round_trip: Duration, seconds: u64) -> (Link, Duration) {
        let mut link = Link::default();
        let mut now = Moment(1);
        let mut pipe_free = now;
        let mut on_the_way: std::collections::VecDeque<(Token, u64, Moment)> = Default::default();
        let mut worst = Duration::ZERO;
        let end = now + Duration::from_secs(seconds);
        while now < end {
            let chunk = (link.window() / 6).max(16 << 10);
            let calm = link.wants_calm(now);
            while link.in_flight + chunk <= link.window() && (!calm || link.in_flight == 0) {
                let token = link.start(chunk, now);
                let sent = pipe_free.max(now + round_trip / 2);
                pipe_free = sent + Duration::from_secs_f64(chunk as f64 / rate);
                if now + Duration::from_secs(2) > end {
                    worst = worst.max(sent.since(now + round_trip / 2));
                }
                on_the_way.push_back((token, chunk, pipe_free + round_trip / 2));
                if calm {
                    break;
                }
            }
            let (mut token, chunk, at) = on_the_way.pop_front().unwrap();
            now = at;
            link.arrive(&mut token, chunk, now);
            link.end(token, 0, now);
        }
        for (mut token, chunk, at) in on_the_way {
            link.arrive(&mut token, chunk, at);
            link.end(token, 0, at);
        }
        (link, worst)
    }

    #[test]
    fn a_saturated_link_is_measured_and_its_queue_stays_short() {
        for (rate, ms) in [(3_125_000.0, 50), (12_500_000.0, 5), (12_500_000.0, 100), (125_000.0, 200)] {
            let (link, queue) = run(rate, Duration::from_millis(ms), 60);
            let found = link.rate() / rate;
            assert!((0.85..1.1).contains(&found), "{rate} B/s, {ms} ms: rate off by {found}");
            // A link slower than WINDOW_MIN per round trip cannot be told apart from its own queue.
            let floor = Duration::from_secs_f64(WINDOW_MIN as f64 / rate);
            assert!(queue < QUEUE_TARGET * 3 + floor, "{rate} B/s, {ms} ms: queue {queue:?}");
        }
    }

    #[test]
    fn small_demands_on_an_idle_link_do_not_lower_the_rate() {
        let (mut link, _) = run(3_125_000.0, Duration::from_millis(50), 20);
        let before = link.rate();
        let mut now = Moment(30_000_000_000);
        for _ in 0..1000 {
            let mut token = link.start(4096, now);
            now = now + Duration::from_millis(60);
            link.arrive(&mut token, 4096, now);
            link.end(token, 0, now);
        }
        assert_eq!(link.rate(), before);
        assert!(link.round_trip().unwrap() > Duration::from_millis(55), "the longer way is noticed");
    }

    #[test]
    fn what_takes_nothing_of_the_link_tells_nothing_of_it() {
        let (mut link, _) = run(3_125_000.0, Duration::from_millis(50), 20);
        let before = (link.round_trip(), link.rate());
        let now = Moment(30_000_000_000);
        let mut data = link.start(64 << 10, now);
        // A hole is here after some microseconds, in which a piece of something else arrives.
        let mut hole = link.start(0, now);
        let soon = now + Duration::from_micros(60);
        link.arrive(&mut hole, 0, soon);
        link.arrive(&mut data, 0, soon);
        link.delivered += 32 << 10;
        link.end(hole, 0, soon);
        assert_eq!((link.round_trip(), link.rate()), before);
        link.arrive(&mut data, 64 << 10, now + Duration::from_millis(40));
        assert_eq!(link.round_trip(), Some(Duration::from_millis(40)), "a fetch is measured by its first byte");
    }
}
