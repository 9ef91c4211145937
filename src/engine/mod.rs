//! The engine: turns misses into fetches, fetches into resident blocks, and resident blocks into answers.
//!
//! All policy state - the planner and what hangs on it - is the *core*, and it has one owner at a time: the thread that
//! holds its lock. Whoever has news takes the lock for a few microseconds, lets the planner run (a *turn*), and leaves
//! with what is to be done: answers to give and, for a worker, its next fetch. So a miss wakes an idle worker, which
//! plans and fetches on the same thread and answers the guest itself: two thread switches, where a separate owner thread
//! costs four. The gate never takes this lock.
//!
//! The *engine thread* owns the time: deadlines, back-off, checkpoints, notes of hits; and it serves misses while all
//! workers are inside the network. The *syncer* owns the journal and the file in which the session is recorded.

mod blocks;
mod clock;
mod follower;
mod holes;
mod landing;
mod shared;
mod syncer;
mod worker;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use crossbeam::channel::unbounded;

use crate::config::Config;
use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::notify::Notifier;
use crate::planner::Planner;
use crate::session::{Recorder, Writer};
use crate::source::Source;
use crate::store::{Journal, Store};
use crate::sys::with_signals_blocked;
use crate::time::Moment;
pub(crate) use follower::Follower;
pub(crate) use shared::Shared;
use shared::{Answer, Core, Job, NEVER, lock};
use syncer::SyncJob;

/// So much that arrived is made durable at once, not at the next checkpoint, in bytes: on a fast link the disk is kept
/// busy while bytes arrive, where it would else wait for a second and then hold up everybody.
const FRESH_MAX: u64 = 64 << 20;
/// How long the end waits for callers to leave the gate, once they have their answers.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// Stack of a library thread, in bytes: TLS handshakes need the most.
const STACK_BYTES: usize = 512 << 10;

/// The syncer's thread; it hands the journal back, and says how the last sync went.
type Syncer = JoinHandle<(Journal, Result<()>)>;

/// The running engine of one image.
pub(crate) struct Engine {
    pub shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    syncer: Mutex<Option<Syncer>>,
    /// Where completions come from: our threads, and while requests are canceled or the image is being stopped the
    /// thread that does it.
    own: Mutex<Vec<ThreadId>>,
}

/// What an engine is made of.
pub(crate) struct Parts {
    pub gate: Gate,
    pub store: Store,
    pub journal: Journal,
    pub source: Box<dyn Source>,
    pub notifier: Notifier,
    /// For the record of the session, which begins when the engine does.
    pub writer: Option<Writer>,
    /// The fill waits for the first foresight. There must be a [`Follower`] then, whose end lets it begin at the latest.
    pub hold_fill: bool,
}

impl Engine {
    /// Starts the threads.
    pub fn start(parts: Parts, config: &Config) -> Result<Self> {
        let Parts { gate, store, journal, source, notifier, writer, hold_fill } = parts;
        let (sync, sync_jobs) = unbounded();
        let now = Moment::now();
        let mut planner = Planner::new(gate.geometry(), config, now.0);
        if hold_fill {
            planner.hold_fill();
        }
        let core = Core {
            planner,
            requests: 0,
            replies: HashMap::new(),
            jobs: VecDeque::new(),
            actions: Vec::new(),
            engine_wakes: NEVER,
            checkpoint_at: None,
            fresh: 0,
            notes_seen: false,
            recorder: Recorder::new(now, writer.is_some()),
        };
        let shared = Arc::new(Shared {
            gate,
            store,
            source,
            counters: Counters::default(),
            notifier,
            core: Mutex::new(core),
            jobs: AtomicUsize::new(0),
            sync,
            lanes: config.connections,
            holes_known: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            poked: AtomicBool::new(false),
            checkpoint: config.checkpoint,
            last_error: Mutex::new(None),
        });
        shared.learn_holes();
        let engine = Self { shared, threads: Mutex::default(), syncer: Mutex::default(), own: Mutex::default() };
        let shared = engine.shared.clone();
        let syncer = spawn("vms-sync", move || syncer::run(&shared, journal, writer, &sync_jobs))?;
        lock(&engine.own).push(syncer.thread().id());
        *lock(&engine.syncer) = Some(syncer);
        for lane in 0..config.connections {
            let shared = engine.shared.clone();
            engine.keep(spawn("vms-fetch", move || shared.shielded(|| worker::run(&shared, lane)))?);
        }
        let shared = engine.shared.clone();
        engine.keep(spawn("vms-engine", move || shared.shielded(|| clock::run(&shared)))?);
        Ok(engine)
    }

