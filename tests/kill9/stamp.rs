//! What a sector holds: every content can be told from every other by looking at the sector alone.
//!
//! A stamped sector begins with its own number and a generation; the rest is noise that follows from the two. So a
//! sector that holds parts of two writes, or was moved, or was never written by anybody, is recognised as such.
//! The image at the origin is stamped with generation 0, apart from its holes, which are zero.

use std::fmt;

/// Size of a sector, in bytes: the unit in which a disk promises not to tear.
pub const SECTOR_BYTES: usize = 512;

/// What one sector holds, as a number that grows with each operation of its writer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Generation(u32);

impl Generation {
    /// All bytes are zero: a hole of the source, or discarded.
    pub const ZERO: Self = Self(u32::MAX);
    /// What the origin publishes, outside its holes.
    const PUBLISHED: Self = Self(0);

    /// The `n`th content a writer makes, from 1 up.
    pub fn written(n: u32) -> Self {
        assert!(n > 0 && n < u32::MAX);
        Self(n)
    }

    /// What the origin holds in `sector`: one MiB in eight is a hole that begins inside a block.
    pub fn at_origin(sector: u64) -> Self {
        if (sector + 3) / 2048 % 8 == 3 { Self::ZERO } else { Self::PUBLISHED }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ZERO => f.write_str("zero"),
            Self::PUBLISHED => f.write_str("published"),
            Self(n) => write!(f, "generation {n}"),
        }
    }
}

/// Fills `bytes`, one sector, with its content.
pub fn fill(sector: u64, generation: Generation, bytes: &mut [u8]) {
    assert_eq!(bytes.len(), SECTOR_BYTES);
    if generation == Generation::ZERO {
        bytes.fill(0);
        return;
    }
    let mut word = sector << 32 | u64::from(generation.0);
    for piece in bytes.chunks_exact_mut(8) {
        piece.copy_from_slice(&word.to_le_bytes());
        word = mix(word);
    }
}

/// What `bytes`, one sector, hold; `None` for anything that was never written there as a whole.
pub fn recognise(sector: u64, bytes: &[u8]) -> Option<Generation> {
    if bytes.iter().all(|&b| b == 0) {
        return Some(Generation::ZERO);
    }
    // The generation is the low half of the first word, which is little-endian.
    let generation = Generation(u32::from_le_bytes(*bytes.first_chunk::<4>()?));
    let mut expected = [0; SECTOR_BYTES];
    fill(sector, generation, &mut expected);
    (generation != Generation::ZERO && bytes == expected).then_some(generation)
}

/// A step of a 64-bit sequence in which neighbouring starts give unlike noise: xorshift, then a multiplication by
/// an odd number.
fn mix(mut word: u64) -> u64 {
    word ^= word >> 30;
    word = word.wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(0x9e37_79b9_7f4a_7c15);
    word ^ word >> 27
}

/// Random numbers that a seed repeats.
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5851_f42d_4c95_7f2d) | 1)
    }

    /// The next number, from 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The high half: the low bits of this kind of sequence are its weak ones.
        (self.0 >> 32) % limit
    }
}

#[test]
fn a_sector_tells_what_it_holds_and_refuses_mixtures() {
    let (old, new) = (Generation::written(7), Generation::written(8));
    let mut bytes = [0; SECTOR_BYTES];
    fill(99, old, &mut bytes);
    assert_eq!(recognise(99, &bytes), Some(old));
    assert_eq!(recognise(98, &bytes), None, "moved");
    let mut newer = [0; SECTOR_BYTES];
    fill(99, new, &mut newer);
    for at in [4, 8, 100, 511] {
        let mut torn = newer;
        torn[at..].copy_from_slice(&bytes[at..]);
        assert_eq!(recognise(99, &torn), None, "torn at {at}");
    }
    assert_eq!(recognise(99, &[0; SECTOR_BYTES]), Some(Generation::ZERO));
}
