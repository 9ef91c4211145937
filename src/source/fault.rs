//! Faults on purpose: a decorator that makes any source misbehave.
//!
//! [`FaultSource`] stands between the engine and a source and spoils requests by the rules of a [`FaultSpec`],
//! which is the option `fault=SPEC` (the grammar is in [`crate::source`]). All dice are thrown from the seed,
//! the number of the request and the rule, so request number *n* suffers the same in every run.
//!
//! A test that needs one certain interleaving uses the [`FaultControl`] instead: it holds requests until they
//! are released and spoils chosen ones.

mod control;
mod spec;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use control::{FaultControl, Injected};
pub use spec::FaultSpec;

use super::{FetchError, Identity, Sink, Source, Stop};
use crate::error::{Error, errno};
use spec::Plan;

/// Bytes handed on at once under a rate: small, so that a slow link trickles and does not come in bursts.
const PACED_BYTES: usize = 8 << 10;

/// A source that fails by rule.
pub struct FaultSource {
    inner: Box<dyn Source>,
    spec: FaultSpec,
    control: FaultControl,
    opened: Instant,
    number: AtomicU64,
    /// When the shared downlink has sent all that was given to it.
    link_free: Mutex<Instant>,
    aborted: Mutex<bool>,
    abort: Condvar,
}

impl FaultSource {
    /// Puts the rules of `spec` before `inner`.
    pub fn new(inner: Box<dyn Source>, spec: FaultSpec) -> Self {
        Self::assemble(inner, spec, FaultControl::default())
    }

    /// Puts `control` before `inner`, without rules.
    pub fn controlled(inner: Box<dyn Source>, control: FaultControl) -> Self {
        Self::assemble(inner, FaultSpec::default(), control)
    }

    fn assemble(inner: Box<dyn Source>, spec: FaultSpec, control: FaultControl) -> Self {
        let now = Instant::now();
        let link_free = Mutex::new(now);
        let (number, aborted) = (AtomicU64::new(0), Mutex::new(false));
        Self { inner, spec, control, opened: now, number, link_free, aborted, abort: Condvar::new() }
    }

    /// The handle that holds, releases and spoils requests.
    pub fn control(&self) -> FaultControl {
        self.control.clone()
    }

    /// Waits for so long, or until the source is aborted; that is an error.
    fn sleep(&self, pause: Duration) -> Result<(), Stop> {
        let aborted = self.aborted.lock().unwrap_or_else(PoisonError::into_inner);
        if pause.is_zero() && !*aborted {
            return Ok(());
        }
        let waited = self.abort.wait_timeout_while(aborted, pause, |aborted| !*aborted);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 { Err(Stop) } else { Ok(()) }
    }

    fn is_dead(&self) -> bool {
        let age = self.opened.elapsed();
        self.spec.dead.iter().any(|(from, to)| (*from..*to).contains(&age))
    }

    /// Waits until the shared link has carried `bytes` more: first come, first served.
    fn pace(&self, bytes: usize) -> Result<(), Stop> {
        let Some(rate) = self.spec.rate_bytes_s else { return Ok(()) };
        let done = {
            let mut free = self.link_free.lock().unwrap_or_else(PoisonError::into_inner);
            *free = (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *free
        };
        self.sleep(done.saturating_duration_since(Instant::now()))
    }

    fn plan(&self, offset: u64, length: u64) -> Result<Plan, FetchError> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut plan = self.spec.plan(number, offset, length);
        match self.control.admit(offset, length) {
            Some(Injected::Error) => plan.error = true,
            Some(Injected::Fatal) => plan.fatal = true,
            Some(Injected::Cut(after)) => plan.cut = Some(offset.saturating_add(after)),
            None => {}
        }
        Ok(plan)
    }
}

