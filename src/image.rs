//! An open image: what a front end or a disk driver holds.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::block::Geometry;
use crate::config::{Config, ModelChoice, Prefetch, parse_duration, parse_switch};
use crate::engine::Engine;
use crate::error::{Error, Result, errno};
use crate::gate::{Answer, Gate, Op};
use crate::learner::Learner;
use crate::notify::{Completion, CompletionQueue, Notifier};
use crate::planner::Planner;
use crate::predictor::Foresight;
use crate::session::{self, Subject};
use crate::source::published::{KEPT_ENDING, root_of};
use crate::source::{self, Published, Source};
use crate::stats::{CALM_RISK, Forecast, ModelInUse, Stats};
use crate::store::{Cache, Place};
use crate::sys::{FileMap, with_signals_blocked};
use crate::time::Moment;
use crate::uploader::Uploader;

/// A disk image that is being streamed.
///
/// All methods may be called from any thread at once. Dropping it stops its threads, makes durable what arrived and
/// answers what is pending with -ECANCELED.
///
/// ```
/// # use vmstream::{Answer, Image, Op};
/// # fn main() -> vmstream::Result<()> {
/// let image = Image::open(["source=pattern:1M", "fill=off"])?;
/// image.block_wait(Op::Read, 4096, 4096)?; // sleeps until the block is in the local file,
/// let mut block = [0; 4096];
/// image.read_local(4096, &mut block)?; // which anybody may read
/// assert_eq!(image.block_needed(Op::Read, 4096, 4096, 7)?, Answer::Ready);
/// # Ok(())
/// # }
/// ```
pub struct Image {
    /// Before the engine, which it uses.
    learner: Learner,
    engine: Engine,
    /// Behind the engine, whose end writes the last of a session.
    uploader: Uploader,
    map: OnceLock<FileMap>,
    opened: Moment,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({})", self.source_name())
    }
}

impl Image {
    /// Opens an image with `key=value` options (see [`Config`]); completions are taken with [`Image::reap`].
    ///
    /// Blocks until the origin has said what the image is, unless the cache knows it from before: then no contact
    /// is made. Errors: what the origin, the cache or the options are wrong about.
    pub fn open<S: AsRef<str>>(options: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::open_notifying(options, Notifier::Queue(Box::new(CompletionQueue::new()?)))
    }

    /// Opens an image whose completions go to `ready`, called on library threads.
    pub fn open_with<S: AsRef<str>>(
        options: impl IntoIterator<Item = S>,
        ready: impl Fn(Completion) + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::open_notifying(options, Notifier::Callback(Box::new(ready)))
    }

    /// Opens an image with completions going where `notifier` says.
    pub fn open_notifying<S: AsRef<str>>(options: impl IntoIterator<Item = S>, notifier: Notifier) -> Result<Self> {
        Self::open_config(Config::parse(options)?, notifier)
    }

    fn open_config(mut config: Config, notifier: Notifier) -> Result<Self> {
        let cache = Cache::lock(&Place::of(&config))?;
        let pinned = cache.pinned().cloned();
        if let Some(pinned) = &pinned {
            let block_bytes = pinned.geometry.block_bytes();
            if config.block_bytes_given && config.block_bytes != block_bytes {
                let reason = format!(
                    "this cache was made with block_size={block_bytes}; leave the option out or use another cache"
                );
                return Err(Error::option("block_size", &config.block_bytes.to_string(), reason));
            }
            config.block_bytes = block_bytes;
        }
        let mut source = open_source_aside(&config, pinned.as_ref().map(|p| &p.identity))?;
        if let Some(pinned) = &pinned
            && pinned.source != source.name()
            && root_of(&pinned.identity).is_none()
        {
            // Known by another name, and not by its hash: the origin has to say that it is the same image.
            log::info!(
                "this cache was made from {}; asking {} whether it is the same image",
                pinned.source,
                source.name()
            );
            source = open_source_aside(&config, None)?;
        }
        if let Some(published) = source.published() {
            if let Some(tree) = published.tree()
                && pinned.is_none()
                && !config.block_bytes_given
            {
                // Checked are whole blocks of the tree, so no others are worth fetching.
                config.block_bytes = tree.geometry().block_bytes();
            }
            if let Some(path) = Place::of(&config).beside(KEPT_ENDING) {
                published.keep_pointer(path);
            }
        }
        Self::assemble(cache, source, config, notifier)
    }

