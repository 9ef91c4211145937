//! A connection to QEMU's monitor (QMP), or to the agent in a guest: one command at a time, its answer or its refusal.
//!
//! JSON objects, a line each. Events come between answers and are passed over: what this tool waits for it asks for. The other
//! side is a process of the same user, so what it says is believed; but it may hang, so every wait has an end.

use std::fmt;
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use vmstream::error::{Error, Result, errno};

/// Longest wait for an answer. Commands answer at once, but a busy host and the flush of a disk take their time.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// The same for an agent, which may not be there at all.
const AGENT_MAX: Duration = Duration::from_secs(20);
/// Pause between two looks at something that QEMU does in the background.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A connection.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    name: String,
    /// What QEMU calls its version.
    version: String,
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qmp({})", self.name)
    }
}

impl Qmp {
    /// Connects to the monitor at `path`.
    ///
    /// Errors: those of the socket; `EPROTO` when what answers is no QMP monitor; `ETIMEDOUT` when nobody answers, as when
    /// another client has the monitor.
    pub fn connect(path: &Path) -> Result<Self> {
        Self::connect_for(path, Some(ANSWER_MAX))
    }

    /// The same for one that may stand still for as long as a link is down: waits for answers without an end.
    pub fn connect_patiently(path: &Path) -> Result<Self> {
        Self::connect_for(path, None)
    }

    /// Connects to the agent in a guest (qemu-guest-agent), whose language is the same; it greets nobody.
    ///
    /// Errors: `ETIMEDOUT` when it is not running in the guest; else as [`Qmp::connect`].
    pub fn connect_agent(path: &Path) -> Result<Self> {
        let mut agent = Self::open(path, Some(AGENT_MAX))?;
        let id = std::process::id();
        agent.send("guest-sync", json!({ "id": id }), None)?;
        // It stands behind what an earlier client did not wait for.
        while agent.answer("guest-sync")? != id {}
        Ok(agent)
    }

    fn open(path: &Path, answer_max: Option<Duration>) -> Result<Self> {
        let name = path.display().to_string();
        let stream = UnixStream::connect(path)
            .and_then(|stream| stream.set_read_timeout(answer_max).map(|()| stream))
            .map_err(|e| Error::io(format_args!("cannot connect to {name}"), e))?;
        Ok(Self { reader: BufReader::new(stream), name, version: String::new() })
    }

