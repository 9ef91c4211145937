//! Making a tree file from the hashes of an image's blocks.

use super::hash::{HASH_BYTES, Hash, Root, hash_block, hash_page};
use super::head::{FAN_OUT, Head, is_table};
use super::holes::Holes;
use super::is_zero;
use crate::block::{BlockRange, Geometry};
use crate::error::{Error, Result, errno};

/// Takes what is known of an image's blocks, in order, and makes its tree file.
///
/// Hashing is left to the caller, who may have many threads for it ([`hash_block`]). What is kept is 20 bytes for each
/// used block.
pub struct TreeBuilder {
    geometry: Geometry,
    runs: Vec<BlockRange>,
    hashes: Vec<Hash>,
    /// Blocks that were told of.
    at: u64,
    table: u64,
}

impl TreeBuilder {
    /// Begins the tree of an image.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, runs: Vec::new(), hashes: Vec::new(), at: 0, table: 0 }
    }

    /// The image ends with a table of regions, which begins at this byte ([`Head::table`]).
    ///
    /// # Errors
    /// EINVAL for a place that is not at the beginning of a block, or not within the last
    /// [`TABLE_BYTES_MAX`](super::TABLE_BYTES_MAX) bytes.
    pub fn table(&mut self, offset: u64) -> Result<()> {
        if offset == 0 || !is_table(self.geometry, offset) {
            let text =
                format!("an image of {} bytes cannot have its table of regions at {offset}", self.geometry.size());
            return Err(Error::new(errno::EINVAL, text));
        }
        self.table = offset;
        Ok(())
    }

    /// The next `blocks` blocks are zero.
    pub fn zero(&mut self, blocks: u64) {
        self.at += blocks;
    }

    /// The next blocks have these hashes. One that is zero belongs to [`TreeBuilder::zero`], or the same image could
    /// have two trees.
    pub fn used(&mut self, hashes: &[Hash]) {
        if hashes.is_empty() {
            return;
        }
        let run = BlockRange::new(self.at, self.at + hashes.len() as u64);
        self.at = run.end.0;
        self.hashes.extend_from_slice(hashes);
        match self.runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => self.runs.push(run),
        }
    }

    /// The next block has these bytes.
    pub fn block(&mut self, bytes: &[u8]) {
        if is_zero(bytes) { self.zero(1) } else { self.used(&[hash_block(bytes)]) }
    }

    /// The tree file and the root hash: a function of the image's bytes and of the block size.
    ///
    /// # Errors
    /// EINVAL when more or fewer blocks were told of than the image has.
    pub fn finish(self) -> Result<(Vec<u8>, Root)> {
        self.finish_within(|geometry| Holes::bytes_max(geometry) as usize)
    }

    fn finish_within(self, map_bytes_max: impl Fn(Geometry) -> usize) -> Result<(Vec<u8>, Root)> {
        let Self { geometry, runs, hashes, at, table } = self;
        let blocks = geometry.blocks();
        if at != blocks {
            let text = format!("tree of an image of {blocks} blocks, but {at} were read; did it change meanwhile?");
            return Err(Error::new(errno::EINVAL, text));
        }
        // The shortest gaps that have to count as used for the map to fit: found by doubling, so that it is found soon.
        let limit = map_bytes_max(geometry);
        let mut gap = 0;
        let (holes, map, merged) = loop {
            let merged = merge(&runs, gap);
            let holes = Holes::of_runs(&merged, blocks);
            let map = holes.encode();
            if map.len() <= limit {
                break (holes, map, merged);
            }
            gap = (gap * 2).max(1);
        };
        let levels = levels(leaves(geometry, &runs, &merged, &hashes));
        let top = levels.last().map_or(Hash::NONE, |top| hash_page(top));
        let head = Head::new(geometry, &holes, &map, top).with_table(table);
        let mut file = head.encode().to_vec();
        file.extend(map);
        levels.iter().rev().for_each(|level| file.extend(level));
        debug_assert_eq!(file.len() as u64, head.file_bytes());
        Ok((file, head.root()))
    }
}

/// The runs with all gaps of at most `gap` blocks between them closed.
fn merge(runs: &[BlockRange], gap: u64) -> Vec<BlockRange> {
    let mut merged: Vec<BlockRange> = Vec::with_capacity(runs.len());
    for &run in runs {
        match merged.last_mut() {
            Some(last) if run.start.0 - last.end.0 <= gap => last.end = run.end,
            _ => merged.push(run),
        }
    }
    merged
}

/// The pages of level 0: the hashes of all blocks in `merged`, of which those in `runs` have `hashes` and all others are
/// zero. (Such a block lies between two others, so it is never the short last one.)
fn leaves(geometry: Geometry, runs: &[BlockRange], merged: &[BlockRange], hashes: &[Hash]) -> Vec<u8> {
    let zero = hash_block(&vec![0; geometry.block_bytes() as usize]);
    let count: u64 = merged.iter().map(|run| run.len()).sum();
    let mut bytes = Vec::with_capacity(count as usize * HASH_BYTES);
    let (mut runs, mut hashes) = (runs.iter().peekable(), hashes);
    for whole in merged {
        let mut at = whole.start;
        while let Some(run) = runs.next_if(|run| run.end <= whole.end) {
            (at.0..run.start.0).for_each(|_| bytes.extend(zero.as_bytes()));
            let (now, later) = hashes.split_at(run.len() as usize);
            now.iter().for_each(|hash| bytes.extend(hash.as_bytes()));
            (at, hashes) = (run.end, later);
        }
    }
    bytes
}

