//! The planner under a virtual clock: random guests, a random link, random faults, every step checked.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};

use super::prefetch::CHUNK_MAX;
use super::*;
use crate::block::Block;
use crate::gate::State;
use crate::packs::Index;
use crate::predictor::Script;

/// splitmix64 (Steele, Lea, Flood 2014): enough chance for a simulation.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// One byte a block in place of the gate's words.
struct Model {
    states: RefCell<Vec<State>>,
    watching: Cell<bool>,
    /// A guest's write may claim a block at any moment, also in the middle of a decision: chance for that, and the
    /// blocks it took.
    chance: RefCell<Dice>,
    ambushed: RefCell<Vec<Block>>,
}

impl Model {
    /// Now and then a guest is faster and claims the first block of what the planner is about to look at.
    fn ambush(&self, range: BlockRange) {
        if !range.is_empty() && self.chance.borrow_mut().chance(3) && self.state(range.start) == State::Absent {
            self.set(BlockRange::one(range.start), State::Absent, State::Claimed);
            self.ambushed.borrow_mut().push(range.start);
        }
    }

    fn first(&self, range: BlockRange, f: impl Fn(State) -> bool) -> Option<Block> {
        range.iter().find(|b| f(self.states.borrow()[b.0 as usize]))
    }

    fn set(&self, range: BlockRange, from: State, to: State) {
        for s in &mut self.states.borrow_mut()[range.start.0 as usize..range.end.0 as usize] {
            if *s == from {
                *s = to;
            }
        }
    }
}

impl Blocks for Model {
    fn state(&self, block: Block) -> State {
        self.states.borrow()[block.0 as usize]
    }
    fn first_missing(&self, range: BlockRange) -> Option<Block> {
        self.first(range, |s| s != State::Resident)
    }
    fn first_absent(&self, range: BlockRange) -> Option<Block> {
        self.first(range, |s| s == State::Absent)
    }
    fn first_present(&self, range: BlockRange) -> Option<Block> {
        self.ambush(range);
        self.first(range, |s| s != State::Absent)
    }
    fn claim(&self, range: BlockRange) -> bool {
        if self.first(range, |s| !matches!(s, State::Absent | State::Resident)).is_some() {
            return false;
        }
        self.set(range, State::Absent, State::Claimed);
        true
    }
    fn watch(&self, on: bool) {
        self.watching.set(on);
    }
}

enum Step {
    Ask,
    WriteEnds(BlockRange, bool),
    Piece(FetchId),
    FetchEnds(FetchId, Outcome),
    Wake,
}

/// A fetch under way, as the source sees it.
struct Transfer {
    cargo: Cargo,
    /// Of a range the next block, of frames the next frame.
    next: u64,
    /// Bytes of that frame that came.
    received: u64,
}

