//! The shelf: models that are kept between sessions, in the directory of the sessions.
//!
//! `published.vmm` is the model that lay beside the image at its origin, `learnt.vmm` what the sessions here have added to
//! it. A third file, `learnt.txt`, says what the two are: of which image, with which checksums, and which sessions were
//! learnt. It is written last, so what it does not confirm - because a process was killed between two files, because two
//! images shared the directory and wrote at once, because somebody put a file of his own there - does not count and is made
//! anew. Nothing is synced: all of it can be fetched and learnt again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::publisher;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::session::{Directory, Subject};
use crate::stats::ModelInUse;

const PUBLISHED: &str = "published.vmm";
const LEARNT: &str = "learnt.vmm";
const LEDGER: &str = "learnt.txt";
/// First line of the ledger.
const HEAD: &str = "vmstream learnt 1";
/// Longest ledger that is read, in bytes: a thousand sessions and a long validator.
const LEDGER_BYTES_MAX: u64 = 256 << 10;

/// What the ledger says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ledger {
    /// CRC-32C of the published model, and its validator.
    published: Option<(u32, Option<String>)>,
    /// CRC-32C of the learnt model.
    learnt: Option<u32>,
    /// Names of the sessions that were looked at, and their lengths in bytes: one that has grown is another.
    sessions: BTreeMap<String, u64>,
}

/// The shelf of one image.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: Directory,
    /// The line of the ledger that says of which image it is.
    image: String,
    ledger: Ledger,
    /// That a file could not be written was said.
    refused: bool,
}

impl Ledger {
    /// The ledger in `text`; `None` unless every line of it makes sense and it is one of this image.
    fn parse(text: &str, image: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) || lines.next() != Some(image) {
            return None;
        }
        let mut ledger = Self::default();
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            let (number, rest) = value.split_once(' ').map_or((value, None), |(number, rest)| (number, Some(rest)));
            match (key, rest) {
                ("published", validator) => {
                    ledger.published = Some((u32::from_str_radix(number, 16).ok()?, validator.map(str::to_owned)));
                }
                ("learnt", None) => ledger.learnt = Some(u32::from_str_radix(number, 16).ok()?),
                ("session", Some(name)) => drop(ledger.sessions.insert(name.to_owned(), number.parse().ok()?)),
                _ => return None,
            }
        }
        Some(ledger)
    }

    fn text(&self, image: &str) -> String {
        let mut text = format!("{HEAD}\n{image}\n");
        if let Some((crc, validator)) = &self.published {
            let validator = validator.as_deref().map_or(String::new(), |validator| format!(" {validator}"));
            let _ = writeln!(text, "published {crc:08x}{validator}");
        }
        if let Some(crc) = self.learnt {
            let _ = writeln!(text, "learnt {crc:08x}");
        }
        for (name, length) in &self.sessions {
            let _ = writeln!(text, "session {length} {name}");
        }
        text
    }
}

/// The line that says of which image a ledger is.
fn image_line(subject: &Subject) -> String {
    let geometry = subject.geometry;
    let validator = subject.validator.as_deref().unwrap_or("-");
    format!("image {} {} {validator}", geometry.size(), geometry.block_bytes())
}

impl Shelf {
    /// The shelf in the directory of an image's sessions.
    pub fn open(directory: Directory, subject: &Subject) -> Self {
        let image = image_line(subject);
        let text = read_ledger(&directory.path().join(LEDGER));
        let ledger = text.and_then(|text| Ledger::parse(&text, &image)).unwrap_or_default();
        Self { directory, image, ledger, refused: false }
    }

    /// Where the sessions are.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The published model, if it is what was put here.
    pub fn published(&self) -> Option<Vec<u8>> {
        self.whole(PUBLISHED, self.ledger.published.as_ref()?.0)
    }

    /// The validator that the published model had, if it is still here.
    pub fn published_validator(&self) -> Option<String> {
        let (crc, validator) = self.ledger.published.as_ref()?;
        self.whole(PUBLISHED, *crc).and(validator.clone())
    }

