//! A cache that is locked: what it holds, and how it is opened or made.
//!
//! The order of steps matters at both ends. A new cache gets its journal first and its image second: an image
//! without a journal could be anybody's disk and is never touched, whereas a journal that claims nothing needs no
//! image. And nothing is claimed before the image's name and size are durable.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use super::chain::Chain;
use super::directory::Directory;
use super::header::{Header, Pinned};
use super::journal::Journal;
use super::lock::Lock;
use super::medium::{Folder, Medium, Names};
use super::place::{self, Place};
use super::sparse::{self, Store};
use crate::block::{BlockRange, Geometry};
use crate::error::{Error, Result, errno};
use crate::source::Identity;

/// A cache that nobody else can use, not yet bound to a source.
pub struct Cache(Kind);

enum Kind {
    Ephemeral,
    Kept(Box<Kept>),
}

struct Kept {
    folder: Directory,
    names: Names,
    lock: Lock,
    found: Option<(Chain<Directory>, Vec<BlockRange>)>,
}

impl Cache {
    /// Locks the cache at `place`, making its directory if there is none, and reads its journal if there is one.
    ///
    /// Errors: `EBUSY` naming the holder; `EINVAL`, `EPROTO` or `EIO` for a journal that is foreign, of another format
    /// or damaged at its head. No file but the lock has been changed or made when this returns.
    pub fn lock(place: &Place) -> Result<Self> {
        let Some((path, name)) = place::split(place)? else { return Ok(Self(Kind::Ephemeral)) };
        let folder = match place {
            Place::Directory(_) => Directory::make(&path)?,
            // A missing directory is more likely a slip than a wish where a file is named.
            _ => Directory::open(&path)?,
        };
        let names = Names::of(name);
        let lock = Lock::take(&folder, &names.lock, &names.image)?;
        let found = Chain::open(&folder, &names)?;
        Ok(Self(Kind::Kept(Box::new(Kept { folder, names, lock, found }))))
    }

    /// What the cache is bound to; `None` for a new or an ephemeral one.
    pub fn pinned(&self) -> Option<&Pinned> {
        match &self.0 {
            Kind::Ephemeral => None,
            Kind::Kept(kept) => kept.found.as_ref().map(|(chain, _)| &chain.header().pinned),
        }
    }

    /// Opens the image for use, or makes a new one, bound to this identity and geometry.
    ///
    /// Answers the image, the journal, and the blocks whose data is durable, as ascending runs. `source` is the
    /// source's name for people, without credentials.
    ///
    /// Errors: `ESTALE` when the cache is bound to something else; `EEXIST` for an image without a journal; `ENOENT` or
    /// `EIO` for a journal without its image; `EFBIG` when the filesystem cannot hold such a file.
    pub fn begin(
        self,
        identity: &Identity,
        geometry: Geometry,
        source: &str,
    ) -> Result<(Store, Journal, Vec<BlockRange>)> {
        // Random enough to tell one journal's records from another's: the seed of the standard hash maps.
        let salt = RandomState::new().build_hasher().finish();
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let header = Header::new(identity, geometry, source, now_s, salt)?;
        match self.0 {
            Kind::Ephemeral => {
                let (file, directory) = place::temporary()?;
                let shown = format!("the temporary image in {}", directory.display());
                sparse::lengthen(&file, &shown, geometry.size())?;
                let store = Store::nameless(file, shown, geometry.size(), header.mtime_s);
                Ok((store.clone(), Journal::new(store, None), Vec::new()))
            }
            Kind::Kept(kept) => {
                let Kept { folder, names, lock, found } = *kept;
                let Bound { image, chain, runs } = bind(&folder, &names, found, header)?;
                let (path, mtime_s) = (folder.path(&names.image), chain.header().mtime_s);
                let store = Store::kept(image, path, geometry.size(), mtime_s, lock);
                Ok((store.clone(), Journal::new(store, Some(chain)), runs))
            }
        }
    }
}

/// An image and its journal, fit for use.
pub(super) struct Bound<F: Folder> {
    /// The image, of the right size.
    pub image: F::File,
    /// The journal.
    pub chain: Chain<F>,
    /// What the journal claims.
    pub runs: Vec<BlockRange>,
}

