//! Staying until somebody has read why a run failed: a terminal that a desktop opens for a link closes with the command.

use std::io::{BufRead, Write};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::termios::{QueueSelector, tcflush};
use vmstream::error::Result;

use crate::publish::stop::Stop;
use crate::{Outcome, signals};

/// Exit code of a run that failed by itself.
const FAILED: u8 = 1;

/// Shows what went wrong and waits for Enter, or the end of standard input; a signal ends the wait and the process. Nobody waits
/// after a success, nor for whoever ended the run himself.
pub fn after(outcome: Result<Outcome>, stop: &Stop) -> Result<Outcome> {
    let code = match &outcome {
        Ok(Outcome::Ended(0) | Outcome::Done | Outcome::Interrupted(_)) => return outcome,
        Ok(Outcome::Ended(code)) => *code,
        Err(error) => {
            log::error!("{error}");
            FAILED
        }
    };
    if stop.signal().is_none() {
        let _ending = stop.interrupts(|signal| std::process::exit(signals::exit_code(signal).into()));
        // Who closes the terminal reads nothing any more.
        let _ = write!(std::io::stderr(), "vmstream: ended with {code}; press Enter to close this ");
        let input = std::io::stdin();
        // What was typed before is no answer, and a machine that died may have left a terminal that nobody waits for.
        let _ = tcflush(&input, QueueSelector::IFlush);
        let _ = fcntl_getfl(&input).and_then(|flags| fcntl_setfl(&input, flags - OFlags::NONBLOCK));
        let _ = input.lock().read_line(&mut String::new());
    }
    Ok(Outcome::Ended(code))
}
