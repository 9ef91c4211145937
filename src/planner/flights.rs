//! What is being fetched: disjoint ranges, found by block or by number.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

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

/// What a fetch asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cargo {
    /// A range of the image, which arrives in order.
    Range(BlockRange),
    /// Frames of the packs, each of which arrives as a whole.
    Frames(Range<u32>),
}

/// One fetch under way.
#[derive(Debug)]
pub struct Flight {
    /// What was asked for.
    pub cargo: Cargo,
    /// What it was to bring when it began: of a range all, of frames what nobody had. Disjoint.
    brings: Vec<BlockRange>,
    /// Promoted to demand when a guest asks for a block of it.
    pub class: Class,
    /// What the link estimator remembers of its start.
    pub token: Token,
    /// Bytes still to come over the link.
    wire: u64,
    /// Some of it arrived.
    pub progressed: bool,
}

/// All fetches under way.
#[derive(Debug, Default)]
pub struct Flights {
    by_id: HashMap<FetchId, Flight>,
    /// What is still to come, disjoint: by first block the end, and who brings it. Only that: a block that a guest claimed
    /// under a fetch and then failed to write is absent again behind that fetch, and another one brings it.
    coming: BTreeMap<u64, (u64, FetchId)>,
    prefetch: usize,
    wire: u64,
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

    /// Bytes still to come over the link, all fetches together.
    pub fn wire(&self) -> u64 {
        self.wire
    }

    /// Begins a fetch that takes so many bytes of the link. What it brings is not empty and must not overlap what is to
    /// come.
    pub fn begin(&mut self, cargo: Cargo, brings: Vec<BlockRange>, wire: u64, class: Class, token: Token) -> FetchId {
        debug_assert!(!brings.is_empty() && brings.iter().all(|&range| self.first_free(range) == range));
        self.made += 1;
        let id = FetchId(self.made);
        self.coming.extend(brings.iter().map(|range| (range.start.0, (range.end.0, id))));
        self.by_id.insert(id, Flight { cargo, brings, class, token, wire, progressed: false });
        self.prefetch += usize::from(class != Class::Demand);
        self.wire += wire;
        id
    }

    /// So many bytes of a fetch came over the link. Answers the fetch, and how many of them it still had to bring.
    pub fn receive(&mut self, id: FetchId, bytes: u64) -> Option<(&mut Flight, u64)> {
        let flight = self.by_id.get_mut(&id)?;
        let bytes = bytes.min(flight.wire);
        flight.wire -= bytes;
        self.wire -= bytes;
        Some((flight, bytes))
    }

    /// Blocks of a fetch have arrived. Answers the fetch.
    pub fn arrive(&mut self, id: FetchId, range: BlockRange) -> Option<&mut Flight> {
        self.by_id.get(&id)?;
        for part in self.parts(id, range) {
            self.take_out(part);
        }
        let flight = self.by_id.get_mut(&id)?;
        flight.progressed = true;
        Some(flight)
    }

    /// Ends a fetch. Answers it with what it has not brought: blocks, and bytes of the link.
    pub fn end(&mut self, id: FetchId) -> Option<(Flight, Vec<BlockRange>, u64)> {
        let flight = self.by_id.remove(&id)?;
        let rest: Vec<BlockRange> = flight.brings.iter().flat_map(|&range| self.parts(id, range)).collect();
        for &part in &rest {
            self.take_out(part);
        }
        self.prefetch -= usize::from(flight.class != Class::Demand);
        self.wire -= flight.wire;
        let wire = flight.wire;
        Some((flight, rest, wire))
    }

    /// The parts of `range` that this fetch is still to bring.
    fn parts(&self, id: FetchId, range: BlockRange) -> Vec<BlockRange> {
        self.overlapping(range).filter(|coming| coming.1 == id).map(|coming| coming.0.intersect(range)).collect()
    }

    /// Nobody brings `part` any more, which lies in one entry.
    fn take_out(&mut self, part: BlockRange) {
        let Some((&start, &(end, id))) = self.coming.range(..=part.start.0).next_back() else { return };
        self.coming.remove(&start);
        if start < part.start.0 {
            self.coming.insert(start, (part.start.0, id));
        }
        if part.end.0 < end {
            self.coming.insert(part.end.0, (end, id));
        }
    }

