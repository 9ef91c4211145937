//! Which sessions went where: a text file beside them, `sent.txt`.
//!
//! Each line has a hash of the place and the name of a session, so that the file does not tell where to. A line is
//! dropped when its session is gone. Nothing is synced: a session that is sent twice is known there.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::session::Directory;

const FILE: &str = "sent.txt";
/// First line of the file.
const HEAD: &str = "vmstream sent 1";
/// Longest list that is read, in bytes: thousands of sessions.
const BYTES_MAX: u64 = 256 << 10;

/// The list of a directory of sessions.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    /// Hash of the place, 16 hexadecimal digits.
    place: String,
    lines: BTreeSet<String>,
}

impl Ledger {
    /// The list for the place `url`. One that cannot be read is empty.
    pub fn open(directory: &Directory, url: &str) -> Self {
        let path = directory.path().join(FILE);
        let mut text = String::new();
        let read = fs::File::open(&path).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text));
        let mut lines = if read.is_ok() { text.lines() } else { "".lines() };
        let known = lines.next() == Some(HEAD);
        let exists = |line: &&str| {
            let name = line.split_once(' ').map_or("", |(_, name)| name);
            !name.is_empty() && !name.contains('/') && directory.path().join(name).exists()
        };
        let lines = lines.filter(|_| known).filter(exists).map(str::to_owned).collect();
        let place = blake3::hash(url.as_bytes()).to_hex()[..16].to_owned();
        Self { path, place, lines }
    }

    fn line(&self, session: &str) -> String {
        format!("{} {session}", self.place)
    }

    /// True when this session need not be sent there any more.
    pub fn knows(&self, session: &str) -> bool {
        self.lines.contains(&self.line(session))
    }

    /// Notes that this session is done with.
    pub fn add(&mut self, session: &str) -> Result<()> {
        self.lines.insert(self.line(session));
        let mut text = format!("{HEAD}\n");
        self.lines.iter().for_each(|line| text.extend([line.as_str(), "\n"]));
        let beside = self.path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&beside, text).and_then(|()| fs::rename(&beside, &self.path)).map_err(|e| {
            // Whatever failed, nothing half-made stays behind.
            let _ = fs::remove_file(&beside);
            Error::io(format_args!("cannot write {}", self.path.display()), e)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_remembered_by_place_as_long_as_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path(), 1 << 20);
        for name in ["a.vms", "b.vms"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut ledger = Ledger::open(&directory, "http://h/x");
        ledger.add("a.vms").unwrap();
        ledger.add("b.vms").unwrap();
        fs::remove_file(dir.path().join("b.vms")).unwrap();
        let mut again = Ledger::open(&directory, "http://h/x");
        assert!(again.knows("a.vms") && !again.knows("b.vms"));
        assert!(!Ledger::open(&directory, "http://h/y").knows("a.vms"));
        again.add("a.vms").unwrap();
        assert!(!fs::read_to_string(dir.path().join(FILE)).unwrap().contains("b.vms"));
        fs::write(dir.path().join(FILE), "vmstream sent 2\n").unwrap();
        assert!(!Ledger::open(&directory, "http://h/x").knows("a.vms"));
    }
}
