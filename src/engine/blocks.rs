//! What the planner sees of the blocks: the gate's own states.

use crate::block::{Block, BlockRange};
use crate::gate::{Gate, State};
use crate::planner::Blocks;

impl Blocks for Gate {
    fn state(&self, block: Block) -> State {
        self.states.state(block)
    }
    fn first_missing(&self, range: BlockRange) -> Option<Block> {
        self.states.first_missing(range)
    }
    fn first_absent(&self, range: BlockRange) -> Option<Block> {
        self.states.first_absent(range)
    }
    fn first_present(&self, range: BlockRange) -> Option<Block> {
        self.states.first_present(range)
    }
    fn claim(&self, range: BlockRange) -> bool {
        self.states.claim(range)
    }
    fn watch(&self, on: bool) {
        Gate::watch(self, on);
    }
}
