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
mod follower;
mod holes;
mod landing;
mod syncer;
mod worker;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};

use crate::config::{Config, ModelChoice};
use crate::counters::Counters;
use crate::error::{Error, Result, errno};
use crate::gate::{ENGINE_SEAT, Gate, Op, Reply};
use crate::notify::{Completion, Notifier};
use crate::planner::{Action, Cargo, Class, Event, FetchId, Planner, RequestId};
use crate::session::{Recorder, Writer};
use crate::source::Source;
use crate::store::{Journal, Store};
use crate::sys::with_signals_blocked;
use crate::time::Moment;
pub(crate) use follower::Follower;
use syncer::SyncJob;

/// How long notes of hits may wait while they keep coming.
const NOTES_BATCH: Duration = Duration::from_millis(5);
/// So much that arrived is made durable at once, not at the next checkpoint, in bytes: on a fast link the disk is kept
/// busy while bytes arrive, where it would else wait for a second and then hold up everybody.
const FRESH_MAX: u64 = 64 << 20;
/// How long the end waits for callers to leave the gate, once they have their answers.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// Deadline that never comes.
const NEVER: Moment = Moment(u64::MAX);
/// Stack of a library thread, in bytes: TLS handshakes need the most.
const STACK_BYTES: usize = 512 << 10;

/// A fetch for a worker.
#[derive(Debug)]
struct Job {
    fetch: FetchId,
    cargo: Cargo,
}

/// An answer to give once the core's lock is released.
type Answer = (Reply, i32);

/// Everything that policy decides on. One owner at a time: whoever holds the lock.
struct Core {
    planner: Planner,
    requests: u64,
    replies: HashMap<RequestId, Reply>,
    jobs: VecDeque<Job>,
    actions: Vec<Action>,
    /// When the engine thread will look again by itself.
    engine_wakes: Moment,
    /// When what arrived shall be made durable.
    checkpoint_at: Option<Moment>,
    /// Bytes that arrived since somebody last asked for that.
    fresh: u64,
    notes_seen: bool,
    /// What the guest does, on its way to the syncer.
    recorder: Recorder,
}

impl Core {
    /// A demand overtakes what nobody waits for.
    fn enqueue(&mut self, job: Job, class: Class) {
        match class {
            Class::Demand => self.jobs.push_front(job),
            Class::Prefetch | Class::Fill => self.jobs.push_back(job),
        }
    }
}

/// What all threads of an image share.
pub(crate) struct Shared {
    pub gate: Gate,
    pub store: Store,
    pub source: Box<dyn Source>,
    pub counters: Counters,
    notifier: Notifier,
    core: Mutex<Core>,
    /// Length of the job queue, to look at without the lock.
    jobs: AtomicUsize,
    sync: Sender<SyncJob>,
    /// Number of workers.
    lanes: usize,
    /// The planner knows where the image has holes, or nobody ever will.
    holes_known: AtomicBool,
    closing: AtomicBool,
    /// The engine thread's deadlines have changed since it looked.
    poked: AtomicBool,
    checkpoint: Duration,
    last_error: Mutex<Option<String>>,
}

