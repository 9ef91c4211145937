//! Fetching hash pages beside the data that they check.
//!
//! A worker that is about to fetch blocks says which ([`Pages::want`]) and goes on; up to two threads of ours fetch
//! what is missing meanwhile, over lanes of their own. So a cold read costs one round trip, not two. When the data is
//! there and its pages are not ([`Pages::settle`]), the worker does not just wait: a job that nobody has begun it takes
//! over itself if both threads are busy, so that two are never what sixteen workers wait for.
//!
//! Pages that lie near each other in the file come in one request (`line`), and a page that is on its way is not asked
//! for again, whoever wants it. One that arrives before the page above it waits for that. Others come with frames of the
//! packs; who waits for one of those hears of it as soon as the frame is open ([`Pages::tell`]).

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::collect::Collector;
use super::lies::Lies;
use super::line::{Job, Line};
use crate::block::BlockRange;
use crate::config::CONNECTIONS_MAX;
use crate::error::{Error, errno};
use crate::source::{FetchError, Source};
use crate::sys::with_signals_blocked;
use crate::tree::{PageId, Tree};

/// Threads that fetch pages: a cold read needs pages of two levels, which lie apart.
const AIDES: usize = 2;
/// Stack of such a thread, in bytes: TLS handshakes need the most.
const STACK_BYTES: usize = 512 << 10;
/// How often pages that arrived and were dropped again, to make room, are asked for before that counts as a failure.
const ATTEMPTS_MAX: u32 = 3;
/// How long a page that comes by another way is waited for before it is asked for: most are here within that, a request
/// would be a round trip, and what brings it may stand behind megabytes on a slow connection.
const COMING_MAX: Duration = Duration::from_millis(50);

/// The pages of one place.
pub(super) struct Pages {
    shared: Arc<Shared>,
    aides: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    /// The place's tree file.
    file: Arc<dyn Source>,
    tree: Arc<Tree>,
    /// Those of the place.
    lies: Arc<Lies>,
    state: Mutex<State>,
    news: Condvar,
    /// How often there was news of pages.
    tidings: AtomicU64,
}

#[derive(Default)]
struct State {
    /// What nobody has begun yet, and how many threads of ours are about to.
    line: Line,
    idle: usize,
    /// All pages of jobs that are not finished.
    flying: HashSet<PageId>,
    /// Pages that arrived before the page above them.
    early: Vec<(PageId, Vec<u8>)>,
    /// How many jobs failed, and how the last one did.
    failures: u64,
    failure: Option<Failure>,
    closing: bool,
}

/// A failure that can be told to many.
#[derive(Clone)]
enum Failure {
    Transient(String),
    Fatal(i32, String),
    Stopped,
}

