//! What the tests of this module stand on.

use super::Blocks;
use crate::block::{Block, BlockRange};
use crate::gate::State;

/// An image of which all is here or nothing.
pub(super) struct All(pub bool);

impl Blocks for All {
    fn state(&self, _: Block) -> State {
        if self.0 { State::Resident } else { State::Absent }
    }
    fn first_missing(&self, range: BlockRange) -> Option<Block> {
        (!self.0 && !range.is_empty()).then_some(range.start)
    }
    fn first_absent(&self, range: BlockRange) -> Option<Block> {
        self.first_missing(range)
    }
    fn first_present(&self, range: BlockRange) -> Option<Block> {
        self.0.then_some(range.start)
    }
    fn claim(&self, _: BlockRange) -> bool {
        true
    }
    fn watch(&self, _: bool) {}
}
