//! A wish to end, from a signal: work looks at it between two steps.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmstream::error::{Error, Result, errno};

use crate::{Outcome, signals};

/// What breaks off work that cannot look.
type Interrupt = Box<dyn FnOnce(i32) + Send>;

/// Tells whether a signal has asked for the end. Clones are the same wish.
#[derive(Clone, Default)]
pub struct Stop(Arc<Wish>);

#[derive(Default)]
struct Wish {
    signal: AtomicI32,
    interrupt: Mutex<Option<Interrupt>>,
}

/// While it lives the wish breaks off what is being done.
pub struct Interrupted<'a>(&'a Wish);

impl Stop {
    /// From now on SIGINT, SIGTERM and SIGHUP are such a wish. Call it once, before other threads start.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let seen = stop.clone();
        signals::handle(move |event| {
            if let signals::Event::Stop(signal) = event {
                seen.ask(signal);
            }
        })?;
        Ok(stop)
    }

    fn ask(&self, signal: i32) {
        let interrupt = {
            let mut interrupt = self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.signal.store(signal, Ordering::Release);
            interrupt.take()
        };
        if let Some(interrupt) = interrupt {
            interrupt(signal);
        }
    }

    /// Has the wish call `interrupt`, at once when it is there already, as long as the answer lives: for work that waits for
    /// something and cannot look at the wish meanwhile. One at a time.
    pub fn interrupts(&self, interrupt: impl FnOnce(i32) + Send + 'static) -> Interrupted<'_> {
        let mut place = self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        match self.signal() {
            None => *place = Some(Box::new(interrupt)),
            Some(signal) => {
                drop(place);
                interrupt(signal);
            }
        }
        Interrupted(&self.0)
    }

    /// The signal that asked for the end, if one did.
    pub fn signal(&self) -> Option<i32> {
        Some(self.0.signal.load(Ordering::Acquire)).filter(|&signal| signal != 0)
    }

    /// `ECANCELED` once the end was asked for; [`Stop::outcome`] then knows it again.
    pub fn check(&self) -> Result<()> {
        match self.signal() {
            None => Ok(()),
            Some(signal) => Err(Error::new(errno::ECANCELED, format!("ended by signal {signal}"))),
        }
    }

    /// What a command ends with whose work gave `result`: not an error when the end was asked for.
    pub fn outcome(&self, result: Result<Outcome>) -> Result<Outcome> {
        match (result, self.signal()) {
            (Err(error), Some(signal)) if error.errno() == errno::ECANCELED => Ok(Outcome::Interrupted(signal)),
            (result, _) => result,
        }
    }
}

impl Drop for Interrupted<'_> {
    fn drop(&mut self) {
        *self.0.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI32;

    use super::*;

    #[test]
    fn what_cannot_look_is_broken_off_once_and_only_while_it_lasts() {
        let heard = Arc::new(AtomicI32::new(0));
        let hear = || {
            let heard = heard.clone();
            move |signal| {
                heard.fetch_add(signal, Ordering::Relaxed);
            }
        };
        let stop = Stop::default();
        drop(stop.interrupts(hear()));
        let lasting = stop.interrupts(hear());
        assert!(stop.check().is_ok());
        stop.ask(15);
        stop.ask(15);
        assert_eq!(heard.load(Ordering::Relaxed), 15);
        drop(lasting);
        let late = stop.interrupts(hear());
        assert_eq!(heard.load(Ordering::Relaxed), 30, "the wish was there before");
        drop(late);
        assert!(stop.check().is_err_and(|error| error.errno() == errno::ECANCELED));
    }
}
