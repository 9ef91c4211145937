//! The thread that learns: one lesson after the other, with the lowest priority, for as long as the server runs.
//!
//! A lesson that fails is said, counted, and tried again when more sessions have come or some time has passed; what is
//! published stays as it is. The thread is not waited for at the end: a lesson that is cut off leaves the old state, and
//! the next start finds that it is behind.

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
            give(&collector, &image, &tally, &publish).unwrap_or_else(|error| {
                log::error!("{image}: nothing was learnt: {error}");
                thread::sleep(PAUSE);
                schedule.heard(&image);
            });
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
