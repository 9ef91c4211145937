//! Adaptive readahead for many sequential streams at once.
//!
//! A guest that reads several files interleaves several runs, so each run is a stream of its own. Its window doubles each
//! time the guest has used half of what was asked ahead, up to 256 blocks, or what a fast and distant link brings in a round
//! trip.
//!
//! When does a run begin? A second step that follows the first confirms one. But over a distance a file of a few blocks
//! is over by then, each of its steps a round trip: so a *miss* is taken for the beginning of a run at once, as long as
//! that pays. How often it does is learnt: the share of such guesses that the guest followed, as a moving average. A guest
//! that jumps about brings the share down and gets no guesses until its runs, confirmed the slow way, bring it up again.
//!
//! While a foresight knows most of what the guest touches, readahead is *modest*: the few blocks that earlier sessions never
//! touched are rarely a long run, and the link has better things to do.

use crate::block::{Block, BlockRange};
use crate::link::Link;

/// Streams followed at once; the one that was quiet longest makes room.
const STREAMS_MAX: usize = 32;
/// First window, in blocks, at least.
const WINDOW_FIRST_MIN: u64 = 8;
/// First window, in blocks, at most. Where the link brings as much while a single miss is met, what is asked for in vain costs
/// next to nothing, and each step of a run that nobody foresaw a round trip.
const WINDOW_FIRST_MAX: u64 = 512;
/// Largest window, in blocks, ...
const WINDOW_MAX: u64 = 256;
/// ... and on a link that brings more than that in a round trip.
const WINDOW_FAR_MAX: u64 = 1024;
/// A modest one is as large as what the link brings in a round trip, but not smaller than this, in blocks.
const WINDOW_MODEST_MIN: u64 = 32;
/// A step this many blocks ahead of the last still belongs to the run.
const SKIP_MAX: u64 = 4;
/// A guess is made while at least this share of the latest ones was followed. A guess costs some of a link that would
/// idle through the round trip anyway, and saves a whole one, so it pays although most of them fail.
const GUESS_SHARE: f64 = 0.2;
/// Readahead is modest while less than this share of the guest's touches, lately, was strange to foresight.
const STRANGE_SHARE: f64 = 0.25;
/// Weight of the latest touch in that share.
const STRANGE_WEIGHT: f64 = 1.0 / 32.0;
/// Weight of the latest guess in the share.
const GUESS_WEIGHT: f64 = 1.0 / 16.0;

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
    /// The guest took a second step.
    confirmed: bool,
}

/// All streams of an image.
#[derive(Debug)]
pub struct Readahead {
    streams: Vec<Stream>,
    clock: u64,
    /// Share of new streams that went on, lately.
    followed: f64,
    /// Share of touches that no foresight knew, lately.
    strange: f64,
}

impl Default for Readahead {
    fn default() -> Self {
        Self { streams: Vec::new(), clock: 0, followed: 0.5, strange: 1.0 }
    }
}

/// Sizes of windows on a link, in blocks.
struct Windows {
    first: u64,
    max: u64,
}

impl Windows {
    fn new(link: &Link, block_bytes: u64, modest: bool) -> Self {
        let bytes = link.round_trip().unwrap_or_default().as_secs_f64() * link.rate();
        let trip = (bytes / block_bytes as f64) as u64;
        let first = if modest { trip / 2 } else { trip };
        let max = trip.clamp(if modest { WINDOW_MODEST_MIN } else { WINDOW_MAX }, WINDOW_FAR_MAX);
        Self { first: first.clamp(WINDOW_FIRST_MIN, WINDOW_FIRST_MAX), max }
    }
}

impl Readahead {
    /// The guest touched what foresight knows.
    pub fn foreseen(&mut self) {
        self.strange -= self.strange * STRANGE_WEIGHT;
    }

