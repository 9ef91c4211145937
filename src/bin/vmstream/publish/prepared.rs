//! What a publisher's own files shall say once a certain model is published.
//!
//! Only the pointer is replaced in one step. But the list of learnt sessions, and the base beneath collected ones, belong to
//! the model that it leads to: were they written after it, a publisher that is killed in between would leave sessions in
//! the model that nobody knows of, and the next lesson of a server would unlearn them. Were they written before it, they
//! would tell of a model that nobody has. So both are prepared before, under names with the hash of that model, and
//! whoever finds the model published puts them in place first: its publisher, the next one, or a server.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use vmstream::error::{Error, Result};

use super::collected;
use crate::files;

/// Name of the list of sessions that the publisher has learnt.
pub const LEDGER: &str = "learnt";
/// Digits of a model's hash in a name: nobody makes two models that have the same by chance.
const DIGITS: usize = 32;
/// What the names of prepared files begin with. The list is put in place last: as long as it waits, all is done again.
const BASE_PART: &str = "base-";
const LEDGER_PART: &str = "learnt-";

/// Where the list of learnt sessions lies in an image's private directory.
pub fn ledger_path(own: &Path) -> PathBuf {
    own.join(LEDGER)
}

fn waiting(own: &Path, part: &str, model: &[u8]) -> PathBuf {
    own.join(format!("{part}{}", &collected::hash(model)[..DIGITS]))
}

/// Prepares what belongs to `model`: the base beneath it, if collected sessions are in it, and the list. For who has the
/// desk.
pub fn prepare(own: &Path, model: &[u8], base: Option<&[u8]>, ledger: &str) -> Result<()> {
    if let Some(base) = base {
        files::replace(&waiting(own, BASE_PART, model), base)?;
    }
    files::replace(&waiting(own, LEDGER_PART, model), ledger)
}

/// Puts in place what was prepared for `model`, which is published. Several may do so at once.
pub fn settle(own: &Path, model: &[u8]) -> Result<()> {
    for (part, to) in [(BASE_PART, collected::base_path(own)), (LEDGER_PART, ledger_path(own))] {
        let from = waiting(own, part, model);
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io(format_args!("cannot rename {} to {}", from.display(), to.display()), error));
            }
            // Nothing was prepared, or somebody else was faster.
            _ => {}
        }
    }
    Ok(())
}

/// Removes what was prepared for models that were never published. For who has the desk and has published.
pub fn clear(own: &Path) {
    let Ok(entries) = std::fs::read_dir(own) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let of = |part: &&str| {
            let digits = name.to_str().and_then(|name| name.strip_prefix(*part));
            digits.is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        if [BASE_PART, LEDGER_PART].iter().any(of) {
            // One that stays costs its length and nothing else.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_prepared_is_in_place_when_its_model_is_published_and_else_never() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path();
        let texts = || [collected::base_path(own), ledger_path(own)].map(|path| std::fs::read_to_string(path).ok());
        let old = ["old base", "old list"].map(|text| Some(text.to_owned()));
        std::fs::write(collected::base_path(own), "old base").unwrap();
        std::fs::write(ledger_path(own), "old list").unwrap();
        prepare(own, b"lost", Some(b"lost base"), "lost list").unwrap();
        prepare(own, b"new", Some(b"new base"), "new list").unwrap();
        settle(own, b"old").unwrap();
        assert_eq!(texts(), old);
        // One that is killed between the two leaves the second for the next.
        std::fs::rename(waiting(own, BASE_PART, b"new"), collected::base_path(own)).unwrap();
        settle(own, b"new").unwrap();
        settle(own, b"new").unwrap();
        let new = ["new base", "new list"].map(|text| Some(text.to_owned()));
        assert_eq!(texts(), new);
        clear(own);
        settle(own, b"lost").unwrap();
        assert_eq!(texts(), new);
        assert_eq!(std::fs::read_dir(own).unwrap().count(), 2);
    }
}
