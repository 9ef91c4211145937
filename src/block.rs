//! Blocks, ranges of them, and the geometry that ties them to bytes.

use std::fmt;

use crate::error::{Error, Result, errno};

/// The number of a block: its byte offset divided by the block size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(pub u64);

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A half-open range of blocks, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRange {
    /// First block.
    pub start: Block,
    /// One past the last block.
    pub end: Block,
}

impl fmt::Debug for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}..{}", self.start.0, self.end.0)
    }
}

impl BlockRange {
    /// The range `start..end`; `start` must not lie behind `end`.
    pub const fn new(start: u64, end: u64) -> Self {
        debug_assert!(start <= end);
        Self { start: Block(start), end: Block(end) }
    }

    /// The range of one block.
    pub const fn one(block: Block) -> Self {
        Self::new(block.0, block.0 + 1)
    }

    /// Number of blocks.
    pub const fn len(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// True when the range holds no block.
    pub const fn is_empty(self) -> bool {
        self.start.0 >= self.end.0
    }

    /// True when `block` lies in the range.
    pub fn contains(self, block: Block) -> bool {
        self.start <= block && block < self.end
    }

    /// What both ranges share (perhaps empty).
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// True when the ranges share a block.
    pub fn overlaps(self, other: Self) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The blocks of the range in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Block> {
        (self.start.0..self.end.0).map(Block)
    }
}

/// Size of an image and of its blocks: turns bytes into blocks and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
    block_shift: u32,
}

/// Largest image, in bytes (64 TiB): bounds the array of block states to 8 GiB of address space.
pub const IMAGE_BYTES_MAX: u64 = 64 << 40;
/// Smallest block, in bytes.
pub const BLOCK_BYTES_MIN: u64 = 512;
/// Largest block, in bytes.
pub const BLOCK_BYTES_MAX: u64 = 1 << 20;
/// Block size unless told otherwise, in bytes.
pub const BLOCK_BYTES_DEFAULT: u64 = 4096;

impl Geometry {
    /// An image of `size` bytes in blocks of `block_bytes` (a power of two).
    pub fn new(size: u64, block_bytes: u64) -> Result<Self> {
        if !block_bytes.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes) {
            return Err(Error::new(
                errno::EINVAL,
                format!("block size {block_bytes}: must be a power of two from {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}"),
            ));
        }
        if size == 0 || size > IMAGE_BYTES_MAX || size.div_ceil(block_bytes) > IMAGE_BYTES_MAX / BLOCK_BYTES_DEFAULT {
            return Err(Error::new(
                errno::EFBIG,
                format!(
                    "image of {size} bytes: must be from 1 byte to {} TiB and at most 2^34 blocks",
                    IMAGE_BYTES_MAX >> 40
                ),
            ));
        }
        Ok(Self { size, block_shift: block_bytes.trailing_zeros() })
    }

    /// Size of the image, in bytes; need not be a multiple of the block size.
    pub fn size(self) -> u64 {
        self.size
    }

    /// Size of a block, in bytes.
    pub fn block_bytes(self) -> u64 {
        1 << self.block_shift
    }

    /// log2 of the block size.
    pub fn block_shift(self) -> u32 {
        self.block_shift
    }

    /// Number of blocks, the last one perhaps cut short.
    pub fn blocks(self) -> u64 {
        self.size.div_ceil(self.block_bytes())
    }

    /// All blocks of the image.
    pub fn all(self) -> BlockRange {
        BlockRange::new(0, self.blocks())
    }

    /// Checks a byte range from outside: within the image, not overflowing.
    pub fn contains(self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size)
    }

    /// The blocks that a byte range touches. The range must lie within the image.
    pub fn touched(self, offset: u64, length: u64) -> BlockRange {
        if length == 0 {
            return BlockRange::new(offset >> self.block_shift, offset >> self.block_shift);
        }
        BlockRange::new(offset >> self.block_shift, ((offset + length - 1) >> self.block_shift) + 1)
    }

    /// The blocks that a byte range covers as a whole; the short last block counts as whole when the range
    /// reaches the end of the image. The range must lie within the image.
    pub fn covered(self, offset: u64, length: u64) -> BlockRange {
        let end = offset + length;
        let first = (offset + self.block_bytes() - 1) >> self.block_shift;
        let last = if end == self.size { self.blocks() } else { end >> self.block_shift };
        BlockRange::new(first.min(last), last)
    }

    /// Byte offset of a range's first byte.
    pub fn offset(self, range: BlockRange) -> u64 {
        range.start.0 << self.block_shift
    }

    /// Bytes in a range, cut at the end of the image.
    pub fn length(self, range: BlockRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        (range.end.0 << self.block_shift).min(self.size) - self.offset(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_last_block_is_covered_only_by_a_range_that_reaches_the_end() {
        let g = Geometry::new(10_000, 4096).unwrap();
        assert_eq!(g.blocks(), 3);
        assert_eq!(g.length(g.all()), 10_000);
        assert_eq!(g.covered(8192, 1808), BlockRange::new(2, 3));
        assert_eq!(g.covered(8192, 1807), BlockRange::new(2, 2));
        assert_eq!(g.touched(8192, 1), BlockRange::new(2, 3));
    }

    #[test]
    fn covered_lies_within_touched_for_every_range_of_a_small_image() {
        let g = Geometry::new(3 * 512 + 100, 512).unwrap();
        for offset in 0..=g.size() {
            for length in 0..=g.size() - offset {
                let (t, c) = (g.touched(offset, length), g.covered(offset, length));
                assert!(c.is_empty() || (t.start <= c.start && c.end <= t.end), "{offset}+{length}: {t:?} {c:?}");
                for b in t.iter() {
                    let (lo, hi) =
                        (g.offset(BlockRange::one(b)), g.offset(BlockRange::one(b)) + g.length(BlockRange::one(b)));
                    assert_eq!(c.contains(b), offset <= lo && hi <= offset + length, "{offset}+{length} {b:?}");
                }
            }
        }
    }

    #[test]
    fn geometry_refuses_what_it_cannot_hold() {
        assert!(Geometry::new(0, 4096).is_err());
        assert!(Geometry::new(1, 4097).is_err());
        assert!(Geometry::new(u64::MAX, 4096).is_err());
        assert!(Geometry::new(16 << 40, 4096).is_ok());
    }
}
