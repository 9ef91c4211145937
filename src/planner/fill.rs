//! Filling the image with what is left of the link: from the start to the end, then whatever was passed over.

use crate::block::{Block, BlockRange};

/// Where the fill stands.
#[derive(Debug, Default)]
pub struct Fill {
    next: u64,
    done: bool,
}

impl Fill {
    /// Where to look for the next absent block.
    pub fn cursor(&self, all: BlockRange) -> Block {
        Block(self.next.min(all.end.0))
    }

    /// This range is being fetched.
    pub fn took(&mut self, range: BlockRange) {
        self.next = range.end.0;
    }

    /// This range did not arrive: begin again there.
    pub fn missed(&mut self, range: BlockRange) {
        self.next = self.next.min(range.start.0);
        self.done = false;
    }

    /// The whole image was looked at and nothing was found that is not on its way.
    pub fn nothing_left(&mut self) {
        self.next = 0;
        self.done = true;
    }

    /// Blocks may have become absent that were not: look at the whole image again.
    pub fn changed(&mut self) {
        self.done = false;
    }

    /// True while there is nothing to look for.
    pub fn is_done(&self) -> bool {
        self.done
    }
}
