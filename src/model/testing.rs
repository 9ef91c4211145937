//! Made-up sessions for the unit tests of this module and of those above it.

use super::header::sealing::{bounds, seal};
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

/// A model file with these changes to its sections (place, exclusive or) and right checksums.
pub(crate) fn changed(mut file: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    let sections = bounds(&file);
    for &(at, bits) in changes {
        let at = sections[0] + at % (file.len() - sections[0]);
        file[at] ^= bits;
    }
    seal(file, sections)
}
