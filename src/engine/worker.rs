//! A worker: sleeps until there is something to fetch, fetches it, lands it, looks for more.

use std::sync::atomic::Ordering;

use super::landing::{FrameLanding, Landing};
use super::{Answer, Job, Shared, lock};
use crate::error::Error;
use crate::planner::{Cargo, Event, Outcome, PREFETCH_RESERVE};
use crate::source::FetchError;

/// Body of a worker thread. `lane` is its seat at the gate and its connection at the source.
pub(super) fn run(shared: &Shared, lane: usize) {
    let mut answers: Vec<Answer> = Vec::new();
    let mut carry = Vec::new();
    if is_demand_lane(shared, lane) {
        shared.source.warm(lane);
    }
    let mut finished = None;
    while !shared.is_closing() {
        let (job, more) = {
            let mut core = lock(&shared.core);
            shared.turn(&mut core, finished.take(), &mut answers);
            let job = core.jobs.pop_front();
            shared.jobs.store(core.jobs.len(), Ordering::Release);
            (job, !core.jobs.is_empty())
        };
        if more {
            shared.gate.signal.ring();
        }
        shared.answer(&mut answers);
        match job {
            Some(job) => finished = Some(fetch(shared, lane, job, &mut carry, &mut answers)),
            None => shared.gate.signal.sleep(lane, None, || has_work(shared)),
        }
    }
}

/// True for the lanes that a miss is likely to find: the lowest seat, which an idle gate rings first, and the highest
/// ones, which prefetch leaves free. They connect ahead, so that no guest waits for a handshake.
fn is_demand_lane(shared: &Shared, lane: usize) -> bool {
    let complete = shared.gate.states.resident_count() == shared.gate.geometry().blocks();
    !complete && (lane == 0 || lane + PREFETCH_RESERVE >= shared.lanes)
}

fn has_work(shared: &Shared) -> bool {
    shared.gate.has_work() || shared.jobs.load(Ordering::Acquire) != 0 || shared.is_closing()
}

/// Fetches what a job says and says how it ended.
fn fetch(shared: &Shared, lane: usize, job: Job, carry: &mut Vec<u8>, answers: &mut Vec<Answer>) -> Event {
    let fetch = job.fetch;
    let outcome = match job.cargo {
        Cargo::Range(range) => {
            let geometry = shared.gate.geometry();
            let (offset, length) = (geometry.offset(range), geometry.length(range));
            let mut landing = Landing::new(shared, fetch, range, carry, answers);
            let result = shared.source.fetch(lane, offset, length, &mut landing);
            let (whole, store_error) = (landing.is_whole(), landing.take_store_error());
            judge(shared, result, whole, store_error, &|| format!("at byte {offset}"))
        }
        Cargo::Frames(frames) => {
            let first = frames.start;
            let mut landing = FrameLanding::new(shared, fetch, frames.clone(), answers);
            let result = shared.source.fetch_frames(lane, frames, &mut landing);
            let (whole, store_error) = (landing.is_whole(), landing.take_store_error());
            match result {
                // Nothing is lost but speed.
                Err(FetchError::Fatal(error)) if store_error.is_none() && !shared.gate.is_closed() => {
                    shared.report(log::Level::Warn, format!("{error}; its packs are left alone from now on"));
                    Outcome::Fatal
                }
                result => judge(shared, result, whole, store_error, &|| format!("at frame {first}")),
            }
        }
    };
    if outcome != Outcome::Done && !shared.gate.is_closed() {
        shared.counters.fetch_errors.add(1);
    }
    shared.learn_holes();
    Event::Finished(fetch, outcome)
}

/// What became of a fetch; reports what went wrong. `place` says where, for a person.
fn judge(
    shared: &Shared,
    result: Result<(), FetchError>,
    whole: bool,
    store_error: Option<Error>,
    place: &dyn Fn() -> String,
) -> Outcome {
    if shared.gate.is_closed() {
        // Nobody waits for it any more, and a fetch that was stopped on purpose is no news.
        return if whole { Outcome::Done } else { Outcome::Failed { retry_after: None } };
    }
    match (result, store_error) {
        (_, Some(error)) => {
            let full = error.is_full();
            let advice = if full { "; the guest waits until space returns" } else { "" };
            shared.report(log::Level::Error, format!("{error}{advice}"));
            if full { Outcome::Full } else { Outcome::Failed { retry_after: None } }
        }
        (Ok(()), None) if whole => Outcome::Done,
        (Ok(()), None) => {
            let text = format!("{}: sent less than asked for {}", shared.source.name(), place());
            shared.report(log::Level::Error, text);
            Outcome::Failed { retry_after: None }
        }
        (Err(FetchError::Stopped), None) => Outcome::Failed { retry_after: None },
        (Err(FetchError::Transient { message, retry_after }), None) => {
            let first = lock(&shared.core).planner.failures_on_end() == 0;
            let level = if first { log::Level::Warn } else { log::Level::Debug };
            shared.report(level, format!("{message}; trying again"));
            Outcome::Failed { retry_after }
        }
        (Err(FetchError::Fatal(error)), None) => {
            shared
                .report(log::Level::Error, format!("{error}; reads of blocks that are not here yet fail from now on"));
            Outcome::Fatal
        }
    }
}
