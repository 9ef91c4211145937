//! One place of a published image: a folder at some server, or on a disk, with pointer, image, tree and packs in it.
//!
//! A place is asked nothing until something is needed of it. Then its pointer comes in one request and, in the round
//! trip after that, the beginnings of tree and packs at once. What one place has told of the tree, no other is asked
//! for again, because the root vouches for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::address::Address;
use super::collect::Collector;
use super::lies::{Lies, is_lie};
use super::pages::Pages;
use super::pointer::{NamedFile, POINTER_BYTES_MAX, Pointer};
use super::{Contact, FIRST_BYTES, PACKS_FIRST_BYTES, PacksFile, Published, lie_of};
use crate::block::BlockRange;
use crate::config::{CONNECTIONS_MAX, HttpOptions};
use crate::error::{Error, errno};
use crate::source::fault::{FaultSource, FaultSpec};
use crate::source::http::Document;
use crate::source::{ADVICE_CHANGED, FetchError, FileSource, Identity, Source};
use crate::sys::with_signals_blocked;
use crate::tree::{HEAD_BYTES, Head, PageId, Root, Tree};

/// The lane of the first contact, which becomes that of the first worker.
const LANE_CONTACT: usize = 0;
/// The lane over which the beginning of the packs comes meanwhile: that of the second worker, which finds it connected.
const LANE_CONTACT_PACKS: usize = 1;
/// The lane of what has no worker's lane to itself: a spare one, behind those of the pages.
pub(super) const LANE_ASIDE: usize = CONNECTIONS_MAX + 2;

/// What to do when the version that a cache is bound to is no longer served.
const ADVICE_BOUND: &str =
    "`vmstream fetch --reuse` of this cache makes one of the new version, with what did not change";
/// What a file means that is of another length than the pointer says, or changes while it is read.
const ADVICE_FILE: &str = "; what was published must not be changed in place: publish it again, or use another mirror";
/// What to do when no cache is, but a link speaks of it.
const ADVICE_LINK: &str = "ask the publisher for the new link";

/// A place.
pub(super) struct Place {
    /// The pointer's address, for messages.
    name: String,
    address: Address,
    /// How the web is asked; `None` for files.
    web: Option<Document>,
    faults: Option<FaultSpec>,
    common: Arc<Published>,
    /// A cache was made of this image before.
    bound: bool,
    files: OnceLock<Files>,
    /// Held while the place is contacted for the first time.
    opening: Mutex<()>,
    /// The sources that are in use, to be aborted.
    opened: Mutex<Vec<Arc<dyn Source>>>,
    aborted: AtomicBool,
    /// The damaged answers so far.
    lies: Arc<Lies>,
    /// Those of its packs.
    packs_lies: Lies,
    /// Why this place is of no use any more: error number and text.
    broken: OnceLock<(i32, String)>,
}

/// What lies at a place.
pub(super) struct Files {
    pub image: Arc<dyn Source>,
    pub tree: Arc<Tree>,
    pub pages: Pages,
    /// `None` when the place has no packs. Others may be in use.
    pub packs: Option<(NamedFile, Arc<dyn Source>)>,
    /// The packs were here and are not any more; others may have taken their place.
    pub packs_gone: AtomicBool,
    /// What led here.
    pub pointer: Pointer,
    /// A block of the image was right.
    pub proved: AtomicBool,
}

impl Place {
    /// A place that is asked nothing yet. Errors: bad options.
    pub fn new(
        name: String,
        address: Address,
        options: &HttpOptions,
        faults: Option<&FaultSpec>,
        common: Arc<Published>,
        bound: bool,
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
            bound,
            files: OnceLock::new(),
            opening: Mutex::new(()),
            opened: Mutex::default(),
            aborted: AtomicBool::new(false),
            lies: Arc::default(),
            packs_lies: Lies::default(),
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
        let files = self.honest(LANE_CONTACT, || self.open())?;
        Ok(self.files.get_or_init(|| files))
    }

