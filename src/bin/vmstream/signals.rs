//! Signals as events: the first SIGINT or SIGTERM asks for a clean stop, the second one ends the process at once.
//!
//! One thread waits for the signals and calls back as an ordinary thread, so what it calls may lock, allocate and
//! block. The thread lives until the process ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
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

/// From now on SIGINT, SIGTERM and SIGUSR1 go to `on_event`, called on a thread of its own. Call it once, before
/// other threads start, and let `on_event` return soon: while it runs a second signal cannot force the end.
pub fn handle(mut on_event: impl FnMut(Event) + Send + 'static) -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(|e| Error::io("cannot handle SIGINT and SIGTERM", e))?;
    let wait = move || {
        let mut rule = Rule::default();
        for signal in signals.forever() {
            match rule.take(signal) {
                Action::Tell(event) => on_event(event),
                Action::Exit(code) => {
                    log::warn!("second signal: ending at once");
                    std::process::exit(code.into());
                }
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map_err(|e| Error::io("cannot start a thread", e))?;
    Ok(())
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
            log::warn!("ended before the image was open");
            std::process::exit(exit_code(signal).into());
        }
    }
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
}
