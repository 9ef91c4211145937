//! Four bits a block, sixteen blocks a word: ranges as masks, masks as runs.

use crate::block::{Block, BlockRange};

/// Blocks in a word of states.
pub(super) const BLOCKS_PER_WORD: u64 = 16;
/// The lowest bit of every block's four.
pub(super) const LOW: u64 = 0x1111_1111_1111_1111;

/// One word of a range: its index and a mask with the lowest bit of each block's four set.
#[inline]
pub(super) fn spans(range: BlockRange) -> impl Iterator<Item = (usize, u64)> {
    let (start, end) = (range.start.0, range.end.0);
    let last = if start < end { end.div_ceil(BLOCKS_PER_WORD) } else { 0 };
    (start / BLOCKS_PER_WORD..last).map(move |index| {
        let base = index * BLOCKS_PER_WORD;
        let lo = start.saturating_sub(base);
        let hi = (end - base).min(BLOCKS_PER_WORD);
        let mask = (LOW >> (4 * (BLOCKS_PER_WORD - (hi - lo)))) << (4 * lo);
        (index as usize, mask)
    })
}

/// The blocks of `mask` whose state in `word` is `state`, as lowest bits.
#[inline]
pub(super) fn having(word: u64, mask: u64, state: u64) -> u64 {
    let x = word ^ (LOW * state);
    !(x | x >> 1) & mask
}

/// Calls `visit` for each run of consecutive set blocks of a mask, as block numbers.
pub(super) fn runs(index: usize, mut mask: u64, mut visit: impl FnMut(u64, u64)) {
    while mask != 0 {
        let lo = u64::from(mask.trailing_zeros() / 4);
        let rest = (!(mask >> (4 * lo)) & LOW).trailing_zeros() / 4;
        let n = u64::from(rest).min(BLOCKS_PER_WORD - lo);
        let base = index as u64 * BLOCKS_PER_WORD + lo;
        visit(base, base + n);
        mask &= !((LOW >> (4 * (BLOCKS_PER_WORD - n))) << (4 * lo));
    }
}

/// Joins neighbouring runs before handing them on.
pub(super) struct Joiner<F: FnMut(BlockRange)> {
    open: Option<BlockRange>,
    visit: F,
}

impl<F: FnMut(BlockRange)> Joiner<F> {
    pub fn new(visit: F) -> Self {
        Self { open: None, visit }
    }

    pub fn add(&mut self, start: u64, end: u64) {
        match &mut self.open {
            Some(run) if run.end.0 == start => run.end = Block(end),
            _ => {
                self.finish();
                self.open = Some(BlockRange::new(start, end));
            }
        }
    }

    pub fn finish(&mut self) {
        if let Some(run) = self.open.take() {
            (self.visit)(run);
        }
    }
}
