//! One place of a published image: a folder at some server, or on a disk, with pointer, image, tree and packs in it.
//!
//! A place is asked nothing until something is needed of it. Then its pointer comes in one request and, in the round
//! trip after that, the beginnings of tree and packs at once. What one place has told of the tree, no other is asked
//! for again, because the root vouches for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::address::Address;
use super::collect::Collector;
use super::pages::Pages;
use super::pointer::{NamedFile, POINTER_BYTES_MAX, Pointer};
use super::{Contact, FIRST_BYTES, PacksFile, Published, lie_of};
use crate::block::BlockRange;
use crate::config::{CONNECTIONS_MAX, HttpOptions};
use crate::error::{Error, errno};
use crate::source::fault::{FaultSource, FaultSpec};
use crate::source::http::Document;
use crate::source::{FetchError, FileSource, Identity, Source};
use crate::sys::with_signals_blocked;
use crate::tree::{HEAD_BYTES, Head, PageId, Root, Tree};

/// The lane of the first contact, which becomes that of the first worker.
const LANE_CONTACT: usize = 0;
/// The lane of what is read of the packs but frames: a spare one, behind those of the pages.
const LANE_PACKS: usize = CONNECTIONS_MAX + 2;

/// What to do when the image that a cache is bound to is no longer served.
const STALE_ADVICE: &str = "a new version takes over what did not change with `vmstream fetch --reuse` of this cache";

/// A place.
pub(super) struct Place {
    /// The pointer's address, for messages.
    name: String,
    address: Address,
    /// How the web is asked; `None` for files.
    web: Option<Document>,
    faults: Option<FaultSpec>,
    common: Arc<Published>,
    files: OnceLock<Files>,
    /// Held while the place is contacted for the first time. All sources that were opened, to be aborted.
    opening: Mutex<()>,
    opened: Mutex<Vec<Arc<dyn Source>>>,
    aborted: AtomicBool,
    /// Why this place is of no use any more: error number and text.
    broken: OnceLock<(i32, String)>,
}

/// What lies at a place.
pub(super) struct Files {
    pub image: Arc<dyn Source>,
    pub tree: Arc<Tree>,
    pub pages: Pages,
    /// `None` when the place has no packs, or others than those that are used.
    pub packs: Option<Arc<dyn Source>>,
    /// When the image was last modified, as the pointer says.
    pub mtime_s: Option<i64>,
}