    /// Opens an image over a source of the caller's own, for embedders with another transport and for tests.
    pub fn open_source<S: AsRef<str>>(
        source: Box<dyn Source>,
        options: impl IntoIterator<Item = S>,
        notifier: Notifier,
    ) -> Result<Self> {
        let named = [format!("source={}", source.name())];
        let options = options.into_iter().map(|o| o.as_ref().to_owned());
        let mut config = Config::parse(named.into_iter().chain(options))?;
        // Nothing is known of what else such a transport can bring, so nobody is asked for a model.
        config.sources.clear();
        Self::assemble(Cache::lock(&Place::of(&config))?, source, config, notifier)
    }

    fn assemble(cache: Cache, source: Box<dyn Source>, mut config: Config, notifier: Notifier) -> Result<Self> {
        let identity = source.identity().clone();
        let geometry = Geometry::new(identity.size, config.block_bytes)?;
        let (store, journal, present) = cache.begin(&identity, geometry, &source.name())?;
        if store.ephemeral() && !config.fill_given {
            config.fill = false; // a nameless file must not eat the disk unasked
        }
        let gate = Gate::new(geometry, &config)?;
        for run in present {
            gate.states.restore(run);
        }
        log::info!(
            "{}: {} bytes, {} resident in {}",
            source.name(),
            geometry.size(),
            gate.states.resident_count() * geometry.block_bytes(),
            store.path().map_or("a temporary file".into(), |path| path.to_string_lossy())
        );
        let sessions = session::Directory::of(&config);
        let subject = Subject::now(&identity, geometry);
        let writer = sessions.map(|directory| session::Writer::new(directory, subject.clone()));
        let complete = gate.states.resident_count() == geometry.blocks();
        let published = source.published();
        let engine = Engine::start(gate, store, journal, source, notifier, writer, &config)?;
        let uploader = Uploader::start(&config, &subject, published);
        let learner = match config.model {
            ModelChoice::Off => Learner::idle("model=off"),
            _ if config.bulk => Learner::idle("nobody waits for single blocks (bulk=on)"),
            _ if complete => Learner::idle("the image is complete"),
            _ => Learner::start(&config, subject, engine.follower()),
        };
        if config.bulk || complete {
            engine.change(Planner::release_fill); // nobody else will
        }
        Ok(Self { learner, uploader, engine, map: OnceLock::new(), opened: Moment::now() })
    }

    /// From now on follows the guest with a foresight of the caller's own, which knows nothing of what was touched
    /// before, instead of the model that was found or is still to come.
    pub fn follow(&self, foresight: Option<Box<dyn Foresight>>) {
        self.learner.dismiss("none: the guest is followed by a foresight of the embedder's own");
        self.engine.change(|planner| planner.set_foresight(foresight, 0));
    }

    fn gate(&self) -> &Gate {
        &self.engine.shared.gate
    }

    fn geometry(&self) -> Geometry {
        self.gate().geometry()
    }

    fn fault(&self, code: i32, op: Op, offset: u64, length: u64) -> Error {
        let why = match code {
            errno::EINVAL => format!("outside the image of {} bytes", self.size()),
            errno::EROFS => "the image was opened read_only".to_owned(),
            errno::EAGAIN => "too many requests are pending; try again after a completion".to_owned(),
            errno::ECANCELED => "the image is closing".to_owned(),
            _ => self.last_error().unwrap_or_else(|| format!("errno {code}")),
        };
        Error::new(code, format!("{op:?} of {length} bytes at {offset}: {why}"))
    }

