//! The hole map: which blocks of an image are used, and which are zero.
//!
//! A disk image is mostly emptiness. What is zero is neither hashed nor sent: the map says so, and the root hash vouches
//! for the map. All other blocks are *used*, and the number of used blocks before one is its *rank*. Hashes stand in
//! the tree by rank, so the tree is dense: where a hash lies can be computed, and an empty terabyte costs nothing.
//!
//! On disk the map is a chain of varints, the length of a hole and of the used run behind it by turns, in blocks, until
//! the end of the image. Only the first may be zero, so there is one way to write each map. A scattered image would
//! have a long one, and everybody has to read it before anything else: so the publisher counts the shortest gaps as
//! used until the map fits [`Holes::bytes_max`].

use crate::block::{Block, BlockRange, Geometry};
use crate::error::{Error, Result, errno};

/// What any map may have, in bytes: half of what a first request brings.
const BYTES_BASE: u64 = 16 << 10;
/// For so many bytes of image (as a power of two) the map may have one byte more.
const BYTES_SHIFT: u32 = 18;
/// Largest map of all, in bytes: bounds what a reader keeps.
const BYTES_MAX: u64 = 64 << 20;

/// Longest varint: 2^34 blocks need five groups of seven bits.
const VARINT_BYTES_MAX: usize = 5;

/// A used run: where it begins, and how many used blocks come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    rank: u64,
}

/// The used blocks of an image, as ascending runs with holes between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holes {
    runs: Vec<Run>,
    used: u64,
    blocks: u64,
}

impl Holes {
    /// Largest map of an image, in bytes.
    pub fn bytes_max(geometry: Geometry) -> u64 {
        (BYTES_BASE + (geometry.size() >> BYTES_SHIFT)).min(BYTES_MAX)
    }

    /// The map of an image of `blocks` blocks in which exactly these runs are used. They must ascend within the image,
    /// with a hole between any two; empty ones are not allowed.
    pub(super) fn of_runs(runs: &[BlockRange], blocks: u64) -> Self {
        let mut used = 0;
        let runs = runs.iter().map(|run| {
            let rank = used;
            used += run.len();
            Run { start: run.start.0, rank }
        });
        Self { runs: runs.collect(), used, blocks }
    }

    /// Number of used blocks.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Number of the run that holds `block`, or of the first behind it.
    fn at_or_behind(&self, block: u64) -> usize {
        let behind = self.runs.partition_point(|run| run.start <= block);
        if behind > 0 && block < self.run(behind - 1).end.0 { behind - 1 } else { behind }
    }

    fn run(&self, at: usize) -> BlockRange {
        let Run { start, rank } = self.runs[at];
        let next = self.runs.get(at + 1).map_or(self.used, |next| next.rank);
        BlockRange::new(start, start + (next - rank))
    }

    /// The number of used blocks before `block`, if it is used itself.
    pub fn rank(&self, block: Block) -> Option<u64> {
        let at = self.at_or_behind(block.0);
        let run = self.runs.get(at)?;
        (run.start <= block.0).then(|| run.rank + (block.0 - run.start))
    }

    /// The used parts of `range`, ascending. A part never touches the next.
    pub fn used_in(&self, range: BlockRange) -> impl Iterator<Item = BlockRange> + '_ {
        (self.at_or_behind(range.start.0)..self.runs.len())
            .map(move |at| self.run(at).intersect(range))
            .take_while(|part| !part.is_empty())
    }

    /// True when `range` holds no used block.
    pub fn is_hole(&self, range: BlockRange) -> bool {
        self.used_in(range).next().is_none()
    }

    /// The ranks of the used blocks of `range`. They are consecutive, whatever holes lie between the blocks.
    pub fn ranks(&self, range: BlockRange) -> std::ops::Range<u64> {
        let before = |block: u64| match self.runs.get(self.at_or_behind(block)) {
            Some(run) => run.rank + block.saturating_sub(run.start),
            None => self.used,
        };
        before(range.start.0)..before(range.end.0.max(range.start.0))
    }

    /// The map as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut at = 0;
        for run in (0..self.runs.len()).map(|at| self.run(at)) {
            put_varint(&mut bytes, run.start.0 - at);
            put_varint(&mut bytes, run.len());
            at = run.end.0;
        }
        if at < self.blocks {
            put_varint(&mut bytes, self.blocks - at);
        }
        bytes
    }

    /// Reads the map of an image of `blocks` blocks.
    ///
    /// # Errors
    /// EPROTO for bytes that are no such map. What is kept has at most eight times the length of `bytes`.
    pub fn decode(bytes: &[u8], blocks: u64) -> Result<Self> {
        let wrong = |what: &str| Error::new(errno::EPROTO, format!("hole map: {what}; publish the image anew"));
        let (mut runs, mut used) = (Vec::new(), 0);
        let (mut at, mut rest) = (0, bytes);
        let mut hole = true;
        while at < blocks {
            let first = rest.len() == bytes.len();
            let length = take_varint(&mut rest).ok_or_else(|| wrong("cut short or not well formed"))?;
            if length > blocks - at {
                return Err(wrong("reaches beyond the end of the image"));
            }
            if length == 0 && !first {
                return Err(wrong("has an empty run"));
            }
            if !hole {
                runs.push(Run { start: at, rank: used });
                used += length;
            }
            at += length;
            hole = !hole;
        }
        if !rest.is_empty() {
            return Err(wrong("goes on behind the end of the image"));
        }
        Ok(Self { runs, used, blocks })
    }
}

