//! Published images: an image at an origin beside its hash tree and, perhaps, packs.
//!
//! A source whose path ends in `.vmp` is the pointer to one (`docs/format.md`). What such a source delivers has been
//! checked against the root hash that came with the link, so neither the server nor a mirror nor the way from there has
//! to be trusted. What all its places have in common - the tree, what was learnt of the packs - is a [`Published`].

mod address;
mod arrivals;
mod checked;
mod chosen;
mod collect;
mod framed;
mod kept;
mod lies;
mod line;
mod opener;
mod pages;
mod place;
mod pointer;
mod room;
mod source;

pub(super) use address::shown;
pub use address::{Address, POINTER_ENDING, unpinned};
pub use pointer::{NamedFile, POINTER_BYTES_MAX, Pointer, is_name};
pub use source::{PublishedSource, root_of};

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use super::{FetchError, Stop};
use crate::block::BlockRange;
use crate::error::{Error, errno};
use crate::tree::{Head, Lie, PageId, Root, Tree};
use chosen::Chosen;
pub use framed::FRAME_BYTES_MAX;
pub use kept::KEPT_ENDING;
use kept::Kept;
pub(super) use opener::{Link, Opener};
use place::Place;
use room::Room;

/// How much of the tree file the first request brings, in bytes: the head, and the hole map of all but scattered images,
/// whose rest comes in a second one. With the pointer and the beginning of the packs it leaves room for the first
/// predicted blocks within 64 KiB: of a link that nobody knows yet the planner asks for 32 KiB at a time.
pub const FIRST_BYTES: u64 = 16 << 10;

/// How much of the packs file the first request brings, in bytes: its header and the start of all packs, which has 12 KiB
/// at most.
pub const PACKS_FIRST_BYTES: u64 = 13 << 10;

/// Most bytes of frames that are asked for at a time, as they lie in the packs: what sixteen lanes ask for at once on the
/// fastest links.
const ARRIVING_BYTES_MAX: u64 = 64 << 20;

/// Most bytes that opening frames takes at a time: two of the largest, or hundreds of usual ones.
const OPENING_BYTES_MAX: u64 = 64 << 20;

/// Takes what comes out of frames.
pub trait FrameSink {
    /// So many bytes came over the link, for whoever estimates it. They mean nothing yet.
    fn received(&mut self, bytes: u64);
    /// Checked blocks, in whatever order the frame holds them.
    fn blocks(&mut self, range: BlockRange, bytes: &[u8]) -> Result<(), Stop>;
    /// All blocks of `frame` were handed over.
    fn frame_done(&mut self, frame: u32) -> Result<(), Stop>;
}

/// Knows where frames lie in a packs file, and opens them.
pub trait Frames: Send + Sync {
    /// Offset of the first of these frames in the file, and the length of each, in bytes: frames lie one behind the
    /// other.
    fn extent(&self, frames: Range<u32>) -> (u64, Vec<u32>);

    /// The blocks that a frame holds.
    fn blocks_of(&self, frame: u32) -> Vec<BlockRange>;

    /// The frame whose proof has this page of `tree`; `None` when no proof has it.
    fn prover(&self, page: PageId, tree: &Tree) -> Option<u32>;

    /// Opens a frame: adds the pages of its proof to `tree`, checks every block, and then hands all of them out.
    ///
    /// # Errors
    /// What is wrong with the frame, without its number; nothing was handed out then. [`Lie::is_missing`] when pages of an earlier frame are
    /// needed first.
    fn unpack(&self, frame: u32, bytes: &[u8], tree: &Tree, out: &mut dyn FnMut(BlockRange, &[u8])) -> Result<(), Lie>;
}

/// The packs of a published image, as its pointer names them.
#[derive(Clone, Debug)]
pub struct PacksFile {
    /// Relative reference from the pointer.
    pub name: String,
    /// Length of the file, in bytes.
    pub bytes: u64,
    /// What it begins with: [`PACKS_FIRST_BYTES`] or the whole file. Not checked yet.
    pub head: Arc<[u8]>,
}

/// A pointer that leads to what was published.
struct Proved {
    pointer: Pointer,
    /// Whose it is.
    place: String,
    /// What was kept before.
    before: Option<Pointer>,
}

