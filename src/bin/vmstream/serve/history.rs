//! The history: sessions that clients sent of one image, as plain files within limits.
//!
//! A file is called by when it came, who sent it and what it holds: `20261122T150448.123456Z-CLIENT-CONTENT.vms`, where
//! CLIENT is the keyed hash of [`super::clients::Key`] and CONTENT a hash of the file. So the order of names is the order
//! of time, and what came twice is seen by its name. Whoever wants one unlearnt removes its file.
//!
//! Limits: files and bytes of all, and files of one client. In a full history the oldest session goes of the client that
//! has most, so that one who sends a thousand drives out its own and not those of others. A session is written under
//! another name and renamed, so that a reader and a crash see all of it or nothing.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use vmstream::error::{Error, Result, errno};
use vmstream::session::WallTime;

/// Most sessions that are kept of one image: many times what a model remembers, to choose from.
pub const FILES_MAX: usize = 4096;
/// Most sessions that are kept of one client: some times what a model learns of one.
pub const CLIENT_FILES_MAX: usize = 64;
/// Ending of a session's name.
const ENDING: &str = ".vms";

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of its file.
    pub name: String,
    /// Who sent it.
    pub client: String,
    /// Hash of what it holds: its first 16 digits.
    pub content: String,
    /// Size of its file, in bytes.
    pub bytes: u64,
}

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is new and is kept now.
    New,
    /// It was here already.
    Known,
}

/// The sessions of one image.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    bytes_max: u64,
    /// The oldest first.
    entries: Vec<Entry>,
}

impl Entry {
    /// Reads the name of a file; `None` for what is not ours.
    pub fn parse(name: &str, bytes: u64) -> Option<Self> {
        let mut parts = name.strip_suffix(ENDING)?.splitn(3, '-');
        let (stamp, client, content) = (parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
        let ours = stamp.len() == 23 && stamp.ends_with('Z') && hex(client, 12) && hex(content, 16);
        ours.then(|| Self { name: name.to_owned(), client: client.to_owned(), content: content.to_owned(), bytes })
    }
}

impl History {
    /// The history at `path`, which need not exist. Blocks for as long as a directory takes to be listed.
    pub fn open(path: &Path, bytes_max: u64) -> Result<Self> {
        let unreadable = |e| Error::io(format_args!("cannot list the sessions in {}", path.display()), e);
        let mut entries = Vec::new();
        match path.read_dir() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            listed => {
                for found in listed.map_err(unreadable)? {
                    let found = found.map_err(unreadable)?;
                    let name = found.file_name();
                    let metadata = found.metadata().map_err(unreadable)?;
                    let entry = name.to_str().and_then(|name| Entry::parse(name, metadata.len()));
                    entries.extend(entry.filter(|_| metadata.is_file()));
                }
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { path: path.to_owned(), bytes_max, entries })
    }

    /// All sessions, the oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Keeps a session of `client` that came at `now`. Errors: ENOSPC when it is larger than the whole history may be, and
    /// those of writing a file.
    pub fn keep(&mut self, client: &str, now: WallTime, session: &[u8]) -> Result<Kept> {
        let content = blake3::hash(session).to_hex()[..16].to_owned();
        if self.entries.iter().any(|entry| entry.content == content) {
            return Ok(Kept::Known);
        }
        let bytes = session.len() as u64;
        if bytes > self.bytes_max {
            let text = format!("the sessions in {} have room for {} bytes only", self.path.display(), self.bytes_max);
            return Err(Error::new(errno::ENOSPC, text));
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|e| Error::io(format_args!("cannot make the directory {}", self.path.display()), e))?;
        self.make_room(client, bytes)?;
        let stamp: String = now.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let name = format!("{stamp}-{client}-{content}{ENDING}");
        write(&self.path.join(&name), session)?;
        let at = self.entries.partition_point(|entry| entry.name < name);
        self.entries.insert(at, Entry { name, client: client.to_owned(), content, bytes });
        Ok(Kept::New)
    }

