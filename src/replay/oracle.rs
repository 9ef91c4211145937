//! What could be reached at best: a link that brings exactly what is needed, in the order of need, from the start on.
//!
//! Need *i* can be met no sooner than after two round trips and the bytes of all needs up to it. If that is later than the
//! guest's own time, all that follows is later by as much. So the least stall is the greatest such delay, and
//! it is reached by a link that never pauses.

use std::collections::HashSet;
use std::time::Duration;

use super::{LinkModel, Step};
use crate::block::Geometry;
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
    let mut seen = HashSet::new();
    let mut bound = Bound { guest: Duration::ZERO, stall: Duration::ZERO, bytes: 0 };
    for step in steps {
        bound.guest += step.think;
        let before = bound.bytes;
        for range in needs(geometry, step.op, step.offset, step.length) {
            let new = range.iter().filter(|&block| seen.insert(block)).count() as u64;
            bound.bytes += new * geometry.block_bytes();
        }
        if step.op == Op::Write || step.op == Op::Discard {
            seen.extend(geometry.touched(step.offset, step.length).iter());
        }
        if bound.bytes > before {
            let arrival = link.round_trip * 2 + link.transfer(bound.bytes);
            bound.stall = bound.stall.max(arrival.saturating_sub(bound.guest));
        }
    }
    bound
}
