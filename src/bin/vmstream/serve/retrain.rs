//! The thread that learns: one lesson after the other, with the lowest priority, for as long as the server runs.
//!
//! A lesson that fails, or panics, is said, counted, and tried again when some time has passed; what is published stays as it
//! is, and other images have their turn. The thread is not waited for at the end: a lesson that is cut off leaves the old state, and
//! the next start finds that it is behind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmstream::error::{Error, Result};

use super::collect::Collector;
use super::lesson::{self, Learnt, Publish};
use super::metrics::Tally;
use super::schedule::Schedule;

/// How nice the thread is to all others: the lowest priority there is.
const NICE: i32 = 19;
/// Pause after a lesson that failed: a full disk, or a publisher at work, is not gone at once.
const PAUSE: Duration = Duration::from_secs(10);

/// Starts the thread. `publish` puts a model in place.
pub fn start(
    collector: Arc<Collector>,
    schedule: Arc<Schedule>,
    tally: Arc<Tally>,
    publish: impl Fn(&Path, &str, &[u8], &dyn Fn() -> Result<()>) -> Result<()> + Send + 'static,
) -> Result<()> {
    let run = move || {
        // Linux has a priority for each thread, and 0 means the one that asks. Without it a lesson only costs more.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            log::debug!("cannot lower the priority of learning: {error}");
        }
        catch_up(&collector, &schedule);
        loop {
            let image = schedule.next();
            // What a lesson works on lies in files or dies with it, and locks are taken whatever happened under them.
            let given = catch_unwind(AssertUnwindSafe(|| give(&collector, &image, &tally, &publish)));
            let why = match given {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => {
                    tally.trained(false, Duration::ZERO);
                    "it panicked, which is a defect: please report it with what stands above".to_owned()
                }
            };
            log::error!("{image}: nothing was learnt: {why}");
            schedule.failed(&image, PAUSE);
        }
    };
    let started = thread::Builder::new().name("learn".into()).spawn(run);
    started.map(drop).map_err(|e| Error::io("cannot start the thread that learns", e))
}

/// Sessions that came before the server ended, and were not learnt, are news.
fn catch_up(collector: &Collector, schedule: &Schedule) {
    for image in collector.images().list() {
        match collector.history(&image.name) {
            Ok(history) => {
                let entries = history.lock().unwrap_or_else(PoisonError::into_inner).entries().to_vec();
                if lesson::is_behind(collector.images(), &image.name, &entries) {
                    schedule.heard(&image.name);
                }
            }
            Err(error) => log::error!("{error}"),
        }
    }
}

/// One lesson.
fn give(collector: &Collector, name: &str, tally: &Tally, publish: Publish) -> Result<()> {
    // An image that was taken away meanwhile needs no model.
    let Some(image) = collector.images().find(name) else { return Ok(()) };
    let history = collector.history(name)?;
    // Sessions may come and go while we learn; a file that is gone is passed over.
    let entries = history.lock().unwrap_or_else(PoisonError::into_inner).entries().to_vec();
    let begin = Instant::now();
    let learnt = lesson::learn(collector.images(), &image, &entries, publish);
    tally.trained(learnt.is_ok(), begin.elapsed());
    if learnt? == Learnt::Nothing {
        log::debug!("{name}: the sessions say nothing new");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use vmstream::block::Geometry;
    use vmstream::gate::Op;
    use vmstream::session::{Access, Recording, Session, Subject, WallTime, file};

    use super::super::collect::Rules;
    use super::super::images::Images;
    use super::*;

    /// Publishes an image of nothing but a pointer, and puts a session of it into its history.
    fn prepare(site: &Path, collector: &Collector, name: &str) {
        let root = "ab".repeat(32);
        let text = format!("vmstream 1\nsize 1048576\nblock 4096\nimage d.raw\ntree d.vmt 312\nroot {root}\n");
        std::fs::write(site.join(format!("{name}.vmp")), text).unwrap();
        let geometry = Geometry::new(1 << 20, 4096).unwrap();
        let access = Access { at: Duration::ZERO, op: Op::Read, offset: 0, length: 4096, stalled: Duration::ZERO };
        let session = Session { geometry, accesses: vec![access], marks: Vec::new() };
        let subject = Subject { validator: Some(format!("root:{root}")), ..Subject::nameless(geometry) };
        let bytes = file::encode(&Recording { subject, session, lost_bytes: 0 });
        let history = collector.history(name).unwrap();
        history.lock().unwrap().keep("aaaaaaaaaaaa", WallTime(1), &bytes).unwrap();
    }

    #[test]
    fn a_lesson_that_panics_or_fails_does_not_keep_others_from_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let rules = Rules { tokens: None, per_minute: 1, history_bytes: 1 << 20, trust_proxy: false };
        let schedule = Arc::new(Schedule::new(1, Duration::ZERO));
        let collector = Arc::new(Collector::new(Images::new(dir.path()), rules, schedule.clone()).unwrap());
        for name in ["a-panics", "b-fails", "c"] {
            prepare(dir.path(), &collector, name);
        }
        let (sender, published) = channel();
        let publish = move |_: &Path, name: &str, _: &[u8], _: &dyn Fn() -> Result<()>| match name {
            "a-panics" => panic!("on purpose"),
            "b-fails" => Err(Error::new(vmstream::error::errno::ENOSPC, "on purpose")),
            name => {
                // Nobody listens any more when the test is over.
                let _ = sender.send(name.to_owned());
                Ok(())
            }
        };
        let tally = Arc::new(Tally::default());
        start(collector, schedule, tally.clone(), publish).unwrap();
        assert_eq!(published.recv_timeout(Duration::from_secs(30)).as_deref(), Ok("c"));
        assert!(tally.failures() >= 2);
    }
}
