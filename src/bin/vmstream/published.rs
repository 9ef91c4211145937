//! The hashes of a published image, fetched as they are asked for.

use std::sync::Arc;

use vmstream::block::BlockRange;
use vmstream::error::{Error, Result, errno};
use vmstream::source::{FetchError, Published, Source};
use vmstream::tree::Tree;

/// The tree of a published image and the way to its pages.
pub struct Hashes {
    published: Arc<Published>,
    tree: Arc<Tree>,
    /// Without it there would be no place to ask.
    _source: Option<Box<dyn Source>>,
}

impl Hashes {
    /// Those of the image that `source` is. Blocks for a round trip or two.
    ///
    /// Errors: `EINVAL` when it is no published image; that of the origin when it cannot be reached.
    pub fn of(source: Box<dyn Source>) -> Result<Self> {
        let plain = || {
            let text = format!("{} is no link to a published image (NAME.vmp#HASH)", source.name());
            Error::new(errno::EINVAL, text)
        };
        let hashes = Self::new(source.published().ok_or_else(plain)?)?;
        Ok(Self { _source: Some(source), ..hashes })
    }

    /// The same from an image's, which must stay open.
    pub fn new(published: Arc<Published>) -> Result<Self> {
        published.contact().map_err(told)?;
        let tree = published.tree().cloned().ok_or_else(|| Error::new(errno::EIO, "the hash tree did not come"))?;
        Ok(Self { published, tree, _source: None })
    }

    /// The tree; of its pages those are there that were loaded last.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Fetches what is needed to check the blocks of `range`, at most some thousands. Blocks.
    pub fn load(&self, range: BlockRange) -> Result<()> {
        self.published.load(range).map_err(told)
    }
}

fn told(failure: FetchError) -> Error {
    match failure {
        FetchError::Fatal(error) => error,
        FetchError::Transient { message, .. } => Error::new(errno::EHOSTUNREACH, message),
        FetchError::Stopped => Error::new(errno::ECANCELED, "ended"),
    }
}
