//! What to fetch ahead: runs that the guest is reading, then what a model foresees, then what fills the image.

use std::time::Duration;

use super::demand::Blocks;
use super::{Action, Class, Planner};
use crate::block::{Block, BlockRange};
use crate::config::Prefetch;
use crate::time::Moment;

/// Smallest prefetch, in bytes: below this the cost of requests shows.
const CHUNK_MIN: u64 = 32 << 10;
/// And up to this one is a quarter of the window: requests enough to keep the link full, and not more headers than that takes.
const CHUNK_USUAL: u64 = 64 << 10;
/// Largest prefetch, in bytes: what a joined demand may have to wait through on the fastest links.
pub(super) const CHUNK_MAX: u64 = 4 << 20;
/// Largest piece of a hole that is filled at once, in bytes: nothing comes over the link for it, but who wants a block of it
/// meanwhile waits until all of it is marked.
const HOLE_MAX: u64 = 256 << 20;
/// Candidates are renewed this often while the guest is followed, ...
const RENEW: Duration = Duration::from_millis(100);
/// ... and when it had to wait for something, but not more often than this: a guest that waits at each step shall not keep
/// a processor busy with plans.
const RENEW_MISSED: Duration = Duration::from_millis(10);
/// Candidates that are looked at for neighbours of the one that is fetched.
const WIDEN_CANDIDATES: usize = 64;
/// Connections, at most, that prefetch leaves free for a demand.
pub const PREFETCH_RESERVE: usize = 2;

/// Size of a prefetch, in bytes.
fn chunk(window: u64, lanes: usize) -> u64 {
    (window / lanes as u64).max((window / 4).min(CHUNK_USUAL)).clamp(CHUNK_MIN, CHUNK_MAX)
}

impl Planner {
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
                if self.fetches_ahead() {
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
        while self.fetches_ahead() && self.flights.prefetches() < lanes && self.slots() > kept_free {
            let on_the_way = self.flights.wire();
            let window = if self.bulk { u64::MAX } else { self.link.window() };
            let chunk = if self.bulk { CHUNK_MAX } else { chunk(window, lanes) };
            // The last chunk may reach beyond the window: on a slow link, where a window is a few chunks, one that must
            // fit in as a whole would leave a good part of the link unused.
            if on_the_way > 0 && (calm || on_the_way >= window) {
                return;
            }
            let Some((range, class)) = self.next_prefetch(chunk, now, blocks) else { return };
            let frames = self.frames_for(range, chunk, blocks);
            if !frames.is_some_and(|frames| self.begin_frames(frames, class, now, blocks, actions)) {
                self.begin(range, class, now, actions);
            }
            if self.backoff.failing() || self.full_until.is_some() {
                return;
            }
        }
    }

    /// True when anything is fetched that the guest has not asked for.
    pub fn fetches_ahead(&self) -> bool {
        self.prefetch == Prefetch::Readahead || self.fill_on
    }

    fn next_prefetch(&mut self, bytes: u64, now: Moment, blocks: &dyn Blocks) -> Option<(BlockRange, Class)> {
        if self.prefetch == Prefetch::Readahead {
            for range in self.readahead.wanted(self.geometry.all().end) {
                if let Some(run) = self.fetchable(range, bytes, blocks)
                    && self.backoff.shunned_until(run, now).is_none()
                {
                    return Some((run, Class::Prefetch));
                }
            }
            self.foresee(now, blocks);
            if let Some(found) = self.next_candidate(bytes, now, blocks) {
                return Some(found);
            }
        }
        if !self.fill_on || self.fill_held || self.fill.is_done() {
            return None;
        }
        self.next_fill(bytes, now, blocks).map(|run| (run, Class::Fill))
    }

