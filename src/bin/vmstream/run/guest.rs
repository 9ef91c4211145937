//! The process that is a machine, from its start to its end.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use signal_hook::low_level::signal_name;
use vmstream::Image;
use vmstream::error::{Error, Result, errno};

use super::LOOK_EVERY;
use super::terminal::Terminal;
use crate::publish::stop::Stop;
use crate::rehearse::{exit_code, pass_on};
use crate::report::{REPORT_EVERY, Reporter};
use crate::signals::{self, Last};

/// How long a machine takes to end after it has said why.
const END_MAX: Duration = Duration::from_secs(1);

/// What a first signal means to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It ends by itself.
    Obeys,
    /// It does not, or takes all signals for its guest's.
    MustBeKilled,
}

/// The process that is the machine. It does not outlive this.
pub struct Guest {
    child: Child,
    program: String,
    told: bool,
    manner: Manner,
    /// Its console, put right when it has ended.
    _terminal: Option<Terminal>,
    /// It does not outlive this process either when that is ended at once.
    _last: Option<Last>,
}

impl Guest {
    /// Starts the first of these words with the others, called `program` in messages; `setup` does the rest. It ends when this
    /// process is killed, where setpriv(1) is installed.
    pub fn start(program: &str, words: &[String], manner: Manner, setup: impl Fn(&mut Command)) -> Result<Self> {
        let start = |words: &[String]| {
            let (first, rest) = words.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
            let mut command = Command::new(first);
            setup(command.args(rest));
            command.spawn()
        };
        // When this process is killed, the mount goes with it, and a machine that lives on is of no use to anybody.
        let bound = ["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned);
        let child = match start(&[&bound[..], words].concat()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => start(words),
            child => child,
        };
        let child = child.map_err(|e| Error::io(format_args!("cannot run {program}"), e))?;
        Ok(Self { _last: killing(&child), child, program: program.to_owned(), told: false, manner, _terminal: None })
    }

    /// The same with a terminal that it may have changed.
    pub fn on(mut self, terminal: Option<Terminal>) -> Self {
        self._terminal = terminal;
        self
    }

    /// Fails when it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => {
                let text = match killer(status) {
                    Some(signal) => format!("{} was killed by {signal} before the guest could go on", self.program),
                    None => {
                        let code = exit_code(status);
                        format!("{} ended with {code} before the guest could go on; it said why", self.program)
                    }
                };
                Err(Error::new(errno::EIO, text))
            }
        }
    }

    /// The reason for an error of the monitor's: as a rule QEMU has found something that it cannot do, and ends.
    pub fn explain(&mut self, error: Error) -> Error {
        if error.errno() == errno::ECANCELED {
            return error;
        }
        let began = Instant::now();
        while began.elapsed() < END_MAX {
            if let Err(ended) = self.check() {
                return ended;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        error
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(|e| Error::io(format_args!("cannot wait for {}", self.program), e))
    }

    /// Waits for its end, seeing to it when a signal asks for that; answers its exit code, or that of the signal it was killed for.
    pub fn wait(&mut self, image: &Image, reporter: &mut Reporter, stop: &Stop) -> Result<u8> {
        let mut reported = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                let killed = stop.signal().filter(|_| self.told && self.manner == Manner::MustBeKilled);
                // A signal that nobody sent through us is what a shell would tell of, and the guest cannot.
                if let Some(signal) = killer(status).filter(|_| !self.told) {
                    log::error!("{} was killed by {signal}", self.program);
                }
                return Ok(killed.map_or(exit_code(status), signals::exit_code));
            }
            if let Some(signal) = stop.signal()
                && !std::mem::replace(&mut self.told, true)
            {
                match self.manner {
                    Manner::Obeys => pass_on(signal, &self.child),
                    // It may have ended in this moment.
                    Manner::MustBeKilled => drop(self.child.kill()),
                }
            }
            if reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                reporter.report(image);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// The signal that ended a process.
fn killer(status: ExitStatus) -> Option<String> {
    let signal = status.signal()?;
    Some(signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned))
}

/// Has a process killed when this one is ended at once; `None` on a kernel that cannot say for sure which process is meant.
fn killing(child: &Child) -> Option<Last> {
    let process = Pid::from_raw(child.id().cast_signed())?;
    let handle = rustix::process::pidfd_open(process, PidfdFlags::empty()).ok()?;
    Some(Last::new(move || {
        // It may have ended by itself.
        let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
    }))
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // Ended already is all that can go wrong.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
