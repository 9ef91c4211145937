//! A session as a file: read whole, written chunk by chunk.
//!
//! A file is a head ([`Subject`]) and chunks. What a killed recorder left of its last chunk is told apart from what is
//! true and is not believed; the rest of the session counts. The format is in `docs/format-session.md`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::chunk::{self, Encoder};
use super::subject::{Fault, MAGIC};
use super::{Directory, Event, Recording, Session, Subject, text};
use crate::error::{Error, Result, errno};

/// Largest session file, in bytes, that is written, and that is looked at in reading: some two million accesses. First
/// touches of a guest that reads a terabyte in runs of half a mebibyte fit in.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Longest text form that is read, in bytes: five times as long as the other for the same session, and then some.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Reads the session at `path`, in either form.
pub fn load(path: &Path) -> Result<Recording> {
    let name = path.display().to_string();
    let unreadable = |e| Error::io(format_args!("cannot read {name}"), e);
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    (&file).take(MAGIC.len() as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    let limit = if bytes == MAGIC { FILE_BYTES_MAX } else { TEXT_BYTES_MAX };
    let got = file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    if got as u64 == limit {
        let text = format!("{name} has more than {limit} bytes, which no session has: it is not read");
        return Err(Error::new(errno::EFBIG, text));
    }
    read(&name, &bytes)
}

/// Reads a session in either form. `name` is for errors.
pub fn read(name: &str, bytes: &[u8]) -> Result<Recording> {
    if bytes.starts_with(&MAGIC) { parse(name, bytes) } else { text::parse_recording(name, bytes) }
}

/// Reads the compact form. `name` is for errors, which come only from the head: what is wrong behind it is counted in
/// [`Recording::lost_bytes`].
pub fn parse(name: &str, mut bytes: &[u8]) -> Result<Recording> {
    let (subject, crc) = Subject::take(&mut bytes).map_err(|fault| match fault {
        Fault::Foreign => Error::new(errno::EINVAL, format!("{name} is no session file: give one of vmstream")),
        Fault::Version(version) => {
            let text =
                format!("{name} has session format {version}, but only format 1 is known here: use a newer vmstream");
            Error::new(errno::EPROTO, text)
        }
        Fault::Damaged => Error::new(errno::EIO, format!("the head of {name} is damaged: leave the file out")),
    })?;
    let mut session = Session { geometry: subject.geometry, accesses: Vec::new(), marks: Vec::new() };
    let lost_bytes = chunk::read(bytes, crc, &mut session);
    Ok(Recording { subject, session, lost_bytes })
}

/// The compact form of a session.
pub fn encode(recording: &Recording) -> Vec<u8> {
    let mut bytes = recording.subject.encode();
    let mut encoder = Encoder::new(recording.subject.geometry, head_crc(&bytes));
    recording.session.events().for_each(|event| encoder.push(&event));
    bytes.append(&mut encoder.take());
    bytes
}

/// True while an image still writes the session at `path`: who learns from it now learns half of it. The kernel gives up
/// a writer's lock with the writer, however that ends.
pub fn is_being_written(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// The checksum at the end of a head, which the first chunk continues.
fn head_crc(head: &[u8]) -> u32 {
    head.last_chunk().map_or(0, |crc| u32::from_le_bytes(*crc))
}

/// Writes the file of a session that is going on. The file is made with its first events, so an image that nobody used
/// leaves none. What fails is logged once and ends the record, never the session.
///
/// Nothing is synced: a power failure may cost the tail, which the checksums then tell.
#[derive(Debug)]
pub struct Writer {
    directory: Directory,
    subject: Subject,
    state: State,
}

#[derive(Debug)]
enum State {
    Empty,
    Open { file: File, name: String, length: u64, encoder: Encoder },
    Ended,
}

impl Writer {
    /// A writer of one session into `directory`.
    pub fn new(directory: Directory, subject: Subject) -> Self {
        Self { directory, subject, state: State::Empty }
    }

    /// Appends events, in one piece.
    pub fn write(&mut self, events: &[Event]) {
        if let Err(error) = self.try_write(events) {
            log::warn!("{error}; this session is not recorded any further");
            self.state = State::Ended;
        }
    }

    fn try_write(&mut self, events: &[Event]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        if matches!(self.state, State::Empty) {
            let (file, path) = self.directory.create(self.subject.started.unwrap_or_default())?;
            // For `is_being_written`. Where a file system has no locks an unfinished session may be learnt from.
            let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
            bytes = self.subject.encode();
            let encoder = Encoder::new(self.subject.geometry, head_crc(&bytes));
            self.state = State::Open { file, name: path.display().to_string(), length: 0, encoder };
        }
        let State::Open { file, name, length, encoder } = &mut self.state else { return Ok(()) };
        events.iter().for_each(|event| encoder.push(event));
        bytes.append(&mut encoder.take());
        let limit = self.directory.file_bytes_max();
        if *length + bytes.len() as u64 > limit {
            let text =
                format!("{name} has reached its limit of {limit} bytes (sessions_max={})", self.directory.bytes_max());
            return Err(Error::new(errno::EFBIG, text));
        }
        file.write_all(&bytes).map_err(|e| Error::io(format_args!("cannot write {name}"), e))?;
        *length += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::block::Geometry;
    use crate::gate::Op;
    use crate::session::{Access, WallTime};

    fn subject() -> Subject {
        let started = Some(WallTime(1_795_359_888_123_456));
        Subject { started, validator: Some("\"v\"".into()), ..Subject::nameless(Geometry::new(1 << 30, 4096).unwrap()) }
    }

    fn events(from: u64, count: u64) -> Vec<Event> {
        let access = |n| Access {
            at: Duration::from_millis(n),
            op: Op::Read,
            offset: n * 7919 % 200_000 * 4096,
            length: 4096,
            stalled: Duration::ZERO,
        };
        (from..from + count).map(|n| Event::Access(access(n))).collect()
    }

    fn files(path: &Path) -> Vec<std::path::PathBuf> {
        Directory::new(path, 1 << 20).list().unwrap()
    }

    #[test]
    fn a_session_is_being_written_until_its_writer_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Directory::new(root.path(), 1 << 20), subject());
        writer.write(&events(0, 10));
        let path = files(root.path()).remove(0);
        assert!(is_being_written(&path) && is_being_written(&path));
        drop(writer);
        assert!(!is_being_written(&path) && !is_being_written(&root.path().join("nothing")));
    }

    #[test]
    fn what_a_writer_wrote_is_loaded_whatever_its_end() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Directory::new(root.path(), 1 << 20), subject());
        writer.write(&[]);
        assert_eq!(files(root.path()).len(), 0, "nothing happened yet");
        let mut ends = Vec::new();
        for n in 0..4 {
            writer.write(&events(n * 10, 10));
            ends.push(std::fs::metadata(&files(root.path())[0]).unwrap().len() as usize);
        }
        // The writer is still there, as at a kill; what it wrote is all in the file.
        let path = files(root.path()).remove(0);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let whole = ends.iter().filter(|&&end| end <= cut).count();
            match load(&path) {
                Ok(recording) => {
                    assert_eq!(recording.subject, subject());
                    assert_eq!(recording.session.events().collect::<Vec<_>>(), events(0, whole as u64 * 10));
                    assert_eq!(
                        recording.lost_bytes == 0,
                        ends.contains(&cut) || whole == 0 && encode(&recording).len() == cut
                    );
                }
                Err(error) => assert!(whole == 0 && error.to_string().contains(&*path.to_string_lossy()), "{error}"),
            }
        }
    }

    #[test]
    fn a_session_ends_at_its_limit_and_what_was_written_stays() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path(), 64 << 10);
        let limit = directory.file_bytes_max();
        let mut writer = Writer::new(directory, subject());
        for n in 0..100 {
            writer.write(&events(n * 1000, 1000));
        }
        let path = files(root.path()).remove(0);
        assert!(std::fs::metadata(&path).unwrap().len() <= limit);
        let recording = load(&path).unwrap();
        let kept = recording.session.accesses.len();
        assert!(kept >= 1000 && kept.is_multiple_of(1000) && recording.lost_bytes == 0, "{kept}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_ends_the_record_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), b"").unwrap();
        let mut writer = Writer::new(Directory::new(&root.path().join("file/sub"), 1 << 20), subject());
        writer.write(&events(0, 1));
        writer.write(&events(1, 1));
        assert!(matches!(writer.state, State::Ended));
    }

    #[test]
    fn both_forms_say_the_same() {
        let session = events(0, 50).into_iter().fold(
            Session { geometry: subject().geometry, accesses: Vec::new(), marks: Vec::new() },
            |mut session, event| {
                session.add(event);
                session
            },
        );
        let recording = Recording { subject: subject(), session, lost_bytes: 0 };
        let root = tempfile::tempdir().unwrap();
        for (name, bytes) in [("a", encode(&recording)), ("b", text::print_recording(&recording).into_bytes())] {
            let path = root.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(load(&path).unwrap(), recording);
        }
    }

    #[test]
    fn what_is_no_session_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x");
        let mut other = subject().encode();
        other[8] = 9;
        let mut damaged = subject().encode();
        damaged[20] ^= 1;
        for (bytes, says) in [(b"hello".to_vec(), "not a session"), (other, "session format 9"), (damaged, "damaged")] {
            std::fs::write(&path, bytes).unwrap();
            let text = load(&path).unwrap_err().to_string();
            assert!(text.contains(says) && text.contains("/x"), "{text}");
        }
        assert!(load(&root.path().join("missing")).unwrap_err().to_string().contains("cannot read"));
    }
}