    fn keep(&self, thread: JoinHandle<()>) {
        lock(&self.own).push(thread.thread().id());
        lock(&self.threads).push(thread);
    }

    /// Looks at the planner, between two turns.
    pub fn look<T>(&self, look: impl FnOnce(&Planner) -> T) -> T {
        look(&lock(&self.shared.core).planner)
    }

    /// Changes the planner, between two turns, and has it decide anew.
    pub fn change(&self, change: impl FnOnce(&mut Planner)) {
        self.shared.change(change);
    }

    /// For a thread that brings a model, now or later.
    pub fn follower(&self) -> Follower {
        Follower::new(self.shared.clone())
    }

    /// Names this moment in the record of the session, if there is one.
    pub fn mark(&self, name: &str) {
        lock(&self.shared.core).recorder.mark(name, Moment::now());
        self.shared.poke_engine();
    }

    /// Whether the record of the session is kept back in memory until it is known that it becomes one.
    pub fn hold_record(&self, held: bool) {
        lock(&self.shared.core).recorder.hold_back(held);
        self.shared.poke_engine();
    }

    /// True where completions are given: on the engine's threads and on one that cancels requests or stops the engine.
    pub fn is_own_thread(&self) -> bool {
        lock(&self.own).contains(&std::thread::current().id())
    }

    /// The last error, as text for a person.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.shared.last_error).clone()
    }

    /// The completion queue, when completions go there.
    pub fn queue(&self) -> Option<&crate::notify::CompletionQueue> {
        match &self.shared.notifier {
            Notifier::Queue(queue) => Some(queue),
            Notifier::Callback(_) => None,
        }
    }

    /// Answers everything that is pending with -ECANCELED and refuses what is not resident from now on. The threads
    /// live on, and answer whoever passed the gate just before it closed.
    pub fn cancel(&self) {
        let shared = &self.shared;
        shared.gate.close();
        shared.source.abort();
        let mut answers: Vec<Answer> = Vec::new();
        shared.turn(&mut lock(&shared.core), None, &mut answers);
        // The callbacks run here.
        let this = std::thread::current().id();
        lock(&self.own).push(this);
        shared.answer(&mut answers);
        let mut own = lock(&self.own);
        if let Some(place) = own.iter().rposition(|thread| *thread == this) {
            own.swap_remove(place);
        }
    }

    /// Stops all threads, makes durable what arrived, and answers what is pending with -ECANCELED. Answers how the last
    /// sync went.
    pub fn stop(&self) -> Result<()> {
        self.stop_threads().map_or(Ok(()), |(_, synced)| synced)
    }

    /// Stops a complete image and removes its journal.
    pub fn finish(&self) -> Result<()> {
        match self.stop_threads() {
            Some((journal, synced)) => synced.and_then(|()| journal.finish()),
            None => Ok(()),
        }
    }

    fn stop_threads(&self) -> Option<(Journal, Result<()>)> {
        let shared = &self.shared;
        lock(&self.own).push(std::thread::current().id());
        self.cancel();
        shared.closing.store(true, Ordering::SeqCst);
        shared.gate.signal.ring_all();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // A panic in a thread was reported when it happened.
            let _ = thread.join();
        }
        let _ = shared.sync.send(SyncJob::Record(lock(&shared.core).recorder.take_all(Moment::now())));
        // The syncer answers flushes that came before this, then stops.
        let _ = shared.sync.send(SyncJob::Stop);
        let syncer = lock(&self.syncer).take();
        let synced = syncer.and_then(|syncer| syncer.join().ok());
        let mut answers: Vec<Answer> = Vec::new();
        let patience = Moment::now() + STOP_PATIENCE;
        loop {
            shared.turn(&mut lock(&shared.core), None, &mut answers);
            shared.answer(&mut answers);
            // A caller that passed the closed check just before may still be pushing its miss or leaving its sleep.
            if shared.gate.outstanding() == 0 && !shared.gate.has_sleepers() {
                break;
            }
            if Moment::now() > patience {
                // Killed in its sleep, as monitors do with their helper threads, or as good as that. It can never
                // be told apart from one that is slow to wake, so what it would touch stays for ever.
                log::warn!("a thread that waited for a block never came back; its memory is given up");
                std::mem::forget(shared.clone());
                break;
            }
            std::thread::yield_now();
        }
        synced
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.stop(); // what failed was logged
    }
}

fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    with_signals_blocked(|| builder.spawn(body)).map_err(|e| Error::io(format_args!("cannot start thread {name}"), e))
}
