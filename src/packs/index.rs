//! Which frame holds a block, and what a frame costs to fetch.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

use super::FRAME_BYTES_MAX;
use super::frame;
use super::order::order;
use crate::block::{Block, BlockRange, Geometry};
use crate::model::Model;
use crate::tree::{FAN_OUT, FAN_OUT_SHIFT, HASH_BYTES, PageId, Tree};

/// A frame as the sections of a file list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// The used blocks that it holds, in its order.
    pub runs: Vec<BlockRange>,
    /// Bytes of its proof.
    pub proof: u32,
    /// Bytes of its packed blocks.
    pub packed: u32,
}

/// A frame as it is kept.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where its runs begin among those of all frames.
    runs_from: u32,
    /// Where it begins in the file.
    offset: u64,
    proof: u32,
}

/// A run of blocks and the frame it is in, for the search by place.
#[derive(Clone, Copy, Debug)]
struct Home {
    run: BlockRange,
    frame: u32,
}

/// The frames of a packs file.
///
/// Immutable, so any thread may look at it. Some 45 bytes a run, of which a frame has about ten.
#[derive(Debug)]
pub struct Index {
    /// One more than there are frames: the last says where they end.
    frames: Vec<Frame>,
    runs: Vec<BlockRange>,
    /// In order of place.
    homes: Vec<Home>,
    /// In whose proof a hash page is; worked out at the first question, as only the tree of the image knows pages.
    provers: OnceLock<HashMap<PageId, u32>>,
    pub(super) geometry: Geometry,
}

impl Index {
    /// The frames of a file, whose bytes begin at `offset`; `None` when a block would be in two of them.
    pub(super) fn new(geometry: Geometry, offset: u64, listed: &[Listed]) -> Option<Self> {
        let count = listed.iter().map(|frame| frame.runs.len()).sum();
        let mut index = Self {
            frames: Vec::with_capacity(listed.len() + 1),
            runs: Vec::with_capacity(count),
            homes: Vec::new(),
            provers: OnceLock::new(),
            geometry,
        };
        let mut offset = offset;
        for frame in listed {
            index.frames.push(Frame { runs_from: index.runs.len() as u32, offset, proof: frame.proof });
            index.runs.extend(&frame.runs);
            offset = offset.checked_add(u64::from(frame.proof) + u64::from(frame.packed))?;
        }
        index.frames.push(Frame { runs_from: index.runs.len() as u32, offset, proof: 0 });
        let homes = (0..index.count()).flat_map(|frame| index.runs(frame).iter().map(move |&run| Home { run, frame }));
        index.homes = homes.collect();
        index.homes.sort_unstable_by_key(|home| home.run.start);
        index.homes.windows(2).all(|pair| pair[0].run.end <= pair[1].run.start).then_some(index)
    }

    /// What packs of a model would be for an image without holes whose blocks shrink to one part in `ratio`, for replays:
    /// no bytes are packed.
    pub fn assumed(model: &Model, ratio: f64) -> Self {
        let geometry = model.geometry();
        let length = |run: &BlockRange| geometry.length(*run);
        let mut seen = std::collections::HashSet::new();
        let listed: Vec<Listed> = order(model, FRAME_BYTES_MAX, &|sequence| sequence.runs.iter().map(length).sum())
            .iter()
            .map(|frame| {
                let runs: Vec<BlockRange> =
                    frame.iter().flat_map(|&id| model.sequence(id).runs.iter().copied()).collect();
                let pages = runs.iter().flat_map(|run| run.start.0 >> FAN_OUT_SHIFT..=(run.end.0 - 1) >> FAN_OUT_SHIFT);
                let news = pages.filter(|&page| seen.insert(page)).count() as u64;
                let packed = runs.iter().map(length).sum::<u64>() as f64 / ratio;
                Listed { runs, proof: (news * FAN_OUT * HASH_BYTES as u64) as u32, packed: packed as u32 + 1 }
            })
            .collect();
        // The sequences of a model are disjoint, and so are its frames.
        Self::new(geometry, 0, &listed).unwrap_or(Self {
            frames: vec![Frame { runs_from: 0, offset: 0, proof: 0 }],
            runs: Vec::new(),
            homes: Vec::new(),
            provers: OnceLock::new(),
            geometry,
        })
    }

    /// Frames of these blocks and so many packed bytes, without proofs, for the tests of who fetches them.
    #[cfg(test)]
    pub(crate) fn of_frames(geometry: Geometry, frames: &[(Vec<BlockRange>, u32)]) -> Self {
        let listed = |(runs, packed): &(Vec<BlockRange>, u32)| Listed { runs: runs.clone(), proof: 0, packed: *packed };
        Self::new(geometry, 0, &frames.iter().map(listed).collect::<Vec<_>>()).expect("they are disjoint")
    }

    /// Size of the image's blocks, in bytes.
    pub fn block_bytes(&self) -> u64 {
        self.geometry.block_bytes()
    }

    /// Number of frames.
    pub fn count(&self) -> u32 {
        (self.frames.len() - 1) as u32
    }

    /// The frame that holds a block.
    pub fn frame_of(&self, block: Block) -> Option<u32> {
        let behind = self.homes.partition_point(|home| home.run.start <= block);
        let home = self.homes.get(behind.checked_sub(1)?)?;
        home.run.contains(block).then_some(home.frame)
    }

    /// The frame that holds the first packed block of `range`: what stands before it may be a hole.
    pub fn frame_in(&self, range: BlockRange) -> Option<u32> {
        let home = self.homes.get(self.homes.partition_point(|home| home.run.end <= range.start))?;
        (home.run.start < range.end).then_some(home.frame)
    }

    /// The blocks of a frame, in its order; none of one that does not exist.
    pub fn runs(&self, frame: u32) -> &[BlockRange] {
        let at = frame as usize;
        match self.frames.get(at..at + 2) {
            Some([this, next]) => &self.runs[this.runs_from as usize..next.runs_from as usize],
            _ => &[],
        }
    }

    /// Bytes of blocks that a frame holds, unpacked.
    pub fn raw_bytes(&self, frame: u32) -> u64 {
        self.runs(frame).iter().map(|&run| self.geometry.length(run)).sum()
    }

    /// Bytes that fetching some frames takes; 0 of those that do not exist.
    pub fn wire_bytes(&self, frames: Range<u32>) -> u64 {
        let at = |frame: u32| self.frames[(frame as usize).min(self.frames.len() - 1)].offset;
        at(frames.end).saturating_sub(at(frames.start))
    }

    /// Where some frames lie in the file: the first byte, and the length of each.
    pub fn extent(&self, frames: Range<u32>) -> (u64, Vec<u32>) {
        let offset = self.frames[(frames.start as usize).min(self.frames.len() - 1)].offset;
        (offset, frames.map(|frame| self.wire_bytes(frame..frame + 1) as u32).collect())
    }

    /// By hash page of the image's tree: the frame in whose proof it is.
    pub(super) fn provers(&self, tree: &Tree) -> &HashMap<PageId, u32> {
        self.provers.get_or_init(|| frame::provers(self, tree))
    }

    /// Bytes of the proof that a frame begins with.
    pub(super) fn proof_bytes(&self, frame: u32) -> u32 {
        self.frames.get(frame as usize).map_or(0, |frame| frame.proof)
    }
}