    /// Asks, over `lane`, and once more where the answer was damaged. Remembers a failure that is final.
    pub fn honest<T>(&self, lane: usize, mut ask: impl FnMut() -> Result<T, FetchError>) -> Result<T, FetchError> {
        loop {
            match ask() {
                Err(FetchError::Fatal(lie)) if is_lie(&lie) && self.forgives(&lie.to_string(), lane) => {}
                result => return result.map_err(|failure| self.judged(failure)),
            }
        }
    }

    /// True when what `lie` speaks of is to be asked for once more over `lane`, which has a new connection then.
    pub fn forgives(&self, lie: &str, lane: usize) -> bool {
        self.forgives_among(&self.lies, lie, lane)
    }

    /// The same for what lies in the packs, whose lies are counted by themselves: an image can be read without them.
    pub fn forgives_packs(&self, files: &Files, lie: &str, lane: usize) -> bool {
        !files.packs_gone.load(Ordering::Relaxed) && self.forgives_among(&self.packs_lies, lie, lane)
    }

    fn forgives_among(&self, lies: &Lies, lie: &str, lane: usize) -> bool {
        let forgiven = lies.forgive(lie);
        if forgiven && let Some(web) = &self.web {
            web.renew(lane);
        }
        forgiven
    }

    /// Remembers a failure that is final.
    pub fn judged(&self, failure: FetchError) -> FetchError {
        if let FetchError::Fatal(error) = &failure {
            let _ = self.broken.set((error.errno(), error.to_string()));
            if is_lie(error) {
                self.common.unlearn_pointer(&self.name);
                let packs = self.files.get().and_then(|files| files.packs.as_ref());
                if packs.is_some_and(|(named, _)| self.common.packs.is(named)) {
                    self.common.packs_lied.store(true, Ordering::Relaxed);
                }
            }
        }
        failure
    }

    /// A block of the image was what was published, so what led there is worth keeping.
    pub fn proved(&self, files: &Files) {
        files.proved.store(true, Ordering::Relaxed);
        self.common.learn_pointer(&self.name, &files.pointer);
    }

    /// What it means that a file is gone: when it was here, the publisher has cleared an old version away.
    pub fn cleared(&self, files: &Files, failure: FetchError) -> FetchError {
        match failure {
            FetchError::Fatal(error) if error.errno() == errno::ENOENT => {
                let advice = if files.proved.load(Ordering::Relaxed) {
                    format!("it was published once: {ADVICE_BOUND}")
                } else {
                    format!("the pointer at {} names it: publish the image there again", self.name)
                };
                Error::new(errno::ESTALE, format!("{error}; {advice}")).into()
            }
            FetchError::Fatal(error) => reworded(error).into(),
            other => other,
        }
    }

