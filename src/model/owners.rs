//! Which sequence a block belongs to: all runs of all sequences in order of place, searched by halving.
//!
//! Sixteen bytes a run, so a million blocks in runs of four take 4 MB, and a look-up is some twenty steps.

use super::{Sequence, SequenceId};
use crate::block::{Block, BlockRange};

#[derive(Clone, Copy, Debug)]
struct Owned {
    start: u64,
    blocks: u32,
    owner: SequenceId,
}

/// The owners of all blocks that have one.
#[derive(Debug)]
pub(super) struct Owners(Vec<Owned>);

impl Owners {
    /// The owners according to `sequences`; `None` when a block would have two.
    pub fn new(sequences: &[Sequence]) -> Option<Self> {
        let mut runs = Vec::with_capacity(sequences.iter().map(|s| s.runs.len()).sum());
        for (number, sequence) in (0..).zip(sequences) {
            for run in &sequence.runs {
                let blocks = run.len().try_into().ok()?;
                runs.push(Owned { start: run.start.0, blocks, owner: SequenceId(number) });
            }
        }
        runs.sort_unstable_by_key(|run| run.start);
        let disjoint = runs.windows(2).all(|pair| pair[0].start + u64::from(pair[0].blocks) <= pair[1].start);
        disjoint.then_some(Self(runs))
    }

    /// The owner of `block`.
    pub fn find(&self, block: Block) -> Option<SequenceId> {
        let behind = self.0.partition_point(|run| run.start <= block.0);
        let run = self.0.get(behind.checked_sub(1)?)?;
        (block.0 - run.start < u64::from(run.blocks)).then_some(run.owner)
    }

    /// The parts of `range` that have an owner, in order of place: as many steps as there are parts, however long it is.
    pub fn within(&self, range: BlockRange) -> impl Iterator<Item = (BlockRange, SequenceId)> {
        let end = |run: &Owned| run.start + u64::from(run.blocks);
        let from = self.0.partition_point(move |run| end(run) <= range.start.0);
        self.0[from..].iter().take_while(move |run| run.start < range.end.0).map(move |run| {
            let (start, end) = (run.start.max(range.start.0), end(run).min(range.end.0));
            (BlockRange::new(start, end), run.owner)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(runs: &[(u64, u64)]) -> Sequence {
        Sequence {
            runs: runs.iter().map(|&(start, end)| BlockRange::new(start, end)).collect(),
            blocks: runs.iter().map(|&(start, end)| (end - start) as u32).sum(),
        }
    }

    #[test]
    fn every_block_has_the_owner_that_lists_it() {
        let owners =
            Owners::new(&[sequence(&[(10, 12), (3, 5)]), sequence(&[(5, 6), (1 << 33, (1 << 33) + 1)])]).unwrap();
        for (block, owner) in [
            (2, None),
            (3, Some(0)),
            (4, Some(0)),
            (5, Some(1)),
            (6, None),
            (11, Some(0)),
            (12, None),
            (1 << 33, Some(1)),
        ] {
            assert_eq!(owners.find(Block(block)), owner.map(SequenceId), "{block}");
        }
        let within = |start, end| owners.within(BlockRange::new(start, end)).map(|(r, id)| (r.start.0, r.end.0, id.0));
        assert_eq!(
            within(4, 1 << 40).collect::<Vec<_>>(),
            [(4, 5, 0), (5, 6, 1), (10, 12, 0), (1 << 33, (1 << 33) + 1, 1)]
        );
        assert_eq!(within(6, 10).count() + within(5, 5).count() + within(12, 13).count(), 0);
    }

    #[test]
    fn a_block_of_two_sequences_is_refused() {
        assert!(Owners::new(&[sequence(&[(3, 5)]), sequence(&[(4, 6)])]).is_none());
        assert!(Owners::new(&[sequence(&[(3, 5), (3, 4)])]).is_none());
    }
}
