//! Making a packs file.
//!
//! What lies where is known only when all frames are packed, and it stands before them. So the caller takes the frames one
//! by one and puts them aside, and in the end gets what comes before them. The same model and image give the same
//! bytes, as long as the compressor does.

use std::collections::HashSet;

use super::frame::{encode_proof, pages_of};
use super::header::Header;
use super::index::Listed;
use super::listing::{encode_index, encode_start, used};
use super::order::order;
use super::{FRAME_BYTES_MAX, FRAME_WIRE_BYTES_MAX, FRAMES_MAX};
use crate::block::{BlockRange, Geometry};
use crate::error::{Error, Result, errno};
use crate::model::{Model, SequenceId};
use crate::tree::{PageId, Tree};

/// Reads blocks of the image: fills the buffer, whose length is that of the range.
pub type ReadBlocks<'a> = dyn FnMut(BlockRange, &mut [u8]) -> Result<()> + 'a;
/// Makes one zstd frame of some bytes, with a window no larger than they are.
pub type Compress<'a> = dyn Fn(&[u8]) -> Result<Vec<u8>> + 'a;

/// Makes the packs file of an image and a model:
///
/// ```no_run
/// # fn f(model: &[u8], tree: &vmstream::tree::Tree, aside: &mut Vec<u8>) -> vmstream::Result<Vec<u8>> {
/// let mut builder = vmstream::packs::Builder::new("model.vmm", model, tree)?;
/// while let Some(frame) = builder.next(&mut |range, bytes| todo!(), &|bytes| todo!())? {
///     aside.extend(frame);
/// }
/// let mut file = builder.finish()?; // then what was put aside
/// # Ok(file) }
/// ```
pub struct Builder<'a> {
    model_bytes: &'a [u8],
    tree: &'a Tree,
    /// What is packed and what is not yet.
    packed: Vec<(Vec<SequenceId>, Listed)>,
    waiting: std::vec::IntoIter<(Vec<SequenceId>, Vec<BlockRange>)>,
    proved: HashSet<PageId>,
    gathered: usize,
    frames_bytes: u64,
}

/// A frame that was read and checked, and is not compressed yet.
pub struct Unpacked {
    /// What is to be compressed.
    pub blocks: Vec<u8>,
    number: usize,
    proof: Vec<u8>,
    sequences: Vec<SequenceId>,
    runs: Vec<BlockRange>,
}

impl<'a> Builder<'a> {
    /// Begins the packs of the image with this `tree`, all pages of which must be here. `model` is a model file, with its
    /// record, which becomes part of the packs as it is; `name` is for errors.
    ///
    /// # Errors
    /// EINVAL when it is no model, or one of another image or of more sequences than a file has frames.
    pub fn new(name: &str, model: &'a [u8], tree: &'a Tree) -> Result<Self> {
        if model.len() as u64 > crate::model::FILE_BYTES_MAX {
            let most = crate::model::FILE_BYTES_MAX;
            let text =
                format!("{name} has {} bytes, and readers take {most}: let it remember fewer sessions", model.len());
            return Err(Error::new(errno::EINVAL, text));
        }
        let parsed = Model::read(name, model)?;
        let (its, ours) = (parsed.geometry(), tree.geometry());
        if its != ours {
            let of = |geometry: Geometry| format!("{} bytes in blocks of {}", geometry.size(), geometry.block_bytes());
            let text =
                format!("{name} is a model of an image of {}, this one has {}: train one for it", of(its), of(ours));
            return Err(Error::new(errno::EINVAL, text));
        }
        let blocks = |id: &SequenceId| parsed.sequence(*id).runs.clone();
        let length = |runs: Vec<BlockRange>| used(runs, tree.holes()).iter().map(|&run| ours.length(run)).sum();
        let frames = order(&parsed, FRAME_BYTES_MAX, &|sequence| length(sequence.runs.clone()));
        if frames.len() > FRAMES_MAX as usize {
            let text = format!("{name} needs {} frames, and a file has {FRAMES_MAX} at most", frames.len());
            return Err(Error::new(errno::EINVAL, text));
        }
        let waiting: Vec<_> =
            frames.into_iter().map(|ids| (ids.clone(), used(ids.iter().flat_map(blocks), tree.holes()))).collect();
        Ok(Self {
            model_bytes: model,
            tree,
            packed: Vec::with_capacity(waiting.len()),
            waiting: waiting.into_iter(),
            proved: HashSet::new(),
            gathered: 0,
            frames_bytes: 0,
        })
    }

