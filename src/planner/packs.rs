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
use crate::tree::Tree;

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
            let Some(frame) = index.frame_in(candidate.range) else { continue };
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
    /// From now on it is known where the image has holes: nothing is to come over the link for them, and the fill passes
    /// over them in long steps. The tree must be of blocks of this size.
    pub fn set_holes(&mut self, tree: Arc<Tree>) {
        self.tree = Some(tree);
    }

    /// From now on frames of these packs are fetched where that is better; `None` for ranges alone. Frames that failed
    /// before are left alone also in a new index of the same file.
    pub fn set_packs(&mut self, packs: Option<Arc<Index>>) {
        self.packs.wanted.clear();
        self.packs.index = packs;
        self.foresee_anew();
    }

    /// The frames to fetch in the place of `run`, a candidate: its own, if that is the better bargain, and those behind it
    /// that are as well, up to so many bytes of the link.
    pub(super) fn frames_for(&self, run: BlockRange, bytes: u64, blocks: &dyn Blocks) -> Option<Range<u32>> {
        let index = self.packs.index.as_ref()?;
        let first = index.frame_in(run)?;
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

#[cfg(test)]
mod tests {
    use super::super::testing::All;
    use super::super::{Event, FetchId, Outcome};
    use super::*;
    use crate::block::Geometry;
    use crate::config::Config;
    use crate::predictor::Script;
    use crate::tree::{Hash, TreeBuilder, hash_block};

    const NOW: Moment = Moment(1_000_000_000);

    /// A planner that foresees `wanted`, with one connection and with two frames of 16 blocks, packed to half.
    fn planner(wanted: &[(u64, u64)]) -> Planner {
        let geometry = Geometry::new(1 << 30, 4096).unwrap();
        let config = Config { connections: 1, fill: false, ..Config::default() };
        let mut planner = Planner::new(geometry, &config, 1);
        let frames = [(vec![BlockRange::new(100, 116)], 32_768), (vec![BlockRange::new(200, 216)], 32_768)];
        planner.set_packs(Some(Arc::new(Index::of_frames(geometry, &frames))));
        let ranges = wanted.iter().map(|&(start, end)| BlockRange::new(start, end)).collect();
        planner.set_foresight(Some(Box::new(Script::new(ranges))), 0);
        planner
    }

    fn plan(planner: &mut Planner, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        planner.plan(now, &All(false), &mut actions);
        actions
    }

    #[test]
    fn a_frame_is_fetched_where_it_is_cheaper_than_what_is_wanted_of_it() {
        let whole = plan(&mut planner(&[(100, 116)]), NOW);
        assert_eq!(whole, [Action::FetchFrames(FetchId(1), 0..1, Class::Prefetch)]);
        let part = plan(&mut planner(&[(100, 104)]), NOW);
        assert_eq!(part, [Action::Fetch(FetchId(1), BlockRange::new(100, 104), Class::Prefetch)]);
    }

    #[test]
    fn a_frame_that_failed_goes_back_to_ranges_and_lost_packs_fail_nothing() {
        for outcome in [Outcome::Failed { retry_after: None }, Outcome::Fatal] {
            let mut planner = planner(&[(100, 116)]);
            let [Action::FetchFrames(id, ..)] = plan(&mut planner, NOW)[..] else { panic!("no frame") };
            planner.on(Event::Finished(id, outcome), NOW, &All(false), &mut Vec::new());
            let later = NOW + std::time::Duration::from_secs(60);
            let again = plan(&mut planner, later);
            assert!(matches!(again[..], [Action::Fetch(_, range, _)] if range.start == Block(100)), "{again:?}");
            assert!(!planner.has_failed());
        }
    }

    #[test]
    fn holes_take_no_bytes_and_are_filled_in_long_steps() {
        let mut planner = planner(&[]);
        planner.set_fill(true);
        let mut builder = TreeBuilder::new(planner.geometry);
        let used: [Hash; 8] = [hash_block(b"any"); 8];
        builder.used(&used);
        builder.zero((1 << 18) - 8);
        let (file, root) = builder.finish().unwrap();
        planner.set_holes(Arc::new(Tree::read(&file, root).unwrap()));
        assert_eq!(planner.wire_bytes(BlockRange::new(4, 4000)), 4 * 4096);
        let first = plan(&mut planner, NOW);
        let [Action::Fetch(id, range, Class::Fill)] = first[..] else { panic!("{first:?}") };
        assert_eq!(range, BlockRange::new(0, 16), "a chunk: used blocks come over the link");
        let later = NOW + std::time::Duration::from_millis(20);
        planner.on(Event::Arrived(id, range), later, &All(false), &mut Vec::new());
        planner.on(Event::Finished(id, Outcome::Done), later, &All(false), &mut Vec::new());
        let second = plan(&mut planner, later);
        let [Action::Fetch(id, range, Class::Fill)] = second[..] else { panic!("{second:?}") };
        assert_eq!(range.len() * 4096, 256 << 20);
        let (distance, soon) = (planner.link().round_trip(), later + std::time::Duration::from_micros(50));
        planner.on(Event::Arrived(id, range), soon, &All(false), &mut Vec::new());
        assert_eq!(planner.link().round_trip(), distance, "it came from nowhere");
    }

    #[test]
    fn a_fill_that_is_held_begins_when_somebody_follows_the_guest_or_nobody_will() {
        for follow in [true, false] {
            let mut planner = planner(&[]);
            planner.set_fill(true);
            planner.hold_fill();
            planner.expect_foresight(true);
            assert_eq!(plan(&mut planner, NOW), []);
            if follow {
                planner.set_foresight(Some(Box::new(Script::new(vec![BlockRange::new(500, 501)]))), 0);
            } else {
                planner.expect_foresight(false);
            }
            let begun = plan(&mut planner, NOW);
            assert!(matches!(begun[..], [Action::Fetch(..)]), "{begun:?}");
            assert!(!planner.fill_held);
        }
    }
}