/// The places of a published image, as far as others need them.
pub trait Contact: Send + Sync {
    /// Learns what there is to learn, if nobody has: afterwards [`Published::tree`] answers. Blocks.
    fn contact(&self) -> Result<(), FetchError>;

    /// Learns which packs the place has, if none are in use. Blocks.
    fn offer_packs(&self) -> Result<(), FetchError>;

    /// `length` bytes from `offset` of the packs file. Blocks.
    fn read_packs(&self, offset: u64, length: u64) -> Result<Vec<u8>, FetchError>;

    /// Fetches the hash pages that are missing to check `range`. Blocks.
    fn load(&self, range: BlockRange) -> Result<(), FetchError>;
}

/// What is known of a published image, whichever place it came from. Everything is learnt once and then stays. All
/// methods may be called from several threads at once.
#[derive(Default)]
pub struct Published {
    root: OnceLock<Root>,
    tree: OnceLock<Arc<Tree>>,
    sessions: OnceLock<String>,
    packs: Chosen,
    packs_lied: AtomicBool,
    pointer: RwLock<Option<Proved>>,
    kept: OnceLock<Kept>,
    places: RwLock<Vec<Arc<dyn Contact>>>,
    rooms: Rooms,
}

/// Room for frames, of all places and lanes together.
struct Rooms {
    /// For those that were asked for, as they come.
    arriving: Room,
    /// For those that are being opened: their blocks, and as much again for the decompressor.
    opening: Room,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { arriving: Room::new(ARRIVING_BYTES_MAX), opening: Room::new(OPENING_BYTES_MAX) }
    }
}

impl Rooms {
    /// Has all who wait for room ask whether they are to stop.
    fn tell(&self) {
        self.arriving.tell();
        self.opening.tell();
    }
}

impl Published {
    /// An image of which only the root is known, if that.
    pub fn new(root: Option<Root>) -> Self {
        let published = Self::default();
        if let Some(root) = root {
            published.learn_root(root);
        }
        published
    }

    /// The root hash; `None` before the first contact when the link had none.
    pub fn root(&self) -> Option<Root> {
        self.root.get().copied()
    }

    /// The tree; `None` before the first contact.
    pub fn tree(&self) -> Option<&Arc<Tree>> {
        self.tree.get()
    }

    /// The packs; `None` before the first contact and when there are none.
    pub fn packs(&self) -> Option<PacksFile> {
        self.packs.file()
    }

    /// Where sessions of this image may be sent to, as an absolute URL; `None` before the first contact and when nobody
    /// wants any.
    pub fn sessions_url(&self) -> Option<&str> {
        self.sessions.get().map(String::as_str)
    }

    /// Says what opens frames of the packs called `name`, once somebody has read their index.
    pub fn set_frames(&self, name: &str, frames: Arc<dyn Frames>) {
        self.packs.open_by(name, frames);
    }

    /// True when a place was found to lie whose packs are used, or frames of them were not what the index said: what was
    /// learnt of them is not worth keeping.
    pub fn packs_lied(&self) -> bool {
        self.packs_lied.load(Ordering::Relaxed)
    }

    /// Keeps the root; false when another is known.
    pub fn learn_root(&self, root: Root) -> bool {
        *self.root.get_or_init(|| root) == root
    }

    /// Keeps the tree, unless one is known: that one is answered, as both have the same root.
    pub fn learn_tree(&self, tree: Tree) -> &Arc<Tree> {
        let tree = self.tree.get_or_init(|| Arc::new(tree));
        if let Some(kept) = self.kept.get() {
            kept.write_head(tree.head());
        }
        tree
    }

    /// The head of the tree: also before the first contact, if the cache has kept it.
    pub fn head(&self) -> Option<Head> {
        let kept = || self.kept.get()?.read_head(self.root()?);
        self.tree().map(|tree| tree.head().clone()).or_else(kept)
    }

    /// Uses these packs from now on, unless others are used or these were refused.
    pub fn learn_packs(&self, packs: PacksFile) {
        self.packs.choose(packs);
    }