    /// The guest touched `range`, which no foresight knows; `missed` when some of it was not resident.
    pub fn touch(&mut self, range: BlockRange, missed: bool, link: &Link, block_bytes: u64) {
        self.clock += 1;
        self.strange += (1.0 - self.strange) * STRANGE_WEIGHT;
        let windows = Windows::new(link, block_bytes, self.strange < STRANGE_SHARE);
        let (start, end) = (range.start.0, range.end.0);
        let mine = |s: &&mut Stream| start <= s.next + SKIP_MAX.max(s.window) && end >= s.next;
        if let Some(stream) = self.streams.iter_mut().find(mine) {
            if end > stream.next {
                stream.next = end;
                if !stream.confirmed {
                    stream.confirmed = true;
                    self.followed += (1.0 - self.followed) * GUESS_WEIGHT;
                }
                if stream.window == 0 {
                    stream.window = windows.first;
                    stream.aim = end + stream.window;
                } else if end + stream.window / 2 >= stream.aim {
                    stream.window = (stream.window * 2).min(windows.max);
                    stream.aim = end + stream.window;
                }
            }
            stream.used = self.clock;
            return;
        }
        let guess = missed && self.followed >= GUESS_SHARE;
        let window = if guess { windows.first } else { 0 };
        let fresh = Stream { next: end, window, aim: end + window, used: self.clock, confirmed: false };
        if self.streams.len() < STREAMS_MAX {
            self.streams.push(fresh);
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|s| s.used) {
            if !oldest.confirmed {
                self.followed -= self.followed * GUESS_WEIGHT;
            }
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
    use crate::time::Moment;
    use std::time::Duration;

    fn touch(r: &mut Readahead, start: u64, n: u64, missed: bool) {
        r.touch(BlockRange::new(start, start + n), missed, &Link::default(), 4096);
    }

    fn wanted(r: &Readahead) -> Vec<BlockRange> {
        r.wanted(Block(1 << 30)).collect()
    }

    #[test]
    fn a_run_of_hits_is_recognised_at_its_second_step_and_its_window_doubles() {
        let mut r = Readahead::default();
        touch(&mut r, 100, 1, false);
        assert!(wanted(&r).is_empty());
        touch(&mut r, 101, 1, false);
        assert_eq!(wanted(&r), [BlockRange::new(102, 110)]);
        let mut widest = 0;
        for block in 102..1500 {
            touch(&mut r, block, 1, false);
            widest = widest.max(wanted(&r)[0].len());
        }
        assert_eq!(widest, WINDOW_MAX);
    }

    #[test]
    fn a_miss_is_taken_for_the_beginning_of_a_run_while_that_pays() {
        let mut r = Readahead::default();
        touch(&mut r, 100, 1, true);
        assert_eq!(wanted(&r), [BlockRange::new(101, 109)]);
        let jump = |i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 34;
        for i in 1..200 {
            touch(&mut r, jump(i), 1, true);
        }
        assert!(wanted(&r).len() < 3, "a guest that jumps about gets no guesses: {:?}", wanted(&r));
        for i in 200..300 {
            touch(&mut r, jump(i), 1, true);
            touch(&mut r, jump(i) + 1, 1, true);
        }
        touch(&mut r, 7, 1, true);
        assert_eq!(wanted(&r)[0], BlockRange::new(8, 16), "short runs bring the guesses back");
    }

    #[test]
    fn where_foresight_knows_most_runs_are_followed_modestly() {
        let widest = |foreseen: usize| {
            let mut r = Readahead::default();
            let mut widest = 0;
            for block in 0..2000 {
                (0..foreseen).for_each(|_| r.foreseen());
                touch(&mut r, 100 + block, 1, false);
                widest = wanted(&r).first().map_or(0, |range| range.len());
            }
            widest
        };
        // The link is not measured, so a round trip brings nothing and the least counts.
        assert!(widest(9) <= WINDOW_MODEST_MIN, "{}", widest(9));
        assert!(widest(1) > WINDOW_MODEST_MIN, "{}", widest(1));
    }

    #[test]
    fn on_a_fast_and_distant_link_a_round_trip_is_the_measure() {
        let mut link = Link::default();
        let (begin, trip) = (Moment(1), Duration::from_millis(100));
        let mut token = link.start(8 << 20, begin);
        link.arrive(&mut token, 8 << 20, begin + trip);
        link.end(token, 0, begin + trip);
        let first = |foreseen: usize, link: &Link| {
            let mut r = Readahead::default();
            (0..foreseen).for_each(|_| r.foreseen());
            r.touch(BlockRange::new(100, 101), true, link, 4096);
            wanted(&r)[0].len()
        };
        assert_eq!((first(0, &link), first(100, &link)), (WINDOW_FIRST_MAX, WINDOW_FIRST_MAX));
        assert_eq!(first(0, &Link::default()), WINDOW_FIRST_MIN);
        let mut r = Readahead::default();
        let mut widest = 0;
        for block in 0..20_000 {
            r.touch(BlockRange::new(block, block + 1), true, &link, 4096);
            widest = widest.max(wanted(&r)[0].len());
        }
        assert_eq!(widest, WINDOW_FAR_MAX);
    }

    #[test]
    fn interleaved_runs_are_kept_apart() {
        let mut r = Readahead::default();
        for i in 0..10 {
            touch(&mut r, 1000 + i, 1, false);
            touch(&mut r, 900_000 + 2 * i, 2, false);
        }
        assert_eq!(wanted(&r).len(), 2);
    }

    #[test]
    fn the_end_of_the_image_cuts_the_window() {
        let mut r = Readahead::default();
        touch(&mut r, 10, 2, false);
        touch(&mut r, 12, 2, false);
        assert_eq!(r.wanted(Block(16)).collect::<Vec<_>>(), [BlockRange::new(14, 16)]);
        assert_eq!(r.wanted(Block(14)).count(), 0);
    }
}
