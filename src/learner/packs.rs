//! The packs of a published image as a teacher: they bring the publisher's model, and frames to fetch.
//!
//! The first contact with the origin brings the beginning of the file with it, and in that the *start*: the first frames
//! that guests want. They are followed as a fixed script until the model is here, which comes in the background, in pieces
//! that do not hold up a guest for long. Then the index tells of all frames.

use std::ops::Range;
use std::sync::Arc;

use super::publisher::refusal;
use crate::block::Geometry;
use crate::error::{Error, errno};
use crate::model::FILE_BYTES_MAX as MODEL_BYTES_MAX;
use crate::model::Model;
use crate::packs::{Header, Index, Opener};
use crate::source::Published;
use crate::tree::Tree;

/// What is read at once of the model and the index, in bytes: on a link of 25 Mbit/s a guest's miss waits through a tenth of
/// a second of it at most.
const PIECE: u64 = 256 << 10;

/// Hexadecimal digits of the header's hash that an edition has: nobody finds another header with the same 16 bytes.
const EDITION_DIGITS: usize = 32;

/// The packs of an image.
pub(super) struct Packs {
    published: Arc<Published>,
    tree: Arc<Tree>,
    header: Header,
    /// Of the file, at the origin.
    name: String,
    edition: String,
    opener: Option<Arc<Opener>>,
}

impl Packs {
    /// Asks the origin for what there is; `None` where it has none. The image must have this geometry here. Blocks.
    ///
    /// # Errors
    /// Why the origin does not answer, or what is wrong with what it has.
    pub fn find(published: Arc<Published>, geometry: Geometry) -> Result<Option<Self>, Error> {
        let found = published.find_packs().map_err(refusal)?;
        let (Some(tree), Some(file)) = (published.tree().cloned(), found) else { return Ok(None) };
        let (name, head) = (file.name, file.head);
        let unusable = |why: String| Err(Error::new(errno::EINVAL, format!("{name}: {why}; its packs are left alone")));
        let header = Header::decode(&name, &head)?;
        if header.root != tree.root() {
            return unusable(format!("of the image {}, this one is {}", header.root, tree.root()));
        }
        if header.packed().end != file.bytes {
            return unusable(format!("should have {} bytes, and the pointer says {}", header.packed().end, file.bytes));
        }
        if tree.geometry() != geometry {
            let (theirs, ours) = (tree.geometry().block_bytes(), geometry.block_bytes());
            return unusable(format!("of blocks of {theirs} bytes, here they have {ours} (block_size)"));
        }
        let edition = format!("{name} {}", &blake3::hash(&header.encode()).to_hex()[..EDITION_DIGITS]);
        Ok(Some(Self { published, tree, header, name, edition, opener: None }))
    }

    /// The file's name at the origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells the model of these packs from that of others. Not the name alone: that is no more than what a place says.
    /// The header has the lengths of all parts and the checksum of the index, which no other model makes sense with.
    pub fn edition(&self) -> &str {
        &self.edition
    }

    /// Length of the model's file, in bytes.
    pub fn model_bytes(&self) -> u64 {
        let range = self.header.model();
        range.end - range.start
    }

    /// The first frames.
    ///
    /// # Errors
    /// Those of reading, and what is wrong with the section.
    pub fn start(&mut self) -> Result<Arc<Index>, Error> {
        let range = self.header.start();
        let bytes = self.published.read_packs(range.start, range.end - range.start).map_err(refusal)?;
        let index = Index::of_start(&self.name, &self.header, &bytes, self.tree.geometry(), self.tree.holes())?;
        Ok(self.open_by(Arc::new(index)))
    }

    /// The model's file, with its record; `closing` says to leave it. Blocks for as long as it takes.
    ///
    /// # Errors
    /// Those of reading; EFBIG for a model that nobody can have trained; ECANCELED.
    pub fn model(&self, closing: &dyn Fn() -> bool) -> Result<Vec<u8>, Error> {
        let range = self.header.model();
        if range.end - range.start > MODEL_BYTES_MAX {
            let text = format!("the model in {} has more than {MODEL_BYTES_MAX} bytes, which none has", self.name);
            return Err(Error::new(errno::EFBIG, text));
        }
        self.read(range, closing)
    }

    /// All frames, by the model of the same file. Blocks as well.
    ///
    /// # Errors
    /// Those of reading, and what is wrong with the section.
    pub fn index(&mut self, model: &Model, closing: &dyn Fn() -> bool) -> Result<Arc<Index>, Error> {
        let bytes = self.read(self.header.index(), closing)?;
        let index = Index::of_file(&self.name, &self.header, &bytes, model, self.tree.holes())?;
        Ok(self.open_by(Arc::new(index)))
    }

    /// From now on frames are opened by this index, which must be told before anybody asks for one of them.
    fn open_by(&mut self, index: Arc<Index>) -> Arc<Index> {
        match &self.opener {
            Some(opener) => opener.replace(index.clone()),
            None => {
                let opener = Arc::new(Opener::new(index.clone()));
                self.published.set_frames(&self.name, opener.clone());
                self.opener = Some(opener);
            }
        }
        index
    }

    fn read(&self, range: Range<u64>, closing: &dyn Fn() -> bool) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut at = range.start;
        while at < range.end {
            if closing() {
                return Err(Error::new(errno::ECANCELED, "the image is closing"));
            }
            let length = (range.end - at).min(PIECE);
            bytes.extend(self.published.read_packs(at, length).map_err(refusal)?);
            at += length;
        }
        Ok(bytes)
    }
}
