//! Adaptive readahead for many sequential streams at once.
//!
//! A guest that reads several files interleaves several runs. Each run is a stream: it is recognised at its second step,
//! starts with a window worth a quarter of a round trip (8 to 64 blocks) and doubles each time the guest has used half
//! of what was asked ahead, up to 256 blocks. A window that reaches into what the guest did not want shrinks no other.

use crate::block::{Block, BlockRange};
use crate::link::Link;

/// Streams followed at once; the one that was quiet longest makes room.
const STREAMS_MAX: usize = 32;
/// First window, in blocks, at least.
const WINDOW_FIRST_MIN: u64 = 8;
/// First window, in blocks, at most.
const WINDOW_FIRST_MAX: u64 = 64;
/// Largest window, in blocks.
const WINDOW_MAX: u64 = 256;
/// A step this many blocks ahead of the last still belongs to the run.
const SKIP_MAX: u64 = 4;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The block after the last one the guest touched.
    next: u64,
    /// Blocks to keep ahead of `next`; 0 until the run is confirmed.
    window: u64,
    /// End of what was last aimed at, to know when half of it is used.
    aim: u64,
    /// Last use, as a count of accesses.
    used: u64,
}

/// All streams of an image.
#[derive(Debug, Default)]
pub struct Readahead {
    streams: Vec<Stream>,
    clock: u64,
}

impl Readahead {
    /// The guest touched `range`.
    pub fn touch(&mut self, range: BlockRange, link: &Link, block_bytes: u64) {
        self.clock += 1;
        let (start, end) = (range.start.0, range.end.0);
        let mine = |s: &&mut Stream| start <= s.next + SKIP_MAX.max(s.window) && end >= s.next;
        if let Some(stream) = self.streams.iter_mut().find(mine) {
            if end > stream.next {
                stream.next = end;
                if stream.window == 0 {
                    let quarter = link.round_trip().unwrap_or_default() / 4;
                    let blocks = (quarter.as_secs_f64() * link.rate() / block_bytes as f64) as u64;
                    stream.window = blocks.clamp(WINDOW_FIRST_MIN, WINDOW_FIRST_MAX);
                    stream.aim = end + stream.window;
                } else if end + stream.window / 2 >= stream.aim {
                    stream.window = (stream.window * 2).min(WINDOW_MAX);
                    stream.aim = end + stream.window;
                }
            }
            stream.used = self.clock;
            return;
        }
        let fresh = Stream { next: end, window: 0, aim: end, used: self.clock };
        if self.streams.len() < STREAMS_MAX {
            self.streams.push(fresh);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.used) {
            *oldest = fresh;
        }
    }

    /// What the streams want to have, the most recently used first, cut at `end` of the image.
    pub fn wanted(&self, end: Block) -> impl Iterator<Item = BlockRange> + use<> {
        let mut streams: Vec<Stream> = self.streams.iter().copied().filter(|s| s.window > 0).collect();
        streams.sort_by_key(|s| std::cmp::Reverse(s.used));
        streams.into_iter().filter_map(move |s| {
            let range = BlockRange { start: Block(s.next), end: Block(s.aim.max(s.next)).min(end) };
            (range.start < range.end).then_some(range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(r: &mut Readahead, start: u64, n: u64) {
        r.touch(BlockRange::new(start, start + n), &Link::default(), 4096);
    }

    fn wanted(r: &Readahead) -> Vec<BlockRange> {
        r.wanted(Block(1 << 30)).collect()
    }

    #[test]
    fn a_run_is_recognised_at_its_second_step_and_its_window_doubles() {
        let mut r = Readahead::default();
        touch(&mut r, 100, 1);
        assert!(wanted(&r).is_empty());
        touch(&mut r, 101, 1);
        assert_eq!(wanted(&r), [BlockRange::new(102, 110)]);
        let mut widest = 0;
        for block in 102..1500 {
            touch(&mut r, block, 1);
            widest = widest.max(wanted(&r)[0].len());
        }
        assert_eq!(widest, WINDOW_MAX);
    }

    #[test]
    fn interleaved_runs_are_kept_apart_and_random_accesses_start_none() {
        let mut r = Readahead::default();
        for i in 0..10 {
            touch(&mut r, 1000 + i, 1);
            touch(&mut r, 900_000 + 2 * i, 2);
        }
        assert_eq!(wanted(&r).len(), 2);
        let mut r = Readahead::default();
        for i in 0..1000u64 {
            touch(&mut r, i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 34, 1);
        }
        assert!(wanted(&r).len() < 3, "{:?}", wanted(&r));
    }

    #[test]
    fn the_end_of_the_image_cuts_the_window() {
        let mut r = Readahead::default();
        touch(&mut r, 10, 2);
        touch(&mut r, 12, 2);
        assert_eq!(r.wanted(Block(16)).collect::<Vec<_>>(), [BlockRange::new(14, 16)]);
        assert_eq!(r.wanted(Block(14)).count(), 0);
    }
}