impl Source for FaultSource {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn fetch(&self, lane: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError> {
        let plan = self.plan(offset, length)?;
        let name = || self.inner.name();
        if plan.fatal {
            return Err(FetchError::Fatal(Error::new(errno::EIO, format!("{}: injected final failure", name()))));
        }
        self.sleep(self.spec.delay + self.spec.rtt).map_err(|Stop| FetchError::Stopped)?;
        if self.is_dead() {
            return Err(FetchError::transient(format!("{}: injected dead link", name())));
        }
        if plan.error {
            return Err(FetchError::transient(format!("{}: injected failure", name())));
        }
        let mut spoiler = Spoiler { source: self, plan, sink, ended: None };
        let result = self.inner.fetch(lane, offset, length, &mut spoiler);
        match (result, spoiler.ended) {
            (_, Some(End::Cut)) => Err(FetchError::transient(format!("{}: injected cut", name()))),
            (_, Some(End::Dead)) => Err(FetchError::transient(format!("{}: injected dead link", name()))),
            (_, Some(End::Short)) => Ok(()),
            (result, None) => result,
        }
    }

    fn warm(&self, lane: usize) {
        if !self.is_dead() {
            self.inner.warm(lane);
        }
    }

    fn renew(&self, lane: usize) {
        self.inner.renew(lane);
    }

    fn abort(&self) {
        *self.aborted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.abort.notify_all();
        self.inner.abort();
    }

    fn requests(&self) -> u64 {
        self.inner.requests().max(self.number.load(Ordering::Relaxed))
    }
}

/// Why a spoiled transfer ended.
enum End {
    Cut,
    Short,
    Dead,
}

/// The sink that does to the bytes what the plan says.
struct Spoiler<'a> {
    source: &'a FaultSource,
    plan: Plan,
    sink: &'a mut dyn Sink,
    ended: Option<End>,
}

impl Spoiler<'_> {
    /// How many of the next `length` bytes from `at` may pass in one piece; acts on what is due at `at`.
    fn step(&mut self, at: u64, length: u64) -> Result<u64, Stop> {
        let mut step = length;
        for (end, why) in [(self.plan.cut, End::Cut), (self.plan.short, End::Short)] {
            match end {
                Some(end) if at >= end => {
                    self.ended = Some(why);
                    return Err(Stop);
                }
                Some(end) => step = step.min(end - at),
                None => {}
            }
        }
        if let Some((when, pause)) = self.plan.stall {
            if at >= when {
                self.plan.stall = None;
                self.source.sleep(pause)?;
            } else {
                step = step.min(when - at);
            }
        }
        if self.source.is_dead() {
            self.ended = Some(End::Dead);
            return Err(Stop);
        }
        Ok(step)
    }
}

