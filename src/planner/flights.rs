//! What is being fetched: disjoint ranges, found by block or by number.

use std::collections::{BTreeMap, HashMap};

use crate::block::{Block, BlockRange};
use crate::link::Token;

/// Number of a fetch, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FetchId(pub u64);

/// Why a range is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A guest waits for it.
    Demand,
    /// A guest may want it soon.
    Prefetch,
    /// It is missing in the image, and the link has nothing better to do.
    Fill,
}

/// One fetch under way.
#[derive(Debug)]
pub struct Flight {
    /// The whole range asked for.
    pub range: BlockRange,
    /// The first block that has not arrived.
    pub next: Block,
    /// Promoted to demand when a guest asks for a block of it.
    pub class: Class,
    /// What the link estimator remembers of its start.
    pub token: Token,
}

impl Flight {
    /// What is still to come.
    pub fn rest(&self) -> BlockRange {
        BlockRange { start: self.next, end: self.range.end }
    }
}

/// All fetches under way.
#[derive(Debug, Default)]
pub struct Flights {
    by_id: HashMap<FetchId, Flight>,
    /// By the first block still to come: what is still to come is disjoint, whole ranges need not be (a block that a
    /// guest claimed under a fetch and then failed to write is absent again behind that fetch).
    by_next: BTreeMap<u64, FetchId>,
    prefetch: usize,
    made: u64,
}

impl Flights {
    /// Number of fetches under way.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Number of them that no guest waits for.
    pub fn prefetches(&self) -> usize {
        self.prefetch
    }

    /// Blocks still to come, all fetches together.
    pub fn blocks(&self) -> u64 {
        self.by_id.values().map(|f| f.rest().len()).sum()
    }

    /// Begins a fetch. The range must not overlap another.
    pub fn begin(&mut self, range: BlockRange, class: Class, token: Token) -> FetchId {
        debug_assert!(!range.is_empty() && self.covering(range).is_none());
        self.made += 1;
        let id = FetchId(self.made);
        self.by_id.insert(id, Flight { range, next: range.start, class, token });
        self.by_next.insert(range.start.0, id);
        self.prefetch += usize::from(class != Class::Demand);
        id
    }

    /// The blocks of a fetch before `to` have arrived. Answers the fetch.
    pub fn advance(&mut self, id: FetchId, to: Block) -> Option<&mut Flight> {
        let flight = self.by_id.get_mut(&id)?;
        if to > flight.next {
            self.by_next.remove(&flight.next.0);
            flight.next = to;
            if flight.next < flight.range.end {
                self.by_next.insert(to.0, id);
            }
        }
        Some(flight)
    }

    /// Ends a fetch.
    pub fn end(&mut self, id: FetchId) -> Option<Flight> {
        let flight = self.by_id.remove(&id)?;
        if !flight.rest().is_empty() {
            self.by_next.remove(&flight.next.0);
        }
        self.prefetch -= usize::from(flight.class != Class::Demand);
        Some(flight)
    }

    /// The first fetch, in block order, that still has a block of `range` to bring.
    fn covering(&self, range: BlockRange) -> Option<&Flight> {
        // The last one that begins at or before the range may reach into it; then those that begin within.
        let before = self.by_next.range(..=range.start.0).next_back();
        let within = self.by_next.range(range.start.0 + 1..range.end.0.max(range.start.0 + 1));
        before.into_iter().chain(within).map(|(_, id)| &self.by_id[id]).find(|f| f.rest().overlaps(range))
    }

    /// True when `block` is about to arrive.
    pub fn brings(&self, block: Block) -> bool {
        self.covering(BlockRange::one(block)).is_some()
    }

    /// Turns the fetch that brings `block` into a demand.
    pub fn promote(&mut self, block: Block) {
        let Some(next) = self.covering(BlockRange::one(block)).map(|f| f.next.0) else { return };
        let flight = self.by_next.get(&next).and_then(|id| self.by_id.get_mut(id));
        if let Some(flight) = flight
            && flight.class != Class::Demand
        {
            flight.class = Class::Demand;
            self.prefetch -= 1;
        }
    }

    /// The first part of `range` that no fetch brings.
    pub fn first_free(&self, range: BlockRange) -> BlockRange {
        let mut rest = range;
        while let Some(flight) = self.covering(rest) {
            let busy = flight.rest();
            if busy.start > rest.start {
                return BlockRange { start: rest.start, end: busy.start };
            }
            rest.start = busy.end.min(rest.end);
            if rest.is_empty() {
                break;
            }
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Link;
    use crate::time::Moment;

    #[test]
    fn ranges_are_found_between_and_within_flights() {
        let mut link = Link::default();
        let mut flights = Flights::default();
        let a = flights.begin(BlockRange::new(10, 20), Class::Prefetch, link.start(1, Moment(0)));
        flights.begin(BlockRange::new(25, 30), Class::Demand, link.start(1, Moment(0)));
        assert_eq!(flights.first_free(BlockRange::new(5, 40)), BlockRange::new(5, 10));
        assert_eq!(flights.first_free(BlockRange::new(10, 40)), BlockRange::new(20, 25));
        assert!(flights.first_free(BlockRange::new(12, 18)).is_empty());
        flights.advance(a, Block(15)).unwrap();
        assert!(!flights.brings(Block(14)) && flights.brings(Block(15)) && !flights.brings(Block(20)));
        assert_eq!(flights.first_free(BlockRange::new(10, 12)), BlockRange::new(10, 12));
        flights.promote(Block(16));
        flights.promote(Block(17));
        assert_eq!((flights.prefetches(), flights.len(), flights.blocks()), (0, 2, 10));
        assert!(flights.end(a).is_some() && flights.end(a).is_none());
        assert_eq!(flights.first_free(BlockRange::new(10, 40)), BlockRange::new(10, 25));
    }
}