    /// What is to come and overlaps `range`, in block order, with who brings it.
    fn overlapping(&self, range: BlockRange) -> impl Iterator<Item = (BlockRange, FetchId)> + '_ {
        // The last one that begins at or before the range may reach into it; then those that begin within.
        let before = self.coming.range(..=range.start.0).next_back();
        let within = self.coming.range(range.start.0 + 1..range.end.0.max(range.start.0 + 1));
        let all = before.into_iter().chain(within).map(|(&start, &(end, id))| (BlockRange::new(start, end), id));
        all.filter(move |coming| coming.0.overlaps(range))
    }

    /// True when `block` is about to arrive.
    pub fn brings(&self, block: Block) -> bool {
        self.overlapping(BlockRange::one(block)).next().is_some()
    }

    /// True when a frame is being fetched.
    pub fn brings_frame(&self, frame: u32) -> bool {
        self.by_id.values().any(|flight| matches!(&flight.cargo, Cargo::Frames(frames) if frames.contains(&frame)))
    }

    /// Turns the fetch that brings `block` into a demand.
    pub fn promote(&mut self, block: Block) {
        let Some((_, id)) = self.overlapping(BlockRange::one(block)).next() else { return };
        if let Some(flight) = self.by_id.get_mut(&id)
            && flight.class != Class::Demand
        {
            flight.class = Class::Demand;
            self.prefetch -= 1;
        }
    }

    /// The first part of `range` that no fetch brings.
    pub fn first_free(&self, range: BlockRange) -> BlockRange {
        let mut rest = range;
        for (busy, _) in self.overlapping(range) {
            if busy.start > rest.start {
                return BlockRange { start: rest.start, end: busy.start };
            }
            rest.start = busy.end.min(rest.end);
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
        let mut begin = |flights: &mut Flights, brings: &[(u64, u64)], class| {
            let brings: Vec<_> = brings.iter().map(|&(start, end)| BlockRange::new(start, end)).collect();
            flights.begin(Cargo::Range(brings[0]), brings, 100, class, link.start(1, Moment(0)))
        };
        let a = begin(&mut flights, &[(10, 20)], Class::Prefetch);
        begin(&mut flights, &[(25, 30)], Class::Demand);
        assert_eq!(flights.first_free(BlockRange::new(5, 40)), BlockRange::new(5, 10));
        assert_eq!(flights.first_free(BlockRange::new(10, 40)), BlockRange::new(20, 25));
        assert!(flights.first_free(BlockRange::new(12, 18)).is_empty());
        flights.arrive(a, BlockRange::new(10, 15)).unwrap();
        assert!(!flights.brings(Block(14)) && flights.brings(Block(15)) && !flights.brings(Block(20)));
        assert_eq!(flights.first_free(BlockRange::new(10, 12)), BlockRange::new(10, 12));
        flights.promote(Block(16));
        flights.promote(Block(17));
        assert_eq!((flights.prefetches(), flights.len(), flights.wire()), (0, 2, 200));
        assert_eq!(flights.receive(a, 30).map(|got| got.1), Some(30));
        assert_eq!(flights.receive(a, 99).map(|got| got.1), Some(70), "more than it had to bring");
        assert_eq!(flights.end(a).map(|ended| (ended.1, ended.2)), Some((vec![BlockRange::new(15, 20)], 0)));
        assert!(flights.end(a).is_none());
        assert_eq!(flights.first_free(BlockRange::new(10, 40)), BlockRange::new(10, 25));
    }

    #[test]
    fn a_flight_of_frames_brings_its_blocks_in_any_order() {
        let mut link = Link::default();
        let mut flights = Flights::default();
        let brings = vec![BlockRange::new(40, 50), BlockRange::new(0, 10), BlockRange::new(12, 14)];
        let id = flights.begin(Cargo::Frames(3..5), brings, 1000, Class::Fill, link.start(1000, Moment(0)));
        assert!(flights.brings_frame(4) && !flights.brings_frame(5));
        // What it did not have to bring may arrive with the rest.
        flights.arrive(id, BlockRange::new(8, 13)).unwrap();
        flights.arrive(id, BlockRange::new(44, 46)).unwrap();
        assert_eq!(flights.first_free(BlockRange::new(5, 60)), BlockRange::new(8, 13));
        assert_eq!(flights.first_free(BlockRange::new(43, 60)), BlockRange::new(44, 46));
        let rest = [(40, 44), (46, 50), (0, 8), (13, 14)].map(|(start, end)| BlockRange::new(start, end));
        let (flight, left, wire) = flights.end(id).unwrap();
        assert_eq!((flight.progressed, left, wire), (true, rest.to_vec(), 1000));
        assert_eq!((flights.wire(), flights.prefetches(), flights.brings(Block(0))), (0, 0, false));
    }
}
