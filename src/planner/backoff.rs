//! When to try again: exponential back-off with jitter, for each failed range and for the link as a whole.

use std::time::Duration;

use crate::block::BlockRange;
use crate::time::Moment;

/// Failed ranges remembered at once; more than there can be fetches under way.
const SHUNNED_MAX: usize = 128;
/// A server may ask for this much patience at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Shunned {
    range: BlockRange,
    failures: u32,
    until: Moment,
}

/// The back-off of one image.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    random: u64,
    shunned: Vec<Shunned>,
    failures_on_end: u32,
    pause_until: Moment,
}

impl Backoff {
    /// Delays from `min`, doubling up to `max`; `seed` for the jitter.
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self {
            min,
            max: max.max(min),
            random: seed | 1,
            shunned: Vec::new(),
            failures_on_end: 0,
            pause_until: Moment(0),
        }
    }

    /// A delay for the n-th failure on end: doubling, then between half and all of it by chance, so that many guests of
    /// one failed server do not come back in step.
    fn delay(&mut self, failures: u32) -> Duration {
        let full = self.min.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.max);
        // xorshift64 (Marsaglia 2003)
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        full.mul_f64(0.5 + (self.random >> 11) as f64 / (1u64 << 54) as f64)
    }

    /// A fetch failed and `range` of it is missing. `progressed`: some of it had arrived.
    pub fn failed(&mut self, range: BlockRange, progressed: bool, retry_after: Option<Duration>, now: Moment) {
        let before = self.shunned.iter().filter(|s| s.range.overlaps(range)).map(|s| s.failures).max().unwrap_or(0);
        self.shunned.retain(|s| !s.range.overlaps(range));
        let failures = if progressed { 1 } else { before + 1 };
        let wish = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        let until = now + self.delay(failures).max(wish);
        if self.shunned.len() == SHUNNED_MAX {
            self.shunned.remove(0);
        }
        self.shunned.push(Shunned { range, failures, until });
        self.failures_on_end = if progressed { 1 } else { self.failures_on_end.saturating_add(1) };
        self.pause_until = self.pause_until.max(until);
    }

    /// Bytes of `range` arrived: the link works, and so does this range.
    pub fn succeeded(&mut self, range: BlockRange) {
        if self.failures_on_end != 0 || !self.shunned.is_empty() {
            self.failures_on_end = 0;
            self.pause_until = Moment(0);
            self.shunned.retain(|s| !s.range.overlaps(range));
        }
    }

    /// True when the last fetch to end failed.
    pub fn failing(&self) -> bool {
        self.failures_on_end > 0
    }

    /// Failures since anything arrived.
    pub fn failures_on_end(&self) -> u32 {
        self.failures_on_end
    }

    /// No prefetch before this moment.
    pub fn pause_until(&self) -> Moment {
        self.pause_until
    }

    /// When `range` may be tried again, if not now.
    pub fn shunned_until(&self, range: BlockRange, now: Moment) -> Option<Moment> {
        self.shunned.iter().filter(|s| s.range.overlaps(range) && s.until > now).map(|s| s.until).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_with_jitter_up_to_the_limit_and_success_forgets() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), 7);
        let range = BlockRange::new(5, 9);
        let now = Moment(1);
        for failure in 0..12u32 {
            backoff.failed(range, false, None, now);
            let wait = backoff.shunned_until(BlockRange::new(8, 20), now).unwrap().since(now);
            let full = Duration::from_millis(100 << failure.min(10)).min(Duration::from_secs(2));
            assert!(wait >= full / 2 && wait <= full, "{failure}: {wait:?} of {full:?}");
        }
        assert!(backoff.shunned_until(BlockRange::new(9, 20), now).is_none(), "its neighbour is not shunned");
        backoff.succeeded(range);
        assert!(backoff.shunned_until(range, now).is_none() && !backoff.failing());
    }

    #[test]
    fn a_server_is_given_the_time_it_asks_for() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), 7);
        backoff.failed(BlockRange::new(0, 1), false, Some(Duration::from_secs(30)), Moment(0));
        assert_eq!(backoff.pause_until(), Moment(0) + Duration::from_secs(30));
    }
}
