//! The planner: all policy, no I/O, no clock, no threads.
//!
//! Events and the time go in, actions come out. The engine runs it on a real link, the simulator on a modelled one, so
//! what is tested and measured there is what runs here.
//!
//! *Demand first.* A guest's request joins a fetch that is under way already and makes it a demand; what nobody is
//! bringing becomes a fetch of its own, neighbours joined where the gap costs less than a request. *Prefetch* fills what
//! the link has left: never more connections than leave one for a demand, nothing while as many bytes are on the way as the
//! link's window has, so that a demand finds at most a short queue before it. *Failures* are tried again with back-off; a demand
//! without end unless told otherwise.

mod backoff;
mod demand;
mod fill;
mod flights;
mod forecast;
mod habits;
mod issue;
#[cfg(all(test, vmstream_shuttle))]
mod model;
mod packs;
mod prefetch;
mod readahead;
#[cfg(all(test, not(vmstream_shuttle)))]
mod simulation;
#[cfg(test)]
mod testing;
mod touches;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use demand::{Blocks, Request, RequestId};
pub use flights::{Cargo, Class, FetchId};
pub use forecast::Outlook;
pub use prefetch::PREFETCH_RESERVE;

use crate::block::{Block, BlockRange, Geometry};
use crate::config::{Config, Prefetch};
use crate::error::errno;
use crate::gate::Op;
use crate::link::Link;
use crate::predictor::Foresight;
use crate::time::Moment;
use crate::tree::Tree;
use backoff::Backoff;
use demand::Demand;
use fill::Fill;
use flights::Flights;
use habits::Habits;
use packs::Packs;
use readahead::Readahead;
use touches::Touches;

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
    Touched(Request),
    /// Blocks of a fetch were stored, or dropped because the guest was faster: of a range the next ones, of frames any.
    Arrived(FetchId, BlockRange),
    /// So many bytes of a fetch of frames came over the link; of ranges the blocks tell it.
    Received(FetchId, u64),
    /// A fetch ended.
    Finished(FetchId, Outcome),
    /// Guest writes ended that somebody waits for.
    WritesEnded,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch this range.
    Fetch(FetchId, BlockRange, Class),
    /// Fetch these frames of the packs.
    FetchFrames(FetchId, Range<u32>, Class),
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
    /// Nothing is filled until it is known what to fetch first.
    fill_held: bool,
    bulk: bool,
    error_after: Option<Duration>,
    link: Link,
    flights: Flights,
    demand: Demand,
    backoff: Backoff,
    readahead: Readahead,
    foresight: Option<Box<dyn Foresight>>,
    /// What a foresight that comes later has to be told.
    touches: Touches,
    /// When the candidates were renewed, and how many of them were dealt with since.
    foreseen_at: Moment,
    candidate: usize,
    /// The guest waited for something since.
    missed: bool,
    fill: Fill,
    packs: Packs,
    /// Of a published image: knows its holes.
    tree: Option<Arc<Tree>>,
    failed: bool,
    full_until: Option<Moment>,
    stall_began: Option<Moment>,
    habits: Habits,
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
            fill_held: false,
            bulk: config.bulk,
            error_after: config.error_after,
            link: Link::default(),
            flights: Flights::default(),
            demand: Demand::default(),
            backoff: Backoff::new(config.retry_min, config.retry_max, seed),
            readahead: Readahead::default(),
            foresight: None,
            touches: Touches::default(),
            foreseen_at: Moment::default(),
            candidate: 0,
            missed: true,
            fill: Fill::default(),
            packs: Packs::default(),
            tree: None,
            failed: false,
            full_until: None,
            stall_began: None,
            habits: Habits::default(),
            tally: Tally::default(),
            wake: None,
            ready: Vec::new(),
        }
    }

    /// Takes in what happened. Call [`Planner::plan`] after the last event of a moment.
    pub fn on(&mut self, event: Event, now: Moment, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
        if matches!(event, Event::Needed(..) | Event::Touched(_)) {
            self.habits.acted(now);
        }
        match event {
            Event::Needed(id, request) => self.needed(id, request, blocks, actions),
            Event::Touched(request) => self.touched(&request, false),
            Event::Arrived(fetch, range) => {
                if let Some(flight) = self.flights.arrive(fetch, range) {
                    if matches!(flight.cargo, Cargo::Range(_)) {
                        self.received(fetch, self.wire_bytes(range), now);
                    }
                    self.backoff.succeeded(range);
                    self.full_until = None;
                }
                self.demand.arrived(range, blocks, &mut self.ready);
            }
            Event::Received(fetch, bytes) => self.received(fetch, bytes, now),
            Event::Finished(fetch, outcome) => self.finished(fetch, outcome, now, blocks),
            Event::WritesEnded => {
                self.demand.writes_ended(blocks, &mut self.ready);
                self.fill.changed();
            }
        }
        if self.failed && self.flights.len() == 0 {
            // The source can never answer again and nothing is on its way: nobody shall wait for it.
            self.give_up(now, actions);
        }
        for id in self.ready.drain(..) {
            actions.push(Action::Complete(id, 0));
        }
        self.count_stall(now);
    }

    fn needed(&mut self, id: RequestId, request: Request, blocks: &dyn Blocks, actions: &mut Vec<Action>) {
        self.missed = true;
        self.touched(&request, request.op == Op::Read);
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

    /// What is only overwritten teaches nothing, here as in training: the guest never needed it.
    fn touched(&mut self, request: &Request, missed: bool) {
        let mut known = false;
        let needs = request.needs();
        for &range in needs.iter().filter(|range| !range.is_empty()) {
            self.touches.add(range);
            if let Some(foresight) = &mut self.foresight {
                known |= foresight.touch(range);
            }
        }
        if needs.iter().all(|range| range.is_empty()) {
            return;
        }
        if !known {
            self.habits.met_news(1);
        }
        if self.prefetch != Prefetch::Readahead {
            return;
        }
        match known {
            true => self.readahead.foreseen(),
            false => self.readahead.touch(request.touched, missed, &self.link, self.geometry.block_bytes()),
        }
    }

    fn received(&mut self, fetch: FetchId, bytes: u64, now: Moment) {
        if let Some((flight, bytes)) = self.flights.receive(fetch, bytes) {
            self.link.arrive(&mut flight.token, bytes, now);
        }
    }

    fn finished(&mut self, id: FetchId, outcome: Outcome, now: Moment, blocks: &dyn Blocks) {
        let Some((flight, rest, missing)) = self.flights.end(id) else { return };
        self.link.end(flight.token, missing, now);
        match (outcome, &flight.cargo) {
            (Outcome::Done, cargo) => {
                // A frame that ended without some of its blocks is not what its index says.
                if let (Cargo::Frames(_), Some(first)) = (cargo, rest.first()) {
                    self.packs.failed_at(first.start);
                }
            }
            (Outcome::Failed { retry_after }, cargo) => {
                self.tally.retries += 1;
                // Of frames the first that did not come is to blame, and the others may be asked for again.
                let first = rest.first().copied().unwrap_or(BlockRange::new(0, 0));
                if matches!(cargo, Cargo::Frames(_)) {
                    self.packs.failed_at(first.start);
                }
                self.backoff.failed(first, flight.progressed, retry_after, now);
            }
            (Outcome::Full, _) => self.full_until = Some(now + FULL_RETRY),
            // The image may still be had in ranges.
            (Outcome::Fatal, Cargo::Frames(_)) => self.packs.give_up(),
            (Outcome::Fatal, Cargo::Range(_)) => self.failed = true,
        }
        for part in rest {
            self.demand.unsettle(part);
            self.fill.missed(part);
            // A block whose storing failed is absent again; whoever waited for its filling looks again.
            self.demand.arrived(part, blocks, &mut self.ready);
        }
    }

    /// Answers with -EIO whoever has waited for an arrival since `before`.
    fn give_up(&mut self, before: Moment, actions: &mut Vec<Action>) {
        actions.extend(self.demand.give_up(before).into_iter().map(|id| Action::Complete(id, -errno::EIO)));
    }

    fn count_stall(&mut self, now: Moment) {
        match (self.stall_began, self.demand.oldest().is_some()) {
            (None, true) => self.stall_began = Some(now),
            (Some(began), false) => {
                self.tally.stalled += now.since(began);
                self.habits.waited(now.since(began), now);
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
                self.give_up(now - limit, actions);
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

    /// Follows the guest with this from now on. `told` is how many of [`Planner::touches`] it was told already; the others
    /// it is told now.
    pub fn set_foresight(&mut self, mut foresight: Option<Box<dyn Foresight>>, told: usize) {
        self.habits.follow_anew();
        if let Some(foresight) = &mut foresight {
            // The last of those may have grown since.
            for &range in self.touches.kept().iter().skip(told.saturating_sub(1)) {
                if !foresight.touch(range) {
                    self.habits.met_news(1);
                }
            }
        }
        self.foresight = foresight;
        self.fill_held = false;
        self.foresee_anew();
    }

    /// Has the next decision renew the candidates, however fresh they are: nothing else may happen for a while.
    fn foresee_anew(&mut self) {
        self.missed = true;
        self.foreseen_at = Moment::default();
    }

    /// So many of the touches that the present foresight was told beforehand were news to it.
    pub fn met_news(&mut self, touches: usize) {
        self.habits.met_news(touches);
    }

    /// Whether a foresight is still to come: until then what the guest touches is kept for it.
    pub fn expect_foresight(&mut self, expected: bool) {
        self.touches.keep(expected);
        self.fill_held &= expected;
    }

    /// What the guest has touched, in order, since a foresight was first expected.
    pub fn touches(&self) -> &[BlockRange] {
        self.touches.kept()
    }

    /// Switches prefetch at run time.
    pub fn set_prefetch(&mut self, prefetch: Prefetch) {
        self.prefetch = prefetch;
    }

    /// Switches filling at run time.
    pub fn set_fill(&mut self, on: bool) {
        self.fill_on = on;
    }

    /// The fill begins with this block, and with the image's first one when it has come to the end.
    pub fn fill_from(&mut self, block: Block) {
        self.fill.begin_at(block);
    }

    /// Holds the fill back until somebody follows the guest, or nobody is expected to any more
    /// ([`Planner::expect_foresight`]).
    pub fn hold_fill(&mut self) {
        self.fill_held = true;
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