    /// Renews the candidates when it is time.
    fn foresee(&mut self, now: Moment, blocks: &dyn Blocks) {
        let Some(foresight) = &mut self.foresight else { return };
        let age = now.since(self.foreseen_at);
        if age >= if self.missed { RENEW_MISSED } else { RENEW } {
            self.missed = false;
            self.foreseen_at = now;
            self.candidate = 0;
            foresight.plan(&self.link, &|range| blocks.first_absent(range).is_some());
            self.packs.sum_up(foresight.candidates(), blocks);
            let waiting = self.stall_began.map_or(Duration::ZERO, |began| now.since(began));
            self.habits.located(foresight.place(), waiting, now);
        }
    }

    /// The most urgent candidate that can be fetched, widened by its neighbours among those that follow it.
    fn next_candidate(&mut self, bytes: u64, now: Moment, blocks: &dyn Blocks) -> Option<(BlockRange, Class)> {
        let candidates = self.foresight.as_ref()?.candidates();
        let mut wake = None;
        let found = candidates.iter().enumerate().skip(self.candidate).find_map(|(at, candidate)| {
            if candidate.fill && !self.fill_on {
                return None;
            }
            let run = self.fetchable(candidate.range, bytes, blocks)?;
            if let Some(until) = self.backoff.shunned_until(run, now) {
                wake = Some(wake.map_or(until, |w: Moment| w.min(until)));
                return None;
            }
            let ahead = candidates[at + 1..].iter().take(WIDEN_CANDIDATES).filter(|c| c.fill == candidate.fill);
            let neighbours: Vec<BlockRange> = ahead.map(|c| c.range).collect();
            let run = self.widen(run, &neighbours, bytes, blocks);
            Some((at, run, if candidate.fill { Class::Fill } else { Class::Prefetch }))
        });
        if let Some(until) = wake {
            self.wake_at(until);
        }
        let (at, run, class) = found?;
        // Those before it are here or on their way. What is left of this one comes next time.
        self.candidate = if wake.is_some() { self.candidate } else { at };
        Some((run, class))
    }

    /// Widens `run` by those of `neighbours` that touch it or lie behind a cheap gap, up to `bytes`.
    fn widen(&self, mut run: BlockRange, neighbours: &[BlockRange], bytes: u64, blocks: &dyn Blocks) -> BlockRange {
        let most = (bytes / self.geometry.block_bytes()).max(1);
        let gap = self.gap_blocks();
        let free = |more: BlockRange| {
            !more.is_empty() && blocks.first_present(more).is_none() && self.flights.first_free(more) == more
        };
        let mut grown = true;
        while grown && run.len() < most {
            grown = false;
            for other in neighbours {
                let behind = BlockRange { start: run.end, end: other.end.min(Block(run.start.0 + most)) };
                let before =
                    BlockRange { start: other.start.max(Block(run.end.0.saturating_sub(most))), end: run.start };
                if other.start >= run.start
                    && other.start.0 <= run.end.0 + gap
                    && behind.start < behind.end
                    && free(behind)
                {
                    run.end = behind.end;
                    grown = true;
                } else if other.end <= run.end
                    && other.end.0 + gap >= run.start.0
                    && before.start < before.end
                    && free(before)
                {
                    run.start = before.start;
                    grown = true;
                }
            }
        }
        run
    }

    /// The first absent blocks of `rest` that nobody brings: so many bytes, or of a hole more.
    fn fill_run(&self, rest: BlockRange, bytes: u64, blocks: &dyn Blocks) -> Option<BlockRange> {
        let run = self.fetchable(rest, bytes, blocks)?;
        let Some(tree) = &self.tree else { return Some(run) };
        let rest = BlockRange { start: run.start, end: rest.end };
        let used = tree.holes().used_in(rest).next();
        let hole = BlockRange { start: run.start, end: used.map_or(rest.end, |used| used.start) };
        if hole.is_empty() { Some(run) } else { self.fetchable(hole, HOLE_MAX, blocks) }
    }

