//! When to fetch frames of the packs in the place of ranges of the image.
//!
//! A frame brings its blocks compressed, all of them or none. It is the better bargain when what is wanted of it would take
//! more of the link as ranges: their bytes, and for each of them what a request costs. So on a distant link a frame is
//! fetched for a single block, and on a slow one only when a good part of it will be needed. Frames that follow each other
//! in the file and are wanted as well come with the same request.
//!
//! Who needs a block of a frame that is on its way waits for it, as for any other fetch: on a link where what was asked for
//! cannot be taken back, a range that is asked for now comes behind it. How long a flight may be is bounded by the bytes
//! that it takes of the link, so what is waited through is no more than with ranges.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::demand::Blocks;
use super::flights::Cargo;
use super::{Action, Class, Planner};
use crate::block::{Block, BlockRange};
use crate::packs::Index;
use crate::predictor::Candidate;
use crate::time::Moment;

/// The packs of an image, and what is known of them.
#[derive(Debug, Default)]
pub(super) struct Packs {
    index: Option<Arc<Index>>,
    /// Frames that failed: their blocks come as ranges from then on.
    spoilt: HashSet<u32>,
    /// By frame: what the candidates want of it.
    wanted: HashMap<u32, Wanted>,
}

/// What is wanted of a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    bytes: f64,
    ranges: f64,
}

impl Packs {
    /// Sums up what these candidates, the likely as well as the popular, want of each frame.
    pub fn sum_up(&mut self, candidates: &[Candidate], blocks: &dyn Blocks) {
        self.wanted.clear();
        let Some(index) = &self.index else { return };
        let block_bytes = index.block_bytes() as f64;
        for candidate in candidates {
            // A range is of one sequence, and so is a frame of whole ones, unless more was learnt since it was packed.
            let Some(frame) = index.frame_of(candidate.range.start) else { continue };
            if blocks.first_absent(candidate.range).is_some() {
                let wanted = self.wanted.entry(frame).or_default();
                wanted.bytes += candidate.range.len() as f64 * block_bytes;
                wanted.ranges += 1.0;
            }
        }
    }

    /// The frame with this block did not come: it is fetched as ranges from now on.
    pub fn failed_at(&mut self, block: Block) {
        self.spoilt.extend(self.index.as_ref().and_then(|index| index.frame_of(block)));
    }

    /// The packs cannot be had.
    pub fn give_up(&mut self) {
        *self = Self::default();
    }
}

impl Planner {
    /// From now on frames of these packs are fetched where that is better; `None` for ranges alone. Frames that failed
    /// before are left alone also in a new index of the same file.
    pub fn set_packs(&mut self, packs: Option<Arc<Index>>) {
        self.packs.wanted.clear();
        self.packs.index = packs;
        self.missed = true;
    }

    /// The frames to fetch in the place of `run`, a candidate: its own, if that is the better bargain, and those behind it
    /// that are as well, up to so many bytes of the link.
    pub(super) fn frames_for(&self, run: BlockRange, bytes: u64, blocks: &dyn Blocks) -> Option<Range<u32>> {
        let index = self.packs.index.as_ref()?;
        let first = index.frame_of(run.start)?;
        let pays = |frame| self.pays(index, frame, blocks);
        if !pays(first) {
            return None;
        }
        let mut frames = first..first + 1;
        while frames.end < index.count() && index.wire_bytes(first..frames.end + 1) <= bytes && pays(frames.end) {
            frames.end += 1;
        }
        Some(frames)
    }

    /// True when a frame takes less of the link than what the candidates want of it.
    fn pays(&self, index: &Index, frame: u32, blocks: &dyn Blocks) -> bool {
        let Some(wanted) = self.packs.wanted.get(&frame) else { return false };
        let as_ranges = wanted.bytes + wanted.ranges * self.gap_bytes() as f64;
        self.can_fetch(frame) && index.wire_bytes(frame..frame + 1) as f64 <= as_ranges && {
            let lacking: u64 =
                self.lacking(index, frame..frame + 1, blocks).iter().map(|run| self.geometry.length(*run)).sum();
            index.wire_bytes(frame..frame + 1) <= lacking + self.gap_bytes()
        }
    }

    fn can_fetch(&self, frame: u32) -> bool {
        !self.packs.spoilt.contains(&frame) && !self.flights.brings_frame(frame)
    }

    /// The frame to fetch in the place of a demand: where its bytes take no more of the link than those of the demand and
    /// a request that is likely to follow.
    pub(super) fn frame_for_demand(&self, run: BlockRange) -> Option<u32> {
        let index = self.packs.index.as_ref()?;
        let frame = index.frame_of(run.start).filter(|&frame| self.can_fetch(frame))?;
        (index.wire_bytes(frame..frame + 1) <= self.geometry.length(run) + self.gap_bytes()).then_some(frame)
    }

    /// The blocks of some frames that are absent and that nobody brings.
    fn lacking(&self, index: &Index, frames: Range<u32>, blocks: &dyn Blocks) -> Vec<BlockRange> {
        let mut lacking = Vec::new();
        for &run in frames.flat_map(|frame| index.runs(frame)) {
            let mut rest = run;
            while let Some(part) = self.fetchable(rest, u64::MAX, blocks) {
                lacking.push(part);
                rest.start = part.end;
            }
        }
        lacking
    }

    /// Begins to fetch frames; false when they have nothing that is lacking any more.
    pub(super) fn begin_frames(
        &mut self,
        frames: Range<u32>,
        class: Class,
        now: Moment,
        blocks: &dyn Blocks,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(index) = self.packs.index.clone() else { return false };
        let brings = self.lacking(&index, frames.clone(), blocks);
        if brings.is_empty() {
            return false;
        }
        let id = self.depart(Cargo::Frames(frames.clone()), brings, index.wire_bytes(frames.clone()), class, now);
        actions.push(Action::FetchFrames(id, frames, class));
        true
    }
}
