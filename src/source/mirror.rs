//! Mirrors: several places that hold the same image.
//!
//! The first place is preferred. When one fails in a way that may pass, the next is asked at once for what is
//! still missing, and the failed one is left alone for a while; only when all have failed is the failure handed
//! up. A place that fails for good is dropped, with one warning; only when all are dropped is the image lost.
//!
//! All places must hold the same image, but only its size can be compared between hosts: validators are each
//! host's own. So every mirror is pinned by its own validator at its first answer. The identity of the whole
//! names the mirror its validator came from (`VALIDATOR from NAME`), so that after a restart that mirror is
//! held to it and the others are not. Published images are better off: all their places have the same root hash.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::published::root_of;
use super::{FetchError, FrameSink, Identity, Published, Sink, Source, Stop};
use crate::block::BlockRange;
use crate::error::{Error, errno};

/// How long a mirror rests after its first failure; doubles with each further one.
const COOL_DOWN_MIN: Duration = Duration::from_secs(2);

/// Longest rest: a preferred mirror that comes back is found again within this.
const COOL_DOWN_MAX: Duration = Duration::from_secs(60);

/// Between validator and name in the identity of a set of mirrors.
const FROM: &str = " from ";

/// Several sources of one image.
pub struct MirrorSource {
    mirrors: Vec<Mirror>,
    health: Mutex<Vec<Health>>,
    identity: Identity,
}

struct Mirror {
    name: String,
    /// `None` when it could not even be opened.
    source: Option<Box<dyn Source>>,
}

#[derive(Clone, Debug)]
enum Health {
    Good,
    /// Failed this many times in a row; not preferred before the instant.
    Resting(Instant, u32),
    /// Failed for good: error number and text.
    Dropped(i32, String),
}

/// Opens one place: its number, and what it must be; without an identity it is asked what it holds.
pub type Opener<'a> = &'a dyn Fn(usize, Option<&Identity>) -> Result<Box<dyn Source>, FetchError>;

impl MirrorSource {
    /// Opens the places called `names`, in order of preference. With a `pinned` identity none is asked yet;
    /// without one the first that answers says what the image is.
    ///
    /// # Errors
    /// When no place can be used: [`FetchError::Transient`] if that may pass for one of them.
    pub fn open(names: &[String], pinned: Option<&Identity>, open: Opener<'_>) -> Result<Self, FetchError> {
        let mut health = vec![Health::Good; names.len()];
        let mut sources: Vec<Option<Box<dyn Source>>> = names.iter().map(|_| None).collect();
        let mut transient = None;
        let identity = match pinned {
            Some(identity) => identity.clone(),
            None => {
                let mut found = None;
                for (at, name) in names.iter().enumerate() {
                    match open(at, None) {
                        Ok(source) => {
                            let mut identity = source.identity().clone();
                            if source.published().is_none() {
                                identity.validator = identity.validator.map(|v| format!("{v}{FROM}{name}"));
                            }
                            sources[at] = Some(source);
                            found = Some(identity);
                            break;
                        }
                        Err(FetchError::Fatal(error)) => health[at] = dropped(name, &error),
                        Err(failure) => {
                            health[at] = Health::Resting(Instant::now() + COOL_DOWN_MIN, 1);
                            transient.get_or_insert(failure);
                        }
                    }
                }
                match (found, transient) {
                    (Some(identity), _) => identity,
                    (None, Some(failure)) => return Err(failure),
                    (None, None) => return Err(lost(&health)),
                }
            }
        };
        for (at, name) in names.iter().enumerate() {
            if sources[at].is_some() || matches!(health[at], Health::Dropped(..)) {
                continue;
            }
            let own = pin_for(name, at, &identity);
            match open(at, Some(&own)) {
                Ok(source) if source.identity().size == identity.size => sources[at] = Some(source),
                Ok(source) => {
                    let sizes = (source.identity().size, identity.size);
                    let text = format!("{name}: holds another image: {} bytes instead of {}", sizes.0, sizes.1);
                    health[at] = dropped(name, &Error::new(errno::ESTALE, text));
                }
                Err(FetchError::Fatal(error)) => health[at] = dropped(name, &error),
                // A source that is opened with an identity makes no contact, so nothing is there to wait for.
                Err(_) => {
                    let text = format!("{name}: cannot be opened");
                    health[at] = dropped(name, &Error::new(errno::EHOSTUNREACH, text));
                }
            }
        }
        let mirrors: Vec<_> =
            names.iter().zip(sources).map(|(name, source)| Mirror { name: name.clone(), source }).collect();
        if health.iter().all(|h| matches!(h, Health::Dropped(..))) {
            return Err(lost(&health));
        }
        Ok(Self { mirrors, health: Mutex::new(health), identity })
    }

