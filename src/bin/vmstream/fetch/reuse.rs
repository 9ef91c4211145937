//! `fetch --reuse`: blocks that lie here already in another image are copied instead of fetched.
//!
//! What lies in the old image is hashed, and the tree of the new one says where it wants the same. So it does not matter
//! where a block lay before, nor what the old image is: an older version in a cache, complete or not, or something quite
//! different. What is absent from a cache is a hole in its file and is not looked at; what its guest has written is only
//! taken where it is what was published. Each block is checked once more when it is copied.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use vmstream::Image;
use vmstream::block::{Block, BlockRange, Geometry};
use vmstream::error::{Error, Result, errno};
use vmstream::source::published::Address;
use vmstream::tree::{Hash, hash_block, is_zero};

use crate::local::LocalImage;
use crate::published::Hashes;

/// Blocks whose hashes are fetched, and copies made, at a time: the hashes are some 80 KiB.
const PIECE_BLOCKS: u64 = 4096;
/// Bytes of the old image that are read at a time.
const READ_BYTES: u64 = 1 << 20;

/// Opens the images at `paths`, whose blocks may be of use for the one that is to be made at `output` from `link`. Nothing is
/// made or asked yet, so a slip costs nothing.
///
/// Errors: EINVAL for a link that is not to a published image, and for what cannot be its own source; those of opening.
pub fn open(paths: &[PathBuf], link: &str, output: &Path) -> Result<Vec<LocalImage>> {
    if !paths.is_empty() && Address::parse(link)?.is_none() {
        let text = "this image is not published, so nothing says which blocks are the same: leave out --reuse";
        return Err(Error::new(errno::EINVAL, text));
    }
    let open = |path: &PathBuf| {
        let old = LocalImage::open(path)?;
        if old.is(output) {
            let text = format!("{} is what is to be made: it cannot be reused for itself", path.display());
            return Err(Error::new(errno::EINVAL, text));
        }
        Ok(old)
    };
    paths.iter().map(open).collect()
}

/// Copies from `old` into `image` what the published image has as well. Answers the bytes copied. Ends
/// early, without an error, when `stopped` says so.
pub fn copy(image: &Image, old: &LocalImage, stopped: &dyn Fn() -> bool) -> Result<u64> {
    let Some(published) = image.published() else {
        let text = format!("{} is not published, so nothing says which blocks are the same", image.source_name());
        return Err(Error::new(errno::EINVAL, text + ": leave out --reuse"));
    };
    let hashes = Hashes::new(published)?;
    let places = self::hashes(old, hashes.tree().geometry(), stopped)?;
    let mut copied = 0;
    let geometry = hashes.tree().geometry();
    let mut block_bytes = vec![0; geometry.block_bytes() as usize];
    for used in hashes.tree().holes().used_in(geometry.all()) {
        let mut at = used.start.0;
        while at < used.end.0 && !stopped() {
            let piece = BlockRange::new(at, used.end.0.min(at + PIECE_BLOCKS));
            at = piece.end.0;
            hashes.load(piece)?;
            for block in piece.iter() {
                let Some(from) = hashes.tree().hash(block).and_then(|hash| places.get(&hash)) else { continue };
                let range = BlockRange::one(block);
                let (offset, length) = (geometry.offset(range), geometry.length(range));
                if image.resident(offset, length)? == (true, length) {
                    continue;
                }
                let bytes = &mut block_bytes[..length as usize];
                old.read(*from, bytes)?;
                // It may have been written to since it was hashed.
                if hashes.tree().check(block, bytes).is_ok() {
                    image.write_at(offset, bytes)?;
                    copied += length;
                }
            }
        }
    }
    Ok(copied)
}

/// Where what lies, by hash: some 50 bytes of memory for each block. Blocks are cut as those of the new image; the last one
/// may be short in both.
fn hashes(old: &LocalImage, geometry: Geometry, stopped: &dyn Fn() -> bool) -> Result<HashMap<Hash, u64>> {
    let mut places = HashMap::new();
    let block_bytes = geometry.block_bytes();
    let mut buffer = vec![0; READ_BYTES as usize];
    let mut at = 0;
    while let Some(data) = old.next_data(at)? {
        let from = data / block_bytes * block_bytes;
        let length = READ_BYTES.min(old.size() - from);
        let bytes = &mut buffer[..length as usize];
        old.read(from, bytes)?;
        for (number, block) in (from / block_bytes..).map(Block).zip(bytes.chunks(block_bytes as usize)) {
            if !is_zero(block) {
                places.entry(hash_block(block)).or_insert(number.0 * block_bytes);
            }
        }
        at = from + length;
        if stopped() {
            break;
        }
    }
    Ok(places)
}