/// A lock that outlives a panic: the callback of an embedder must not take the image down with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// One turn of the planner: takes in what the gate has, decides, and leaves fetches in the job queue and answers in
    /// `answers`.
    fn turn(&self, core: &mut Core, event: Option<Event>, answers: &mut Vec<Answer>) {
        let now = Moment::now();
        let mut actions = std::mem::take(&mut core.actions);
        if let Some(event) = event {
            core.planner.on(event, now, &self.gate, &mut actions);
        }
        if self.gate.take_attention() {
            core.planner.on(Event::WritesEnded, now, &self.gate, &mut actions);
        }
        while let Some(note) = self.gate.next_note() {
            let request = Planner::request(self.gate.geometry(), note.op, note.offset, note.length, now);
            core.planner.on(Event::Touched(request), now, &self.gate, &mut actions);
            core.recorder.touched(note.op, note.offset, note.length, note.at);
            core.notes_seen = true;
            core.checkpoint_at.get_or_insert(now + self.checkpoint);
        }
        core.recorder.missed(self.gate.take_lost_notes());
        let canceled = self.gate.is_closed();
        if canceled {
            answers.extend(core.replies.drain().map(|(_, reply)| (reply, -errno::ECANCELED)));
            core.jobs.clear();
            core.recorder.all_answered(now);
        }
        while let Some(miss) = self.gate.next_miss() {
            self.counters.misses.add(1);
            if canceled {
                answers.push((miss.reply, -errno::ECANCELED));
                continue;
            }
            if miss.op == Op::Flush {
                self.counters.flushes.add(1);
                if self.sync.send(SyncJob::Flush(miss.reply)).is_err() {
                    answers.push((miss.reply, -errno::ECANCELED));
                }
                continue;
            }
            core.requests += 1;
            let id = RequestId(core.requests);
            core.replies.insert(id, miss.reply);
            core.recorder.asked(id.0, miss.op, miss.offset, miss.length, now);
            let request = Planner::request(self.gate.geometry(), miss.op, miss.offset, miss.length, now);
            self.gate.states.touch(request.touched);
            core.planner.on(Event::Needed(id, request), now, &self.gate, &mut actions);
        }
        if !canceled {
            core.planner.plan(now, &self.gate, &mut actions);
        }
        for action in actions.drain(..) {
            match action {
                Action::Complete(id, result) => {
                    answers.extend(core.replies.remove(&id).map(|reply| (reply, result)));
                    core.recorder.answered(id.0, now);
                }
                Action::Fetch(fetch, range, class) => core.enqueue(Job { fetch, cargo: Cargo::Range(range) }, class),
                Action::FetchFrames(fetch, frames, class) => {
                    core.enqueue(Job { fetch, cargo: Cargo::Frames(frames) }, class);
                }
            }
        }
        core.actions = actions;
        self.jobs.store(core.jobs.len(), Ordering::Release);
        let events = core.recorder.take_due(now);
        if !events.is_empty() {
            let _ = self.sync.send(SyncJob::Record(events)); // fails only while the image is closing
        }
        if self.deadline(core) < core.engine_wakes {
            core.engine_wakes = now; // it will set this itself
            self.poke_engine();
        }
    }

    /// Changes the planner, between two turns, and has it decide anew.
    fn change(&self, change: impl FnOnce(&mut Planner)) {
        change(&mut lock(&self.core).planner);
        self.poke_engine();
    }

    /// Has the engine thread look at its deadlines again, also when it is just about to fall asleep.
    fn poke_engine(&self) {
        self.poked.store(true, Ordering::SeqCst);
        self.gate.signal.ring_seat(ENGINE_SEAT);
    }

    /// When the engine thread has something to do even if nothing happens. The planner wants no more turns once nobody
    /// waits for one.
    fn deadline(&self, core: &Core) -> Moment {
        let planner = if self.gate.is_closed() { None } else { core.planner.deadline() };
        [planner, core.checkpoint_at, core.recorder.deadline()].into_iter().flatten().min().unwrap_or(NEVER)
    }

    /// Gives answers. Never under the core's lock: a callback may take its time or call the gate.
    fn answer(&self, answers: &mut Vec<Answer>) {
        for (reply, result) in answers.drain(..) {
            self.gate.completed();
            match reply {
                Reply::Place(place) => self.gate.answer(place, result),
                Reply::Tag(tag) => self.notifier.notify(Completion { tag, result }),
            }
        }
    }

    /// Runs the body of a thread. A panic there is a defect of ours: it must not leave a guest waiting for ever, so the
    /// image is given up and everything that waits is answered with -ENOTRECOVERABLE.
    fn shielded(&self, body: impl FnOnce()) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok() {
            return;
        }
        self.report(log::Level::Error, "internal error in a streaming thread; the image is given up".to_owned());
        self.gate.close();
        self.closing.store(true, Ordering::SeqCst);
        let mut answers: Vec<Answer> = Vec::new();
        {
            let mut core = lock(&self.core);
            answers.extend(core.replies.drain().map(|(_, reply)| (reply, -errno::ENOTRECOVERABLE)));
            while let Some(miss) = self.gate.next_miss() {
                answers.push((miss.reply, -errno::ENOTRECOVERABLE));
            }
        }
        self.answer(&mut answers);
        self.gate.signal.ring_all();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Remembers and logs an error.
    fn report(&self, level: log::Level, message: String) {
        let mut last = lock(&self.last_error);
        // What every connection meets at the same moment is said once.
        let level = if last.as_ref() == Some(&message) { log::Level::Debug } else { level };
        log::log!(level, "{message}");
        *last = Some(message);
    }
}

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

impl Engine {
    /// Starts the threads. `writer` is for the record of the session, which begins now.
    pub fn start(
        gate: Gate,
        store: Store,
        journal: Journal,
        source: Box<dyn Source>,
        notifier: Notifier,
        writer: Option<Writer>,
        config: &Config,
    ) -> Result<Self> {
        let (sync, sync_jobs) = unbounded();
        let now = Moment::now();
        let mut planner = Planner::new(gate.geometry(), config, now.0);
        if source.published().is_some() && config.model == ModelChoice::Auto {
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
        engine.keep(spawn("vms-engine", move || shared.shielded(|| run(&shared)))?);
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

/// The engine thread: time, notes, and misses that find no idle worker.
fn run(shared: &Shared) {
    let mut answers = Vec::new();
    while !shared.is_closing() {
        let (wakes, notes_seen) = {
            let mut core = lock(&shared.core);
            let core = &mut *core;
            core.engine_wakes = Moment(0); // awake: no need to ring
            shared.poked.store(false, Ordering::SeqCst);
            shared.turn(core, None, &mut answers);
            let now = Moment::now();
            if core.checkpoint_at.is_some_and(|at| at <= now) {
                core.checkpoint_at = None;
                core.fresh = 0;
                if shared.gate.states.has_dirty() {
                    let _ = shared.sync.send(SyncJob::Checkpoint);
                }
                core.planner.look_for_gaps();
            }
            let mut wakes = shared.deadline(core);
            let notes_seen = std::mem::take(&mut core.notes_seen);
            if notes_seen {
                wakes = wakes.min(now + NOTES_BATCH);
            }
            core.engine_wakes = wakes;
            (wakes, notes_seen)
        };
        shared.answer(&mut answers);
        for _ in 0..shared.jobs.load(Ordering::Acquire) {
            shared.gate.signal.ring();
        }
        if !notes_seen {
            shared.gate.want_notes();
        }
        let limit = (wakes != NEVER).then(|| wakes.since(Moment::now()));
        if limit == Some(Duration::ZERO) {
            continue;
        }
        shared.gate.signal.sleep(ENGINE_SEAT, limit, || {
            shared.gate.has_work()
                || shared.poked.load(Ordering::SeqCst)
                || (!notes_seen && shared.gate.has_notes())
                || shared.is_closing()
        });
    }
}
