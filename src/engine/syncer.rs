//! The syncer: the one owner of the journal. Bytes first, then the fact, then the answer. As it may wait for a disk anyway,
//! it also writes the record of the session.

use crossbeam::channel::Receiver;

use super::{Answer, Shared};
use crate::error::Result;
use crate::gate::Reply;
use crate::session::{Event, Writer};
use crate::store::Journal;

/// What the syncer is asked for.
#[derive(Debug)]
pub(super) enum SyncJob {
    /// A guest's flush.
    Flush(Reply),
    /// Make durable what arrived.
    Checkpoint,
    /// Append this to the record of the session.
    Record(Vec<Event>),
    /// Make durable what arrived, and end.
    Stop,
}

/// Body of the syncer thread. Answers the journal and how the last sync went.
pub(super) fn run(
    shared: &Shared,
    mut journal: Journal,
    mut writer: Option<Writer>,
    jobs: &Receiver<SyncJob>,
) -> (Journal, Result<()>) {
    let mut last = Ok(());
    let mut answers: Vec<Answer> = Vec::new();
    let mut complete = false;
    while let Ok(first) = jobs.recv() {
        // Everything that waits is served by one sync: it began after all of them were asked for.
        let (mut wanted, mut stop) = (false, false);
        let mut flushes = Vec::new();
        let mut events = Vec::new();
        for job in std::iter::once(first).chain(jobs.try_iter()) {
            match job {
                SyncJob::Flush(reply) => flushes.push(reply),
                SyncJob::Checkpoint => wanted = true,
                SyncJob::Record(mut more) => events.append(&mut more),
                SyncJob::Stop => stop = true,
            }
        }
        if wanted || stop || !flushes.is_empty() {
            last = serve(shared, &mut journal, flushes, &mut answers);
            if last.is_ok() && !complete && shared.gate.states.resident_count() == shared.gate.geometry().blocks() {
                complete = true;
                log::info!("{}: complete; the origin is no longer needed", shared.source.name());
            }
        }
        // Afterwards: no flush shall wait for it.
        if let Some(writer) = &mut writer {
            writer.write(&events);
        }
        if stop {
            break;
        }
    }
    (journal, last)
}

/// Syncs, and answers the flushes that waited for it.
fn serve(shared: &Shared, journal: &mut Journal, flushes: Vec<Reply>, answers: &mut Vec<Answer>) -> Result<()> {
    let result = sync(shared, journal, !flushes.is_empty());
    let code = match &result {
        Ok(()) => 0,
        Err(error) => {
            shared.report(log::Level::Error, error.to_string());
            -error.errno()
        }
    };
    answers.extend(flushes.into_iter().map(|reply| (reply, code)));
    shared.answer(answers);
    result
}

/// `flush`: a guest asked, so its rewritten blocks must reach the disk too, not only what is new to the journal.
fn sync(shared: &Shared, journal: &mut Journal, flush: bool) -> Result<()> {
    if shared.store.ephemeral() {
        return Ok(());
    }
    let states = &shared.gate.states;
    let fresh = states.take_dirty();
    if fresh.is_empty() && !flush {
        return Ok(());
    }
    let result = shared.store.sync().and_then(|()| if fresh.is_empty() { Ok(()) } else { journal.record(&fresh) });
    if let Err(error) = result {
        states.put_back(&fresh);
        return Err(error);
    }
    states.set_durable(&fresh);
    shared.counters.checkpoints.add(1);
    if journal.wants_compaction() {
        // What was recorded stays recorded if this fails; it is tried again at the next record.
        if let Err(error) = journal.compact(states.durable()) {
            shared.report(log::Level::Warn, error.to_string());
        }
    }
    Ok(())
}
