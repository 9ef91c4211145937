//! What could be reached at best: a link that brings exactly what is needed, in the order of need, from the start on.
//!
//! Need *i* can be met no sooner than after two round trips and the bytes of all needs up to it. If that is later than the
//! guest's own time, all that follows is later by as much. So the least stall is the greatest such delay, and
//! it is reached by a link that never pauses.

use std::collections::HashSet;
use std::time::Duration;

use super::{LinkModel, Step};
use crate::block::{Block, Geometry};
use crate::gate::Op;
use crate::session::needs;

/// Guest's own time, the least stall, and the bytes needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Without any wait.
    pub guest: Duration,
    /// The latest of all needs: two round trips and the bytes up to it, less the guest's own time up to it.
    pub stall: Duration,
    /// Each needed block once.
    pub bytes: u64,
}

impl Bound {
    /// From the start to the end.
    pub fn total(&self) -> Duration {
        self.guest + self.stall
    }
}

/// The bound of a guest on a link.
pub fn bound(steps: &[Step], geometry: Geometry, link: LinkModel) -> Bound {
    let mut needs = Needs::new(geometry);
    let mut bound = Bound { guest: Duration::ZERO, stall: Duration::ZERO, bytes: 0 };
    for step in steps {
        bound.guest += step.think;
        let new = needs.new_bytes(step);
        if new > 0 {
            bound.bytes += new;
            let arrival = link.round_trip * 2 + link.transfer(bound.bytes);
            bound.stall = bound.stall.max(arrival.saturating_sub(bound.guest));
        }
    }
    bound
}

/// What a guest has needed of the origin so far.
#[derive(Debug)]
pub(super) struct Needs {
    geometry: Geometry,
    /// Blocks that it needed, and those that it wrote before it ever did.
    seen: HashSet<Block>,
}

impl Needs {
    /// Nothing yet.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, seen: HashSet::new() }
    }

    /// Bytes of the blocks that a guest needs for the first time in its next step.
    pub fn new_bytes(&mut self, step: &Step) -> u64 {
        let mut new = 0;
        for range in needs(self.geometry, step.op, step.offset, step.length) {
            new += range.iter().filter(|&block| self.seen.insert(block)).count() as u64;
        }
        if step.op == Op::Write || step.op == Op::Discard {
            self.seen.extend(self.geometry.touched(step.offset, step.length).iter());
        }
        new * self.geometry.block_bytes()
    }
}
