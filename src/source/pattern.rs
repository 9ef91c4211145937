//! Synthetic images: `pattern:SIZE[,seed=N][,zero=PERCENT]`.
//!
//! Every aligned 8-byte word is a hash of the seed and the word's number, so any byte of an image of any size
//! can be told without storing one: a test or an embedder checks what a guest reads by computing it again with
//! [`fill`]. With `zero=PERCENT` about that share of the image's 64 KiB extents is zero and reported as such,
//! like the holes of a sparse file.

use super::{FetchError, Identity, Sink, Source};
use crate::config::parse_size;
use crate::error::{Error, errno};

/// Bytes of an extent that is zero or not as a whole.
pub const EXTENT_BYTES: u64 = 64 << 10;

/// Bytes made and handed on at once; they live on the stack.
const PIECE_BYTES: usize = 16 << 10;

/// An image computed from its seed.
#[derive(Clone, Debug)]
pub struct PatternSource {
    seed: u64,
    zero_percent: u64,
    identity: Identity,
}

impl PatternSource {
    /// Reads `pattern:SIZE[,seed=N][,zero=PERCENT]`; with a `pinned` identity it must describe the same image.
    pub fn open(url: &str, pinned: Option<&Identity>) -> Result<Self, Error> {
        let bad = |reason: &str| Error::option("source", url, reason);
        let spec = url.strip_prefix("pattern:").unwrap_or(url);
        let mut parts = spec.split(',');
        let size = parse_size("source", parts.next().unwrap_or_default())?;
        if size == 0 {
            return Err(bad("must be larger than 0"));
        }
        let (mut seed, mut zero_percent) = (0, 0);
        for part in parts {
            match part.split_once('=') {
                Some(("seed", n)) => seed = n.parse().map_err(|_| bad("seed must be a whole number"))?,
                Some(("zero", n)) => {
                    zero_percent = n.trim_end_matches('%').parse().unwrap_or(u64::MAX);
                    if zero_percent > 100 {
                        return Err(bad("zero must be a percentage from 0 to 100"));
                    }
                }
                _ => return Err(bad("known settings are seed=N and zero=PERCENT")),
            }
        }
        let validator = Some(format!("pattern seed={seed} zero={zero_percent}"));
        let identity = Identity { size, validator, mtime_s: Some(0) };
        if pinned.is_some_and(|pinned| !super::fits(pinned, &identity)) {
            return Err(Error::new(errno::ESTALE, format!("{url} is not the image the cache was made from")));
        }
        Ok(Self { seed, zero_percent, identity })
    }

    /// Writes into `bytes` what the image holds from `offset`.
    pub fn fill(&self, offset: u64, bytes: &mut [u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let left = usize::try_from(EXTENT_BYTES - at % EXTENT_BYTES).unwrap_or(rest.len());
            let (piece, tail) = rest.split_at_mut(left.min(rest.len()));
            if self.is_zero(at) {
                piece.fill(0)
            } else {
                fill(self.seed, at, piece)
            }
            at += piece.len() as u64;
            rest = tail;
        }
    }

    /// True when the extent at `offset` is zero.
    pub fn is_zero(&self, offset: u64) -> bool {
        // Another stream of hashes than the words', so that the two do not go together.
        mix(!self.seed, offset / EXTENT_BYTES) % 100 < self.zero_percent
    }
}

impl Source for PatternSource {
    fn name(&self) -> String {
        format!("pattern:{},seed={},zero={}", self.identity.size, self.seed, self.zero_percent)
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn fetch(&self, _lane: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError> {
        let Some(range) = super::within(&self.identity, offset, length, "pattern")? else { return Ok(()) };
        let mut buffer = [0; PIECE_BYTES];
        let mut at = range.start;
        while at < range.end {
            let extent_end = (at / EXTENT_BYTES + 1) * EXTENT_BYTES;
            let left = extent_end.min(range.end) - at;
            let step = if self.zero_percent > 0 && self.is_zero(at) {
                sink.zeroes(at, left).map_err(|_| FetchError::Stopped)?;
                left
            } else {
                let piece = &mut buffer[..usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES))];
                fill(self.seed, at, piece);
                sink.data(at, piece).map_err(|_| FetchError::Stopped)?;
                piece.len() as u64
            };
            at += step;
        }
        Ok(())
    }
}

/// Writes into `bytes` what an image with this `seed` (and no zero extents) holds from `offset`.
pub fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let mut word = offset / 8;
    let mut rest = bytes;
    if skip > 0 {
        let (head, tail) = rest.split_at_mut((8 - skip).min(rest.len()));
        head.copy_from_slice(&mix(seed, word).to_le_bytes()[skip..skip + head.len()]);
        word += 1;
        rest = tail;
    }
    let mut words = rest.chunks_exact_mut(8);
    for bytes in &mut words {
        bytes.copy_from_slice(&mix(seed, word).to_le_bytes());
        word += 1;
    }
    let tail = words.into_remainder();
    let last = mix(seed, word).to_le_bytes();
    tail.copy_from_slice(&last[..tail.len()]);
}

/// A hash of a number under a seed: the output function of SplitMix64 (Steele, Lea and Flood, 2014).
pub(super) fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::testing::Collector;

    #[test]
    fn every_piece_of_the_pattern_agrees_with_the_whole() {
        let mut whole = [0; 100];
        fill(7, 1000, &mut whole);
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                let mut piece = vec![0; end - start];
                fill(7, 1000 + start as u64, &mut piece);
                assert_eq!(piece, whole[start..end], "{start}..{end}");
            }
        }
        let mut other = [0; 100];
        fill(8, 1000, &mut other);
        assert_ne!(whole, other);
    }

    #[test]
    fn fetching_gives_what_fill_tells_also_across_zero_extents() {
        let source = PatternSource::open("pattern:4M,seed=3,zero=50", None).unwrap();
        let (offset, length) = (12_345, 3_000_001);
        let mut sink = Collector::at(offset);
        source.fetch(0, offset, length, &mut sink).unwrap();
        let mut expected = vec![0; length as usize];
        source.fill(offset, &mut expected);
        assert!(sink.bytes == expected);
        // 45 extents at one half: a share outside 20..80 % would be a broken hash.
        assert!((length / 5..length * 4 / 5).contains(&sink.zeroed), "{} zero bytes", sink.zeroed);
    }

    #[test]
    fn a_huge_image_is_only_a_number() {
        let source = PatternSource::open("pattern:16T", None).unwrap();
        let end = 16 << 40;
        let mut sink = Collector::at(end - 10);
        source.fetch(0, end - 10, 10, &mut sink).unwrap();
        assert_eq!(sink.bytes.len(), 10);
        assert!(matches!(source.fetch(0, end - 10, 11, &mut Collector::at(end)), Err(FetchError::Fatal(_))));
    }

    #[test]
    fn the_identity_tells_seeds_apart_and_bad_specs_are_refused() {
        let one = PatternSource::open("pattern:1M,seed=1", None).unwrap();
        assert!(PatternSource::open("pattern:1M,seed=1", Some(one.identity())).is_ok());
        assert!(PatternSource::open("pattern:1M,seed=2", Some(one.identity())).is_err());
        for bad in
            ["pattern:", "pattern:0", "pattern:1Q", "pattern:1M,zero=101", "pattern:1M,speed=3", "pattern:1M,seed=x"]
        {
            assert!(PatternSource::open(bad, None).is_err(), "{bad}");
        }
    }
}