    /// Asks for a byte range before the driver reads or overwrites it in the local file.
    ///
    /// [`Answer::Ready`]: go ahead, and after a write or discard call [`Image::block_done`]. [`Answer::Pending`]: one
    /// completion with `tag` will come; with result 0 it means the same as ready. Never blocks, never allocates when the
    /// blocks are resident. Errors: EINVAL (outside the image), EROFS, EAGAIN (too many pending), ECANCELED.
    pub fn block_needed(&self, op: Op, offset: u64, length: u64, tag: u64) -> Result<Answer> {
        self.gate().needed(op, offset, length, tag).map_err(|code| self.fault(code, op, offset, length))
    }

    /// The same with plain error numbers: no allocation on any path.
    pub fn block_needed_raw(&self, op: Op, offset: u64, length: u64, tag: u64) -> std::result::Result<Answer, i32> {
        self.gate().needed(op, offset, length, tag)
    }

    /// True when [`Image::block_needed`] would answer [`Answer::Ready`] for blocks that were touched before. Never
    /// panics.
    #[inline]
    pub fn is_known(&self, op: Op, offset: u64, length: u64) -> bool {
        self.gate().is_known(op, offset, length)
    }

    /// Whether the byte at `offset` is resident, and how many bytes from there on, at most `length`, are of the same
    /// kind: what a driver needs to tell extents. Asks for nothing, and is no touch. Resident bytes stay resident; the
    /// others may come at any moment. Errors: EINVAL (outside the image).
    pub fn resident(&self, offset: u64, length: u64) -> Result<(bool, u64)> {
        self.gate().resident(offset, length).map_err(|code| self.fault(code, Op::Read, offset, length))
    }

    /// The same with a plain error number.
    pub fn resident_raw(&self, offset: u64, length: u64) -> std::result::Result<(bool, u64), i32> {
        self.gate().resident(offset, length)
    }

    /// Says that a write or discard that was ready has ended; `written` is false when it failed.
    pub fn block_done(&self, op: Op, offset: u64, length: u64, written: bool) -> Result<()> {
        self.gate().done(op, offset, length, written).map_err(|code| self.fault(code, op, offset, length))
    }

    /// The same with plain error numbers.
    pub fn block_done_raw(&self, op: Op, offset: u64, length: u64, written: bool) -> std::result::Result<(), i32> {
        self.gate().done(op, offset, length, written)
    }

    /// Sleeps until the range is ready.
    pub fn block_wait(&self, op: Op, offset: u64, length: u64) -> Result<()> {
        self.gate().wait(op, offset, length).map_err(|code| self.fault(code, op, offset, length))
    }

    /// The same with plain error numbers.
    pub fn block_wait_raw(&self, op: Op, offset: u64, length: u64) -> std::result::Result<(), i32> {
        self.gate().wait(op, offset, length)
    }

    /// Makes every write that was done before this call durable. Blocks.
    pub fn flush(&self) -> Result<()> {
        self.block_wait(Op::Flush, 0, 0)
    }

    /// Takes up to `out.len()` completions without blocking; 0 when there are none or a callback gets them.
    pub fn reap(&self, out: &mut [Completion]) -> usize {
        self.engine.queue().map_or(0, |queue| queue.reap(out))
    }