/// Appends a number, seven bits a byte, low ones first; the top bit says that more follow.
fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Takes a number; `None` when it is cut short, too long, or not in its shortest form.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(VARINT_BYTES_MAX) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            if byte == 0 && at > 0 {
                return None;
            }
            *bytes = &bytes[at + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The map of an image whose used blocks are given one by one.
    fn of(used: &[bool]) -> Holes {
        let mut runs: Vec<BlockRange> = Vec::new();
        for at in (0..used.len()).filter(|&at| used[at]).map(|at| at as u64) {
            match runs.last_mut() {
                Some(last) if last.end.0 == at => last.end.0 += 1,
                _ => runs.push(BlockRange::new(at, at + 1)),
            }
        }
        Holes::of_runs(&runs, used.len() as u64)
    }

    proptest! {
        #[test]
        fn every_question_is_answered_as_by_a_list_of_all_blocks(
            used in prop::collection::vec(any::<bool>(), 1..80), a in 0u64..80, b in 0u64..80,
        ) {
            let holes = of(&used);
            prop_assert_eq!(&Holes::decode(&holes.encode(), used.len() as u64).unwrap(), &holes);
            let rank = |end: u64| used.iter().take(end as usize).filter(|used| **used).count() as u64;
            for (at, &is_used) in used.iter().enumerate() {
                let at = at as u64;
                prop_assert_eq!(holes.rank(Block(at)), is_used.then(|| rank(at)));
            }
            let range = BlockRange::new(a.min(b), a.max(b));
            let listed: Vec<u64> = holes.used_in(range).flat_map(|part| part.iter()).map(|block| block.0).collect();
            let expected: Vec<u64> =
                range.iter().map(|block| block.0).filter(|&at| used.get(at as usize) == Some(&true)).collect();
            prop_assert_eq!(holes.is_hole(range), expected.is_empty());
            prop_assert_eq!(holes.ranks(range), rank(range.start.0)..rank(range.end.0));
            prop_assert_eq!(listed, expected);
        }

        #[test]
        fn no_bytes_make_a_map_that_does_not_give_them_back(
            bytes in prop::collection::vec(any::<u8>(), 0..12), blocks in 1u64..300,
        ) {
            if let Ok(holes) = Holes::decode(&bytes, blocks) {
                prop_assert_eq!(holes.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_map_that_is_cut_or_goes_on_is_refused() {
        let bytes = of(&[false, true, true, false, true]).encode();
        assert_eq!(bytes, [1, 2, 1, 1]);
        assert!(Holes::decode(&bytes[..3], 5).is_err());
        assert!(Holes::decode(&[1, 2, 1, 1, 1], 5).is_err());
        assert!(Holes::decode(&bytes, 4).is_err());
        assert!(Holes::decode(&[0, 2, 0, 3], 5).is_err(), "an empty hole in the middle");
        assert!(Holes::decode(&[0x85, 0x00], 5).is_err(), "five in two bytes");
        assert!(Holes::decode(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], u64::MAX).is_err());
    }

    #[test]
    fn the_largest_map_grows_with_the_image_and_has_an_end() {
        let max = |size| Holes::bytes_max(Geometry::new(size, 4096).unwrap());
        assert_eq!(max(1), 16 << 10);
        assert_eq!(max(4 << 30), 32 << 10);
        assert_eq!(max(64 << 40), 64 << 20);
    }
}
