//! A foresight that needs no model: a list of what comes, from start to end.

use std::collections::HashSet;

use super::{Candidate, Foresight};
use crate::block::{Block, BlockRange};
use crate::link::Link;

/// A fixed order, whatever the guest does.
#[derive(Debug)]
pub struct Script {
    candidates: Vec<Candidate>,
    blocks: HashSet<Block>,
    /// Those before it are here.
    next: usize,
}

impl Script {
    /// These ranges, the most urgent first.
    pub fn new(ranges: Vec<BlockRange>) -> Self {
        let blocks = ranges.iter().flat_map(|range| range.iter()).collect();
        let candidates = ranges.into_iter().map(|range| Candidate { range, probability: 1.0, fill: false }).collect();
        Self { candidates, blocks, next: 0 }
    }
}

impl Foresight for Script {
    fn touch(&mut self, range: BlockRange) -> bool {
        range.iter().any(|block| self.blocks.contains(&block))
    }

    fn plan(&mut self, _: &Link, absent: &dyn Fn(BlockRange) -> bool) {
        while self.candidates.get(self.next).is_some_and(|candidate| !absent(candidate.range)) {
            self.next += 1;
        }
    }

    fn candidates(&self) -> &[Candidate] {
        &self.candidates[self.next..]
    }
}