    /// Readable while [`Image::reap`] has completions; `None` when a callback gets them.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.queue().map(|queue| queue.event_fd())
    }

    /// Reads the local file. Only what is resident means anything.
    pub fn read_local(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.engine.shared.store.read(offset, bytes)
    }

    /// Overwrites the local file, between a write's "ready" and its [`Image::block_done`], and keeps its modification
    /// time.
    pub fn write_local(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.engine.shared.store.write(offset, bytes)
    }

    /// Puts right what writes past [`Image::write_local`], through [`Image::fd`] or a kernel's pass-through, may have
    /// changed: a length beyond the image's, and the modification time.
    pub fn tidy_local(&self) -> Result<()> {
        self.engine.shared.store.tidy()
    }

    /// Zeroes a range of the local file and gives its space back, between a discard's "ready" and its
    /// [`Image::block_done`].
    pub fn zero_local(&self, offset: u64, length: u64) -> Result<()> {
        self.engine.shared.store.zero(offset, length)
    }

    /// Reads bytes of the image, waiting for them if need be.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.block_wait(Op::Read, offset, bytes.len() as u64)?;
        self.read_local(offset, bytes)
    }

    /// Overwrites bytes of the image.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        self.block_wait(Op::Write, offset, length)?;
        let result = self.write_local(offset, bytes);
        self.block_done(Op::Write, offset, length, result.is_ok())?;
        result
    }

    /// Makes a range read as zeroes and gives its space back.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.block_wait(Op::Discard, offset, length)?;
        let result = self.zero_local(offset, length);
        self.block_done(Op::Discard, offset, length, result.is_ok())?;
        result
    }

    /// The local file, for reading and writing by the driver's own means. Closed with the image, not before.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.engine.shared.store.fd()
    }

    /// Path of the local file; `None` for a nameless temporary one.
    pub fn path(&self) -> Option<&Path> {
        self.engine.shared.store.path()
    }

    /// Address of a read-only map of the whole local file, made at the first call. Only resident blocks mean anything.
    pub fn map(&self) -> Result<*const u8> {
        if let Some(map) = self.map.get() {
            return Ok(map.address());
        }
        let map = FileMap::new(self.fd(), self.size())?;
        Ok(self.map.get_or_init(|| map).address())
    }

    /// Size of the image, in bytes.
    pub fn size(&self) -> u64 {
        self.geometry().size()
    }

    /// Size of a block, in bytes.
    pub fn block_size(&self) -> u64 {
        self.geometry().block_bytes()
    }

    /// True when every block is resident.
    pub fn is_complete(&self) -> bool {
        self.gate().states.resident_count() == self.geometry().blocks()
    }

    /// The source's name, without credentials.
    pub fn source_name(&self) -> String {
        self.engine.shared.source.name()
    }

    /// What is known of the image beyond its bytes when its source is a link to a published one.
    pub fn published(&self) -> Option<Arc<Published>> {
        self.engine.shared.source.published()
    }

    /// The last error of the link or the local disk, as text for a person.
    pub fn last_error(&self) -> Option<String> {
        self.engine.last_error()
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        let shared = &self.engine.shared;
        let counters = &shared.counters;
        let now = Moment::now();
        let mut stats = self.engine.look(|planner| {
            let tally = planner.tally(now);
            Stats {
                demand_fetches: tally.demand_fetches,
                prefetch_fetches: tally.prefetch_fetches,
                stalls: tally.stalls,
                joined: tally.joined,
                stalled: tally.stalled,
                waiting: planner.waiting() as u64,
                rate: planner.link().rate() as u64,
                round_trip: planner.link().round_trip().unwrap_or_default(),
                failed: planner.has_failed(),
                failures_on_end: planner.failures_on_end(),
                ..Stats::default()
            }
        });
        stats.size = self.size();
        stats.resident_bytes = (shared.gate.states.resident_count() * self.block_size()).min(self.size());
        stats.bytes_fetched = counters.bytes_fetched.get();
        stats.bytes_zero = counters.bytes_zero.get();
        stats.bytes_dropped = counters.bytes_dropped.get();
        stats.requests = shared.source.requests();
        stats.fetch_errors = counters.fetch_errors.get();
        stats.first_hits = shared.gate.first_hits();
        stats.misses = counters.misses.get();
        stats.flushes = counters.flushes.get();
        stats.checkpoints = counters.checkpoints.get();
        stats
    }

    /// The model that the guest is followed by. It may come, and give way to a better one, while the image is in use.
    pub fn model(&self) -> ModelInUse {
        self.learner.status()
    }

    /// What is to be expected in the next `horizon`; [`Forecast::calm_in`] is for a risk of [`CALM_RISK`]. With a model
    /// it takes a few milliseconds, in which it holds up nobody.
    pub fn forecast(&self, horizon: Duration) -> Forecast {
        self.forecast_below(horizon, CALM_RISK)
    }

    /// The same with [`Forecast::calm_in`] for a risk of one's own, from 0 to 1.
    pub fn forecast_below(&self, horizon: Duration, risk: f64) -> Forecast {
        let gate = self.gate();
        let outlook = self.engine.look(|planner| planner.outlook(Moment::now()));
        let resident = gate.states.resident_count() * self.block_size();
        outlook.forecast(horizon, risk, self.size().saturating_sub(resident), gate)
    }

    /// True when anything is fetched that the guest has not asked for: unless both `prefetch` and `fill` are off.
    pub fn fetches_ahead(&self) -> bool {
        self.engine.look(Planner::fetches_ahead)
    }

    /// Names this moment of the session, for people who read its record. A name longer than 256 bytes is cut.
    pub fn mark(&self, name: &str) {
        self.engine.mark(name);
        log::info!("mark after {:.3} s: {name}", Moment::now().since(self.opened).as_secs_f64());
    }

    /// Changes an option while the image is open: `prefetch`, `fill` or `error_after`.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        match key {
            "prefetch" => {
                let prefetch = Prefetch::parse(key, value)?;
                self.engine.change(|p| p.set_prefetch(prefetch));
            }
            "fill" => {
                let on = parse_switch(key, value)?;
                self.engine.change(|p| p.set_fill(on));
            }
            "error_after" => {
                let limit = Some(parse_duration(key, value)?).filter(|d| !d.is_zero());
                self.engine.change(|p| p.set_error_after(limit));
            }
            _ => {
                return Err(Error::option(
                    key,
                    value,
                    "cannot be changed while the image is open (prefetch, fill and error_after can)",
                ));
            }
        }
        Ok(())
    }

    /// Answers everything that is pending with -ECANCELED, sleepers of the blocking form included, and refuses what is
    /// not resident from now on. So the threads that use the image can be brought to an end before it is closed.
    pub fn cancel(&self) {
        self.engine.cancel();
    }

    /// True inside a completion callback: there the image cannot be closed.
    pub fn is_own_thread(&self) -> bool {
        self.engine.is_own_thread()
    }

    /// Closes the image and says what went wrong in making it durable, if anything did.
    pub fn close(self) -> Result<()> {
        self.stop()
    }

    /// Closes the image where it lies: completion callbacks that run meanwhile may still use it.
    pub(crate) fn stop(&self) -> Result<()> {
        // First, so that nothing that the learner fetches from the image's source holds up the end.
        self.engine.cancel();
        self.learner.stop();
        self.uploader.finish_after(|| self.engine.stop())
    }

    /// Closes a complete image and removes its journal: what is left is an ordinary raw file.
    pub fn finish(self) -> Result<()> {
        if !self.is_complete() {
            let missing = self.size() - self.stats().resident_bytes;
            return Err(Error::new(errno::EBUSY, format!("{}: {missing} bytes are still missing", self.source_name())));
        }
        self.engine.cancel();
        self.learner.stop();
        if let Some(published) = self.published() {
            published.forget_pointer();
        }
        self.uploader.finish_after(|| self.engine.finish())
    }
}

/// Opens the source on a thread of its own: looking up a host name may start threads, and they inherit its signal mask.
/// The caller keeps its own mask meanwhile, so that it can still be interrupted.
fn open_source_aside(config: &Config, pinned: Option<&source::Identity>) -> Result<Box<dyn Source>> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("vms-open".to_owned());
        let opener = with_signals_blocked(|| builder.spawn_scoped(scope, || source::open(config, pinned)));
        let opener = opener.map_err(|e| Error::io("cannot start thread vms-open", e))?;
        opener.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
