//! From recordings to sequences and paths.
//!
//! *Sequences.* The recordings are gone through in the order given. A burst of blocks that no sequence owns yet, without
//! a pause, becomes a candidate, in order of touch. It is split where its blocks do not live together: where they occur
//! in different sessions (their sets of sessions by Jaccard's measure), or far from each other within the sessions.
//! Each block ends up in exactly one sequence.
//!
//! *Paths.* Each recording becomes the list of the sequences of which it used enough, by the time of first use.
//!
//! Time and memory are linear in the number of touches: blocks are numbered densely, so that all books are flat arrays, and
//! a block is compared with the heads of the at most 16 groups of its own burst.

use super::recording::Recording;
use super::{Path, Sequence, SequenceId, Visit};
use crate::block::{Block, BlockRange};

/// Longest sequence, in blocks: long enough that requests are cheap, short enough that one rarely is half wanted.
const BLOCKS_MAX: usize = 16;
/// A pause of the guest's longer than this, in milliseconds, ends a sequence.
const GAP_MAX_MS: u32 = 100;
/// Blocks stay together when of the sessions that use one of them at least this share uses both.
const TOGETHER_MIN: f64 = 0.8;
/// Blocks are near each other in a session when at most so many first touches lie between them.
const NEAR_TOUCHES: u32 = 32;
/// Blocks stay together when they are near in at least this share of the sessions that use both.
const NEAR_MIN: f64 = 0.7;
/// A sequence counts as used by a session when at least one in so many of its blocks was.
const USED_SHARE: u32 = 4;

/// The sequences of `recordings` and, one for each, the paths through them.
pub(super) fn build(recordings: &[&Recording]) -> (Vec<Sequence>, Vec<Path>) {
    let numbers = Numbers::new(recordings);
    let occurrences = Occurrences::new(recordings, &numbers);
    let mut owners = vec![u32::MAX; numbers.count];
    let mut groups: Vec<Vec<Block>> = Vec::new();
    let mut burst = Vec::new();
    for recording in recordings {
        let mut last_ms = 0;
        for (at_ms, id, block) in numbers.touches(recording) {
            if owners[id as usize] != u32::MAX {
                continue;
            }
            if burst.len() == BLOCKS_MAX || at_ms - last_ms > GAP_MAX_MS {
                split(&mut burst, &occurrences, &mut owners, &mut groups);
            }
            // Taken, until the split tells by whom: a recording from a file might name it twice.
            owners[id as usize] = u32::MAX - 1;
            burst.push((id, block));
            last_ms = at_ms;
        }
        split(&mut burst, &occurrences, &mut owners, &mut groups);
    }
    let sequences: Vec<_> = groups.iter().map(|group| sequence(group)).collect();
    let mut tally = vec![(0, 0); sequences.len()];
    let paths = recordings.iter().map(|r| path(r, &numbers, &owners, &sequences, &mut tally)).collect();
    (sequences, paths)
}

/// Dense numbers for the blocks that occur, in order of place.
struct Numbers {
    /// Disjoint ranges, each with the number of its first block.
    ranges: Vec<(BlockRange, u32)>,
    count: usize,
}

impl Numbers {
    fn new(recordings: &[&Recording]) -> Self {
        let mut all: Vec<BlockRange> = recordings.iter().flat_map(|r| r.runs.iter().map(|run| run.range())).collect();
        all.sort_unstable();
        let mut ranges: Vec<(BlockRange, u32)> = Vec::new();
        let mut count = 0;
        for range in all {
            match ranges.last_mut() {
                Some((last, _)) if range.start <= last.end => {
                    count += range.end.0.saturating_sub(last.end.0);
                    last.end = last.end.max(range.end);
                }
                _ => {
                    ranges.push((range, count as u32));
                    count += range.len();
                }
            }
        }
        Self { ranges, count: count as usize }
    }

    /// The touches of a recording: milliseconds, number, block.
    fn touches(&self, recording: &Recording) -> impl Iterator<Item = (u32, u32, Block)> {
        recording.runs.iter().flat_map(|run| {
            let range = run.range();
            let home = self.ranges.partition_point(|(home, _)| home.start <= range.start) - 1;
            let (home, first) = self.ranges[home];
            let first = first + (range.start.0 - home.start.0) as u32;
            range.iter().zip(first..).map(|(block, id)| (run.at_ms, id, block))
        })
    }
}

/// Where each block occurs: (recording, number of the touch in it), in order of recording.
struct Occurrences {
    from: Vec<u32>,
    places: Vec<(u32, u32)>,
}

impl Occurrences {
    fn new(recordings: &[&Recording], numbers: &Numbers) -> Self {
        let mut from = vec![0u32; numbers.count + 1];
        for (_, id, _) in recordings.iter().flat_map(|r| numbers.touches(r)) {
            from[id as usize + 1] += 1;
        }
        for at in 1..from.len() {
            from[at] += from[at - 1];
        }
        let mut next = from.clone();
        let mut places = vec![(0, 0); from.last().copied().unwrap_or(0) as usize];
        for (recording, all) in (0..).zip(recordings) {
            for (number, (_, id, _)) in (0..).zip(numbers.touches(all)) {
                places[next[id as usize] as usize] = (recording, number);
                next[id as usize] += 1;
            }
        }
        Self { from, places }
    }

    fn of(&self, id: u32) -> &[(u32, u32)] {
        &self.places[self.from[id as usize] as usize..self.from[id as usize + 1] as usize]
    }