    fn health(&self) -> MutexGuard<'_, Vec<Health>> {
        // Each change is one assignment, so a panic elsewhere leaves nothing half-done.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mirrors to ask, best first: those in good health by preference, then those that rest, by how soon
    /// they may be asked again.
    fn order(&self, now: Instant) -> Vec<usize> {
        let health = self.health();
        let rank = |at: usize| match &health[at] {
            Health::Good => Some((Reverse(true), now, at)),
            Health::Resting(until, _) if *until <= now => Some((Reverse(true), now, at)),
            Health::Resting(until, _) => Some((Reverse(false), *until, at)),
            Health::Dropped(..) => None,
        };
        let mut order: Vec<_> = (0..health.len()).filter_map(rank).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, _, at)| at).collect()
    }

    fn rest(&self, at: usize, wish: Option<Duration>) {
        let mut health = self.health();
        let failures = match health[at] {
            Health::Resting(_, failures) => failures + 1,
            Health::Good => {
                log::warn!("{}: failed; asking another mirror", self.mirrors[at].name);
                1
            }
            Health::Dropped(..) => return,
        };
        let rest = (COOL_DOWN_MIN * 2u32.pow(failures.min(8) - 1)).min(COOL_DOWN_MAX).max(wish.unwrap_or_default());
        health[at] = Health::Resting(Instant::now() + rest, failures);
    }

    fn drop_mirror(&self, at: usize, error: &Error) {
        let mut health = self.health();
        if !matches!(health[at], Health::Dropped(..)) {
            health[at] = dropped(&self.mirrors[at].name, error);
        }
    }

    /// Asks one place after the other until one answers. What `ask` got before a failure it does not ask for again.
    fn ask_all(&self, mut ask: impl FnMut(&str, &dyn Source) -> Result<(), FetchError>) -> Result<(), FetchError> {
        let mut failed: Option<FetchError> = None;
        for at in self.order(Instant::now()) {
            let Mirror { name, source: Some(source) } = &self.mirrors[at] else { continue };
            match ask(name, &**source) {
                Ok(()) => {
                    self.recovered(at);
                    return Ok(());
                }
                Err(FetchError::Stopped) => return Err(FetchError::Stopped),
                // It cannot do this, and does all else as well as before.
                Err(FetchError::Fatal(error)) if error.errno() == errno::ENOTSUP => {
                    failed.get_or_insert(FetchError::Fatal(error));
                }
                Err(FetchError::Fatal(error)) => self.drop_mirror(at, &error),
                Err(FetchError::Transient { message, retry_after }) => {
                    self.rest(at, retry_after);
                    // All failed: the best one's story, and the shortest of the waits.
                    failed = Some(match failed {
                        Some(FetchError::Transient { message, retry_after: wish }) => {
                            let retry_after = wish.zip(retry_after).map(|(a, b)| a.min(b));
                            FetchError::Transient { message, retry_after }
                        }
                        _ => FetchError::Transient { message, retry_after },
                    });
                }
            }
        }
        Err(failed.unwrap_or_else(|| lost(&self.health())))
    }

    fn recovered(&self, at: usize) {
        let mut health = self.health();
        if matches!(health[at], Health::Resting(..)) {
            health[at] = Health::Good;
        }
    }
}

