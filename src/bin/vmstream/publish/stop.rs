//! A wish to end, from a signal: work looks at it between two steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use vmstream::error::{Error, Result, errno};

use crate::{Outcome, signals};

/// Tells whether a signal has asked for the end. Clones are the same wish.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicI32>);

impl Stop {
    /// From now on SIGINT and SIGTERM are such a wish. Call it once, before other threads start.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let seen = stop.clone();
        signals::handle(move |event| {
            if let signals::Event::Stop(signal) = event {
                seen.0.store(signal, Ordering::Release);
            }
        })?;
        Ok(stop)
    }

    /// The signal that asked for the end, if one did.
    pub fn signal(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Acquire)).filter(|&signal| signal != 0)
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
