//! The blocks of a replay: the gate's part of the world, without its threads.

use std::cell::RefCell;

use crate::block::{Block, BlockRange, Geometry};
use crate::gate::State;
use crate::planner::Blocks;

/// The block is here. So all zeroes are an image of which nothing is: the system gives memory for what is touched only.
const RESIDENT: u8 = 1;
/// The guest touched it; the gate tells the planner the first time only.
const TOUCHED: u8 = 2;
/// The guest needed what the origin has there.
const NEEDED: u8 = 4;
/// It came for demand or by foresight, not as fill and not from the guest.
const FETCHED: u8 = 8;

/// One byte of flags for each block. In a cell, because the planner sees it through a shared reference.
#[derive(Debug)]
pub(super) struct States {
    geometry: Geometry,
    flags: RefCell<Vec<u8>>,
}

impl States {
    /// An image of which nothing is here.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, flags: RefCell::new(vec![0; geometry.blocks() as usize]) }
    }

    /// Sets flags in a range; answers how many bytes are in blocks that did not have all of `news` before and do now.
    fn set(&self, range: BlockRange, flags: u8, news: u8) -> u64 {
        let mut bytes = 0;
        let all = &mut self.flags.borrow_mut();
        for block in range.iter() {
            let state = &mut all[block.0 as usize];
            let old = *state;
            *state |= flags;
            if old & news != news && *state & news == news {
                bytes += self.geometry.length(BlockRange::one(block));
            }
        }
        bytes
    }

    /// The guest touches a range; true when it does so for the first time in some of it.
    pub fn touch(&self, range: BlockRange) -> bool {
        self.set(range, TOUCHED, TOUCHED) > 0
    }

    /// The guest needs what the origin has there; answers the bytes that were fetched and turn out to be of use.
    pub fn need(&self, range: BlockRange) -> u64 {
        self.set(range, NEEDED, NEEDED | FETCHED)
    }

    /// Blocks arrive; answers the bytes of those that the guest needs already. What it wrote itself is not touched.
    pub fn arrive(&self, range: BlockRange, as_fill: bool) -> u64 {
        let flags = if as_fill { RESIDENT } else { RESIDENT | FETCHED };
        let absent = range.iter().filter(|&block| self.state(block) == State::Absent);
        absent.map(|block| self.set(BlockRange::one(block), flags, NEEDED | FETCHED)).sum()
    }

    /// Bytes that are not here.
    pub fn missing_bytes(&self) -> u64 {
        let absent = self.flags.borrow().iter().filter(|flags| *flags & RESIDENT == 0).count() as u64;
        (absent * self.geometry.block_bytes()).min(self.geometry.size())
    }

    /// The guest's write has ended.
    pub fn written(&self, range: BlockRange) {
        self.set(range, RESIDENT, 0);
    }

    fn first(&self, range: BlockRange, resident: bool) -> Option<Block> {
        let flags = self.flags.borrow();
        range.iter().find(|block| (flags[block.0 as usize] & RESIDENT != 0) == resident)
    }
}

impl Blocks for States {
    fn state(&self, block: Block) -> State {
        if self.first(BlockRange::one(block), true).is_some() { State::Resident } else { State::Absent }
    }
    fn first_missing(&self, range: BlockRange) -> Option<Block> {
        self.first(range, false)
    }
    fn first_absent(&self, range: BlockRange) -> Option<Block> {
        self.first(range, false)
    }
    fn first_present(&self, range: BlockRange) -> Option<Block> {
        self.first(range, true)
    }
    fn claim(&self, _: BlockRange) -> bool {
        true // the write ends at once, and its blocks become resident then
    }
    fn watch(&self, _: bool) {} // for the same reason nobody waits for the end of a write
}