impl Failure {
    fn of(failure: FetchError) -> Self {
        match failure {
            FetchError::Transient { message, .. } => Self::Transient(message),
            FetchError::Fatal(error) => Self::Fatal(error.errno(), error.to_string()),
            FetchError::Stopped => Self::Stopped,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete in itself, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the pages of a job over `lane`, and tells all who wait.
    fn run(&self, job: &Job, lane: usize) {
        let result = self.fetch(job, lane);
        let mut state = self.state();
        match result {
            Ok(pages) => {
                state.early.extend(pages);
                if let Err(failure) = self.take_in(&mut state, lane) {
                    state.failed(failure);
                }
            }
            Err(failure) => state.failed(failure),
        }
        let State { early, flying, .. } = &mut *state;
        // What came early stays on its way, so that nobody asks for it again; but if the page above it no longer comes,
        // it would wait for ever.
        flying.retain(|page| !job.0.contains(page) || early.iter().any(|(waits, _)| waits == page));
        early.retain(|(page, _)| flying.contains(&page.parent().0) || !flying.remove(page));
        self.arrived();
    }

    /// Tells all who wait; under the lock, so that nobody is about to fall asleep.
    fn arrived(&self) {
        self.tidings.fetch_add(1, Ordering::Release);
        self.news.notify_all();
    }

    fn fetch(&self, job: &Job, lane: usize) -> Result<Vec<(PageId, Vec<u8>)>, Failure> {
        let extents = job.0.iter().map(|page| (*page, self.tree.extent(*page)));
        let (begin, end) = job.extent(&self.tree);
        let mut bytes = Collector::new(end - begin);
        self.file.fetch(lane, begin, end - begin, &mut bytes).map_err(Failure::of)?;
        let bytes = bytes.whole().ok_or_else(|| {
            Failure::Transient(format!("{}, bytes {begin}-{}: sent less than asked for", self.file.name(), end - 1))
        })?;
        let piece = |(page, (offset, length)): (PageId, (u64, u64))| {
            let at = (offset - begin) as usize;
            (page, bytes[at..at + length as usize].to_vec())
        };
        Ok(extents.map(piece).collect())
    }

    /// Adds to the tree what arrived, from the top down; what lacks the page above it stays. A lie among it keeps nothing
    /// else from being added; one that is forgiven, and came over `lane`, is none: its page is missing again.
    fn take_in(&self, state: &mut State, lane: usize) -> Result<(), Failure> {
        let mut early = std::mem::take(&mut state.early);
        early.sort_by_key(|(page, _)| std::cmp::Reverse(page.level));
        let mut told = Ok(());
        for (page, bytes) in early {
            match self.tree.add(page, &bytes) {
                Ok(()) => drop(state.flying.remove(&page)),
                Err(lie) if lie.is_missing() => state.early.push((page, bytes)),
                Err(lie) => {
                    state.flying.remove(&page);
                    let (offset, length) = self.tree.extent(page);
                    let lie = format!("{}, bytes {offset}-{}: {lie}", self.file.name(), offset + length - 1);
                    if self.lies.forgive(&lie) {
                        self.file.renew(lane);
                    } else {
                        told = Err(Failure::Fatal(errno::EIO, lie));
                    }
                }
            }
        }
        told
    }

    /// Body of a thread of ours.
    fn aide(&self, lane: usize) {
        loop {
            let waits = |state: &mut State| state.line.is_empty() && !state.closing;
            let mut state = self.news.wait_while(self.state(), waits).unwrap_or_else(PoisonError::into_inner);
            if state.closing {
                return;
            }
            let Some(job) = state.line.take(&self.tree, 0) else { continue };
            state.idle -= 1;
            drop(state);
            self.run(&job, lane);
            self.state().idle += 1;
        }
    }
}

impl State {
    fn failed(&mut self, failure: Failure) {
        self.failures += 1;
        self.failure = Some(failure);
    }

    fn why(&self) -> FetchError {
        match &self.failure {
            Some(Failure::Transient(message)) => FetchError::transient(message.clone()),
            Some(Failure::Fatal(errno, message)) => Error::new(*errno, message.clone()).into(),
            Some(Failure::Stopped) => FetchError::Stopped,
            None => FetchError::transient("hash pages were dropped before they could be used"),
        }
    }
}

impl Pages {
    /// The pages of `tree` that lie in `file`.
    pub fn new(file: Arc<dyn Source>, tree: Arc<Tree>, lies: Arc<Lies>) -> Self {
        let (state, news, tidings) = (Mutex::default(), Condvar::new(), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { file, tree, lies, state, news, tidings }), aides: Mutex::default() }
    }

    /// Sees to it that what is missing to check `range` is on its way. Does not wait. Answers how many jobs had failed
    /// so far, for [`Pages::settle`].
    pub fn want(&self, range: BlockRange) -> u64 {
        self.want_these(|| self.shared.tree.missing(range))
    }

    /// The same for the pages that `missing` answers, each once. It is asked while nothing can arrive.
    pub fn want_these(&self, missing: impl FnOnce() -> Vec<PageId>) -> u64 {
        let mut state = self.shared.state();
        let missing: Vec<PageId> = missing().into_iter().filter(|page| !state.flying.contains(page)).collect();
        if missing.is_empty() || state.closing {
            return state.failures;
        }
        state.flying.extend(&missing);
        state.line.join(&self.shared.tree, missing);
        let failures = state.failures;
        drop(state);
        self.shared.news.notify_all();
        self.begin();
        failures
    }

    /// Starts the threads at the first need. Without any the workers fetch their pages themselves.
    fn begin(&self) {
        let mut aides = self.aides.lock().unwrap_or_else(PoisonError::into_inner);
        while aides.len() < AIDES {
            let (shared, lane) = (self.shared.clone(), CONNECTIONS_MAX + aides.len());
            let builder = std::thread::Builder::new().name("vms-pages".to_owned()).stack_size(STACK_BYTES);
            // Before it can begin anything.
            self.shared.state().idle += 1;
            match with_signals_blocked(|| builder.spawn(move || shared.aide(lane))) {
                Ok(aide) => aides.push(aide),
                Err(error) => {
                    log::debug!("cannot start thread vms-pages: {error}");
                    self.shared.state().idle -= 1;
                    self.shared.news.notify_all();
                    return;
                }
            }
        }
    }

    /// Waits until everything is here to check `range`, which `want` was asked for when so many jobs had failed. What
    /// nobody is about to begin is fetched over `lane`, which the caller must not be in the middle of using. Blocks.
    pub fn settle(&self, range: BlockRange, failures: u64, lane: usize) -> Result<(), FetchError> {
        self.settle_these(|| self.shared.tree.missing(range), |_| false, failures, lane)
    }

    /// The same for the pages that `missing` answers, until it answers none. Those that are `coming` by another way are
    /// given some time for that, if whoever brings them says so ([`Pages::tell`]).
    pub fn settle_these(
        &self,
        missing: impl Fn() -> Vec<PageId>,
        coming: impl Fn(PageId) -> bool,
        failures: u64,
        lane: usize,
    ) -> Result<(), FetchError> {
        let mut attempts = 0;
        let patience = Instant::now() + COMING_MAX;
        loop {
            let mut state = self.shared.state();
            // Under the lock, or a page could arrive unseen between the two looks.
            let missing = missing();
            if missing.is_empty() {
                return Ok(());
            }
            if state.closing {
                return Err(FetchError::Stopped);
            }
            let left = patience.saturating_duration_since(Instant::now());
            let comes = |page: &PageId| !left.is_zero() && coming(*page);
            let orphans = || missing.iter().filter(|page| !state.flying.contains(*page) && !comes(page));
            if state.failures == failures && attempts < ATTEMPTS_MAX && orphans().next().is_some() {
                let orphans = orphans().copied().collect();
                drop(state);
                attempts += 1;
                self.want_these(|| orphans);
            } else if state.line.len() > state.idle
                && let Some(at) = state.line.place_of(&missing)
            {
                let job = state.line.take(&self.shared.tree, at);
                drop(state);
                job.iter().for_each(|job| self.shared.run(job, lane));
            } else if missing.iter().any(comes) {
                drop(self.shared.news.wait_timeout(state, left));
            } else if missing.iter().any(|page| state.flying.contains(page)) {
                drop(self.shared.news.wait(state));
            } else {
                return Err(state.why());
            }
        }
    }

    /// Pages came by another way, or what was to bring them will not.
    pub fn tell(&self) {
        let state = self.shared.state();
        self.shared.arrived();
        drop(state);
    }

    /// Another number whenever pages may have come since.
    pub fn tidings(&self) -> u64 {
        self.shared.tidings.load(Ordering::Acquire)
    }

    /// Lets everybody who waits return. Fetches that are under way are the source's to abort.
    pub fn close(&self) {
        self.shared.state().closing = true;
        self.shared.news.notify_all();
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.close();
        self.shared.file.abort();
        for aide in self.aides.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // One that panicked has been reported by the panic itself.
            let _ = aide.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Geometry;
    use crate::source::fault::{FaultControl, FaultSource, Injected};
    use crate::source::{Identity, Sink, Stop};
    use crate::tree::{HEAD_BYTES, Head, TreeBuilder, hash_block};

    /// A file in memory.
    struct File(Vec<u8>, Identity, AtomicU64);

    impl Source for File {
        fn name(&self) -> String {
            "tree".to_owned()
        }

        fn identity(&self) -> &Identity {
            &self.1
        }

        fn fetch(&self, _: usize, offset: u64, length: u64, sink: &mut dyn Sink) -> Result<(), FetchError> {
            self.2.fetch_add(1, Ordering::Relaxed);
            let bytes = &self.0[offset as usize..(offset + length) as usize];
            sink.data(offset, bytes).map_err(|Stop| FetchError::Stopped)
        }
    }

    const BLOCKS: u64 = 128 * 128 + 5;

    /// A tree of three levels of which no page is here, its pages, and the handle that holds requests up.
    fn pages(spoil: Option<PageId>) -> (Arc<Tree>, Pages, FaultControl) {
        let mut builder = TreeBuilder::new(Geometry::new(BLOCKS * 512, 512).unwrap());
        let hashes: Vec<_> = (0..BLOCKS).map(|block| hash_block(&block.to_le_bytes())).collect();
        builder.used(&hashes);
        let (mut file, root) = builder.finish().unwrap();
        let map_end = HEAD_BYTES + Head::decode(&file).unwrap().map_bytes() as usize;
        let tree = Arc::new(Tree::open(&file[..HEAD_BYTES], &file[HEAD_BYTES..map_end], root).unwrap());
        if let Some(page) = spoil {
            file[tree.extent(page).0 as usize] ^= 1;
        }
        let identity = Identity { size: file.len() as u64, validator: None, mtime_s: None };
        let control = FaultControl::default();
        let file = FaultSource::controlled(Box::new(File(file, identity, AtomicU64::new(0))), control.clone());
        (tree.clone(), Pages::new(Arc::new(file), tree, Arc::default()), control)
    }

    const LATE: BlockRange = BlockRange::new(128 * 128, BLOCKS);
    /// The pages of the first two levels above it.
    const LATE_PAGES: [PageId; 2] = [PageId { level: 0, index: 128 }, PageId { level: 1, index: 1 }];

    #[test]
    fn pages_of_all_levels_arrive_in_any_order() {
        let (tree, pages, control) = pages(None);
        control.hold();
        let failures = pages.want(LATE);
        // Top and level 1 lie together; the last page of block hashes lies far away.
        assert!(control.wait_held(2, Duration::from_secs(60)));
        assert_eq!(tree.missing(LATE).len(), 3);
        control.release();
        pages.settle(LATE, failures, 0).unwrap();
        assert!(tree.missing(LATE).is_empty());
        assert_eq!(control.requests(), 2);
        pages.want(LATE);
        assert_eq!(control.requests(), 2, "what is here is not asked for");
    }

    #[test]
    fn what_is_on_its_way_is_not_asked_for_again_and_what_nobody_began_is_taken_over() {
        let (tree, pages, control) = pages(None);
        control.hold();
        let failures = pages.want(LATE);
        assert!(control.wait_held(2, Duration::from_secs(60)));
        pages.want(LATE);
        // Both threads are held up, so this one is the worker's own.
        let near = BlockRange::new(300, 301);
        pages.want(near);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| pages.settle(near, failures, 0));
            assert!(control.wait_held(3, Duration::from_secs(60)));
            control.release();
            worker.join().unwrap().unwrap();
        });
        pages.settle(LATE, failures, 0).unwrap();
        assert_eq!(control.requests(), 3);
        assert!(tree.missing(near).is_empty());
    }

    #[test]
    fn what_stands_in_line_goes_with_its_neighbours() {
        let (_, pages, control) = pages(None);
        control.hold();
        let failures = pages.want(LATE);
        // Both threads are held up. Two pages stand in line that are too far apart for one request of somebody in no hurry,
        // and one that is for any.
        assert!(control.wait_held(2, Duration::from_secs(60)));
        let [near, next, far] = [2, 8, 60].map(|page| BlockRange::new(page * 128, page * 128 + 1));
        for range in [near, next, far] {
            pages.want(range);
        }
        assert_eq!(pages.shared.state().line.len(), 3);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| pages.settle(near, failures, 0));
            assert!(control.wait_held(3, Duration::from_secs(60)));
            assert_eq!(pages.shared.state().line.len(), 1, "the far one waits");
            control.release();
            worker.join().unwrap().unwrap();
        });
        pages.settle(next, failures, 0).unwrap();
        pages.settle(far, failures, 0).unwrap();
        assert_eq!(control.requests(), 4);
    }

    #[test]
    fn a_failure_is_told_to_all_who_wait_and_may_pass() {
        let (_, pages, control) = pages(None);
        control.fail_next(Injected::Error);
        control.fail_next(Injected::Error);
        let failures = pages.want(LATE);
        assert!(matches!(pages.settle(LATE, failures, 0), Err(FetchError::Transient { .. })));
        let failures = pages.want(LATE);
        pages.settle(LATE, failures, 0).unwrap();
    }

    #[test]
    fn a_page_that_is_not_the_one_that_was_published_is_named() {
        let (_, pages, _) = pages(Some(LATE_PAGES[0]));
        let failures = pages.want(LATE);
        match pages.settle(LATE, failures, 0) {
            Err(FetchError::Fatal(error)) => assert!(error.to_string().contains("tree, bytes"), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_came_before_a_page_that_lies_does_not_stay_on_its_way_for_ever() {
        let (_, pages, control) = pages(Some(LATE_PAGES[1]));
        let [below, liar] = LATE_PAGES.map(|page| Job(vec![page]));
        pages.shared.state().flying.extend(LATE_PAGES);
        pages.shared.run(&below, 0);
        assert_eq!(pages.shared.state().flying.len(), 2, "what came early waits");
        pages.settle(BlockRange::new(0, 1), 0, 0).unwrap();
        pages.shared.run(&liar, 0);
        assert!(pages.shared.state().flying.is_empty());
        // So it is asked for again.
        let (requests, failures) = (control.requests(), pages.want(LATE));
        assert!(matches!(pages.settle(LATE, failures, 0), Err(FetchError::Fatal(_))));
        assert!(control.requests() > requests);
    }

    #[test]
    fn closing_ends_all_waiting() {
        let (_, pages, control) = pages(None);
        control.hold();
        let failures = pages.want(LATE);
        assert!(control.wait_held(2, Duration::from_secs(60)));
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| pages.settle(LATE, failures, 0));
            pages.close();
            assert!(matches!(worker.join().unwrap(), Err(FetchError::Stopped)));
            control.release();
        });
    }
}
