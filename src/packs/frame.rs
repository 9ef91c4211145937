//! A frame: the hashes that nobody can have had from the frames before it, then the blocks, compressed as one.
//!
//! Nothing of a frame is believed. The pages of its proof have to fit the tree, the blocks have to fit the pages, and what
//! comes out of the decompressor may not be longer than the blocks that are expected. Only then are they handed out.

use std::collections::HashMap;
use std::sync::Arc;

use ruzstd::decoding::FrameDecoder;

use super::index::Index;
use crate::block::{BlockRange, Geometry};
use crate::model::bytes::{Reader, put};
use crate::source::published::Frames;
use crate::tree::{FAN_OUT_SHIFT, Lie, PageId, Tree};

/// Levels of the tree whose pages come with frames. What is above them is a page for each 8 GiB of blocks of 4 KiB, and
/// most of it comes with the beginning of the tree.
const PROOF_LEVELS: u8 = 2;
/// Least window, in bytes, that the decompressor is granted: compressors ask for that much also for small frames.
const WINDOW_BYTES_MIN: u64 = 1 << 20;

/// The pages that a proof may need for these blocks: parents first, each once.
pub(super) fn pages_of(runs: &[BlockRange], tree: &Tree) -> Vec<PageId> {
    let levels = tree.head().levels().min(PROOF_LEVELS);
    let mut pages = Vec::new();
    for level in (0..levels).rev() {
        let shift = FAN_OUT_SHIFT * (u32::from(level) + 1);
        for &run in runs {
            let ranks = tree.holes().ranks(run);
            if ranks.is_empty() {
                continue;
            }
            for index in ranks.start >> shift..=(ranks.end - 1) >> shift {
                pages.push(PageId { level, index: index as u32 });
            }
        }
    }
    pages.sort_unstable_by_key(|page| (std::cmp::Reverse(page.level), page.index));
    pages.dedup();
    pages
}

/// By page: the first frame that needs it, in whose proof it is.
pub(super) fn provers(index: &Index, tree: &Tree) -> HashMap<PageId, u32> {
    let mut provers = HashMap::new();
    for frame in 0..index.count() {
        for page in pages_of(index.runs(frame), tree) {
            provers.entry(page).or_insert(frame);
        }
    }
    provers
}

/// A proof of these pages.
pub(super) fn encode_proof(pages: &[(PageId, Arc<[u8]>)]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, pages.len() as u64);
    for (page, bytes) in pages {
        put(&mut out, page.level.into());
        put(&mut out, page.index.into());
        out.extend(&bytes[..]);
    }
    out
}

/// Adds the pages of a proof to the tree.
fn take_proof(bytes: &[u8], tree: &Tree) -> Result<(), Lie> {
    let nonsense = || Lie::new("its proof makes no sense");
    let mut reader = Reader::new(bytes);
    let count = reader.take_count().ok_or_else(nonsense)?;
    for _ in 0..count {
        let level = reader.take().and_then(|level| u8::try_from(level).ok()).ok_or_else(nonsense)?;
        let page = PageId { level, index: reader.take_small().ok_or_else(nonsense)? };
        let length = tree.page_length(page).ok_or_else(nonsense)?;
        tree.add(page, reader.take_bytes(length).ok_or_else(nonsense)?)?;
    }
    if reader.is_empty() { Ok(()) } else { Err(nonsense()) }
}

/// The blocks that `packed` unpacks to, which are so many bytes.
fn inflate(packed: &[u8], length: u64) -> Result<Vec<u8>, Lie> {
    // One more than are expected, so that more are noticed.
    let mut bytes = vec![0; length as usize + 1];
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(length.next_power_of_two().max(WINDOW_BYTES_MIN));
    let inflated =
        decoder.decode_all(packed, &mut bytes).map_err(|e| Lie::new(format!("it cannot be unpacked: {e}")))?;
    if inflated as u64 != length {
        return Err(Lie::new(format!("its blocks have {length} bytes, and {inflated} were packed")));
    }
    bytes.truncate(inflated);
    Ok(bytes)
}

/// The parts of `bytes` that are these runs, one behind the other.
fn parts<'a>(
    geometry: Geometry,
    runs: &'a [BlockRange],
    bytes: &'a [u8],
) -> impl Iterator<Item = (BlockRange, &'a [u8])> {
    let mut rest = bytes;
    runs.iter().map(move |&run| {
        let (part, behind) = rest.split_at(geometry.length(run) as usize);
        rest = behind;
        (run, part)
    })
}

impl Frames for Index {
    fn extent(&self, frames: std::ops::Range<u32>) -> (u64, Vec<u32>) {
        Self::extent(self, frames)
    }

    fn blocks_of(&self, frame: u32) -> Vec<BlockRange> {
        self.runs(frame).to_vec()
    }

    fn prover(&self, page: PageId, tree: &Tree) -> Option<u32> {
        self.provers(tree).get(&page).copied()
    }

    fn unpack(&self, frame: u32, bytes: &[u8], tree: &Tree, out: &mut dyn FnMut(BlockRange, &[u8])) -> Result<(), Lie> {
        let short = || Lie::new(format!("has {} bytes, not those of the index", bytes.len()));
        if bytes.len() as u64 != self.wire_bytes(frame..frame.saturating_add(1)) {
            return Err(short());
        }
        let (proof, packed) = bytes.split_at_checked(self.proof_bytes(frame) as usize).ok_or_else(short)?;
        take_proof(proof, tree)?;
        let blocks = inflate(packed, self.raw_bytes(frame))?;
        let geometry = self.geometry;
        for (run, bytes) in parts(geometry, self.runs(frame), &blocks) {
            let each = bytes.chunks(geometry.block_bytes() as usize);
            run.iter().zip(each).try_for_each(|(block, bytes)| tree.check(block, bytes))?;
        }
        parts(geometry, self.runs(frame), &blocks).for_each(|(run, bytes)| out(run, bytes));
        Ok(())
    }
}