    fn open(&self) -> Result<Files, FetchError> {
        // Those of an attempt that failed.
        self.opened().clear();
        let (pointer, image) = self.version()?;
        let tree_file = self.source(&pointer.tree)?;
        let packs = self.packs_of(&pointer);
        let (tree, packs_head) = std::thread::scope(|scope| {
            // What is known already is not asked for.
            let wanted = packs.as_ref().filter(|(named, _)| self.common.packs.may_be(named));
            let head = wanted.and_then(|(_, source)| {
                let read =
                    move || read(&**source, LANE_CONTACT_PACKS, 0, source.identity().size.min(PACKS_FIRST_BYTES));
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
        if let Some(sessions) = &pointer.sessions {
            let url = if sessions.contains("://") { sessions.clone() } else { self.address.beside(sessions) };
            self.common.learn_sessions(url);
        }
        let pages = Pages::new(tree_file, tree.clone(), self.lies.clone());
        let (packs_gone, proved) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Files { image, tree, pages, packs, packs_gone, pointer, proved })
    }

    /// The pointer of the version that is wanted, and its image. When the place has a newer one by now, the pointer that
    /// was kept leads to the older files, as long as they are there.
    fn version(&self) -> Result<(Pointer, Arc<dyn Source>), FetchError> {
        let failure = match self.pointer() {
            Ok(pointer) if self.common.root().is_none_or(|root| root == pointer.root) => {
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
            let wanted = self.common.root().map_or_else(String::new, |root| format!(" (wanted is {root})"));
            let advice = if self.bound { ADVICE_BOUND } else { ADVICE_LINK };
            FetchError::Fatal(Error::new(errno::ESTALE, format!("{why}{wanted}; {advice}")))
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
        loop {
            match Pointer::parse(&self.pointer_bytes()?) {
                Ok(pointer) => return Ok(pointer),
                Err(error) => {
                    let text = format!("{}: {error}", self.name);
                    if !self.forgives(&text, LANE_CONTACT) {
                        return Err(Error::new(error.errno(), text).into());
                    }
                }
            }
        }
    }

    fn pointer_bytes(&self) -> Result<Vec<u8>, FetchError> {
        match (&self.web, &self.address) {
            (Some(web), _) => web.fetch_small(POINTER_BYTES_MAX as u64),
            (None, Address::File(path)) => {
                use std::io::Read;
                let failed = |error| Error::io(format_args!("cannot read {}", path.display()), error);
                let file = std::fs::File::open(path).map_err(failed)?;
                let mut bytes = Vec::new();
                file.take(POINTER_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
                Ok(bytes)
            }
            (None, Address::Web(_)) => Ok(Vec::new()), // never: a web address has its document
        }
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
        // Only now: a pointer with nothing behind it must not keep others from being believed.
        if !self.common.learn_root(pointer.root) {
            let text = format!("{}: serves another version of the image than the others", self.name);
            return Err(Error::new(errno::ESTALE, text).into());
        }
        Ok(self.common.learn_tree(tree).clone())
    }

    /// The tree's head and hole map, and the bytes that were read: more than those, as a rule.
    fn first_of_tree(&self, root: Root, file: &Arc<dyn Source>, length: u64) -> Result<(Tree, Vec<u8>), FetchError> {
        let wrong = |error: Error| lie_of(&file.name(), error);
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
            None => Box::new(FileSource::open(&self.address.beside(&named.name), Some(&pinned)).map_err(reworded)?),
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
        self.common.rooms.tell();
    }

    /// True once it was aborted.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Requests that went to a server so far.
    pub fn requests(&self) -> u64 {
        match &self.web {
            // All files share its connections and its count.
            Some(web) => web.requests(),
            None => self.opened().iter().map(|source| source.requests()).sum(),
        }
    }
}

impl Contact for Place {
    fn contact(&self) -> Result<(), FetchError> {
        self.files().map(|_| ())
    }

    fn offer_packs(&self) -> Result<(), FetchError> {
        let files = self.files()?;
        if let Some((NamedFile { name, bytes }, source)) = &files.packs
            && !files.packs_gone.load(Ordering::Relaxed)
        {
            let head = read(&**source, LANE_ASIDE, 0, (*bytes).min(PACKS_FIRST_BYTES))?.into();
            self.common.learn_packs(PacksFile { name: name.clone(), bytes: *bytes, head });
        }
        Ok(())
    }

    fn read_packs(&self, offset: u64, length: u64) -> Result<Vec<u8>, FetchError> {
        match &self.files()?.packs {
            Some((named, packs)) if self.common.packs.is(named) => read(&**packs, LANE_ASIDE, offset, length),
            _ => Err(Error::new(errno::ENOTSUP, format!("{}: has not these packs", self.name)).into()),
        }
    }

    fn load(&self, range: BlockRange) -> Result<(), FetchError> {
        let pages = &self.files()?.pages;
        let failures = pages.want(range);
        self.honest(LANE_ASIDE, || pages.settle(range, failures, LANE_ASIDE))
    }
}

/// Reads a piece of a file as a whole.
fn read(source: &dyn Source, lane: usize, offset: u64, length: u64) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Collector::new(length);
    source.fetch(lane, offset, length, &mut bytes).map_err(|failure| match failure {
        FetchError::Fatal(error) => reworded(error).into(),
        other => other,
    })?;
    bytes.whole().ok_or_else(|| FetchError::transient(format!("{}: sent less than asked for", source.name())))
}

/// An error of a file that knows nothing of publishing, with advice that fits here.
pub(super) fn reworded(error: Error) -> Error {
    match error.to_string().strip_suffix(ADVICE_CHANGED) {
        Some(text) => Error::new(error.errno(), format!("{text}{ADVICE_FILE}")),
        None => error,
    }
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
