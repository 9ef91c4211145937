//! The index in use: at first that of the start, then that of the whole file.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::Index;
use crate::block::BlockRange;
use crate::source::published::Frames;
use crate::tree::{Lie, PageId, Tree};

/// Opens frames by the best index there is so far. Any thread may ask it while another one brings a better one.
#[derive(Debug)]
pub struct Opener(RwLock<Arc<Index>>);

impl Opener {
    /// Begins with this index.
    pub fn new(index: Arc<Index>) -> Self {
        Self(RwLock::new(index))
    }

    /// Goes on with this one, which tells of more frames of the same file.
    pub fn replace(&self, index: Arc<Index>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = index;
    }

    fn index(&self) -> Arc<Index> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Frames for Opener {
    fn extent(&self, frames: Range<u32>) -> (u64, Vec<u32>) {
        self.index().extent(frames)
    }

    fn blocks_of(&self, frame: u32) -> Vec<BlockRange> {
        self.index().runs(frame).to_vec()
    }

    fn prover(&self, page: PageId, tree: &Tree) -> Option<u32> {
        self.index().prover(page, tree)
    }

    fn unpack(&self, frame: u32, bytes: &[u8], tree: &Tree, out: &mut dyn FnMut(BlockRange, &[u8])) -> Result<(), Lie> {
        self.index().unpack(frame, bytes, tree, out)
    }
}
