//! Which blocks were seen before, as ranges: a guest that discards a terabyte is one entry.

use std::collections::BTreeMap;

use crate::block::{Block, BlockRange};

/// A set of blocks: the end of each range by its start. The ranges neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<u64, u64>);

impl Seen {
    /// Adds `range`, and answers the parts of it that are new, in order of place.
    pub fn insert(&mut self, range: BlockRange) -> Vec<BlockRange> {
        let mut new = Vec::new();
        if range.is_empty() {
            return new;
        }
        let (mut start, mut end) = (range.start.0, range.end.0);
        let mut next = start;
        // All that overlaps or touches the range is merged with it, from the last that begins before it on.
        let from = self.0.range(..start).next_back().filter(|(_, until)| **until >= start).map_or(start, |(at, _)| *at);
        while let Some((&at, &until)) = self.0.range(from..=range.end.0).next() {
            self.0.remove(&at);
            if at > next {
                new.push(BlockRange { start: Block(next), end: Block(at.min(range.end.0)) });
            }
            next = next.max(until);
            (start, end) = (start.min(at), end.max(until));
        }
        if next < range.end.0 {
            new.push(BlockRange { start: Block(next), end: range.end });
        }
        self.0.insert(start, end);
        new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_tells_what_a_set_of_single_blocks_tells(ranges in prop::collection::vec((0u64..60, 0u64..12), 1..40)) {
            let (mut seen, mut single) = (Seen::default(), BTreeSet::new());
            for (start, blocks) in ranges {
                let new: Vec<u64> = seen.insert(BlockRange::new(start, start + blocks))
                    .iter().flat_map(|range| range.iter()).map(|block| block.0).collect();
                let expected: Vec<u64> = (start..start + blocks).filter(|&block| single.insert(block)).collect();
                prop_assert_eq!(new, expected);
                let entries: Vec<_> = seen.0.iter().map(|(&start, &end)| (start, end)).collect();
                prop_assert!(entries.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", entries);
            }
        }
    }

    #[test]
    fn a_whole_disk_is_one_entry() {
        let mut seen = Seen::default();
        assert_eq!(seen.insert(BlockRange::new(7, 9)).len(), 1);
        assert_eq!(seen.insert(BlockRange::new(0, 1 << 40)), [BlockRange::new(0, 7), BlockRange::new(9, 1 << 40)]);
        assert_eq!(seen.0.len(), 1);
    }
}