struct World {
    dice: Dice,
    geometry: Geometry,
    model: Model,
    planner: Planner,
    agenda: BTreeMap<(Moment, u64), Step>,
    serial: u64,
    now: Moment,
    transfers: HashMap<FetchId, Transfer>,
    packs: Option<Arc<Index>>,
    connections: usize,
    open: HashMap<RequestId, Request>,
    answered: HashSet<RequestId>,
    asked: u64,
    faults: u64,
    fatal: bool,
    failures: u64,
    write_failed: bool,
    frames: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let blocks = 16 + dice.below(400);
        let geometry = Geometry::new(blocks * 4096 - dice.below(4096), 4096).unwrap();
        let connections = 1 + dice.below(8) as usize;
        let config = Config {
            connections,
            prefetch: if dice.chance(70) { Prefetch::Readahead } else { Prefetch::None },
            fill: dice.chance(60),
            bulk: dice.chance(20),
            error_after: dice.chance(20).then(|| Duration::from_millis(1 + dice.below(5000))),
            ..Config::default()
        };
        let mut states = vec![State::Absent; blocks as usize];
        for s in &mut states {
            if dice.chance(20) {
                *s = State::Resident;
            }
        }
        let mut planner = Planner::new(geometry, &config, seed);
        let packs = dice.chance(50).then(|| Arc::new(packs(&mut dice, geometry)));
        if let Some(packs) = &packs {
            let mut ranges: Vec<BlockRange> = (0..packs.count()).flat_map(|frame| packs.runs(frame).to_vec()).collect();
            ranges.retain(|_| dice.chance(80));
            planner.set_foresight(Some(Box::new(Script::new(ranges))), 0);
            planner.set_packs(Some(packs.clone()));
        }
        if dice.chance(50) {
            planner.fill_from(Block(dice.below(blocks)));
        }
        Self {
            planner,
            packs,
            frames: 0,
            model: Model {
                states: RefCell::new(states),
                watching: Cell::new(false),
                chance: RefCell::new(Dice(!seed)),
                ambushed: RefCell::default(),
            },
            geometry,
            connections,
            faults: [0, 5, 40][dice.below(3) as usize],
            fatal: dice.chance(5),
            dice,
            agenda: BTreeMap::new(),
            serial: 0,
            now: Moment(1_000_000),
            transfers: HashMap::new(),
            open: HashMap::new(),
            answered: HashSet::new(),
            asked: 0,
            failures: 0,
            write_failed: false,
        }
    }

    fn at(&mut self, delay_us: u64, step: Step) {
        self.serial += 1;
        self.agenda.insert((self.now + Duration::from_micros(delay_us), self.serial), step);
    }

    fn tell(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.planner.on(event, self.now, &self.model, &mut actions);
        self.act(actions);
    }

    fn plan(&mut self) {
        let mut actions = Vec::new();
        self.planner.plan(self.now, &self.model, &mut actions);
        self.act(actions);
        let ambushed: Vec<Block> = self.model.ambushed.borrow_mut().drain(..).collect();
        for block in ambushed {
            let delay = self.dice.below(20_000);
            self.at(delay, Step::WriteEnds(BlockRange::one(block), true));
        }
        // Demand never waits behind prefetch for a connection: a free one and a want that may be served now cannot be
        // left together, and prefetch leaves a connection free when there is more than one.
        let shunned = |need| self.planner.backoff.shunned_until(need, self.now).is_some();
        if !self.planner.failed && self.planner.full_until.is_none() && self.planner.slots() > 0 {
            for (_, request, next) in self.planner.demand.wants() {
                let need = request.needs().into_iter().find(|n| n.contains(next)).unwrap();
                let need = BlockRange { start: next, end: need.end };
                assert!(
                    shunned(need) || self.model.state(next) != State::Absent,
                    "a demand was left beside a free connection"
                );
            }
        }
        if self.connections > 1 && !self.planner.bulk {
            assert!(self.planner.flights.prefetches() < self.connections, "prefetch took the last connection");
        }
        if let Some(at) = self.planner.deadline() {
            let delay = at.since(self.now).as_micros() as u64 + 1;
            self.at(delay, Step::Wake);
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Complete(id, result) => self.complete(id, result),
                Action::Fetch(id, range, class) => self.fetch(id, range, class),
                Action::FetchFrames(id, frames, class) => self.fetch_frames(id, frames, class),
            }
        }
    }

    fn complete(&mut self, id: RequestId, result: i32) {
        assert!(self.answered.insert(id), "{id:?} was answered twice");
        let request = self.open.remove(&id).expect("only what was asked is answered");
        if result != 0 {
            assert!(self.planner.failed || self.planner.error_after.is_some(), "an error for no reason");
            return;
        }
        for need in request.needs() {
            assert_eq!(self.model.first_missing(need), None, "answered before its blocks were there");
        }
        if request.op != Op::Read {
            let free = |s| matches!(s, State::Absent | State::Filling);
            assert_eq!(self.model.first(request.covered, free), None, "a write goes ahead without its claim");
            let (delay, ok) = (self.dice.below(20_000), !self.dice.chance(self.faults / 2));
            self.write_failed |= !ok;
            self.at(delay, Step::WriteEnds(request.covered, ok));
        }
    }

    fn fetch(&mut self, id: FetchId, range: BlockRange, class: Class) {
        assert!(!range.is_empty() && range.end <= self.geometry.all().end);
        let ambushed = self.model.ambushed.borrow();
        let taken = range.iter().find(|b| self.model.state(*b) != State::Absent && !ambushed.contains(b));
        assert_eq!(taken, None, "a fetch over a claimed or resident block");
        drop(ambushed);
        for other in self.transfers.values() {
            let Cargo::Range(whole) = other.cargo else { continue };
            let rest = BlockRange::new(other.next, whole.end.0);
            assert!(!rest.overlaps(range), "{range:?} is on its way already");
        }
        let on_the_way = self.on_the_way();
        if class != Class::Demand && !self.planner.bulk {
            let bound = self.planner.link.window();
            assert!(range.len() * 4096 <= CHUNK_MAX);
            assert!(on_the_way < bound, "prefetch on a link that is full");
        }
        self.depart(id, Transfer { cargo: Cargo::Range(range), next: range.start.0, received: 0 });
    }

    fn depart(&mut self, id: FetchId, transfer: Transfer) {
        self.transfers.insert(id, transfer);
        assert!(self.transfers.len() <= self.connections, "more fetches than connections");
        let delay = 100 + self.dice.below(50_000);
        self.at(delay, Step::Piece(id));
    }

    /// Bytes that are still to come over the link.
    fn on_the_way(&self) -> u64 {
        let rest = |transfer: &Transfer| match &transfer.cargo {
            Cargo::Range(range) => self.geometry.length(BlockRange::new(transfer.next, range.end.0)),
            Cargo::Frames(frames) => self.wire(transfer.next as u32..frames.end) - transfer.received,
        };
        self.transfers.values().map(rest).sum()
    }

    fn wire(&self, frames: Range<u32>) -> u64 {
        self.packs.as_ref().map_or(0, |packs| packs.wire_bytes(frames))
    }

    fn fetch_frames(&mut self, id: FetchId, frames: Range<u32>, class: Class) {
        let packs = self.packs.clone().expect("there are packs");
        assert!(!frames.is_empty() && frames.end <= packs.count());
        let lacking = |run: &BlockRange| self.model.first(*run, |state| state == State::Absent).is_some();
        let ambushed = self.model.ambushed.borrow();
        assert!(
            !ambushed.is_empty() || frames.clone().any(|frame| packs.runs(frame).iter().any(lacking)),
            "frames of which everything is here"
        );
        drop(ambushed);
        for other in self.transfers.values() {
            if let Cargo::Frames(others) = &other.cargo {
                assert!(
                    others.end <= frames.start || frames.end <= others.start,
                    "{frames:?} are on their way already"
                );
            }
        }
        let on_the_way = self.on_the_way();
        if class != Class::Demand && !self.planner.bulk {
            // The first frame comes as a whole, however long it is.
            assert!(frames.len() == 1 || packs.wire_bytes(frames.clone()) <= CHUNK_MAX);
            assert!(on_the_way < self.planner.link.window(), "prefetch on a link that is full");
        }
        self.frames += frames.len() as u64;
        let next = frames.start.into();
        self.depart(id, Transfer { cargo: Cargo::Frames(frames), next, received: 0 });
    }

    /// The next bytes of a frame come, or its blocks.
    fn frame_piece(&mut self, id: FetchId, frames: Range<u32>) {
        let packs = self.packs.clone().expect("there are packs");
        let Some(transfer) = self.transfers.get(&id) else { return };
        let (frame, received) = (transfer.next as u32, transfer.received);
        let rest = self.wire(frame..frame + 1) - received;
        let bytes = rest.min(1 + self.dice.below(20_000));
        self.transfers.get_mut(&id).unwrap().received += bytes;
        self.tell(Event::Received(id, bytes));
        if bytes == rest {
            for &run in packs.runs(frame) {
                self.model.set(run, State::Absent, State::Resident);
                self.tell(Event::Arrived(id, run));
            }
            let transfer = self.transfers.get_mut(&id).unwrap();
            (transfer.next, transfer.received) = (u64::from(frame) + 1, 0);
        }
        let delay = 10 + self.dice.below(5_000);
        let ends = bytes == rest && frame + 1 == frames.end;
        self.at(delay, if ends { Step::FetchEnds(id, Outcome::Done) } else { Step::Piece(id) });
    }

    fn ask(&mut self) {
        self.asked += 1;
        let size = self.geometry.size();
        let offset = self.dice.below(size);
        let length = (1 + self.dice.below([512, 4096, 65_536][self.dice.0 as usize % 3])).min(size - offset);
        let op = [Op::Read, Op::Read, Op::Write, Op::Discard][self.dice.below(4) as usize];
        let request = Planner::request(self.geometry, op, offset, length, self.now);
        let id = RequestId(self.asked);
        // The gate's fast path comes first, as in the engine.
        let edges_there = request.needs().iter().all(|n| self.model.first_missing(*n).is_none());
        if edges_there && (op == Op::Read || self.model.claim(request.covered)) {
            self.open.insert(id, request);
            self.complete(id, 0);
            self.tell(Event::Touched(request));
            return;
        }
        self.open.insert(id, request);
        self.tell(Event::Needed(id, request));
    }

    fn piece(&mut self, id: FetchId) {
        let Some(transfer) = self.transfers.get(&id) else { return };
        let (cargo, next) = (transfer.cargo.clone(), transfer.next);
        if self.dice.chance(self.faults) {
            self.failures += 1;
            let outcome = match self.dice.below(10) {
                0 => Outcome::Full,
                1 if self.fatal => Outcome::Fatal,
                2 => Outcome::Failed { retry_after: Some(Duration::from_millis(self.dice.below(3000))) },
                _ => Outcome::Failed { retry_after: None },
            };
            return self.at(1, Step::FetchEnds(id, outcome));
        }
        let end = match cargo {
            Cargo::Range(range) => range.end.0,
            Cargo::Frames(frames) => return self.frame_piece(id, frames),
        };
        let stop = (next + 1 + self.dice.below(16)).min(end);
        let range = BlockRange::new(next, stop);
        self.model.set(range, State::Absent, State::Filling);
        self.model.set(range, State::Filling, State::Resident);
        self.transfers.get_mut(&id).unwrap().next = stop;
        self.tell(Event::Arrived(id, range));
        let delay = 10 + self.dice.below(5_000);
        self.at(delay, if stop == end { Step::FetchEnds(id, Outcome::Done) } else { Step::Piece(id) });
    }

    fn run(&mut self, requests: u64) {
        let mut when = 0;
        for _ in 0..requests {
            when += self.dice.below(30_000);
            self.at(when, Step::Ask);
        }
        self.plan();
        let mut steps = 0;
        while let Some((&key, _)) = self.agenda.first_key_value() {
            let step = self.agenda.remove(&key).unwrap();
            self.now = self.now.max(key.0);
            match step {
                Step::Ask => self.ask(),
                Step::WriteEnds(range, ok) => {
                    self.model.set(range, State::Claimed, if ok { State::Resident } else { State::Absent });
                    if self.model.watching.get() {
                        self.tell(Event::WritesEnded);
                    }
                }
                Step::Piece(id) => self.piece(id),
                Step::FetchEnds(id, outcome) => {
                    self.transfers.remove(&id);
                    self.tell(Event::Finished(id, outcome));
                }
                Step::Wake => {}
            }
            self.plan();
            steps += 1;
            if steps > 2_000 {
                self.faults = 0; // the fault ends some day, and then everything must come to rest
            }
            assert!(steps < 200_000, "the planner does not come to rest");
        }
        assert!(self.open.is_empty(), "{} of {requests} requests were never answered", self.open.len());
        assert!(self.transfers.is_empty() && self.planner.is_idle());
        // A guest's failed write may leave a gap that nobody was told of; the engine looks for those now and then.
        if self.planner.fill_on && !self.planner.failed && !self.write_failed {
            assert_eq!(self.model.first_absent(self.geometry.all()), None, "the fill left a gap");
        }
    }
}