/// The pages of all levels, from those of block hashes to the one at the top.
fn levels(leaves: Vec<u8>) -> Vec<Vec<u8>> {
    const PAGE_BYTES: usize = FAN_OUT as usize * HASH_BYTES;
    let mut levels = Vec::new();
    let mut level = leaves;
    while !level.is_empty() {
        let pages = level.chunks(PAGE_BYTES);
        let above =
            if pages.len() > 1 { pages.flat_map(|page| *hash_page(page).as_bytes()).collect() } else { Vec::new() };
        levels.push(std::mem::replace(&mut level, above));
    }
    levels
}

#[cfg(test)]
pub(in crate::tree) mod tests {
    use super::super::Tree;
    use super::*;
    use crate::block::Block;
    use proptest::prelude::*;

    /// An image and its tree.
    pub struct Sample {
        pub geometry: Geometry,
        pub bytes: Vec<u8>,
        pub file: Vec<u8>,
        pub root: Root,
    }

    impl Sample {
        pub fn block(&self, block: Block) -> &[u8] {
            let range = BlockRange::one(block);
            let offset = self.geometry.offset(range) as usize;
            &self.bytes[offset..offset + self.geometry.length(range) as usize]
        }
    }

    /// An image in which runs of zero and other blocks follow each other by chance.
    pub fn sample(size: u64, block_bytes: u64, seed: u64) -> Sample {
        let geometry = Geometry::new(size, block_bytes).unwrap();
        let mut bytes = vec![0; size as usize];
        let mut dice = seed.wrapping_mul(2).wrapping_add(1);
        let mut roll = |sides: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % sides
        };
        let mut used = roll(2) == 0;
        for block in bytes.chunks_mut(block_bytes as usize) {
            if used {
                let text = (1 + roll(u64::MAX - 1)).to_le_bytes();
                let length = text.len().min(block.len());
                block[..length].copy_from_slice(&text[..length]);
            }
            used ^= roll(9) == 0;
        }
        let mut builder = TreeBuilder::new(geometry);
        bytes.chunks(block_bytes as usize).for_each(|block| builder.block(block));
        let (file, root) = builder.finish().unwrap();
        Sample { geometry, bytes, file, root }
    }

    /// The tree of an image, its map kept within a limit.
    fn built(sample: &Sample, map_bytes_max: usize) -> Tree {
        let mut builder = TreeBuilder::new(sample.geometry);
        sample.geometry.all().iter().for_each(|block| builder.block(sample.block(block)));
        let (file, root) = builder.finish_within(|_| map_bytes_max).unwrap();
        Tree::read(&file, root).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
        #[test]
        fn every_block_of_every_image_passes_and_only_zeroes_are_holes(
            size in 1u64..200_000, shift in 9u32..14, seed in any::<u64>(), limit in 4usize..100,
        ) {
            let sample = sample(size, 1 << shift, seed);
            for tree in [Tree::read(&sample.file, sample.root).unwrap(), built(&sample, limit)] {
                for block in sample.geometry.all().iter() {
                    prop_assert_eq!(tree.check(block, sample.block(block)).map_err(|lie| lie.to_string()), Ok(()));
                    let hole = tree.holes().rank(block).is_none();
                    prop_assert!(!hole || is_zero(sample.block(block)));
                }
            }
        }
    }

    #[test]
    fn an_empty_image_has_no_page_and_a_full_one_no_hole() {
        let geometry = Geometry::new(1 << 20, 4096).unwrap();
        let mut empty = TreeBuilder::new(geometry);
        empty.zero(256);
        let (file, root) = empty.finish().unwrap();
        let tree = Tree::read(&file, root).unwrap();
        assert_eq!((tree.head().levels(), tree.holes().used()), (0, 0));
        assert!(tree.missing(geometry.all()).is_empty());
        assert!(tree.check(Block(3), &[0; 4096]).is_ok() && tree.check(Block(3), &[1; 4096]).is_err());
        let mut full = TreeBuilder::new(geometry);
        full.used(&[hash_block(&[9; 4096]); 256]);
        let (file, root) = full.finish().unwrap();
        let tree = Tree::read(&file, root).unwrap();
        assert_eq!((tree.head().levels(), tree.holes().used()), (2, 256));
        assert!(tree.check(Block(255), &[9; 4096]).is_ok());
    }

    #[test]
    fn short_gaps_count_as_used_when_the_map_grows_too_long() {
        let sample = sample(2000 * 512, 512, 7);
        let exact = built(&sample, usize::MAX);
        let merged = built(&sample, 100);
        assert!(exact.head().map_bytes() > 100 && merged.head().map_bytes() <= 100);
        assert!(merged.holes().used() > exact.holes().used());
    }

    #[test]
    fn an_image_that_ends_early_has_no_tree() {
        let mut builder = TreeBuilder::new(Geometry::new(1 << 20, 4096).unwrap());
        builder.zero(255);
        assert!(builder.finish().is_err());
    }
}
