//! A place of a published image as a source: what the engine asks for bytes and frames.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::checked::{Checked, Wanted};
use super::framed::{Arrivals, Ended, FRAME_BYTES_MAX, Framed};
use super::place::Place;
use super::{FrameSink, Frames, Published};
use crate::block::BlockRange;
use crate::error::{Error, errno};
use crate::source::{FetchError, Identity, Sink, Source, Stop, within};
use crate::tree::{PageId, Root, Tree};

/// Before the root hash in the validator of a published image, which is the same wherever it lies.
const ROOT_PREFIX: &str = "root:";

/// Holes up to this long between data are fetched with it and not left out, in bytes: another request would cost a round
/// trip, in which even a slow link brings more.
const GAP_MAX: u64 = 64 << 10;

/// What a validator says of the root, if the image was a published one.
pub fn root_of(identity: &Identity) -> Option<Root> {
    identity.validator.as_deref()?.strip_prefix(ROOT_PREFIX)?.parse().ok()
}

/// One place of a published image.
pub struct PublishedSource {
    place: Arc<Place>,
    common: Arc<Published>,
    identity: Identity,
    /// Frames that are being fetched.
    arrivals: Arrivals,
}

impl PublishedSource {
    /// Opens a place. With a `pinned` identity nobody is contacted yet.
    ///
    /// # Errors
    /// ESTALE when the place does not hold what is wanted; else what makes it unusable.
    pub(super) fn open(place: Place, common: Arc<Published>, pinned: Option<&Identity>) -> Result<Self, FetchError> {
        let place = Arc::new(place);
        let identity = match pinned {
            Some(identity) => identity.clone(),
            None => {
                let files = place.files()?;
                let validator = Some(format!("{ROOT_PREFIX}{}", files.tree.root()));
                Identity { size: files.tree.geometry().size(), validator, mtime_s: files.mtime_s }
            }
        };
        common.add_place(place.clone());
        Ok(Self { place, common, identity, arrivals: Arrivals::default() })
    }

    fn fetch_checked(&self, lane: usize, range: Range<u64>, sink: &mut dyn Sink) -> Result<(), FetchError> {
        let files = self.place.files()?;
        let tree = &files.tree;
        let geometry = tree.geometry();
        let blocks = geometry.touched(range.start, range.end - range.start);
        let failures = files.pages.want(blocks);
        let mut wanted = Wanted { sink, begin: range.start, end: range.end };
        let mut at = blocks.start;
        let hole = |wanted: &mut Wanted<'_>, hole: BlockRange| {
            let zeroes = wanted.zeroes(geometry.offset(hole), geometry.length(hole));
            zeroes.map_err(|Stop| FetchError::Stopped)
        };
        for run in joined(tree.holes().used_in(blocks), GAP_MAX >> geometry.block_shift()) {
            hole(&mut wanted, BlockRange { start: at, end: run.start })?;
            let mut checked = Checked::new(files, failures, lane, run, &mut wanted);
            let result = files.image.fetch(lane, geometry.offset(run), geometry.length(run), &mut checked);
            checked.finish(result)?;
            at = run.end;
        }
        hole(&mut wanted, BlockRange { start: at, end: blocks.end })
    }

    fn fetch_checked_frames(
        &self,
        lane: usize,
        frames: Range<u32>,
        sink: &mut dyn FrameSink,
    ) -> Result<(), FetchError> {
        let files = self.place.files()?;
        // Not final for the place: all else can be had from it.
        let without = |why: String| FetchError::Fatal(Error::new(errno::ENOTSUP, why));
        let packs = files.packs.as_ref().filter(|_| !files.packs_gone.load(Ordering::Relaxed));
        let (Some(packs), Some(opener)) = (packs, self.common.frames()) else {
            return Err(without(format!("{}: has not the packs that are used", self.place.name())));
        };
        let (offset, lengths) = opener.extent(frames.clone());
        if let Some(long) = lengths.iter().find(|length| **length > FRAME_BYTES_MAX) {
            return Err(without(format!(
                "{}: a frame of {long} bytes; at most {FRAME_BYTES_MAX} are taken",
                packs.name()
            )));
        }
        let arrival = self.arrivals.begin(frames.clone());
        let failures = files.pages.want_these(|| self.unproved(&**opener, frames.clone(), &files.tree));
        let length = lengths.iter().map(|length| u64::from(*length)).sum();
        let mut framed = Framed::new(opener, files, sink, frames, lengths);
        let result = packs.fetch(lane, offset, length, &mut framed);
        let outcome = framed.finish(result, failures, lane);
        drop(arrival);
        // Packs that are gone or damaged leave an image that is read in ranges.
        let without_all = |why: String| {
            if !files.packs_gone.swap(true, Ordering::Relaxed) {
                log::warn!("{}: goes on without its packs: {why}", self.place.name());
            }
            Err(without(why))
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Ended::Lie(why)) => without_all(format!("{}: {why}", packs.name())),
            Err(Ended::Pages(failure)) => Err(failure),
            Err(Ended::Packs(FetchError::Fatal(error))) => without_all(error.to_string()),
            Err(Ended::Packs(failure)) => Err(failure),
        }
    }

    /// The hash pages that are missing for some frames and that neither they bring nor others that are on their way.
    fn unproved(&self, opener: &dyn Frames, frames: Range<u32>, tree: &Tree) -> Vec<PageId> {
        let ranges = frames.flat_map(|frame| opener.blocks_of(frame));
        let mut missing: Vec<PageId> = ranges.flat_map(|range| tree.missing(range)).collect();
        missing.sort_unstable();
        missing.dedup();
        missing.retain(|&page| opener.prover(page, tree).is_none_or(|frame| !self.arrivals.has(frame)));
        missing
    }
}

impl Source for PublishedSource {
    fn name(&self) -> String {
        self.place.name().to_owned()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn fetch(&self, lane: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError> {
        let Some(range) = within(&self.identity, offset, length, self.place.name())? else { return Ok(()) };
        self.fetch_checked(lane, range, sink).map_err(|failure| self.place.judged(self.place.cleared(failure)))
    }

    fn published(&self) -> Option<Arc<Published>> {
        Some(self.common.clone())
    }

    fn fetch_frames(&self, lane: usize, frames: Range<u32>, sink: &mut dyn FrameSink) -> Result<(), FetchError> {
        self.fetch_checked_frames(lane, frames, sink).map_err(|failure| match failure {
            FetchError::Fatal(error) if error.errno() == errno::ENOTSUP => FetchError::Fatal(error),
            other => self.place.judged(other),
        })
    }

    fn warm(&self, lane: usize) {
        if let Ok(files) = self.place.files() {
            files.image.warm(lane);
        }
    }

    fn abort(&self) {
        self.place.abort();
    }

    fn requests(&self) -> u64 {
        self.place.requests()
    }
}

impl Drop for PublishedSource {
    fn drop(&mut self) {
        // Place and common knowledge hold each other, and whoever still holds the latter must not wait for this place.
        self.place.abort();
        self.common.remove_place(Arc::as_ptr(&self.place));
    }
}

/// Runs with gaps of at most `gap` blocks between them as one.
fn joined(runs: impl Iterator<Item = BlockRange>, gap: u64) -> impl Iterator<Item = BlockRange> {
    let mut runs = runs.peekable();
    std::iter::from_fn(move || {
        let mut run = runs.next()?;
        while let Some(next) = runs.next_if(|next| next.start.0 - run.end.0 <= gap) {
            run.end = next.end;
        }
        Some(run)
    })
}
