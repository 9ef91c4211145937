//! Filling the image with what is left of the link: once round, then whatever was passed over.

use crate::block::{Block, BlockRange};

/// Where the fill stands.
#[derive(Debug, Default)]
pub struct Fill {
    /// Where a round begins. Behind the last block of the image the first one follows.
    first: u64,
    next: u64,
    done: bool,
}

impl Fill {
    /// Begins a round, now and whenever one is over, with this block instead of the image's first.
    pub fn begin_at(&mut self, block: Block) {
        self.first = block.0;
        self.next = block.0;
        self.done = false;
    }

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
        if self.turn(range.start.0) < self.turn(self.next) {
            self.next = range.start.0;
        }
        self.done = false;
    }

    /// The whole image was looked at and nothing was found that is not on its way.
    pub fn nothing_left(&mut self) {
        self.next = self.first;
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

    /// When a block's turn comes in a round: those before the first one wrap to the end.
    fn turn(&self, block: u64) -> u64 {
        block.wrapping_sub(self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: BlockRange = BlockRange { start: Block(0), end: Block(100) };

    #[test]
    fn what_did_not_arrive_comes_again_only_if_its_turn_was_before() {
        let mut fill = Fill::default();
        fill.begin_at(Block(60));
        fill.took(BlockRange::new(60, 70));
        fill.missed(BlockRange::new(5, 6));
        assert_eq!(fill.cursor(ALL), Block(70), "its turn comes behind the end");
        fill.missed(BlockRange::new(62, 64));
        assert_eq!(fill.cursor(ALL), Block(62));
        fill.took(BlockRange::new(20, 30));
        fill.missed(BlockRange::new(5, 6));
        assert_eq!(fill.cursor(ALL), Block(5));
        fill.missed(BlockRange::new(62, 64));
        assert_eq!(fill.cursor(ALL), Block(62));
        fill.nothing_left();
        assert!(fill.is_done());
        assert_eq!(fill.cursor(ALL), Block(60));
    }
}
