//! The planner: all policy, no I/O, no clock, no threads.
//!
//! Events and the time go in, actions come out. The engine runs it on a real link, the simulator on a modelled one, so
//! what is tested and measured there is what runs here.
//!
//! *Demand first.* A guest's request joins a fetch that is under way already and makes it a demand; what nobody is
//! bringing becomes a fetch of its own, neighbours joined where the gap costs less than a request. *Prefetch* fills what
//! the link has left: never more connections than leave one for a demand, never more bytes on the way than the link's
//! window, so that a demand finds at most a short queue before it. *Failures* are tried again with back-off; a demand
//! without end unless told otherwise.

mod backoff;
mod demand;
mod fill;
mod flights;
#[cfg(all(test, vmstream_shuttle))]
mod model;
mod readahead;
#[cfg(all(test, not(vmstream_shuttle)))]
mod simulation;

use std::time::Duration;

pub use demand::{Blocks, Request, RequestId};
pub use flights::{Class, FetchId};

use crate::block::{Block, BlockRange, Geometry};
use crate::config::{Config, Prefetch};
use crate::error::errno;
use crate::gate::Op;
use crate::link::Link;
use crate::time::Moment;
use backoff::Backoff;
use demand::Demand;
use fill::Fill;
use flights::Flights;
use readahead::Readahead;

/// Smallest prefetch, in bytes: below this the cost of requests shows.
const CHUNK_MIN: u64 = 16 << 10;
/// Largest prefetch, in bytes: what a joined demand may have to wait through on the fastest links.
const CHUNK_MAX: u64 = 4 << 20;
/// Largest demand fetch, in bytes: a longer request is cut so that several connections share it.
const DEMAND_MAX: u64 = 1 << 20;
/// Bytes that a request and its answer's header cost.
const REQUEST_OVERHEAD: u64 = 300;
/// Largest gap that is fetched along, in bytes.
const GAP_MAX: u64 = 64 << 10;
/// Waiting requests looked at for joining into one fetch.
const JOIN_MAX: usize = 64;
/// A full disk is tried again at most this often.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// How a fetch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it arrived.
    Done,
    /// It may work later.
    Failed {
        /// The server's wish.
        retry_after: Option<Duration>,
    },
    /// The local disk is full.
    Full,
    /// It can never work.
    Fatal,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A request that the gate could not let through.
    Needed(RequestId, Request),
    /// The guest touched resident blocks for the first time.
    Touched(BlockRange),
    /// The next blocks of a fetch were stored, or dropped because the guest was faster.
    Arrived(FetchId, BlockRange),
    /// A fetch ended.
    Finished(FetchId, Outcome),
    /// Guest writes ended that somebody waits for.
    WritesEnded,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch this range.
    Fetch(FetchId, BlockRange, Class),
    /// Answer this request with 0 or a negative errno.
    Complete(RequestId, i32),
}

/// Counters of the planner.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests that had to wait for bytes.
    pub stalls: u64,
    /// Time during which at least one request waited for bytes.
    pub stalled: Duration,
    /// Fetches begun for a waiting guest.
    pub demand_fetches: u64,
    /// Fetches begun ahead.
    pub prefetch_fetches: u64,
    /// Fetches that failed and were tried again.
    pub retries: u64,
    /// Requests that found their block on the way already.
    pub joined: u64,
}

/// The planner of one image.
#[derive(Debug)]
pub struct Planner {
    geometry: Geometry,
    connections: usize,
    prefetch: Prefetch,
    fill_on: bool,
    bulk: bool,
    error_after: Option<Duration>,
    link: Link,
    flights: Flights,
    demand: Demand,
    backoff: Backoff,
    readahead: Readahead,
    fill: Fill,
    failed: bool,
    full_until: Option<Moment>,
    stall_began: Option<Moment>,
    tally: Tally,
    wake: Option<Moment>,
    ready: Vec<RequestId>,
}

impl Planner {
    /// A planner for an image; `seed` for the jitter of its back-off.
    pub fn new(geometry: Geometry, config: &Config, seed: u64) -> Self {
        Self {
            geometry,
            connections: config.connections,
            prefetch: config.prefetch,
            fill_on: config.fill,
            bulk: config.bulk,
            error_after: config.error_after,
            link: Link::default(),
            flights: Flights::default(),
            demand: Demand::default(),
            backoff: Backoff::new(config.retry_min, config.retry_max, seed),
            readahead: Readahead::default(),
            fill: Fill::default(),
            failed: false,
            full_until: None,
            stall_began: None,
            tally: Tally::default(),
            wake: None,
            ready: Vec::new(),
        }
    }

    /// Takes in what happened. Call [`Planner::plan`] after the last event of a moment.
    pub fn on(&mut self, event: Event, now: Moment, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
        match event {
            Event::Needed(id, request) => self.needed(id, request, blocks, actions),
            Event::Touched(range) => self.touched(range, false),
            Event::Arrived(fetch, range) => {
                if let Some(flight) = self.flights.advance(fetch, range.end) {
                    self.link.arrive(&mut flight.token, self.geometry.length(range), now);
                    self.backoff.succeeded(range);
                    self.full_until = None;
                }
                self.demand.arrived(range, blocks, &mut self.ready);
            }
            Event::Finished(fetch, outcome) => self.finished(fetch, outcome, now, blocks),
            Event::WritesEnded => {
                self.demand.writes_ended(blocks, &mut self.ready);
                self.fill.changed();
            }
        }
        if self.failed && self.flights.len() == 0 {
            // The source can never answer again and nothing is on its way: nobody shall wait for it.
            actions.extend(self.demand.give_up(now).into_iter().map(|id| Action::Complete(id, -errno::EIO)));
        }
        for id in self.ready.drain(..) {
            actions.push(Action::Complete(id, 0));
        }
        self.count_stall(now);
    }

