//! A place of a published image as a source: what the engine asks for bytes and frames.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::checked::{Checked, Wanted};
use super::place::{Files, LANE_ASIDE, Place, reworded};
use super::{FrameSink, Frames, Published};
use crate::block::BlockRange;
use crate::error::{Error, errno};
use crate::source::mirror::Progress;
use crate::source::{FetchError, Identity, Sink, Source, Stop, within};
use crate::tree::Root;

/// Before the root hash in the validator of a published image, which is the same wherever it lies.
const ROOT_PREFIX: &str = "root:";

/// Holes up to this long between data are fetched with it and not left out, in bytes: another request would cost a round
/// trip, in which even a slow link brings more.
const GAP_MAX: u64 = 64 << 10;

/// Longest frame that is taken from anywhere, packed and with its proof, in bytes: many times what any publisher makes.
pub const FRAME_BYTES_MAX: u64 = 32 << 20;

/// What a validator says of the root, if the image was a published one.
pub fn root_of(identity: &Identity) -> Option<Root> {
    identity.validator.as_deref()?.strip_prefix(ROOT_PREFIX)?.parse().ok()
}

/// One place of a published image.
pub struct PublishedSource {
    place: Arc<Place>,
    common: Arc<Published>,
    identity: Identity,
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
        Ok(Self { place, common, identity })
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
        let mut opening = Opening { files, opener: &*opener, sink, frames, lengths, held: Vec::new(), ended: None };
        let mut result = packs.fetch(lane, offset, length, &mut opening);
        // What is damaged is asked for once more, from that frame on.
        while let Some(Ended::Lie(why)) = &opening.ended
            && self.place.forgives(&format!("{}: {why}", packs.name()), lane)
        {
            let (offset, length) = opening.rest(offset);
            result = packs.fetch(lane, offset, length, &mut opening);
        }
        // Packs that are gone or damaged leave an image that is read in ranges.
        let without_all = |why: String, lied: bool| {
            if !files.packs_gone.swap(true, Ordering::Relaxed) {
                self.common.packs_lied.fetch_or(lied, Ordering::Relaxed);
                log::warn!("{}: goes on without its packs: {why}", self.place.name());
            }
            Err(without(why))
        };
        match (opening.ended, result) {
            (Some(Ended::Lie(why)), _) => without_all(format!("{}: {why}", packs.name()), true),
            (Some(Ended::Pages(failure)), _) => Err(self.place.judged(failure)),
            (None, Err(FetchError::Fatal(error))) => without_all(reworded(error).to_string(), false),
            (None, Err(failure)) => Err(failure),
            (None, Ok(())) if opening.frames.is_empty() => Ok(()),
            (None, Ok(())) => Err(FetchError::transient(format!("{}: sent less than asked for", packs.name()))),
        }
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

/// The sink that puts frames together as their bytes come, and opens them.
struct Opening<'a> {
    files: &'a Files,
    /// Of the packs that were in use when it began.
    opener: &'a dyn Frames,
    sink: &'a mut dyn FrameSink,
    /// The frames that are not done, and the lengths of all that were asked for.
    frames: Range<u32>,
    lengths: Vec<u32>,
    held: Vec<u8>,
    ended: Option<Ended>,
}

/// Why no more frames are opened.
enum Ended {
    /// One of them is not what was published.
    Lie(String),
    /// The pages that check it do not come.
    Pages(FetchError),
}

impl Opening<'_> {
    /// Begins anew with the frame that was opened last, of which nothing was taken: where it and the rest lie, when those
    /// that were asked for begin at `offset`.
    fn rest(&mut self, offset: u64) -> (u64, u64) {
        (self.ended, self.held) = (None, Vec::new());
        let bytes = |lengths: &[u32]| lengths.iter().map(|length| u64::from(*length)).sum::<u64>();
        let (done, left) = self.lengths.split_at(self.lengths.len() - self.frames.len());
        (offset + bytes(done), bytes(left))
    }

    /// Opens the next frame.
    fn unpack(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let frame = self.frames.start;
        let opener = self.opener;
        let tree = &self.files.tree;
        let sink = &mut *self.sink;
        let mut stopped = false;
        let mut out = |range: BlockRange, bytes: &[u8]| stopped = stopped || sink.blocks(range, bytes).is_err();
        let mut result = opener.unpack(frame, bytes, tree, &mut out);
        if result.as_ref().is_err_and(|lie| lie.is_missing()) {
            // Out of the order of the file: pages that came with an earlier frame are fetched by themselves. The worker's
            // own lane is taken by the frames.
            for range in opener.blocks_of(frame) {
                let failures = self.files.pages.want(range);
                if let Err(failure) = self.files.pages.settle(range, failures, LANE_ASIDE) {
                    self.ended = Some(Ended::Pages(failure));
                    return Err(Stop);
                }
            }
            result = opener.unpack(frame, bytes, tree, &mut out);
        }
        if let Err(lie) = result {
            self.ended = Some(Ended::Lie(format!("frame {frame}: {lie}")));
            return Err(Stop);
        }
        if stopped {
            return Err(Stop);
        }
        self.frames.start += 1;
        self.sink.frame_done(frame)
    }
}

impl Sink for Opening<'_> {
    fn data(&mut self, _: u64, mut bytes: &[u8]) -> Result<(), Stop> {
        self.sink.received(bytes.len() as u64);
        while !bytes.is_empty() {
            let at = self.lengths.len() - self.frames.len();
            let Some(length) = self.lengths.get(at).map(|length| *length as usize) else { return Err(Stop) };
            let (now, later) = bytes.split_at(bytes.len().min(length - self.held.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() == length {
                let held = std::mem::take(&mut self.held);
                self.unpack(&held)?;
                self.held = held;
                self.held.clear();
            }
        }
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        // Frames of zeroes are no frames; but the length of the next one bounds what is made of them.
        let piece = length.min(FRAME_BYTES_MAX) as usize;
        self.data(offset, &vec![0; piece])
    }
}