    /// The learnt model, if it is what was put here.
    pub fn learnt(&self) -> Option<Vec<u8>> {
        self.whole(LEARNT, self.ledger.learnt?)
    }

    /// Names for messages.
    pub fn published_name(&self) -> String {
        self.directory.path().join(PUBLISHED).display().to_string()
    }

    /// See [`Shelf::published_name`].
    pub fn learnt_name(&self) -> String {
        self.directory.path().join(LEARNT).display().to_string()
    }

    /// What the learnt model is made of, for a person.
    pub fn describe(&self) -> String {
        let base = if self.ledger.published.is_some() { ", on top of the one published beside the image" } else { "" };
        format!("learnt from the sessions in {}{base}", self.directory.path().display())
    }

    /// True when a session of this length was looked at, and what came of it is here.
    pub fn knows(&self, name: &str, length: u64) -> bool {
        self.ledger.learnt.is_some() && self.ledger.sessions.get(name) == Some(&length)
    }

    /// Keeps a model that was learnt from all `sessions`, names and lengths.
    pub fn keep_learnt(&mut self, model: &[u8], sessions: BTreeMap<String, u64>) {
        self.ledger.learnt = Some(crc32c::crc32c(model));
        self.ledger.sessions = sessions;
        self.write(LEARNT, model);
    }

    /// Keeps a published model. What was learnt on top of another one does not count any more.
    pub fn publish(&mut self, model: &[u8], validator: Option<String>) {
        // A validator is one line by the rules of HTTP; what breaks them is not kept.
        let validator = validator.filter(|text| !text.contains(char::is_control));
        self.ledger = Ledger { published: Some((crc32c::crc32c(model), validator)), ..Ledger::default() };
        self.write(PUBLISHED, model);
    }

    /// The publisher has taken the model away. What was learnt on top of it stays.
    pub fn forget_published(&mut self) {
        if self.ledger.published.take().is_some() {
            let _ = fs::remove_file(self.directory.path().join(PUBLISHED));
            self.write_ledger();
        }
    }

    /// Forgets all models, as the published one may be false: what was learnt on top of it is learnt anew.
    pub fn distrust(&mut self) {
        if std::mem::take(&mut self.ledger) != Ledger::default() {
            self.write_ledger();
        }
    }

    fn whole(&self, name: &str, crc: u32) -> Option<Vec<u8>> {
        let bytes = publisher::read(&self.directory.path().join(name)).ok()?;
        (crc32c::crc32c(&bytes) == crc).then_some(bytes)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) {
        let written = self.directory.make().and_then(|()| replace(&self.directory.path().join(name), bytes));
        if self.told(written) {
            self.write_ledger();
        }
    }

    fn write_ledger(&mut self) {
        let text = self.ledger.text(&self.image);
        let written = replace(&self.directory.path().join(LEDGER), text.as_bytes());
        self.told(written);
    }

    /// Says once that something went wrong: the next start has to learn again, and nothing else.
    fn told(&mut self, written: Result<()>) -> bool {
        if let Err(error) = &written
            && !std::mem::replace(&mut self.refused, true)
        {
            log::warn!("{error}; the next start has to learn again");
        }
        written.is_ok()
    }
}

/// The model that is kept in a directory of sessions for the next start: what `vmstream status` shows. Only reads, so it may
/// be called while the directory is in use. Blocks for as long as a model takes to be read.
pub fn kept(sessions: &Path) -> ModelInUse {
    let none = |why: &str| ModelInUse { sessions: 0, text: format!("none: {why}"), settled: true };
    let Some(text) = read_ledger(&sessions.join(LEDGER)) else { return none("nothing was learnt or found yet") };
    let image = text.lines().nth(1).unwrap_or_default().to_owned();
    let Some(ledger) = Ledger::parse(&text, &image) else {
        return none("what was learnt is damaged and is learnt anew");
    };
    let shelf = Shelf { directory: Directory::new(sessions, 0), image, ledger, refused: false };
    let models = [
        (shelf.learnt(), shelf.learnt_name(), shelf.describe()),
        (shelf.published(), shelf.published_name(), super::PUBLISHED_BEFORE.to_owned()),
    ];
    let readable = models.into_iter().find_map(|(bytes, name, text)| {
        let model = Model::read(&name, &bytes?[..]).ok()?;
        Some(ModelInUse { sessions: model.learnt().sessions, text, settled: true })
    });
    readable.unwrap_or_else(|| none("what was learnt or found is not there any more"))
}

