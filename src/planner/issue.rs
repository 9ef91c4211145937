//! What to fetch now: demand first, then what is worth having ahead, then what fills the image.

use super::demand::Blocks;
use super::{Action, Class, Planner};
use crate::block::{Block, BlockRange};
use crate::config::Prefetch;
use crate::time::Moment;

/// Smallest prefetch, in bytes: below this the cost of requests shows.
const CHUNK_MIN: u64 = 16 << 10;
/// Largest prefetch, in bytes: what a joined demand may have to wait through on the fastest links.
pub(super) const CHUNK_MAX: u64 = 4 << 20;
/// Largest demand fetch, in bytes: a longer request is cut so that several connections share it.
const DEMAND_MAX: u64 = 1 << 20;
/// Bytes that a request and its answer's header cost.
const REQUEST_OVERHEAD: u64 = 300;
/// Largest gap that is fetched along, in bytes.
const GAP_MAX: u64 = 64 << 10;
/// Waiting requests looked at for joining into one fetch.
const JOIN_MAX: usize = 64;

/// Connections, at most, that prefetch leaves free for a demand.
pub const PREFETCH_RESERVE: usize = 2;

impl Planner {
    fn begin(&mut self, range: BlockRange, class: Class, now: Moment, actions: &mut Vec<Action>) {
        let token = self.link.start(self.geometry.length(range), now);
        let id = self.flights.begin(range, class, token);
        match class {
            Class::Demand => self.tally.demand_fetches += 1,
            Class::Prefetch => self.tally.prefetch_fetches += 1,
        }
        actions.push(Action::Fetch(id, range, class));
    }

    /// Largest gap between two ranges worth fetching along, in blocks: where its bytes take less of the link than a
    /// request of its own would cost.
    fn gap_blocks(&self) -> u64 {
        let trip = self.link.round_trip().unwrap_or_default().as_secs_f64() / self.connections as f64;
        let bytes = REQUEST_OVERHEAD + (trip * self.link.rate()) as u64;
        bytes.min(GAP_MAX) / self.geometry.block_bytes()
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
            self.begin(joined, Class::Demand, now, actions);
        }
    }

    /// The first part of `range` that is absent and that nobody brings, at most `bytes` long.
    fn fetchable(&self, range: BlockRange, bytes: u64, blocks: &dyn Blocks) -> Option<BlockRange> {
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

    pub(super) fn plan_prefetch(&mut self, now: Moment, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
        if self.demand.has_wants() && self.slots() == 0 {
            return;
        }
        if self.full_until.is_some() && self.flights.len() > 0 {
            return;
        }
        if self.backoff.failing() {
            // The link or the server is in trouble: one fetch at a time finds out when it is over.
            if now < self.backoff.pause_until() {
                if self.prefetching() {
                    self.wake_at(self.backoff.pause_until());
                }
                return;
            }
            if self.flights.len() > 0 {
                return;
            }
        }
        let reserve =
            if self.bulk || self.connections == 1 { 0 } else { (self.connections / 4).clamp(1, PREFETCH_RESERVE) };
        let lanes = self.connections - reserve;
        let kept_free = if self.full_until.is_some() { 0 } else { reserve.min(1) };
        let calm = !self.bulk && self.link.wants_calm(now);
        while self.prefetching() && self.flights.prefetches() < lanes && self.slots() > kept_free {
            let on_the_way = self.flights.blocks() << self.geometry.block_shift();
            let window = if self.bulk { u64::MAX } else { self.link.window() };
            let chunk = if self.bulk { CHUNK_MAX } else { (window / lanes as u64).clamp(CHUNK_MIN, CHUNK_MAX) };
            if on_the_way > 0 && (calm || on_the_way + chunk > window) {
                return;
            }
            let Some(range) = self.next_prefetch(chunk, now, blocks) else { return };
            self.begin(range, Class::Prefetch, now, actions);
            if self.backoff.failing() || self.full_until.is_some() {
                return;
            }
        }
    }

    pub(super) fn prefetching(&self) -> bool {
        self.prefetch == Prefetch::Readahead || self.fill_on
    }

    fn next_prefetch(&mut self, bytes: u64, now: Moment, blocks: &dyn Blocks) -> Option<BlockRange> {
        if self.prefetch == Prefetch::Readahead {
            for range in self.readahead.wanted(self.geometry.all().end) {
                if let Some(run) = self.fetchable(range, bytes, blocks)
                    && self.backoff.shunned_until(run, now).is_none()
                {
                    return Some(run);
                }
            }
        }
        if !self.fill_on || self.fill.is_done() {
            return None;
        }
        let all = self.geometry.all();
        let mut from = self.fill.cursor(all);
        let mut passed_start = from == all.start;
        let mut shunned = false;
        loop {
            let found = self.fetchable(BlockRange { start: from, end: all.end }, bytes, blocks);
            match found {
                Some(run) => match self.backoff.shunned_until(run, now) {
                    None => {
                        self.fill.took(run);
                        return Some(run);
                    }
                    Some(until) => {
                        self.wake_at(until);
                        shunned = true;
                        from = run.end;
                    }
                },
                None if passed_start && shunned => return None,
                None if passed_start => {
                    self.fill.nothing_left();
                    return None;
                }
                None => {
                    from = all.start;
                    passed_start = true;
                }
            }
        }
    }
}
