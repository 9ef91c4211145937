//! The guest's requests that wait, each parked on the first block that it lacks.
//!
//! A request needs all blocks it touches when it reads, and its partial edges plus a claim on the rest when it writes.
//! It is entered in one index under the first block that keeps it from going on; when that block changes it is looked
//! at again and moves on to the next. So an arrival costs the requests it helps, not those that wait for something else.

use std::collections::{BTreeMap, BTreeSet};

use crate::block::{Block, BlockRange};
use crate::gate::{Op, State};
use crate::time::Moment;

/// Number of a request, rising in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What the planner sees and does to the states of blocks.
pub trait Blocks {
    /// The state of a block.
    fn state(&self, block: Block) -> State;
    /// First block of `range` that is not resident.
    fn first_missing(&self, range: BlockRange) -> Option<Block>;
    /// First block of `range` that is absent.
    fn first_absent(&self, range: BlockRange) -> Option<Block>;
    /// First block of `range` that is not absent.
    fn first_present(&self, range: BlockRange) -> Option<Block>;
    /// Claims the absent blocks of `range` for a guest write, all or nothing.
    fn claim(&self, range: BlockRange) -> bool;
    /// Whether the end of guest writes is to be told; states read afterwards are fresh.
    fn watch(&self, on: bool);
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Read, write or discard.
    pub op: Op,
    /// The blocks it touches.
    pub touched: BlockRange,
    /// The blocks it covers as a whole.
    pub covered: BlockRange,
    /// When it came.
    pub since: Moment,
}

impl Request {
    /// The ranges whose old contents it needs.
    pub fn needs(&self) -> [BlockRange; 2] {
        self.op.needs(self.touched, self.covered)
    }
}

/// What keeps a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Nothing: it is ready.
    Nothing,
    /// This block must arrive.
    Arrival(Block),
    /// A guest write on this block must end.
    Write(Block),
}

/// All waiting requests.
#[derive(Debug, Default)]
pub struct Demand {
    requests: BTreeMap<RequestId, (Request, Held)>,
    on_arrival: BTreeSet<(Block, RequestId)>,
    on_write: BTreeSet<(Block, RequestId)>,
    /// Those of `on_arrival` whose block may not be on its way.
    wants: BTreeSet<RequestId>,
}

impl Demand {
    /// Number of waiting requests.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Adds a request; true when it turned out to be ready.
    pub fn add(&mut self, id: RequestId, request: Request, blocks: &dyn Blocks) -> bool {
        self.requests.insert(id, (request, Held::Nothing));
        self.look_again(id, blocks)
    }

    /// The block a request waits to arrive.
    pub fn awaited(&self, id: RequestId) -> Option<Block> {
        match self.requests.get(&id)?.1 {
            Held::Arrival(block) => Some(block),
            _ => None,
        }
    }

    fn held(request: &Request, blocks: &dyn Blocks) -> Held {
        for range in request.needs() {
            if let Some(block) = blocks.first_missing(range) {
                return match blocks.state(block) {
                    State::Claimed => Held::Write(block),
                    _ => Held::Arrival(block),
                };
            }
        }
        if request.op == Op::Read {
            return Held::Nothing;
        }
        while !blocks.claim(request.covered) {
            // Somebody else is at work in the covered part: wait for his first block, unless he just ended.
            let mut rest = request.covered;
            while let Some(block) = blocks.first_present(rest) {
                match blocks.state(block) {
                    State::Claimed => return Held::Write(block),
                    State::Filling => return Held::Arrival(block),
                    _ => rest.start = Block(block.0 + 1),
                }
            }
        }
        Held::Nothing
    }