/// Binds a cache to an image: the whole of [`Cache::begin`] that matters to the disk.
pub(super) fn bind<F: Folder>(
    folder: &F,
    names: &Names,
    found: Option<(Chain<F>, Vec<BlockRange>)>,
    header: Header,
) -> Result<Bound<F>> {
    let size = header.pinned.geometry.size();
    let shown = folder.show(&names.image);
    match found {
        Some((mut chain, runs)) => {
            chain.header().check_same(&header.pinned, &shown)?;
            // Before the image is made, for that must never be there without a journal.
            chain.adopt()?;
            let image = find_image(folder, names, folder.open(&names.image)?, size, !runs.is_empty())?;
            if runs.is_empty() {
                // Perhaps made just now, or by a session that was killed before it could make this durable.
                sync_image::<F>(&image, &shown)?;
                folder.sync()?;
            }
            if chain.wants_compaction()
                && let Err(error) = chain.compact(runs.iter().copied())
            {
                log::warn!("{error}; the journal stays as long as it is");
            }
            Ok(Bound { image, chain, runs })
        }
        None => {
            let present = folder.open(&names.image)?;
            let bytes = present.as_ref().map_or(Ok(0), Medium::length);
            if bytes.map_err(|e| Error::io(format_args!("cannot examine {shown}"), e))? > 0 {
                return Err(unjournalled(&shown, &folder.show(&names.journal)));
            }
            let made = present.is_none();
            let chain = Chain::create(folder, names, header)?;
            let image =
                find_image(folder, names, present, size, false).inspect_err(|_| withdraw(folder, names, made))?;
            sync_image::<F>(&image, &shown)?;
            folder.sync()?;
            Ok(Bound { image, chain, runs: Vec::new() })
        }
    }
}

/// Checks the image that belongs to a journal; makes it when the journal claims nothing in it.
///
/// The image is opened once and not closed again, because closing any descriptor of a file drops all POSIX locks
/// that the process, perhaps a guest's monitor, has on it.
fn find_image<F: Folder>(
    folder: &F,
    names: &Names,
    present: Option<F::File>,
    size: u64,
    claimed: bool,
) -> Result<F::File> {
    let (shown, journal) = (folder.show(&names.image), folder.show(&names.journal));
    let image = match present {
        Some(image) => image,
        None if claimed => {
            let text = format!(
                "{shown} is missing, but {journal} says that it holds data: put it back, or remove {journal} to start afresh"
            );
            return Err(Error::new(errno::ENOENT, text));
        }
        None => folder.create(&names.image)?,
    };
    let length = image.length().map_err(|e| Error::io(format_args!("cannot examine {shown}"), e))?;
    if length == 0 && !claimed {
        sparse::lengthen(&image, &shown, size)?;
    } else if length > size {
        // A guest wrote past the end while the kernel passed its writes through; a disk has nothing there.
        log::warn!("{shown} is {} bytes longer than its image; they are cut off", length - size);
        sparse::lengthen(&image, &shown, size)?;
    } else if length != size {
        let text = format!(
            "{shown} has {length} bytes, but {journal} says {size}: put back the file that belongs to it, or remove \
             both to start afresh (what a guest wrote there is then lost)"
        );
        return Err(Error::new(errno::EIO, text));
    }
    Ok(image)
}

/// Takes back a new cache whose image could not be made, so that it is not in the way of another attempt.
fn withdraw<F: Folder>(folder: &F, names: &Names, made: bool) {
    let image = if made { folder.remove(&names.image) } else { Ok(()) };
    // In this order: there must never be an image without a journal.
    if let Err(error) = image.and_then(|()| folder.remove(&names.journal)) {
        log::warn!("{error}; remove it before another attempt");
    }
}

fn sync_image<F: Folder>(image: &F::File, shown: &str) -> Result<()> {
    image.sync().map_err(|e| Error::io(format_args!("cannot make durable {shown}"), e))
}

fn unjournalled(image: &str, journal: &str) -> Error {
    // Not among the numbers of this library because only this one place needs it.
    const EEXIST: i32 = 17;
    let text = format!(
        "{image} exists and is not empty, but there is no {journal}: it is somebody's disk, or complete already, and \
         was not touched; use it as it is, or give another path"
    );
    Error::new(EEXIST, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_may_be_used_by_all_threads_and_a_journal_handed_to_its_owner() {
        fn shared<T: Clone + Send + Sync>() {}
        fn owned<T: Send>() {}
        shared::<Store>();
        owned::<Journal>();
        owned::<Cache>();
    }

    #[test]
    fn a_place_where_a_directory_cannot_be_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = |place: Place| Cache::lock(&place).map(|_| ()).unwrap_err().to_string();
        std::fs::write(root.path().join("file"), b"").unwrap();
        let text = error(Place::Directory(root.path().join("file/cache")));
        assert!(text.contains("file/cache"), "{text}");
        let text = error(Place::File(root.path().join("none/image")));
        assert!(text.contains("none") && text.contains("No such file"), "{text}");
        assert!(!root.path().join("none").exists(), "a directory is made only for a cache directory");
    }
}