    fn connect_for(path: &Path, answer_max: Option<Duration>) -> Result<Self> {
        let mut qmp = Self::open(path, answer_max)?;
        let greeting = qmp.read()?;
        let numbers = &greeting["QMP"]["version"]["qemu"];
        let number = |key: &str| numbers[key].as_u64();
        let version = number("major").zip(number("minor")).zip(number("micro"));
        let ((major, minor), micro) = version.ok_or_else(|| qmp.broken("answers, but not as a QMP monitor"))?;
        qmp.version = format!("{major}.{minor}.{micro}");
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Version of QEMU.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The process at the other end.
    pub fn process(&self) -> Result<i32> {
        let peer = rustix::net::sockopt::socket_peercred(self.reader.get_ref());
        let peer =
            peer.map_err(|e| Error::io(format_args!("cannot learn whose monitor {} is", self.name), e.into()))?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    /// Runs a command; answers what it returns.
    ///
    /// Errors: `EIO` when QEMU refuses, with its words; else as [`Qmp::connect`].
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.ask_with(command, arguments, None)
    }

    /// The same, handing over a file with it.
    pub fn ask_with(&mut self, command: &str, arguments: Value, file: Option<BorrowedFd<'_>>) -> Result<Value> {
        self.send(command, arguments, file)?;
        self.answer(command)
    }

    /// Runs commands until `done` makes something of an answer, at most for `limit`; `None` when it did not.
    pub fn poll<T>(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
        mut done: impl FnMut(&Value) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let began = Instant::now();
        loop {
            let answer = self.ask(command, arguments.clone())?;
            if let Some(found) = done(&answer)? {
                return Ok(Some(found));
            }
            if began.elapsed() >= limit {
                return Ok(None);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until a migration, in or out, has come to its end.
    ///
    /// Errors: `EIO` when it failed, `ETIMEDOUT` after `limit`.
    pub fn migrated(&mut self, limit: Duration) -> Result<()> {
        let ended = self.poll("query-migrate", json!({}), limit, |answer| match answer["status"].as_str() {
            Some("completed") => Ok(Some(())),
            Some("failed" | "cancelled") => {
                let why = answer["error-desc"].as_str().unwrap_or("see what QEMU has printed");
                Err(Error::new(errno::EIO, format!("QEMU could not move the state of the devices: {why}")))
            }
            _ => Ok(None),
        })?;
        ended.ok_or_else(|| Error::new(errno::ETIMEDOUT, "QEMU did not move the state of the devices in time"))
    }

    fn send(&mut self, command: &str, arguments: Value, file: Option<BorrowedFd<'_>>) -> Result<()> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.write(line.as_bytes(), file).map_err(|e| Error::io(format_args!("{}: cannot ask QEMU", self.name), e))
    }

    /// The next answer, which is that to `command`.
    fn answer(&mut self, command: &str) -> Result<Value> {
        loop {
            let mut answer = self.read()?;
            if let Some(refusal) = answer["error"]["desc"].as_str() {
                return Err(Error::new(errno::EIO, format!("QEMU refuses {command}: {refusal}")));
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }

    fn write(&mut self, line: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(file) = file else { return self.reader.get_mut().write_all(line) };
        let files = [file];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let sent =
            rustix::net::sendmsg(self.reader.get_ref(), &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
        self.reader.get_mut().write_all(&line[sent..])
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(self.broken("has ended")),
            Ok(_) => serde_json::from_str(&line).map_err(|_| self.broken("answers, but not as a QMP monitor")),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let text = format!(
                    "{}: nobody answers; QEMU's monitor and a guest's agent speak to one client at a time, is there another?",
                    self.name
                );
                Err(Error::new(errno::ETIMEDOUT, text))
            }
            Err(e) => Err(Error::io(format_args!("{}: no answer from QEMU", self.name), e)),
        }
    }

    fn broken(&self, what: &str) -> Error {
        Error::new(errno::EPROTO, format!("{}: QEMU's monitor {what}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const GREETING: &str =
        r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}"#;

    /// A monitor that says these lines, one after each that it hears, the first at once.
    fn monitor(
        lines: &'static [&'static str],
    ) -> (tempfile::TempDir, std::path::PathBuf, thread::JoinHandle<Vec<String>>) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let speak = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut heard = Vec::new();
            for line in lines {
                stream.write_all(format!("{line}\n").as_bytes()).unwrap();
                let mut words = String::new();
                reader.read_line(&mut words).unwrap();
                heard.push(words);
            }
            heard
        };
        (place, path, thread::spawn(speak))
    }

    #[test]
    fn answers_are_told_from_events_and_refusals() {
        let (_place, path, speaker) = monitor(&[
            GREETING,
            r#"{"return": {}}"#,
            "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}}",
            r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#,
        ]);
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.version(), "7.2.22");
        assert_eq!(qmp.process().unwrap(), std::process::id() as i32);
        assert_eq!(qmp.ask("query-status", json!({})).unwrap()["status"], "paused");
        let place = tempfile::tempfile().unwrap();
        let refused =
            qmp.ask_with("getfd", json!({"fdname": "x"}), Some(std::os::fd::AsFd::as_fd(&place))).unwrap_err();
        assert!(refused.to_string().contains("refuses getfd: no such thing"), "{refused}");
        drop(qmp);
        let heard = speaker.join().unwrap();
        assert!(heard[0].contains("qmp_capabilities") && heard[2].contains("\"fdname\":\"x\""), "{heard:?}");
    }

    #[test]
    fn an_agent_is_asked_without_a_greeting() {
        let sync = format!("{{\"return\": 1}}\n{{\"return\": {}}}", std::process::id());
        // The first line stands before all questions: what an earlier client left.
        let lines: &'static [&'static str] =
            Box::leak(Box::new([&*Box::leak(sync.into_boxed_str()), "{\"return\": {}}"]));
        let (_place, path, speaker) = monitor(lines);
        let mut agent = Qmp::connect_agent(&path).unwrap();
        assert_eq!(agent.ask("guest-ping", json!({})).unwrap(), json!({}));
        drop(agent);
        assert!(speaker.join().unwrap()[0].contains("guest-sync"));
    }

    #[test]
    fn what_is_no_monitor_is_called_so() {
        let (_place, path, speaker) = monitor(&["220 smtp ready"]);
        assert!(Qmp::connect(&path).unwrap_err().to_string().contains("not as a QMP monitor"));
        drop(speaker);
        let (_place, path, speaker) = monitor(&[]);
        let error = Qmp::connect(&path).unwrap_err().to_string();
        assert!(error.contains("has ended"), "{error}");
        speaker.join().unwrap();
    }
}