impl Place {
    /// A place that is asked nothing yet. Errors: bad options.
    pub fn new(
        name: String,
        address: Address,
        options: &HttpOptions,
        faults: Option<&FaultSpec>,
        common: Arc<Published>,
    ) -> Result<Self, FetchError> {
        let web = match &address {
            Address::Web(url) => Some(Document::at(url, options)?),
            Address::File(_) => None,
        };
        Ok(Self {
            name,
            address,
            web,
            faults: faults.cloned(),
            common,
            files: OnceLock::new(),
            opening: Mutex::new(()),
            opened: Mutex::default(),
            aborted: AtomicBool::new(false),
            broken: OnceLock::new(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What lies here, contacting the place if nobody has. Blocks.
    pub fn files(&self) -> Result<&Files, FetchError> {
        if let Some((errno, text)) = self.broken.get() {
            return Err(Error::new(*errno, text.clone()).into());
        }
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let files = self.open().map_err(|failure| self.judged(failure))?;
        Ok(self.files.get_or_init(|| files))
    }

    /// Remembers a failure that is final.
    pub fn judged(&self, failure: FetchError) -> FetchError {
        if let FetchError::Fatal(error) = &failure {
            let _ = self.broken.set((error.errno(), error.to_string()));
        }
        failure
    }

    fn open(&self) -> Result<Files, FetchError> {
        let (pointer, image) = self.version()?;
        let tree_file = self.source(&pointer.tree)?;
        let packs = self.packs_of(&pointer);
        let (tree, packs_head) = std::thread::scope(|scope| {
            // What is known already is not asked for.
            let wanted = packs.as_ref().filter(|_| self.common.packs().is_none());
            let head = wanted.and_then(|(_, source)| {
                let read = move || read(&**source, LANE_PACKS, 0, source.identity().size.min(FIRST_BYTES));
                let builder = std::thread::Builder::new().name("vms-packs".to_owned());
                with_signals_blocked(|| builder.spawn_scoped(scope, read)).ok()
            });
            let tree = self.tree(&pointer, &tree_file);
            let head = head.map(|head| head.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (tree, head)
        });
        let tree = tree?;
        if let (Some((named, _)), Some(head)) = (&packs, packs_head) {
            match head {
                Ok(head) => self.common.learn_packs(PacksFile {
                    name: named.name.clone(),
                    bytes: named.bytes,
                    head: head.into(),
                }),
                Err(FetchError::Stopped) => return Err(FetchError::Stopped),
                // A help and nothing more.
                Err(failure) => log::warn!("{}: goes on without its packs: {}", self.name, told(&failure)),
            }
        }
        let used = self.common.packs();
        let packs = packs.filter(|(named, _)| used.is_some_and(|u| (&u.name, u.bytes) == (&named.name, named.bytes)));
        if let Some(sessions) = &pointer.sessions {
            let url = if sessions.contains("://") { sessions.clone() } else { self.address.beside(sessions) };
            self.common.learn_sessions(url);
        }
        self.common.learn_pointer(&pointer);
        let pages = Pages::new(tree_file, tree.clone());
        Ok(Files { image, tree, pages, packs: packs.map(|(_, source)| source), mtime_s: pointer.mtime_s })
    }

    /// The pointer of the version that is wanted, and its image. When the place has a newer one by now, the pointer that
    /// was kept leads to the older files, as long as they are there.
    fn version(&self) -> Result<(Pointer, Arc<dyn Source>), FetchError> {
        let failure = match self.pointer() {
            Ok(pointer) if self.common.learn_root(pointer.root) => {
                let image = self.source(&image_of(&pointer))?;
                return Ok((pointer, image));
            }
            Ok(pointer) => {
                let text = format!("{}: serves another version of the image, with root {}", self.name, pointer.root);
                Error::new(errno::ESTALE, text)
            }
            Err(FetchError::Fatal(error)) => error,
            Err(failure) => return Err(failure),
        };
        let stale = |why: String| {
            let text = format!(
                "{why} (wanted is {}); {STALE_ADVICE}",
                self.common.root().map_or_else(String::new, |r| r.to_string())
            );
            FetchError::Fatal(Error::new(errno::ESTALE, text))
        };
        let Some(kept) = self.common.kept() else {
            return Err(if failure.errno() == errno::ESTALE { stale(failure.to_string()) } else { failure.into() });
        };
        log::info!("{failure}; looking for the version that this cache was made from");
        let image = self.source(&image_of(&kept));
        // The first byte tells whether the file is still there: HTTP sources open without contact.
        let image = image.and_then(|image| read(&*image, LANE_CONTACT, 0, 1).map(|_| image));
        match image {
            Ok(image) => Ok((kept, image)),
            Err(FetchError::Fatal(gone)) => Err(stale(format!("{failure}, and the older one is gone: {gone}"))),
            Err(failure) => Err(failure),
        }
    }

    /// The pointer, as it lies there now.
    fn pointer(&self) -> Result<Pointer, FetchError> {
        let bytes = match (&self.web, &self.address) {
            (Some(web), _) => web.fetch_small(POINTER_BYTES_MAX as u64)?,
            (None, Address::File(path)) => {
                use std::io::Read;
                let failed = |error| Error::io(format_args!("cannot read {}", path.display()), error);
                let file = std::fs::File::open(path).map_err(failed)?;
                let mut bytes = Vec::new();
                file.take(POINTER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
                bytes
            }
            (None, Address::Web(_)) => Vec::new(), // never: a web address has its document
        };
        let named = |error: Error| Error::new(error.errno(), format!("{}: {error}", self.name));
        Ok(Pointer::parse(&bytes).map_err(named)?)
    }

    /// The packs that a pointer names, opened. What is wrong with them is no reason not to use the image.
    fn packs_of(&self, pointer: &Pointer) -> Option<(NamedFile, Arc<dyn Source>)> {
        let named = pointer.packs.clone()?;
        match self.source(&named) {
            Ok(source) => Some((named, source)),
            Err(failure) => {
                log::warn!("{}: goes on without its packs: {}", self.name, told(&failure));
                None
            }
        }
    }

    /// The tree: what is known of it, or else what lies here.
    fn tree(&self, pointer: &Pointer, file: &Arc<dyn Source>) -> Result<Arc<Tree>, FetchError> {
        if let Some(tree) = self.common.tree() {
            return Ok(tree.clone());
        }
        let (tree, head) = self.first_of_tree(pointer.root, file, pointer.tree.bytes)?;
        if tree.geometry() != pointer.geometry || tree.head().file_bytes() != pointer.tree.bytes {
            return Err(lie_of(&self.name, "the pointer does not fit the tree"));
        }
        add_pages(&tree, &head).map_err(|lie| lie_of(&file.name(), lie))?;
        Ok(self.common.learn_tree(tree).clone())
    }

    /// The tree's head and hole map, and the bytes that were read: more than those, as a rule.
    fn first_of_tree(&self, root: Root, file: &Arc<dyn Source>, length: u64) -> Result<(Tree, Vec<u8>), FetchError> {
        let wrong = |error: Error| FetchError::Fatal(Error::new(error.errno(), format!("{}: {error}", file.name())));
        let mut bytes = read(&**file, LANE_CONTACT, 0, length.min(FIRST_BYTES))?;
        let head = Head::decode(&bytes).map_err(wrong)?;
        if head.root() != root {
            // Before the length of a map is believed.
            return Err(lie_of(&file.name(), format_args!("is not the tree of root {root}")));
        }
        let map_end = HEAD_BYTES as u64 + head.map_bytes();
        if map_end > length {
            return Err(lie_of(&file.name(), "ends before its hole map does"));
        }
        if map_end > bytes.len() as u64 {
            // The map of an image of hundreds of gigabytes, and scattered at that.
            let begin = bytes.len() as u64;
            bytes.extend(read(&**file, LANE_CONTACT, begin, map_end - begin)?);
        }
        let map = bytes.get(HEAD_BYTES..map_end as usize).unwrap_or_default();
        let tree = Tree::open(&bytes[..HEAD_BYTES], map, root).map_err(wrong)?;
        Ok((tree, bytes))
    }

    /// Opens a file that lies here. Contacts nobody on the web.
    fn source(&self, named: &NamedFile) -> Result<Arc<dyn Source>, FetchError> {
        let pinned = Identity { size: named.bytes, validator: None, mtime_s: None };
        let source: Box<dyn Source> = match &self.web {
            Some(web) => Box::new(web.beside(&named.name, named.bytes)?),
            None => Box::new(FileSource::open(&self.address.beside(&named.name), Some(&pinned))?),
        };
        let source: Arc<dyn Source> = match &self.faults {
            Some(spec) => Arc::new(FaultSource::new(source, spec.clone())),
            None => source.into(),
        };
        let mut opened = self.opened();
        if self.aborted.load(Ordering::Relaxed) {
            return Err(FetchError::Stopped);
        }
        opened.push(source.clone());
        Ok(source)
    }

    fn opened(&self) -> MutexGuard<'_, Vec<Arc<dyn Source>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is under way return soon, and what comes later at once.
    pub fn abort(&self) {
        let opened = self.opened();
        self.aborted.store(true, Ordering::Relaxed);
        if let Some(web) = &self.web {
            web.abort();
        }
        opened.iter().for_each(|source| source.abort());
        drop(opened);
        if let Some(files) = self.files.get() {
            files.pages.close();
        }
    }

    /// Requests so far. The files of one web place count together.
    pub fn requests(&self) -> u64 {
        let each = self.opened().iter().map(|source| source.requests()).collect::<Vec<_>>();
        if self.web.is_some() && self.faults.is_none() {
            each.into_iter().max().unwrap_or(0)
        } else {
            each.into_iter().sum()
        }
    }
}

impl Contact for Place {
    fn contact(&self) -> Result<(), FetchError> {
        self.files().map(|_| ())
    }

    fn read_packs(&self, offset: u64, length: u64) -> Result<Vec<u8>, FetchError> {
        match &self.files()?.packs {
            Some(packs) => read(&**packs, LANE_PACKS, offset, length),
            None => Err(Error::new(errno::ENOTSUP, format!("{}: has not these packs", self.name)).into()),
        }
    }

    fn load(&self, range: BlockRange) -> Result<(), FetchError> {
        let pages = &self.files()?.pages;
        let failures = pages.want(range);
        pages.settle(range, failures, LANE_PACKS).map_err(|failure| self.judged(failure))
    }
}

/// Reads a piece of a file as a whole.
fn read(source: &dyn Source, lane: usize, offset: u64, length: u64) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Collector::new(length);
    source.fetch(lane, offset, length, &mut bytes)?;
    bytes.whole().ok_or_else(|| FetchError::transient(format!("{}: sent less than asked for", source.name())))
}

fn image_of(pointer: &Pointer) -> NamedFile {
    NamedFile { name: pointer.image.clone(), bytes: pointer.geometry.size() }
}

/// Adds the pages that lie as a whole in what was read of the beginning of a tree file.
fn add_pages(tree: &Tree, bytes: &[u8]) -> Result<(), crate::tree::Lie> {
    let head = tree.head();
    for level in (0..head.levels()).rev() {
        for index in 0..head.pages(level) {
            let page = PageId { level, index: index as u32 };
            let (offset, length) = tree.extent(page);
            let Some(page_bytes) = bytes.get(offset as usize..(offset + length) as usize) else { return Ok(()) };
            tree.add(page, page_bytes)?;
        }
    }
    Ok(())
}

/// A failure in words.
fn told(failure: &FetchError) -> String {
    match failure {
        FetchError::Transient { message, .. } => message.clone(),
        FetchError::Fatal(error) => error.to_string(),
        FetchError::Stopped => "stopped".to_owned(),
    }
}
