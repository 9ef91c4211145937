//! A place of a published image as a source: what the engine asks for bytes and frames.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::arrivals::Arrivals;
use super::checked::{Checked, Wanted};
use super::framed::{Ended, FRAME_BYTES_MAX, Framed, Opening};
use super::place::{Files, Place, reworded};
use super::{FrameSink, Frames, Published};
use crate::block::BlockRange;
use crate::error::{Error, errno};
use crate::source::mirror::Progress;
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
                Identity { size: files.tree.geometry().size(), validator, mtime_s: files.pointer.mtime_s }
            }
        };
        common.add_place(place.clone());
        Ok(Self { place, common, identity, arrivals: Arrivals::default() })
    }

    fn fetch_checked(
        &self,
        files: &Files,
        lane: usize,
        range: Range<u64>,
        sink: &mut dyn Sink,
    ) -> Result<(), FetchError> {
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
            self.place.proved(files);
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
        let chosen = packs.and_then(|(named, packs)| Some((packs, self.common.packs.frames_of(named)?)));
        let Some((packs, opener)) = chosen else {
            return Err(without(format!("{}: has not the packs that are used", self.place.name())));
        };
        let (offset, lengths) = opener.extent(frames.clone());
        if let Some(long) = lengths.iter().find(|length| u64::from(**length) > FRAME_BYTES_MAX) {
            return Err(without(format!(
                "{}: a frame of {long} bytes; at most {FRAME_BYTES_MAX} are taken",
                packs.name()
            )));
        }
        let length = lengths.iter().map(|length| u64::from(*length)).sum();
        let stopped = || self.place.is_aborted();
        // Before anybody counts on these frames: whoever waits for room must not be waited for.
        let Some(_room) = self.common.rooms.arriving.take(length, &stopped) else { return Err(FetchError::Stopped) };
        let arrival = self.arrivals.begin(frames.clone());
        let failures = files.pages.want_these(|| self.unproved(&*opener, frames.clone(), &files.tree));
        let opening = Opening { frames: &*opener, room: &self.common.rooms.opening, stopped: &stopped };
        let mut framed = Framed::new(opening, files, sink, arrival, frames, lengths);
        let mut result = packs.fetch(lane, offset, length, &mut framed);
        // What is damaged is asked for once more, from that frame on.
        while let Some(why) = framed.lie()
            && self.place.forgives_packs(files, &format!("{}: {why}", packs.name()), lane)
        {
            let (offset, length) = framed.rest(offset);
            result = packs.fetch(lane, offset, length, &mut framed);
        }
        let outcome = framed.finish(result, failures, lane);
        // Some of the frames may not have come after all.
        files.pages.tell();
        // Packs that are gone or damaged leave an image that is read in ranges.
        let without_all = |why: String, lied: bool| {
            if !files.packs_gone.swap(true, Ordering::Relaxed) {
                self.common.packs_lied.fetch_or(lied, Ordering::Relaxed);
                log::warn!("{}: goes on without its packs: {why}", self.place.name());
            }
            Err(without(why))
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Ended::Lie(why)) => {
                let why = format!("{}: {why}", packs.name());
                // One that was found when its pages had come has had no second chance yet.
                if self.place.forgives_packs(files, &why, lane) {
                    Err(FetchError::transient(why))
                } else {
                    without_all(why, true)
                }
            }
            Err(Ended::Pages(failure)) => Err(self.place.judged(failure)),
            Err(Ended::Packs(FetchError::Fatal(error))) => without_all(reworded(error).to_string(), false),
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
        let mut sink = Progress { sink, at: range.start };
        self.place.honest(lane, || {
            let rest = sink.at..range.end;
            let files = self.place.files()?;
            self.fetch_checked(files, lane, rest, &mut sink).map_err(|failure| self.place.cleared(files, failure))
        })
    }

    fn published(&self) -> Option<Arc<Published>> {
        Some(self.common.clone())
    }

    fn fetch_frames(&self, lane: usize, frames: Range<u32>, sink: &mut dyn FrameSink) -> Result<(), FetchError> {
        self.fetch_checked_frames(lane, frames, sink)
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