    /// True when two blocks are used by the same sessions and close to each other.
    fn together(&self, a: u32, b: u32) -> bool {
        let (a, b) = (self.of(a), self.of(b));
        // What they share is at most the smaller set.
        if (a.len().min(b.len()) as f64) < TOGETHER_MIN * a.len().max(b.len()) as f64 {
            return false;
        }
        let (mut common, mut near) = (0usize, 0u32);
        let (mut i, mut j) = (0, 0);
        while i < a.len() && j < b.len() {
            match a[i].0.cmp(&b[j].0) {
                std::cmp::Ordering::Less => i += 1,
                std::cmp::Ordering::Greater => j += 1,
                std::cmp::Ordering::Equal => {
                    common += 1;
                    near += u32::from(a[i].1.abs_diff(b[j].1) <= NEAR_TOUCHES);
                    (i, j) = (i + 1, j + 1);
                }
            }
        }
        let all = a.len() + b.len() - common;
        common as f64 >= TOGETHER_MIN * all as f64 && f64::from(near) >= NEAR_MIN * common as f64
    }
}

/// Cuts a burst into groups whose blocks live together, and leaves it empty.
fn split(burst: &mut Vec<(u32, Block)>, occurrences: &Occurrences, owners: &mut [u32], groups: &mut Vec<Vec<Block>>) {
    let first = groups.len();
    let mut heads: Vec<u32> = Vec::new();
    for (id, block) in burst.drain(..) {
        let home = heads.iter().position(|&head| occurrences.together(head, id)).unwrap_or(heads.len());
        if home == heads.len() {
            heads.push(id);
            groups.push(Vec::new());
        }
        groups[first + home].push(block);
        owners[id as usize] = (first + home) as u32;
    }
}

/// Neighbours in the order of use become one run.
fn sequence(blocks: &[Block]) -> Sequence {
    let mut runs: Vec<BlockRange> = Vec::new();
    for &block in blocks {
        match runs.last_mut() {
            Some(run) if run.end == block => run.end = Block(block.0 + 1),
            _ => runs.push(BlockRange::one(block)),
        }
    }
    Sequence { runs, blocks: blocks.len() as u32 }
}

/// The path of a recording. `tally` has an entry of zeroes for each sequence, and has so again afterwards.
fn path(
    recording: &Recording,
    numbers: &Numbers,
    owners: &[u32],
    sequences: &[Sequence],
    tally: &mut [(u32, u32)],
) -> Path {
    let mut seen = Vec::new();
    for (at_ms, id, _) in numbers.touches(recording) {
        let owner = owners[id as usize];
        let (count, first_ms) = &mut tally[owner as usize];
        if *count == 0 {
            *first_ms = at_ms;
            seen.push(owner);
        }
        *count += 1;
    }
    let mut visits = Vec::new();
    for owner in seen {
        let (count, at_ms) = std::mem::take(&mut tally[owner as usize]);
        if count * USED_SHARE >= sequences[owner as usize].blocks {
            // Rounded once, so that it comes back from a file as what it is here.
            visits.push(Visit { at: (f64::from(at_ms) / 1000.0) as f32, sequence: SequenceId(owner) });
        }
    }
    visits.sort_by(|a, b| a.at.total_cmp(&b.at).then(a.sequence.cmp(&b.sequence)));
    Path { age: recording.age, visits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::recording::Run;

    /// A recording of single blocks, each at its millisecond.
    fn recording(touches: &[(u32, u64)]) -> Recording {
        let runs: Vec<_> =
            touches.iter().map(|&(at_ms, block)| Run { at_ms, blocks: 1, start: Block(block) }).collect();
        Recording { age: 0, touched: runs.len() as u32, listed: runs.len() as u32, runs }
    }

    fn blocks(sequence: &Sequence) -> Vec<u64> {
        sequence.runs.iter().flat_map(|r| r.start.0..r.end.0).collect()
    }

    #[test]
    fn a_burst_is_a_sequence_in_order_of_use_and_a_pause_ends_it() {
        let one = recording(&[(0, 9), (1, 5), (90, 6), (300, 7)]);
        let (sequences, paths) = build(&[&one]);
        assert_eq!(sequences.iter().map(blocks).collect::<Vec<_>>(), [vec![9, 5, 6], vec![7]]);
        let visit = |at, sequence| Visit { at, sequence: SequenceId(sequence) };
        assert_eq!(paths, [Path { age: 0, visits: vec![visit(0.0, 0), visit(0.3, 1)] }]);
    }

    #[test]
    fn blocks_of_different_sessions_part() {
        // 1 2 3 4 in one burst; the second session uses 1 and 3 only.
        let (sequences, paths) = build(&[&recording(&[(0, 1), (0, 2), (0, 3), (0, 4)]), &recording(&[(0, 1), (0, 3)])]);
        assert_eq!(sequences.iter().map(blocks).collect::<Vec<_>>(), [vec![1, 3], vec![2, 4]]);
        assert_eq!(paths[1].visits.len(), 1);
    }

    #[test]
    fn blocks_far_from_each_other_elsewhere_part() {
        let far: Vec<_> = [(0, 1)].into_iter().chain((0..40).map(|i| (1, 100 + i))).chain([(1, 2)]).collect();
        let (sequences, _) = build(&[&recording(&[(0, 1), (0, 2)]), &recording(&far), &recording(&far)]);
        assert_eq!(blocks(&sequences[0]), [1]);
        assert_eq!(blocks(&sequences[1]), [2]);
    }

    #[test]
    fn a_sequence_little_used_is_no_visit() {
        // Ten sessions use eight blocks, one touches a single one of them.
        let eight = recording(&(0..8).map(|b| (0, b)).collect::<Vec<_>>());
        let one = recording(&[(0, 3)]);
        let mut all = vec![&eight; 10];
        all.push(&one);
        let (sequences, paths) = build(&all);
        assert_eq!(sequences.len(), 1);
        assert!(paths[10].visits.is_empty());
    }
}