impl Sink for Spoiler<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let step = self.step(at, rest.len() as u64)?;
            let mut step = usize::try_from(step).unwrap_or(rest.len());
            if self.source.spec.rate_bytes_s.is_some() {
                step = step.min(PACED_BYTES);
            }
            let (piece, tail) = rest.split_at(step);
            self.source.pace(piece.len())?;
            match self.plan.corrupt {
                Some((bad, bit)) if (at..at + step as u64).contains(&bad) => {
                    let mut spoiled = piece.to_vec();
                    spoiled[(bad - at) as usize] ^= 1 << bit;
                    self.sink.data(at, &spoiled)?;
                }
                _ => self.sink.data(at, piece)?,
            }
            at += step as u64;
            rest = tail;
        }
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let step = self.step(at, end - at)?;
            self.sink.zeroes(at, step)?;
            at += step;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::pattern::{PatternSource, fill};
    use crate::source::testing::Collector;

    const BYTES: u64 = 1 << 20;

    fn source(spec: &str) -> FaultSource {
        let pattern = PatternSource::open("pattern:1M", None).unwrap();
        FaultSource::new(Box::new(pattern), FaultSpec::parse(spec).unwrap())
    }

    fn good(from: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        fill(0, from, &mut bytes);
        bytes
    }

    #[test]
    fn errors_come_at_their_rate_and_the_same_in_every_run() {
        let run = |spec: &str| {
            let source = source(spec);
            (0..1000).map(|_| source.fetch(0, 0, 1, &mut Collector::at(0)).is_err()).collect::<Vec<_>>()
        };
        let first = run("seed=7,error=5%");
        let failed = first.iter().filter(|f| **f).count();
        assert!((25..=80).contains(&failed), "{failed} of 1000");
        assert_eq!(first, run("seed=7,error=5%"));
        assert_ne!(first, run("seed=8,error=5%"));
        assert!(run("seed=7").iter().all(|f| !f));
    }

    #[test]
    fn what_comes_before_a_cut_is_good_and_the_cut_may_pass() {
        let source = source("seed=1,cut=100%");
        for _ in 0..50 {
            let mut sink = Collector::at(100);
            let result = source.fetch(0, 100, BYTES - 100, &mut sink);
            assert!(matches!(result, Err(FetchError::Transient { .. })), "{result:?}");
            assert!((sink.bytes.len() as u64) < BYTES - 100);
            assert!(sink.bytes == good(100, sink.bytes.len()));
        }
    }

    #[test]
    fn a_short_answer_claims_success() {
        let mut sink = Collector::at(0);
        source("short=100%").fetch(0, 0, BYTES, &mut sink).unwrap();
        assert!((sink.bytes.len() as u64) < BYTES);
        assert!(sink.bytes == good(0, sink.bytes.len()));
    }

    #[test]
    fn corruption_is_one_flipped_bit() {
        let mut sink = Collector::at(0);
        source("corrupt=100%").fetch(0, 0, BYTES, &mut sink).unwrap();
        let right = good(0, BYTES as usize);
        let flipped: u32 = sink.bytes.iter().zip(&right).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!((sink.bytes.len() as u64, flipped), (BYTES, 1));
    }

    #[test]
    fn after_its_number_of_requests_all_is_final() {
        let source = source("fatal-after=2");
        let fetch = || source.fetch(0, 0, 8, &mut Collector::at(0));
        assert!(fetch().is_ok() && fetch().is_ok());
        assert!(matches!(fetch(), Err(FetchError::Fatal(_))));
        assert!(matches!(fetch(), Err(FetchError::Fatal(_))));
    }

    #[test]
    fn a_dead_link_fails_and_a_time_that_has_passed_does_not() {
        assert!(source("dead=0s..1000s").fetch(0, 0, 8, &mut Collector::at(0)).is_err());
        assert!(source("dead=1000s..2000s").fetch(0, 0, 8, &mut Collector::at(0)).is_ok());
    }

    #[test]
    fn a_rate_a_delay_and_a_stall_change_no_byte() {
        let source = source("rate=10gbit,delay=10us,rtt=10us,stall=100%:1ms");
        let mut sink = Collector::at(3);
        source.fetch(0, 3, 500_000, &mut sink).unwrap();
        assert!(sink.bytes == good(3, 500_000));
    }

    #[test]
    fn held_requests_wait_for_their_release() {
        let source = source("");
        let control = source.control();
        control.hold();
        std::thread::scope(|scope| {
            let source = &source;
            let workers: Vec<_> = (0..2)
                .map(|lane| {
                    scope.spawn(move || source.fetch(lane, lane as u64, 8, &mut Collector::at(lane as u64)).is_ok())
                })
                .collect();
            assert!(control.wait_held(2, Duration::from_secs(60)));
            control.fail_next(Injected::Error);
            control.release_one();
            assert!(control.wait_held(1, Duration::from_secs(60)));
            control.release();
            let good = workers.into_iter().map(|w| w.join().unwrap()).filter(|good| *good).count();
            assert_eq!(good, 1);
        });
        assert_eq!(control.requests(), 2);
    }

    #[test]
    fn an_abort_ends_the_longest_pause_and_all_that_come_later() {
        let source = source("delay=60m");
        std::thread::scope(|scope| {
            let fetch = || matches!(source.fetch(0, 0, 4096, &mut Collector::at(0)), Err(FetchError::Stopped));
            let under_way = scope.spawn(fetch);
            while source.requests() == 0 {
                std::thread::yield_now();
            }
            source.abort();
            assert!(under_way.join().unwrap());
            assert!(fetch());
        });
    }
}
