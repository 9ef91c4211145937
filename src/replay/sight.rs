//! What somebody sees who watches a replay.

use crate::block::BlockRange;
use crate::planner::Class;

/// Something that happens in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The guest begins an access.
    Step {
        /// Number of the step, from 0.
        number: usize,
        /// Something that it needs is not here: it waits until [`Sight::Served`].
        missed: bool,
    },
    /// The guest has what it waited for.
    Served,
    /// Blocks arrive; some of them may be here already.
    Arrived {
        /// Which blocks.
        range: BlockRange,
        /// Why they were asked for. What was asked for ahead stays so, even if the guest waits for it by now.
        class: Class,
    },
}