    fn needed(&mut self, id: RequestId, request: Request, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
        self.touched(request.touched, request.op == Op::Read);
        if self.demand.add(id, request, blocks) {
            actions.push(Action::Complete(id, 0));
            return;
        }
        let Some(block) = self.demand.awaited(id) else { return };
        self.tally.stalls += 1;
        if self.flights.brings(block) {
            self.tally.joined += 1;
        }
    }

    fn touched(&mut self, range: BlockRange, missed: bool) {
        if self.prefetch == Prefetch::Readahead {
            self.readahead.touch(range, missed, &self.link, self.geometry.block_bytes());
        }
    }

    fn finished(&mut self, id: FetchId, outcome: Outcome, now: Moment, blocks: &dyn Blocks) {
        let Some(flight) = self.flights.end(id) else { return };
        let rest = flight.rest();
        let progressed = flight.next > flight.range.start;
        self.link.end(flight.token, self.geometry.length(rest), now);
        match outcome {
            Outcome::Done => {}
            Outcome::Failed { retry_after } => {
                self.tally.retries += 1;
                self.backoff.failed(rest, progressed, retry_after, now);
            }
            Outcome::Full => self.full_until = Some(now + FULL_RETRY),
            Outcome::Fatal => self.failed = true,
        }
        if !rest.is_empty() {
            self.demand.unsettle(rest);
            self.fill.missed(rest);
            // A block whose storing failed is absent again; whoever waited for its filling looks again.
            self.demand.arrived(rest, blocks, &mut self.ready);
        }
    }

    fn count_stall(&mut self, now: Moment) {
        match (self.stall_began, self.demand.oldest().is_some()) {
            (None, true) => self.stall_began = Some(now),
            (Some(began), false) => {
                self.tally.stalled += now.since(began);
                self.stall_began = None;
            }
            _ => {}
        }
    }

    /// Decides what to fetch now.
    pub fn plan(&mut self, now: Moment, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
        self.wake = None;
        if let Some(limit) = self.error_after
            && let Some(oldest) = self.demand.oldest()
        {
            if now.since(oldest) >= limit {
                actions
                    .extend(self.demand.give_up(now - limit).into_iter().map(|id| Action::Complete(id, -errno::EIO)));
                self.count_stall(now);
            }
            if let Some(oldest) = self.demand.oldest() {
                self.wake_at(oldest + limit);
            }
        }
        if self.failed {
            return;
        }
        if let Some(until) = self.full_until {
            if now < until {
                self.wake_at(until);
                return;
            }
            // One fetch tries whether there is space again.
            if self.flights.len() > 0 {
                return;
            }
        }
        self.plan_demand(now, blocks, actions);
        self.plan_prefetch(now, blocks, actions);
    }

    fn wake_at(&mut self, at: Moment) {
        self.wake = Some(self.wake.map_or(at, |old| old.min(at)));
    }

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

    fn slots(&self) -> usize {
        let limit = if self.full_until.is_some() { 1 } else { self.connections };
        limit.saturating_sub(self.flights.len())
    }

    fn plan_demand(&mut self, now: Moment, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
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
            return Some(BlockRange { start: cut.start, end: blocks.first_present(cut).unwrap_or(cut.end) });
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

    fn plan_prefetch(&mut self, now: Moment, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
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
        let reserve = if self.bulk || self.connections == 1 { 0 } else { (self.connections / 4).clamp(1, 2) };
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

    fn prefetching(&self) -> bool {
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
        if !self.fill_on {
            return None;
        }
        if self.fill.is_done() {
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

    /// When [`Planner::plan`] wants to run again even if nothing happens.
    pub fn deadline(&self) -> Option<Moment> {
        self.wake
    }

    /// The link as it was measured.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The counters, the present stall included.
    pub fn tally(&self, now: Moment) -> Tally {
        let mut tally = self.tally;
        if let Some(began) = self.stall_began {
            tally.stalled += now.since(began);
        }
        tally
    }

    /// True once the source has failed for good.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Failures on end since anything arrived; 0 when the link works.
    pub fn failures_on_end(&self) -> u32 {
        self.backoff.failures_on_end()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.demand.len()
    }

    /// True while no fetch is under way and no request waits.
    pub fn is_idle(&self) -> bool {
        self.flights.len() == 0 && self.demand.len() == 0
    }

    /// Has the fill look at the whole image again, in case a block became absent because a guest's write failed.
    pub fn look_for_gaps(&mut self) {
        self.fill.changed();
    }

    /// Switches prefetch at run time.
    pub fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.prefetch = prefetch;
    }

    /// Switches filling at run time.
    pub fn set_fill(&mut self, on: bool) {
        self.fill_on = on;
    }

    /// Changes the deadline of demands at run time.
    pub fn set_error_after(&mut self, limit: Option<Duration>) {
        self.error_after = limit;
    }

    /// The request's blocks, for the caller that knows bytes.
    pub fn request(geometry: Geometry, op: Op, offset: u64, length: u64, since: Moment) -> Request {
        Request { op, touched: geometry.touched(offset, length), covered: geometry.covered(offset, length), since }
    }
}
