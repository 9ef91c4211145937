//! The engine thread: it owns the time - deadlines, back-off, checkpoints, notes of hits -, and serves misses that find no
//! idle worker.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::lock;
use super::shared::{NEVER, Shared};
use super::syncer::SyncJob;
use crate::gate::ENGINE_SEAT;
use crate::time::Moment;

/// How long notes of hits may wait while they keep coming.
const NOTES_BATCH: Duration = Duration::from_millis(5);

/// Body of the thread.
pub(super) fn run(shared: &Shared) {
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