impl Source for MirrorSource {
    fn name(&self) -> String {
        let names: Vec<_> = self.mirrors.iter().map(|m| m.name.as_str()).collect();
        names.join(", ")
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn fetch(&self, lane: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError> {
        let Some(range) = super::within(&self.identity, offset, length, &self.mirrors[0].name)? else { return Ok(()) };
        let mut sink = Progress { sink, at: range.start };
        self.ask_all(|name, source| {
            source.fetch(lane, sink.at, range.end - sink.at, &mut sink)?;
            if sink.at < range.end {
                return Err(FetchError::transient(format!("{name}: delivered less than was asked for")));
            }
            Ok(())
        })
    }

    fn published(&self) -> Option<Arc<Published>> {
        // All places know of the same.
        self.mirrors.iter().filter_map(|mirror| mirror.source.as_ref()).find_map(|source| source.published())
    }

    fn fetch_frames(&self, lane: usize, frames: Range<u32>, sink: &mut dyn FrameSink) -> Result<(), FetchError> {
        let mut sink = FrameProgress { sink, next: frames.start };
        self.ask_all(|name, source| {
            source.fetch_frames(lane, sink.next..frames.end, &mut sink)?;
            if sink.next < frames.end {
                return Err(FetchError::transient(format!("{name}: delivered fewer frames than were asked for")));
            }
            Ok(())
        })
    }

    fn warm(&self, lane: usize) {
        if let Some(at) = self.order(Instant::now()).first()
            && let Some(source) = &self.mirrors[*at].source
        {
            source.warm(lane);
        }
    }

    fn renew(&self, lane: usize) {
        self.mirrors.iter().filter_map(|mirror| mirror.source.as_ref()).for_each(|source| source.renew(lane));
    }

    fn abort(&self) {
        self.mirrors.iter().filter_map(|mirror| mirror.source.as_ref()).for_each(|source| source.abort());
    }

    fn requests(&self) -> u64 {
        self.mirrors.iter().filter_map(|m| m.source.as_ref()).map(|s| s.requests()).sum()
    }
}

/// What the place called `name`, number `at` in the order of preference, must be, going by the identity of the
/// image: the validator counts for the place it came from, and without a name for the first.
pub(super) fn pin_for(name: &str, at: usize, identity: &Identity) -> Identity {
    if root_of(identity).is_some() {
        return identity.clone();
    }
    let validator = match identity.validator.as_deref().map(|v| (v, v.split_once(FROM))) {
        Some((_, Some((validator, from)))) => (from == name).then(|| validator.to_owned()),
        Some((validator, None)) => (at == 0).then(|| validator.to_owned()),
        None => None,
    };
    // Another host's date says nothing either.
    let mtime_s = identity.mtime_s.filter(|_| validator.is_some() || at == 0 && identity.validator.is_none());
    Identity { size: identity.size, validator, mtime_s }
}

fn dropped(name: &str, error: &Error) -> Health {
    log::warn!("mirror {name} is not used any more: {error}");
    Health::Dropped(error.errno(), error.to_string())
}

/// The error when every place has failed for good: the preferred one's.
fn lost(health: &[Health]) -> FetchError {
    let first = health.iter().find_map(|h| match h {
        Health::Dropped(errno, text) => Some(Error::new(*errno, text.clone())),
        _ => None,
    });
    FetchError::Fatal(first.unwrap_or_else(|| Error::new(errno::EIO, "no mirror can be asked")))
}

/// Passes on and remembers how far the range has come.
pub(super) struct Progress<'a> {
    pub sink: &'a mut dyn Sink,
    /// The first byte that was not passed on.
    pub at: u64,
}

impl Sink for Progress<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.sink.data(offset, bytes)?;
        self.at = offset + bytes.len() as u64;
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        self.sink.zeroes(offset, length)?;
        self.at = offset + length;
        Ok(())
    }
}

/// The same for frames.
struct FrameProgress<'a> {
    sink: &'a mut dyn FrameSink,
    next: u32,
}