    /// Learns of packs, from whichever place has any. Blocks.
    ///
    /// # Errors
    /// Those of the first contact; later ones of places that have none are logged.
    pub fn find_packs(&self) -> Result<Option<PacksFile>, FetchError> {
        self.contact()?;
        for place in self.places() {
            if self.packs().is_some() {
                break;
            }
            match place.offer_packs() {
                Ok(()) => {}
                Err(FetchError::Stopped) => return Err(FetchError::Stopped),
                Err(failure) => log::debug!("asked for packs: {failure:?}"),
            }
        }
        Ok(self.packs())
    }

    /// Leaves the packs in use for those of another place; false when no place has others. Blocks.
    pub fn replace_packs(&self) -> bool {
        let Some(refused) = self.packs.refuse() else { return false };
        let found = self.find_packs().is_ok_and(|packs| packs.is_some());
        if !found {
            self.packs.restore(refused);
        }
        found
    }

    /// Keeps where sessions may be sent to.
    pub fn learn_sessions(&self, url: String) {
        let _ = self.sessions.set(url);
    }

    /// The pointer to this version; `None` before a block was read of the image that one names, and proved right.
    pub fn pointer(&self) -> Option<Pointer> {
        self.proved().as_ref().map(|proved| proved.pointer.clone())
    }

    fn proved(&self) -> RwLockReadGuard<'_, Option<Proved>> {
        self.pointer.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the pointer that the place called `place` has proved, unless one is kept that was proved before.
    fn learn_pointer(&self, place: &str, pointer: &Pointer) {
        if self.proved().is_some() {
            return;
        }
        let mut proved = self.pointer.write().unwrap_or_else(PoisonError::into_inner);
        if proved.is_none() {
            let before = self.kept();
            if let Some(kept) = self.kept.get() {
                kept.write(pointer);
            }
            *proved = Some(Proved { pointer: pointer.clone(), place: place.to_owned(), before });
        }
    }

    /// The place called `place` was found to lie, after it may have proved its pointer: what was kept before takes its
    /// place, until another one has proved its own.
    fn unlearn_pointer(&self, place: &str) {
        let mut proved = self.pointer.write().unwrap_or_else(PoisonError::into_inner);
        let Some(lying) = proved.take_if(|proved| proved.place == place) else { return };
        match (self.kept.get(), lying.before) {
            (Some(kept), Some(before)) => kept.write(&before),
            (Some(kept), None) => kept.remove(),
            (None, _) => {}
        }
    }

    /// From now on keeps the pointer in the file at `path`, and finds this version by it when the origin has another. The
    /// head of the tree is kept beside it.
    pub fn keep_pointer(&self, path: PathBuf) {
        let kept = self.kept.get_or_init(|| Kept { path, read_only: false });
        if let Some(tree) = self.tree() {
            kept.write_head(tree.head());
        }
        if let Some(proved) = &mut *self.pointer.write().unwrap_or_else(PoisonError::into_inner) {
            proved.before = self.kept();
            kept.write(&proved.pointer);
        }
    }

    /// Finds this version by the pointer in the file at `path`, which is a cache's and stays as it is, when the origin has
    /// another.
    pub fn recall_pointer(&self, path: PathBuf) {
        let _ = self.kept.set(Kept { path, read_only: true });
    }

    /// Removes the files of [`Published::keep_pointer`].
    pub fn forget_pointer(&self) {
        if let Some(kept) = self.kept.get() {
            kept.remove();
            kept.remove_head();
        }
    }

    fn kept(&self) -> Option<Pointer> {
        self.kept.get()?.read(self.root()?)
    }

    /// Adds a place to ask, after those that are here.
    pub fn add_place(&self, place: Arc<dyn Contact>) {
        self.places.write().unwrap_or_else(PoisonError::into_inner).push(place);
    }

