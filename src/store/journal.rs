//! The journal as its owner sees it.

use super::chain::Chain;
use super::directory::Directory;
use super::runs;
use super::sparse::Store;
use crate::block::BlockRange;
use crate::error::Result;

/// Says which blocks of the image are durable. Owned by one thread.
///
/// An ephemeral cache has none: then every call succeeds and does nothing.
pub struct Journal {
    store: Store,
    chain: Option<Chain<Directory>>,
}

impl Journal {
    pub(super) fn new(store: Store, chain: Option<Chain<Directory>>) -> Self {
        Self { store, chain }
    }

    /// Records, durably, that the data of `runs` is durable. The runs may come in any order and overlap; the caller
    /// has written their data and then called [`Store::sync`] with success.
    ///
    /// On a full disk ([`crate::error::Error::is_full`]) nothing has changed and the call may be repeated later. After
    /// a failed sync, of the image or of the journal, it fails with `EIO` for the rest of the session.
    pub fn record(&mut self, runs: &[BlockRange]) -> Result<()> {
        let Some(chain) = &mut self.chain else { return Ok(()) };
        self.store.check_sound()?;
        let mut merged = runs.to_vec();
        runs::merge(&mut merged);
        chain.append(&merged)
    }

    /// True when the journal has grown so much that [`Journal::compact`] is worth the while.
    pub fn wants_compaction(&self) -> bool {
        self.chain.as_ref().is_some_and(Chain::wants_compaction)
    }

    /// Replaces the journal by a snapshot of `runs`, which must be *all* blocks known to be durable, best ascending.
    ///
    /// When this fails for want of space the old journal stays in use and is left to grow to twice its length
    /// before [`Journal::wants_compaction`] asks again.
    pub fn compact(&mut self, runs: impl IntoIterator<Item = BlockRange>) -> Result<()> {
        let Some(chain) = &mut self.chain else { return Ok(()) };
        self.store.check_sound()?;
        chain.compact(runs.into_iter())
    }

    /// Turns the image of a complete cache into an ordinary file: syncs it, checks that the journal claims every
    /// block, and removes the journal. Fails, changing nothing, while any block is not recorded.
    ///
    /// The file is then no cache any more: opening it as one is refused.
    pub fn finish(self) -> Result<()> {
        let Some(chain) = self.chain else { return Ok(()) };
        self.store.sync_all()?;
        chain.remove()
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::Header;
    use super::super::medium::{Folder, Names};
    use super::*;
    use crate::block::Geometry;
    use crate::source::Identity;

    #[test]
    fn nothing_is_recorded_after_the_image_could_not_be_synced() {
        let root = tempfile::tempdir().unwrap();
        let folder = Directory::open(root.path()).unwrap();
        let names = Names::of("disk".as_ref());
        let identity = Identity { size: 8192, validator: None, mtime_s: None };
        let header = Header::new(&identity, Geometry::new(8192, 4096).unwrap(), "s", 1, 1).unwrap();
        let chain = Chain::create(&folder, &names, header).unwrap();
        // A device that takes data and cannot sync it.
        let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
        let store = Store::nameless(null, "the image".into(), 8192, 0);
        let mut journal = Journal::new(store.clone(), Some(chain));
        journal.record(&[BlockRange::new(0, 1)]).unwrap();
        store.write(4096, &[1; 4096]).unwrap();
        store.sync().unwrap_err();
        let text = journal.record(&[BlockRange::new(1, 2)]).unwrap_err().to_string();
        assert!(text.contains("the image") && text.contains("open the cache anew"), "{text}");
        journal.compact([BlockRange::new(0, 2)]).unwrap_err();
        journal.finish().unwrap_err();
        let (_, claimed) = Chain::open(&folder, &names).unwrap().unwrap();
        assert_eq!(claimed, [BlockRange::new(0, 1)], "{}", folder.show(&names.journal));
    }
}
