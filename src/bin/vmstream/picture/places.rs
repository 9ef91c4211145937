//! An axis of those places of an image that matter, end to end.
//!
//! A session touches a few per cent of an image, scattered over all of it: drawn to scale, everything would be a few
//! lines of one pixel. So what nobody touches and nothing brings is left out, and the axis says for each label where in
//! the image it is.

use vmstream::block::{Block, BlockRange};

/// Disjoint ranges in order of place, each with the number of blocks in those before it.
#[derive(Debug)]
pub struct Places {
    ranges: Vec<(BlockRange, u64)>,
    blocks: u64,
}

impl Places {
    /// The axis of all blocks of these ranges.
    pub fn new(ranges: impl IntoIterator<Item = BlockRange>) -> Self {
        let mut all: Vec<BlockRange> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        all.sort_unstable();
        let mut places = Self { ranges: Vec::new(), blocks: 0 };
        for range in all {
            match places.ranges.last_mut() {
                Some((last, _)) if range.start <= last.end => {
                    places.blocks += range.end.0.saturating_sub(last.end.0);
                    last.end = last.end.max(range.end);
                }
                _ => {
                    places.ranges.push((range, places.blocks));
                    places.blocks += range.len();
                }
            }
        }
        places
    }

    /// Length of the axis, in blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where on the axis a block stands; one that is left out stands where it would be.
    pub fn position(&self, block: Block) -> u64 {
        let after = self.ranges.partition_point(|(range, _)| range.start <= block);
        let Some((range, before)) = self.ranges[..after].last() else { return 0 };
        before + (block.0 - range.start.0).min(range.len())
    }

    /// The block at a position, or the last one; block 0 when there is none at all.
    pub fn block(&self, position: u64) -> Block {
        let after = self.ranges.partition_point(|(_, before)| *before <= position);
        let Some((range, before)) = self.ranges[..after].last() else { return Block(0) };
        Block((range.start.0 + position - before).min(range.end.0 - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_used_takes_no_room() {
        let places =
            Places::new([(100, 104), (10, 12), (102, 106), (12, 13), (7, 7)].map(|(a, b)| BlockRange::new(a, b)));
        assert_eq!(places.blocks(), 9);
        for (block, position) in [(10, 0), (12, 2), (100, 3), (105, 8)] {
            assert_eq!((places.position(Block(block)), places.block(position)), (position, Block(block)));
        }
        assert_eq!([5, 50, 200].map(|block| places.position(Block(block))), [0, 3, 9]);
        assert_eq!(places.block(9), Block(105));
    }

    #[test]
    fn nothing_is_an_axis_too() {
        let places = Places::new([]);
        assert_eq!((places.blocks(), places.position(Block(3)), places.block(3)), (0, 0, Block(0)));
    }
}
