//! Signals as events: the first SIGINT, SIGTERM or SIGHUP asks for a clean stop, the second one ends the process at once.
//!
//! One thread waits for the signals and calls back as an ordinary thread, so what it calls may lock, allocate and
//! block. The thread lives until the process ends.
//!
//! A process that is ended at once still has a machine running and a file system mounted, and nobody unwinds its stack. What
//! must not outlive it is therefore said beforehand, as [`Last`] things, which that thread does on its way out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use vmstream::error::{Error, Result};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// End cleanly; holds the number of the signal.
    Stop(i32),
    /// SIGUSR1: report now.
    Report,
}

/// What to do with the signals of a process, in their order.
#[derive(Default)]
struct Rule {
    stopping: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Tell(Event),
    Exit(u8),
}

impl Rule {
    fn take(&mut self, signal: i32) -> Action {
        match signal {
            SIGUSR1 => Action::Tell(Event::Report),
            _ if self.stopping => Action::Exit(exit_code(signal)),
            _ => {
                self.stopping = true;
                Action::Tell(Event::Stop(signal))
            }
        }
    }
}

/// The exit code that tells of a signal, as a shell would.
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// From now on SIGINT, SIGTERM, SIGHUP and SIGUSR1 go to `on_event`, called on a thread of its own. Call it once, before
/// other threads start, and let `on_event` return soon: while it runs a second signal cannot force the end.
pub fn handle(mut on_event: impl FnMut(Event) + Send + 'static) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Who started this with nohup(1) wants it to go on without its terminal.
    let hangup = (!is_ignored(SIGHUP, &status)).then_some(SIGHUP);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1].into_iter().chain(hangup))
        .map_err(|e| Error::io("cannot handle SIGINT and SIGTERM", e))?;
    let wait = move || {
        let mut rule = Rule::default();
        for signal in signals.forever() {
            match rule.take(signal) {
                Action::Tell(event) => on_event(event),
                Action::Exit(code) => {
                    log::warn!("second signal: ending at once");
                    Last::do_all();
                    std::process::exit(code.into());
                }
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map_err(|e| Error::io("cannot start a thread", e))?;
    Ok(())
}

/// True when `signal` is ignored by the process with this `/proc/PID/status`.
fn is_ignored(signal: i32, status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

type Deed = Box<dyn Fn() + Send>;

/// The deeds that are to be done, by number; the last one first.
static LAST: Mutex<Vec<(u64, Deed)>> = Mutex::new(Vec::new());

/// A last thing: what to do when the process is ended at once. Forgotten when this is dropped.
#[must_use]
pub struct Last(u64);

impl Last {
    /// Has `deed` done, on another thread than the one that stands still then; it must not wait for that one.
    pub fn new(deed: impl Fn() + Send + 'static) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        LAST.lock().unwrap_or_else(PoisonError::into_inner).push((number, Box::new(deed)));
        Self(number)
    }

    fn do_all() {
        // Locked until the end of the process: what is over by now is not begun anew.
        let deeds = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        deeds.iter().rev().for_each(|(_, deed)| deed());
        std::mem::forget(deeds);
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        LAST.lock().unwrap_or_else(PoisonError::into_inner).retain(|(number, _)| *number != self.0);
    }
}

/// The time in which an image is being opened. Nothing is mounted yet and nothing can be lost, and opening waits for
/// an origin that may not be there: so the first signal ends the process at once.
#[derive(Clone, Default)]
pub struct Opening(Arc<AtomicBool>);

impl Opening {
    /// The image is open.
    pub fn done(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Ends the process if `event` asks for a stop while the image is being opened.
    pub fn end_on(&self, event: Event) {
        if let Event::Stop(signal) = event
            && !self.0.load(Ordering::Acquire)
        {
            end_before_open(signal);
        }
    }
}

/// Ends the process because of a signal that came while an image was being opened.
pub fn end_before_open(signal: i32) -> ! {
    log::warn!("ended before the image was open");
    std::process::exit(exit_code(signal).into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_stop_forces_and_a_report_does_not_count() {
        let mut rule = Rule::default();
        assert_eq!(rule.take(SIGUSR1), Action::Tell(Event::Report));
        assert_eq!(rule.take(SIGTERM), Action::Tell(Event::Stop(SIGTERM)));
        assert_eq!(rule.take(SIGUSR1), Action::Tell(Event::Report));
        assert_eq!(rule.take(SIGINT), Action::Exit(130));
    }

    #[test]
    fn what_was_ignored_stays_so() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        assert!(is_ignored(SIGHUP, status) && !is_ignored(SIGINT, status));
        assert!(!is_ignored(SIGHUP, ""));
    }
}