    /// Removes the oldest of the client that has most, until one more of `client` with so many bytes fits in.
    fn make_room(&mut self, client: &str, bytes: u64) -> Result<()> {
        loop {
            let mut counts: HashMap<&str, usize> = HashMap::new();
            self.entries.iter().for_each(|entry| *counts.entry(&entry.client).or_default() += 1);
            let own = counts.get(client).copied().unwrap_or_default();
            let held: u64 = self.entries.iter().map(|entry| entry.bytes).sum();
            let most = if own >= CLIENT_FILES_MAX {
                client.to_owned()
            } else if self.entries.len() >= FILES_MAX || held + bytes > self.bytes_max {
                // The one that sends now counts with what it sends, so that it does not live at the cost of its equals;
                // of other equals it is the one with the oldest session, which `max_by_key` meets last.
                let count = |name: &str| counts[name] + usize::from(name == client);
                let most = self.entries.iter().rev().max_by_key(|entry| count(&entry.client));
                most.map_or_else(String::new, |entry| entry.client.clone())
            } else {
                return Ok(());
            };
            let Some(at) = self.entries.iter().position(|entry| entry.client == most) else { return Ok(()) };
            self.remove(at)?;
        }
    }

    fn remove(&mut self, at: usize) -> Result<()> {
        let path = self.path.join(&self.entries[at].name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format_args!("cannot remove the old session {}", path.display()), e))
            }
            _ => {
                self.entries.remove(at);
                Ok(())
            }
        }
    }
}

/// Writes a file for its owner alone, durably, and gives it its name when it is whole.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_extension(format!("{}-{number}.new", std::process::id()));
    let mut options = OpenOptions::new();
    let written = options.write(true).create_new(true).mode(0o600).open(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&beside, path)
    });
    written.map_err(|e| {
        // Whatever failed, nothing half-made stays behind.
        let _ = fs::remove_file(&beside);
        Error::io(format_args!("cannot write {}", path.display()), e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbb";

    fn clients(history: &History) -> (usize, usize) {
        let count = |client| history.entries().iter().filter(|entry| entry.client == client).count();
        (count(A), count(B))
    }

    #[test]
    fn what_is_kept_is_there_again_and_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/sessions");
        let mut history = History::open(&path, 1 << 20).unwrap();
        assert_eq!(history.keep(A, WallTime(2_000_000), b"one").unwrap(), Kept::New);
        assert_eq!(history.keep(B, WallTime(1_000_000), b"two").unwrap(), Kept::New);
        assert_eq!(history.keep(B, WallTime(3_000_000), b"one").unwrap(), Kept::Known);
        fs::write(path.join("somebody's.vms"), "x").unwrap();
        let mut again = History::open(&path, 1 << 20).unwrap();
        assert_eq!(again.entries(), history.entries());
        assert_eq!(again.entries()[0].client, B, "the order of time");
        assert_eq!(fs::read(path.join(&again.entries()[1].name)).unwrap(), b"one");
        assert_eq!(again.keep(A, WallTime(9), b"two").unwrap(), Kept::Known);
    }

    #[test]
    fn who_sends_a_thousand_drives_out_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path(), 3000).unwrap();
        for n in 0..10u64 {
            history.keep(B, WallTime(n), &[n as u8; 100]).unwrap();
        }
        for n in 0..1000u64 {
            history.keep(A, WallTime(1000 + n), format!("{n:0100}").as_bytes()).unwrap();
        }
        assert_eq!(clients(&history), (20, 10));
        assert!(history.entries().last().unwrap().name.starts_with("19700101T000000.001999Z-"), "the newest stayed");
        // The count of one client has a limit even where there is room.
        let mut wide = History::open(&dir.path().join("wide"), 1 << 20).unwrap();
        for n in 0..100u64 {
            wide.keep(A, WallTime(n), format!("{n}").as_bytes()).unwrap();
        }
        assert_eq!(clients(&wide), (CLIENT_FILES_MAX, 0));
        assert_eq!(fs::read_dir(dir.path().join("wide")).unwrap().count(), CLIENT_FILES_MAX);
    }

    #[test]
    fn what_can_never_fit_in_is_refused_and_drives_out_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path(), 100).unwrap();
        history.keep(A, WallTime(1), b"small").unwrap();
        assert_eq!(history.keep(B, WallTime(2), &[7; 101]).unwrap_err().errno(), errno::ENOSPC);
        assert_eq!(clients(&history), (1, 0));
    }
}
