//! What all threads of an image share, and the core among it: all that policy decides on.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::Sender;

use super::syncer::SyncJob;
use crate::counters::Counters;
use crate::error::errno;
use crate::gate::{ENGINE_SEAT, Gate, Op, Reply};
use crate::notify::{Completion, Notifier};
use crate::planner::{Action, Cargo, Class, Event, FetchId, Planner, RequestId};
use crate::session::Recorder;
use crate::source::Source;
use crate::store::Store;
use crate::time::Moment;

/// Deadline that never comes.
pub(super) const NEVER: Moment = Moment(u64::MAX);

/// A fetch for a worker.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) fetch: FetchId,
    pub(super) cargo: Cargo,
}

/// An answer to give once the core's lock is released.
pub(super) type Answer = (Reply, i32);

/// Everything that policy decides on. One owner at a time: whoever holds the lock.
pub(super) struct Core {
    pub(super) planner: Planner,
    pub(super) requests: u64,
    pub(super) replies: HashMap<RequestId, Reply>,
    pub(super) jobs: VecDeque<Job>,
    pub(super) actions: Vec<Action>,
    /// When the engine thread will look again by itself.
    pub(super) engine_wakes: Moment,
    /// When what arrived shall be made durable.
    pub(super) checkpoint_at: Option<Moment>,
    /// Bytes that arrived since somebody last asked for that.
    pub(super) fresh: u64,
    pub(super) notes_seen: bool,
    /// What the guest does, on its way to the syncer.
    pub(super) recorder: Recorder,
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
    pub(super) notifier: Notifier,
    pub(super) core: Mutex<Core>,
    /// Length of the job queue, to look at without the lock.
    pub(super) jobs: AtomicUsize,
    pub(super) sync: Sender<SyncJob>,
    /// Number of workers.
    pub(super) lanes: usize,
    /// The planner knows where the image has holes, or nobody ever will.
    pub(super) holes_known: AtomicBool,
    pub(super) closing: AtomicBool,
    /// The engine thread's deadlines have changed since it looked.
    pub(super) poked: AtomicBool,
    pub(super) checkpoint: Duration,
    pub(super) last_error: Mutex<Option<String>>,
}

/// A lock that outlives a panic: the callback of an embedder must not take the image down with it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// One turn of the planner: takes in what the gate has, decides, and leaves fetches in the job queue and answers in
    /// `answers`.
    pub(super) fn turn(&self, core: &mut Core, event: Option<Event>, answers: &mut Vec<Answer>) {
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
    pub(super) fn change(&self, change: impl FnOnce(&mut Planner)) {
        change(&mut lock(&self.core).planner);
        self.poke_engine();
    }

    /// Has the engine thread look at its deadlines again, also when it is just about to fall asleep.
    pub(super) fn poke_engine(&self) {
        self.poked.store(true, Ordering::SeqCst);
        self.gate.signal.ring_seat(ENGINE_SEAT);
    }

    /// When the engine thread has something to do even if nothing happens. The planner wants no more turns once nobody
    /// waits for one.
    pub(super) fn deadline(&self, core: &Core) -> Moment {
        let planner = if self.gate.is_closed() { None } else { core.planner.deadline() };
        [planner, core.checkpoint_at, core.recorder.deadline()].into_iter().flatten().min().unwrap_or(NEVER)
    }

    /// Gives answers. Never under the core's lock: a callback may take its time or call the gate.
    pub(super) fn answer(&self, answers: &mut Vec<Answer>) {
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
    pub(super) fn shielded(&self, body: impl FnOnce()) {
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

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Remembers and logs an error.
    pub(super) fn report(&self, level: log::Level, message: String) {
        let mut last = lock(&self.last_error);
        // What every connection meets at the same moment is said once.
        let level = if last.as_ref() == Some(&message) { log::Level::Debug } else { level };
        log::log!(level, "{message}");
        *last = Some(message);
    }
}