    /// The next absent blocks in the order of the image, from where the fill was told to begin.
    fn next_fill(&mut self, bytes: u64, now: Moment, blocks: &dyn Blocks) -> Option<BlockRange> {
        let all = self.geometry.all();
        let mut from = self.fill.cursor(all);
        let mut passed_start = from == all.start;
        let mut shunned = false;
        loop {
            let found = self.fill_run(BlockRange { start: from, end: all.end }, bytes, blocks);
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

#[cfg(test)]
mod tests {
    use super::super::demand::{Request, RequestId};
    use super::super::testing::All;
    use super::super::{Event, FetchId};
    use super::*;
    use crate::block::Geometry;
    use crate::config::Config;
    use crate::gate::Op;
    use crate::predictor::Script;

    const NOW: Moment = Moment(1_000_000_000);
    /// In a restore point the memory lies behind the disk.
    const MEMORY: u64 = 200_000;

    fn asks(planner: &mut Planner, number: u64, range: BlockRange) -> Vec<Action> {
        let request = Request { op: Op::Read, touched: range, covered: range, since: NOW };
        let mut actions = Vec::new();
        planner.on(Event::Needed(RequestId(number), request), NOW, &All(false), &mut actions);
        planner.plan(NOW, &All(false), &mut actions);
        actions
    }

    #[test]
    fn the_fill_goes_round_from_where_it_is_told_to_begin() {
        let blocks = All(false);
        let mut planner = Planner::new(Geometry::new(MEMORY * 4096, 4096).unwrap(), &Config::default(), 1);
        planner.fill_from(Block(MEMORY - 8));
        let mut begun = Vec::new();
        planner.plan(NOW, &blocks, &mut begun);
        let [Action::Fetch(_, end, Class::Fill), Action::Fetch(_, start, Class::Fill), ..] = begun[..] else {
            panic!("{begun:?}")
        };
        assert_eq!((end, start.start), (BlockRange::new(MEMORY - 8, MEMORY), Block(0)));
    }

    /// What a fault on memory finds: a disk's run that is read ahead, a model's blocks on their way, and the fill behind both.
    #[test]
    fn a_fault_on_memory_is_behind_one_window_of_readahead_and_no_plan() {
        let geometry = Geometry::new(1 << 30, 4096).unwrap();
        let config = Config::default();
        let mut planner = Planner::new(geometry, &config, 1);
        planner.set_foresight(Some(Box::new(Script::new(vec![BlockRange::new(90_000, 99_000)]))), 0);
        let mut sent = asks(&mut planner, 1, BlockRange::new(0, 8));
        sent.extend(asks(&mut planner, 2, BlockRange::new(8, 16)));
        let ahead = |action: &&Action| matches!(action, Action::Fetch(_, _, Class::Prefetch | Class::Fill));
        assert!(sent.iter().any(|action| ahead(&action)), "{sent:?}");
        let window = planner.link.window();
        assert!(planner.flights.wire() >= window, "the link is as full as foresight may make it");

        let page = BlockRange::new(MEMORY, MEMORY + 1);
        let at_once = asks(&mut planner, 3, page);
        assert!(matches!(at_once[..], [Action::Fetch(_, range, Class::Demand)] if range == page), "{at_once:?}");
        let before: u64 = sent
            .iter()
            .filter(ahead)
            .map(|action| match action {
                Action::Fetch(_, range, _) => geometry.length(*range),
                _ => 0,
            })
            .sum();
        assert!(before <= window + CHUNK_MIN.max(CHUNK_USUAL), "{before} bytes before it, window {window}");

        // And while one waits, whatever else it lacks goes before all that is foreseen.
        let numbers: Vec<FetchId> = sent.iter().filter(|a| matches!(a, Action::Fetch(..))).map(id).collect();
        let mut later = Vec::new();
        for number in numbers {
            planner.on(Event::Finished(number, super::super::Outcome::Done), NOW, &All(false), &mut later);
        }
        let next = asks(&mut planner, 4, BlockRange::new(MEMORY + 500, MEMORY + 501));
        let first = next.iter().find(|action| matches!(action, Action::Fetch(..)));
        assert!(matches!(first, Some(Action::Fetch(_, _, Class::Demand))), "{next:?}");
    }

    fn id(action: &Action) -> FetchId {
        match action {
            Action::Fetch(id, ..) | Action::FetchFrames(id, ..) => *id,
            Action::Complete(..) => FetchId(0),
        }
    }
}