/// Packs of blocks here and there, each frame of a few runs.
fn packs(dice: &mut Dice, geometry: Geometry) -> Index {
    let mut runs = Vec::new();
    let mut at = dice.below(8);
    while at < geometry.blocks() {
        let end = (at + 1 + dice.below(12)).min(geometry.blocks());
        runs.push(BlockRange::new(at, end));
        at = end + dice.below(9);
    }
    // In another order than that of the image.
    (1..runs.len()).for_each(|at| runs.swap(at, dice.below(at as u64 + 1) as usize));
    let mut frames = Vec::new();
    while !runs.is_empty() {
        let part: Vec<_> = runs.drain(..(1 + dice.below(5) as usize).min(runs.len())).collect();
        let bytes: u64 = part.iter().map(|&run| geometry.length(run)).sum();
        frames.push((part, 1 + (bytes / (1 + dice.below(4))) as u32));
    }
    Index::of_frames(geometry, &frames)
}

#[test]
fn ten_thousand_worlds_keep_every_promise() {
    let mut failures = 0;
    let mut joined = 0;
    let mut frames = 0;
    for seed in 0..10_000 {
        let run = || {
            let mut world = World::new(seed);
            world.run(60);
            (world.failures, world.planner.tally.joined, world.frames)
        };
        let (f, j, p) = std::panic::catch_unwind(run).unwrap_or_else(|_| panic!("seed {seed}"));
        failures += f;
        joined += j;
        frames += p;
    }
    assert!(frames > 10_000, "only {frames} frames were fetched");
    assert!(failures > 10_000 && joined > 1_000, "the worlds were too kind: {failures} failures, {joined} joined");
}