    /// Bytes of blocks that are still to be packed.
    pub fn bytes_left(&self) -> u64 {
        let geometry = self.tree.geometry();
        self.waiting.as_slice().iter().flat_map(|frame| &frame.1).map(|&run| geometry.length(run)).sum()
    }

    /// The next frame, which follows those before it without gap; `None` behind the last.
    ///
    /// # Errors
    /// Those of `read` and `compress`; EIO when a block is not the one that was published, so that nothing wrong is ever
    /// packed; EINVAL when the tree lacks pages.
    pub fn next(&mut self, read: &mut ReadBlocks<'_>, compress: &Compress<'_>) -> Result<Option<Vec<u8>>> {
        let Some(frame) = self.gather(read)? else { return Ok(None) };
        let packed = compress(&frame.blocks)?;
        self.add(frame, &packed).map(Some)
    }

    /// The next frame before it is compressed, for who has several processors: compress what [`Unpacked::blocks`] holds
    /// wherever you like, and [`Builder::add`] the frames in the order in which they were gathered. `None` behind the last.
    ///
    /// # Errors
    /// As for [`Builder::next`].
    pub fn gather(&mut self, read: &mut ReadBlocks<'_>) -> Result<Option<Unpacked>> {
        let Some((sequences, runs)) = self.waiting.next() else { return Ok(None) };
        let geometry = self.tree.geometry();
        let mut blocks = Vec::new();
        for &run in &runs {
            let from = blocks.len();
            blocks.resize(from + geometry.length(run) as usize, 0);
            read(run, &mut blocks[from..])?;
            let each = blocks[from..].chunks(geometry.block_bytes() as usize);
            run.iter().zip(each).try_for_each(|(block, bytes)| self.tree.check(block, bytes)).map_err(|lie| {
                let text = format!("cannot pack blocks {} to {}: {lie}", run.start.0, run.end.0 - 1);
                Error::new(errno::EIO, text + "; has the image changed since it was published?")
            })?;
        }
        let lacking = |page| Error::new(errno::EINVAL, format!("cannot pack: {page:?} is not in the tree"));
        let pages = pages_of(&runs, self.tree).into_iter().filter(|page| self.proved.insert(*page));
        let pages: Vec<_> =
            pages.map(|page| Ok((page, self.tree.page(page).ok_or_else(|| lacking(page))?))).collect::<Result<_>>()?;
        let number = self.gathered;
        self.gathered += 1;
        Ok(Some(Unpacked { blocks, number, proof: encode_proof(&pages), sequences, runs }))
    }

    /// Adds a gathered frame, of which `packed` are the compressed blocks; answers its bytes, which follow those before it
    /// without gap.
    ///
    /// # Errors
    /// EINVAL when it is not the next one, or is longer compressed than any reader takes.
    pub fn add(&mut self, frame: Unpacked, packed: &[u8]) -> Result<Vec<u8>> {
        if frame.number != self.packed.len() {
            return Err(Error::new(errno::EINVAL, "cannot pack: the frames are not in order"));
        }
        let Unpacked { proof: mut bytes, sequences, runs, .. } = frame;
        let proof = bytes.len() as u32;
        bytes.extend_from_slice(packed);
        if bytes.len() as u64 > FRAME_WIRE_BYTES_MAX {
            return Err(Error::new(errno::EINVAL, "cannot pack: the compressor makes its input longer"));
        }
        self.frames_bytes += bytes.len() as u64;
        self.packed.push((sequences, Listed { runs, proof, packed: packed.len() as u32 }));
        Ok(bytes)
    }

    /// What stands before the frames: header, start, index and model.
    ///
    /// # Errors
    /// EINVAL unless all frames were taken.
    pub fn finish(self) -> Result<Vec<u8>> {
        if !self.waiting.as_slice().is_empty() || self.gathered != self.packed.len() {
            return Err(Error::new(errno::EINVAL, "the packs are not complete: some frames were not taken"));
        }
        let listed: Vec<Listed> = self.packed.iter().map(|frame| frame.1.clone()).collect();
        let (start, index) = (encode_start(&listed), encode_index(&self.packed));
        let header = Header {
            root: self.tree.root(),
            frames: listed.len() as u32,
            start_bytes: start.len() as u32,
            index_bytes: index.len() as u32,
            model_bytes: self.model_bytes.len() as u64,
            frames_bytes: self.frames_bytes,
            start_crc: crc32c::crc32c(&start),
            index_crc: crc32c::crc32c(&index),
        };
        Ok([&header.encode()[..], &start, &index, self.model_bytes].concat())
    }
}
