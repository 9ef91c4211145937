//! What is kept of a replay for its picture.

use std::collections::HashSet;
use std::time::Duration;

use vmstream::Op;
use vmstream::block::{Block, BlockRange, Geometry};
use vmstream::planner::Class;
use vmstream::replay::{Sight, Step};
use vmstream::session::needs;

/// A guest's touch of blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Touch {
    /// Seconds since the start.
    pub at: f64,
    /// What it touches.
    pub range: BlockRange,
    /// It had to wait.
    pub missed: bool,
}

/// Blocks that came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Seconds since the start.
    pub at: f64,
    /// What came.
    pub range: BlockRange,
    /// Why.
    pub class: Class,
    /// Bytes of it.
    pub bytes: u64,
}

/// The record of one replay. [`vmstream::replay::watch`] is to call [`Watch::see`].
#[derive(Debug)]
pub struct Watch<'a> {
    geometry: Geometry,
    steps: &'a [Step],
    /// In order of time.
    pub touches: Vec<Touch>,
    /// In order of time.
    pub arrivals: Vec<Arrival>,
    /// From when to when the guest stood still, in seconds, in order of time.
    pub stalls: Vec<(f64, f64)>,
    /// When the guest had needed so many bytes of the origin, in order of time.
    pub needed: Vec<(f64, u64)>,
    /// Blocks that it cannot need any more: it did, or it has written them.
    known: HashSet<Block>,
    waits: Option<f64>,
}

impl<'a> Watch<'a> {
    /// An empty record of a guest that does `steps`.
    pub fn new(geometry: Geometry, steps: &'a [Step]) -> Self {
        Self {
            geometry,
            steps,
            touches: Vec::new(),
            arrivals: Vec::new(),
            stalls: Vec::new(),
            needed: Vec::new(),
            known: HashSet::new(),
            waits: None,
        }
    }

    /// Takes in what happens.
    pub fn see(&mut self, at: Duration, sight: Sight) {
        let at = at.as_secs_f64();
        match sight {
            Sight::Step { number, missed } => {
                if let Some(step) = self.steps.get(number) {
                    self.step(at, *step, missed);
                }
                self.waits = missed.then_some(at);
            }
            Sight::Served => self.stalls.extend(self.waits.take().map(|since| (since, at))),
            Sight::Arrived { range, class } => {
                self.arrivals.push(Arrival { at, range, class, bytes: self.geometry.length(range) });
            }
        }
    }

    fn step(&mut self, at: f64, step: Step, missed: bool) {
        let Step { op, offset, length, .. } = step;
        let range = self.geometry.touched(offset, length);
        self.touches.push(Touch { at, range, missed });
        let new = |block: &Block| self.known.insert(*block);
        let blocks =
            needs(self.geometry, op, offset, length).into_iter().flat_map(BlockRange::iter).filter(new).count();
        if matches!(op, Op::Write | Op::Discard) {
            self.known.extend(range.iter());
        }
        if blocks > 0 {
            let before = self.needed.last().map_or(0, |needed| needed.1);
            self.needed.push((at, before + blocks as u64 * self.geometry.block_bytes()));
        }
    }
}
