//! What to fetch now for those who wait, and how any fetch begins.

use super::demand::Blocks;
use super::flights::Cargo;
use super::{Action, Class, FetchId, Planner};
use crate::block::{Block, BlockRange};
use crate::time::Moment;

/// Largest demand fetch, in bytes: a longer request is cut so that several connections share it.
const DEMAND_MAX: u64 = 1 << 20;
/// Bytes that a request and its answer's header cost.
const REQUEST_OVERHEAD: u64 = 300;
/// Largest gap that is fetched along, in bytes.
const GAP_MAX: u64 = 64 << 10;
/// Waiting requests looked at for joining into one fetch.
const JOIN_MAX: usize = 64;

impl Planner {
    pub(super) fn begin(&mut self, range: BlockRange, class: Class, now: Moment, actions: &mut Vec<Action>) {
        let id = self.depart(Cargo::Range(range), vec![range], self.geometry.length(range), class, now);
        actions.push(Action::Fetch(id, range, class));
    }

    /// Enters a fetch that brings these blocks and takes so many bytes of the link.
    pub(super) fn depart(
        &mut self,
        cargo: Cargo,
        brings: Vec<BlockRange>,
        wire: u64,
        class: Class,
        now: Moment,
    ) -> FetchId {
        match class {
            Class::Demand => self.tally.demand_fetches += 1,
            Class::Prefetch | Class::Fill => self.tally.prefetch_fetches += 1,
        }
        let token = self.link.start(wire, now);
        self.flights.begin(cargo, brings, wire, class, token)
    }

    /// Bytes that may come along unasked for where that saves a request: as many as take no more of the link than the
    /// request would cost.
    pub(super) fn gap_bytes(&self) -> u64 {
        let trip = self.link.round_trip().unwrap_or_default().as_secs_f64() / self.connections as f64;
        let bytes = REQUEST_OVERHEAD + (trip * self.link.rate()) as u64;
        bytes.min(GAP_MAX)
    }

    /// Largest gap between two ranges worth fetching along, in blocks.
    pub(super) fn gap_blocks(&self) -> u64 {
        self.gap_bytes() / self.geometry.block_bytes()
    }

    pub(super) fn slots(&self) -> usize {
        let limit = if self.full_until.is_some() { 1 } else { self.connections };
        limit.saturating_sub(self.flights.len())
    }

    pub(super) fn plan_demand(&mut self, now: Moment, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
        while self.demand.has_wants() && self.slots() > 0 {
            // A guest may have written the block meanwhile: then its request moves on by itself.
            self.demand.refresh(JOIN_MAX * 4, blocks, &mut self.ready);
            actions.extend(self.ready.drain(..).map(|id| Action::Complete(id, 0)));
            // Who waits for a block that is coming anyway needs nothing.
            let wants = self.demand.wants().take(JOIN_MAX * 4);
            let coming: Vec<_> = wants.filter(|w| self.flights.brings(w.2)).map(|w| (w.0, w.2)).collect();
            for (id, block) in coming {
                self.flights.promote(block);
                self.demand.settled(id);
            }
            let mut wake = None;
            let mut runs: Vec<BlockRange> = Vec::new();
            for (_, request, next) in self.demand.wants() {
                if runs.len() == JOIN_MAX {
                    break;
                }
                let needs = request.needs();
                let need = needs.iter().find(|n| n.contains(next)).copied().unwrap_or(BlockRange::one(next));
                let need = BlockRange { start: next, end: need.end };
                if let Some(until) = self.backoff.shunned_until(need, now) {
                    wake = Some(wake.map_or(until, |w: Moment| w.min(until)));
                    continue;
                }
                if let Some(run) = self.fetchable(need, DEMAND_MAX, blocks) {
                    runs.push(run);
                }
            }
            if let Some(until) = wake {
                self.wake_at(until);
            }
            // The oldest goes first and takes its neighbours along.
            let Some(&oldest) = runs.first() else { return };
            let joined = self.join(oldest, runs, blocks);
            let frame = self.frame_for_demand(joined);
            let framed =
                frame.is_some_and(|frame| self.begin_frames(frame..frame + 1, Class::Demand, now, blocks, actions));
            if !framed {
                self.begin(joined, Class::Demand, now, actions);
            }
        }
    }

    /// The first part of `range` that is absent and that nobody brings, at most `bytes` long.
    pub(super) fn fetchable(&self, range: BlockRange, bytes: u64, blocks: &dyn Blocks) -> Option<BlockRange> {
        let mut rest = range;
        loop {
            rest.start = blocks.first_absent(rest)?;
            let free = self.flights.first_free(rest);
            if free.is_empty() {
                return None;
            }
            if free.start > rest.start {
                rest.start = free.start;
                continue;
            }
            let most = (bytes / self.geometry.block_bytes()).max(1);
            let cut = BlockRange { start: free.start, end: free.end.min(Block(free.start.0 + most)) };
            let run = BlockRange { start: cut.start, end: blocks.first_present(cut).unwrap_or(cut.end) };
            // A guest may have claimed the first block since it was seen absent; then look on behind it.
            if !run.is_empty() {
                return Some(run);
            }
        }
    }

    /// Widens `first` by those of `runs` that touch it or lie behind a cheap gap.
    fn join(&self, first: BlockRange, mut runs: Vec<BlockRange>, blocks: &dyn Blocks) -> BlockRange {
        let gap_max = self.gap_blocks();
        let most = (DEMAND_MAX / self.geometry.block_bytes()).max(first.len());
        runs.sort_unstable();
        let mut joined = first;
        let mut grown = true;
        while grown {
            grown = false;
            for run in &runs {
                let both = BlockRange { start: joined.start.min(run.start), end: joined.end.max(run.end) };
                let gap = if run.start >= joined.end {
                    BlockRange { start: joined.end, end: run.start }
                } else if run.end <= joined.start {
                    BlockRange { start: run.end, end: joined.start }
                } else if both != joined {
                    BlockRange { start: joined.start, end: joined.start }
                } else {
                    continue;
                };
                let whole_free = |r: BlockRange| blocks.first_present(r).is_none() && self.flights.first_free(r) == r;
                if gap.len() <= gap_max && both.len() <= most && whole_free(both) {
                    joined = both;
                    grown = true;
                }
            }
        }
        joined
    }
}
