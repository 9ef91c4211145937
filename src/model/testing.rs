//! Made-up sessions for the unit tests of this module and of those above it.

use crate::block::Block;
use crate::session::{Session, text};

#[path = "../../tests/support/traces.rs"]
mod traces;

pub(crate) use traces::IMAGE_BYTES;

/// A session that starts and then does these tasks.
pub(crate) fn session(seed: u64, tasks: &[u64]) -> Session {
    text::parse("made up", traces::trace(seed, tasks).as_bytes()).expect("the helper writes valid text")
}

/// One of the blocks of a task.
pub(crate) fn task(number: u64, block: u64) -> Block {
    Block(traces::first_block(number) + block)
}