    /// Looks at a request again; true when it is ready, and then it is gone.
    fn look_again(&mut self, id: RequestId, blocks: &dyn Blocks) -> bool {
        let Some((request, _)) = self.requests.get(&id).copied() else { return false };
        self.unpark(id);
        let mut held = Self::held(&request, blocks);
        if let Held::Write(_) = held {
            // From here on we are told when a write ends; one that ended just before shows in a second look.
            blocks.watch(true);
            held = Self::held(&request, blocks);
        }
        match held {
            Held::Nothing => {
                self.requests.remove(&id);
                return true;
            }
            Held::Arrival(block) => {
                self.on_arrival.insert((block, id));
                self.wants.insert(id);
            }
            Held::Write(block) => {
                self.on_write.insert((block, id));
            }
        }
        self.requests.insert(id, (request, held));
        false
    }

    fn unpark(&mut self, id: RequestId) {
        match self.requests.get(&id).map(|r| r.1) {
            Some(Held::Arrival(block)) => {
                self.on_arrival.remove(&(block, id));
                self.wants.remove(&id);
            }
            Some(Held::Write(block)) => {
                self.on_write.remove(&(block, id));
            }
            _ => {}
        }
    }

    /// Blocks of `range` changed: moves on the requests parked there; those that are ready go to `ready`.
    pub fn arrived(&mut self, range: BlockRange, blocks: &dyn Blocks, ready: &mut Vec<RequestId>) {
        let parked = (range.start, RequestId(0))..(range.end, RequestId(0));
        let ids: Vec<RequestId> = self.on_arrival.range(parked).map(|&(_, id)| id).collect();
        ready.extend(ids.into_iter().filter(|&id| self.look_again(id, blocks)));
    }

    /// Guest writes ended: looks again at all requests that wait for one.
    pub fn writes_ended(&mut self, blocks: &dyn Blocks, ready: &mut Vec<RequestId>) {
        let ids: Vec<RequestId> = self.on_write.iter().map(|&(_, id)| id).collect();
        ready.extend(ids.into_iter().filter(|&id| self.look_again(id, blocks)));
        if self.on_write.is_empty() {
            blocks.watch(false);
        }
    }

    /// The requests, oldest first, whose next block may have to be fetched.
    pub fn wants(&self) -> impl Iterator<Item = (RequestId, &Request, Block)> {
        self.wants.iter().filter_map(|id| match self.requests.get(id) {
            Some((request, Held::Arrival(block))) => Some((*id, request, *block)),
            _ => None,
        })
    }

    /// Looks again at those of the first `most` wants whose block is no longer absent.
    pub fn refresh(&mut self, most: usize, blocks: &dyn Blocks, ready: &mut Vec<RequestId>) {
        let moved = |w: &(RequestId, &Request, Block)| blocks.state(w.2) != State::Absent;
        let ids: Vec<RequestId> = self.wants().take(most).filter(moved).map(|w| w.0).collect();
        ready.extend(ids.into_iter().filter(|&id| self.look_again(id, blocks)));
    }

    /// True when some request's next block may have to be fetched.
    pub fn has_wants(&self) -> bool {
        !self.wants.is_empty()
    }

    /// The next block of this request is on its way.
    pub fn settled(&mut self, id: RequestId) {
        self.wants.remove(&id);
    }

    /// A fetch of `range` ended without bringing it: whoever waits there wants it again.
    pub fn unsettle(&mut self, range: BlockRange) {
        let parked = (range.start, RequestId(0))..(range.end, RequestId(0));
        self.wants.extend(self.on_arrival.range(parked).map(|&(_, id)| id));
    }

    /// Takes out all requests that wait for an arrival and came before `before`, oldest first.
    pub fn give_up(&mut self, before: Moment) -> Vec<RequestId> {
        let old = |(id, (request, held)): (&RequestId, &(Request, Held))| {
            (matches!(held, Held::Arrival(_)) && request.since <= before).then_some(*id)
        };
        let ids: Vec<RequestId> = self.requests.iter().filter_map(old).collect();
        for &id in &ids {
            self.unpark(id);
            self.requests.remove(&id);
        }
        ids
    }

    /// When the oldest request came that waits for an arrival.
    pub fn oldest(&self) -> Option<Moment> {
        // Ids rise with time, so the first one parked on an arrival is the oldest.
        self.requests.values().find(|r| matches!(r.1, Held::Arrival(_))).map(|r| r.0.since)
    }
}