fn read_ledger(path: &Path) -> Option<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(path).ok()?.take(LEDGER_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Writes a file beside `path` and renames it there.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    // Two images of one process may share a directory.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.new", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    let beside: PathBuf = path.with_file_name(name);
    fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path)).map_err(|e| {
        // Whatever failed, nothing half-made stays behind.
        let _ = fs::remove_file(&beside);
        Error::io(format_args!("cannot write {}", path.display()), e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Geometry;

    fn subject(validator: &str) -> Subject {
        let nameless = Subject::nameless(Geometry::new(1 << 20, 4096).unwrap());
        Subject { validator: Some(validator.to_owned()), ..nameless }
    }

    fn shelf(path: &Path, validator: &str) -> Shelf {
        Shelf::open(Directory::new(path, 1 << 20), &subject(validator))
    }

    #[test]
    fn what_is_kept_is_there_at_the_next_start_and_for_the_same_image_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = shelf(&dir.path().join("new"), "\"a b\"");
        first.publish(b"theirs", Some("\"tag with blanks\"".to_owned()));
        first.keep_learnt(b"ours", BTreeMap::from([("a name.vms".to_owned(), 7)]));
        let again = shelf(&dir.path().join("new"), "\"a b\"");
        assert_eq!(again.ledger, first.ledger);
        assert_eq!((again.published().unwrap(), again.learnt().unwrap()), (b"theirs".to_vec(), b"ours".to_vec()));
        assert_eq!(again.published_validator().unwrap(), "\"tag with blanks\"");
        assert!(again.knows("a name.vms", 7) && !again.knows("a name.vms", 8) && !again.knows("b.vms", 7));
        let other = shelf(&dir.path().join("new"), "\"other\"");
        assert!(other.published().is_none() && other.learnt().is_none() && !other.knows("a name.vms", 7));
    }

    #[test]
    fn a_file_that_the_ledger_does_not_confirm_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = shelf(dir.path(), "x");
        first.publish(b"theirs", None);
        first.keep_learnt(b"ours", BTreeMap::new());
        fs::write(dir.path().join(LEARNT), b"somebody's").unwrap();
        assert!(kept(dir.path()).text.starts_with("none: "));
        let again = shelf(dir.path(), "x");
        assert!(again.learnt().is_none() && again.published().is_some());
        for damaged in ["", "vmstream learnt 2\n", "vmstream learnt 1\nimage 1 1 x\n"] {
            fs::write(dir.path().join(LEDGER), damaged).unwrap();
            assert_eq!(shelf(dir.path(), "x").ledger, Ledger::default(), "{damaged:?}");
        }
    }

    #[test]
    fn nothing_is_left_of_a_model_that_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = shelf(dir.path(), "x");
        first.publish(b"theirs", Some("p.vmk 00".to_owned()));
        first.keep_learnt(b"both", BTreeMap::from([("a.vms".to_owned(), 7)]));
        first.distrust();
        let again = shelf(dir.path(), "x");
        assert!(again.published().is_none() && again.learnt().is_none() && !again.knows("a.vms", 7));
    }

    #[test]
    fn another_published_model_makes_the_learnt_one_worthless() {
        let dir = tempfile::tempdir().unwrap();
        let mut shelf = shelf(dir.path(), "x");
        shelf.keep_learnt(b"ours", BTreeMap::from([("a.vms".to_owned(), 7)]));
        shelf.publish(b"theirs", None);
        assert!(shelf.learnt().is_none() && !shelf.knows("a.vms", 7));
        shelf.keep_learnt(b"both", BTreeMap::new());
        shelf.forget_published();
        assert!(shelf.published().is_none() && shelf.learnt().is_some());
    }
}