impl FrameSink for FrameProgress<'_> {
    fn received(&mut self, bytes: u64) {
        self.sink.received(bytes);
    }

    fn blocks(&mut self, range: BlockRange, bytes: &[u8]) -> Result<(), Stop> {
        self.sink.blocks(range, bytes)
    }

    fn frame_done(&mut self, frame: u32) -> Result<(), Stop> {
        self.sink.frame_done(frame)?;
        self.next = frame + 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::fault::{FaultControl, FaultSource, Injected};
    use crate::source::pattern::{PatternSource, fill};
    use crate::source::testing::Collector;

    const BYTES: u64 = 1 << 20;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("http://m{n}/x")).collect()
    }

    /// Mirrors of one pattern, each with a handle that makes it fail.
    fn mirrors(count: usize) -> (MirrorSource, Vec<FaultControl>) {
        let controls: Vec<_> = (0..count).map(|_| FaultControl::default()).collect();
        let open = |at: usize, _: Option<&Identity>| {
            let pattern = PatternSource::open("pattern:1M", None)?;
            let source = FaultSource::controlled(Box::new(pattern), controls[at].clone());
            Ok(Box::new(source) as Box<dyn Source>)
        };
        (MirrorSource::open(&names(count), None, &open).ok().unwrap(), controls)
    }

    fn assert_good(source: &MirrorSource, offset: u64, length: u64) {
        let mut sink = Collector::at(offset);
        source.fetch(0, offset, length, &mut sink).unwrap();
        let mut expected = vec![0; length as usize];
        fill(0, offset, &mut expected);
        assert!(sink.bytes == expected);
    }

    #[test]
    fn a_failing_mirror_is_replaced_in_the_middle_of_a_range() {
        let (source, controls) = mirrors(3);
        controls[0].fail_next(Injected::Cut(100_000));
        controls[1].fail_next(Injected::Cut(300_000));
        assert_good(&source, 7, BYTES - 7);
        assert_eq!(controls.iter().map(FaultControl::requests).collect::<Vec<_>>(), [1, 1, 1]);
        // Both rest now: the third is asked first.
        assert_good(&source, 0, 1);
        assert_eq!(controls[2].requests(), 2);
    }

    #[test]
    fn only_when_all_fail_is_the_failure_handed_up_and_then_they_are_asked_again() {
        let (source, controls) = mirrors(2);
        controls.iter().for_each(|c| c.fail_next(Injected::Error));
        assert!(matches!(source.fetch(0, 0, 10, &mut Collector::at(0)), Err(FetchError::Transient { .. })));
        assert_good(&source, 0, 10);
    }

    #[test]
    fn a_mirror_that_fails_for_good_is_never_asked_again_and_all_lost_is_final() {
        let (source, controls) = mirrors(2);
        controls[0].fail_next(Injected::Fatal);
        assert_good(&source, 0, BYTES);
        assert_good(&source, 0, BYTES);
        assert_eq!(controls[0].requests(), 1);
        controls[1].fail_next(Injected::Fatal);
        for _ in 0..2 {
            assert!(matches!(source.fetch(0, 0, 10, &mut Collector::at(0)), Err(FetchError::Fatal(_))));
        }
    }

    #[test]
    fn an_image_opens_while_the_first_mirror_is_down_and_a_stranger_is_dropped() {
        let open = |at: usize, pinned: Option<&Identity>| match (at, pinned) {
            (0, None) => Err(FetchError::transient("down")),
            (1, _) => Ok(Box::new(PatternSource::open("pattern:1M", None).unwrap()) as Box<dyn Source>),
            _ => Ok(Box::new(PatternSource::open("pattern:2M", None).unwrap()) as Box<dyn Source>),
        };
        let source = MirrorSource::open(&names(3), None, &open).ok().unwrap();
        assert_eq!(source.identity().size, BYTES);
        assert_eq!(source.identity().validator.as_deref(), Some("pattern seed=0 zero=0 from http://m1/x"));
        assert_eq!(source.order(Instant::now()), [1]);
        assert_good(&source, 5, 100);
    }

    #[test]
    fn a_validator_binds_only_the_mirror_it_came_from() {
        let identity = Identity { size: 9, validator: Some("\"v\" from http://b/x".into()), mtime_s: Some(3) };
        let own = Identity { size: 9, validator: Some("\"v\"".into()), mtime_s: Some(3) };
        let other = Identity { size: 9, validator: None, mtime_s: None };
        assert_eq!(pin_for("http://b/x", 1, &identity), own);
        assert_eq!(pin_for("http://a/x", 0, &identity), other);
        // From before there were mirrors.
        assert_eq!((pin_for("http://a/x", 0, &own), pin_for("http://b/x", 1, &own)), (own.clone(), other));
    }
}