    /// Takes a place away that is closing, so that it ends when its source does.
    fn remove_place(&self, place: *const Place) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.retain(|kept| !std::ptr::addr_eq(Arc::as_ptr(kept), place));
    }

    /// Learns the tree and what packs there are, if nobody has. Blocks.
    ///
    /// # Errors
    /// The last place's, when all failed.
    pub fn contact(&self) -> Result<(), FetchError> {
        match self.tree() {
            Some(_) => Ok(()),
            None => self.ask(|place| place.contact()),
        }
    }

    /// Reads a piece of the packs file, at most [`PACKS_PIECE_MAX`] bytes. Blocks.
    ///
    /// # Errors
    /// EINVAL for a piece that is too long or leaves the file; else the last place's, when all failed.
    pub fn read_packs(&self, offset: u64, length: u64) -> Result<Vec<u8>, FetchError> {
        let Some(packs) = self.packs() else {
            return Err(Error::new(errno::ENOENT, "this image has no packs").into());
        };
        if length > PACKS_PIECE_MAX || offset.checked_add(length).is_none_or(|end| end > packs.bytes) {
            let text = format!("{}: no piece of {length} bytes at {offset} in {} bytes", packs.name, packs.bytes);
            return Err(Error::new(errno::EINVAL, text).into());
        }
        if let Some(bytes) = packs.head.get(offset as usize..).and_then(|rest| rest.get(..length as usize)) {
            return Ok(bytes.to_vec());
        }
        self.ask(|place| place.read_packs(offset, length))
    }

    /// Sees to it that the tree has what is needed to check the blocks of `range`, whatever they are: for those who have
    /// blocks from elsewhere. Pages of long ranges may push each other out, so ask for some thousand blocks at a time.
    /// Blocks.
    ///
    /// # Errors
    /// The last place's, when all failed.
    pub fn load(&self, range: BlockRange) -> Result<(), FetchError> {
        match self.tree() {
            Some(tree) if tree.missing(range).is_empty() => Ok(()),
            _ => self.ask(|place| place.load(range)),
        }
    }

    fn places(&self) -> Vec<Arc<dyn Contact>> {
        self.places.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks one place after the other until one answers.
    fn ask<T>(&self, question: impl Fn(&dyn Contact) -> Result<T, FetchError>) -> Result<T, FetchError> {
        let mut failed = None;
        for place in self.places() {
            match question(&*place) {
                // The image is closing.
                Err(FetchError::Stopped) => return Err(FetchError::Stopped),
                Err(failure) => failed = Some(failure),
                Ok(answer) => return Ok(answer),
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(errno::ENOENT, "there is no place to ask").into()))
    }
}

/// What a place says of a file and is not true. It is final for the place, and never for what others have.
fn lie_of(file: &str, what: impl std::fmt::Display) -> FetchError {
    Error::new(errno::EIO, format!("{file}: {what}")).into()
}

/// Longest piece of a packs file that is read at once, in bytes: a model and its index, several times over.
pub const PACKS_PIECE_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(Result<u8, ()>);

    impl Contact for Place {
        fn contact(&self) -> Result<(), FetchError> {
            self.0.map(|_| ()).map_err(|()| FetchError::transient("away"))
        }

        fn offer_packs(&self) -> Result<(), FetchError> {
            self.contact()
        }

        fn read_packs(&self, _: u64, length: u64) -> Result<Vec<u8>, FetchError> {
            self.0.map(|byte| vec![byte; length as usize]).map_err(|()| FetchError::transient("away"))
        }

        fn load(&self, _: BlockRange) -> Result<(), FetchError> {
            self.contact()
        }
    }

    #[test]
    fn the_first_place_that_answers_is_enough() {
        let published = Published::new(None);
        assert!(published.contact().is_err());
        published.add_place(Arc::new(Place(Err(()))));
        assert!(matches!(published.contact(), Err(FetchError::Transient { .. })));
        published.add_place(Arc::new(Place(Ok(7))));
        assert!(published.contact().is_ok());
        published.learn_packs(PacksFile { name: "p.vmk".into(), bytes: 100, head: [1, 2, 3].into() });
        assert_eq!(published.read_packs(1, 2).ok(), Some(vec![2, 3]), "what is here is not asked for");
        assert_eq!(published.read_packs(1, 3).ok(), Some(vec![7; 3]));
        for (offset, length) in [(99, 2), (u64::MAX, 1), (0, PACKS_PIECE_MAX + 1)] {
            assert!(matches!(published.read_packs(offset, length), Err(FetchError::Fatal(_))), "{offset} {length}");
        }
    }

    #[test]
    fn another_root_is_not_learnt() {
        let root = |digit: &str| digit.repeat(64).parse::<Root>().unwrap();
        let published = Published::new(Some(root("1")));
        assert!(published.learn_root(root("1")) && !published.learn_root(root("2")));
        assert_eq!(published.root(), Some(root("1")));
    }
}
