//! Sets of blocks as runs: memory goes with the number of runs, not with the size of the image.

use crate::block::BlockRange;

/// Collects runs in any order and with overlaps.
#[derive(Default)]
pub(super) struct Runs {
    runs: Vec<BlockRange>,
    /// Length of `runs` at which they are merged: twice what was left the last time, so that the work of merging
    /// stays in proportion to what was added.
    merge_at: usize,
}

/// Runs to collect before merging them is worth the while.
const MERGE_MIN: usize = 1024;

impl Runs {
    /// Adds runs.
    pub fn extend(&mut self, runs: &[BlockRange]) {
        self.runs.extend_from_slice(runs);
        if self.runs.len() >= self.merge_at.max(MERGE_MIN) {
            merge(&mut self.runs);
            self.merge_at = 2 * self.runs.len();
        }
    }

    /// The set as ascending runs that neither touch nor overlap.
    pub fn into_merged(mut self) -> Vec<BlockRange> {
        merge(&mut self.runs);
        self.runs
    }
}

/// Sorts runs, joins what touches or overlaps, and drops empty ones.
pub(super) fn merge(runs: &mut Vec<BlockRange>) {
    runs.retain(|run| !run.is_empty());
    runs.sort_unstable();
    runs.dedup_by(|next, kept| {
        let joins = next.start <= kept.end;
        if joins {
            kept.end = kept.end.max(next.end);
        }
        joins
    });
}

/// Number of blocks in runs that do not overlap.
pub(super) fn blocks(runs: &[BlockRange]) -> u64 {
    runs.iter().map(|run| run.len()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn adjacent_overlapping_and_empty_runs_join() {
        let mut runs =
            [(5, 7), (3, 3), (0, 2), (2, 4), (6, 6), (1, 3), (9, 10)].map(|(a, b)| BlockRange::new(a, b)).to_vec();
        merge(&mut runs);
        assert_eq!(runs, [BlockRange::new(0, 4), BlockRange::new(5, 7), BlockRange::new(9, 10)]);
    }

    proptest! {
        #[test]
        fn the_set_is_that_of_a_plain_list_of_blocks(pairs in prop::collection::vec((0u64..5000, 0u64..9), 0..3000)) {
            let mut plain = vec![false; 5010];
            let mut set = Runs::default();
            for (start, length) in pairs {
                plain[start as usize..(start + length) as usize].fill(true);
                set.extend(&[BlockRange::new(start, start + length)]);
            }
            let merged = set.into_merged();
            prop_assert!(merged.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(blocks(&merged), plain.iter().filter(|set| **set).count() as u64);
            prop_assert!(merged.iter().flat_map(|run| run.iter()).all(|block| plain[block.0 as usize]));
        }
    }
}
