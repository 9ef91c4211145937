//! Lessons: sessions that were recorded here become part of the model.
//!
//! A session counts when it is one of this image and nobody writes it any more. It is learnt once: the shelf has a list.
//! What is new is added to the learnt model, and if there is none yet to the published one.

use std::collections::BTreeMap;

use super::shelf::Shelf;
use crate::error::Result;
use crate::model::{Limits, Model, Trainer};
use crate::session::{self, Subject, file};

/// What the thread of an image may use: training needs up to 80 bytes for each of these touches, 80 MiB, and then about a
/// second of one processor, which the end of an image may have to wait for. They are 4 GiB of sessions.
const LIMITS: Limits = Limits { paths_max: 256, touches_max: 1 << 20 };

/// Learns what is new on the shelf; `None` when that is nothing, or when `closing` says to leave it.
pub(super) fn take(shelf: &mut Shelf, subject: &Subject, closing: &dyn Fn() -> bool) -> Option<Model> {
    let paths = shelf.directory().list().inspect_err(|error| log::warn!("{error}; nothing is learnt")).ok()?;
    let mut looked_at = BTreeMap::new();
    let mut fresh = Vec::new();
    for path in paths {
        // A name that the list cannot hold belongs to nobody we know.
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.contains(char::is_control));
        let (Some(name), Ok(metadata)) = (name, path.symlink_metadata()) else { continue };
        if shelf.knows(name, metadata.len()) {
            looked_at.insert(name.to_owned(), metadata.len());
        } else if !file::is_being_written(&path) {
            looked_at.insert(name.to_owned(), metadata.len());
            fresh.push(path);
        }
    }
    let mut trainer = None;
    for path in fresh {
        if closing() {
            return None;
        }
        let recording = match session::load(&path) {
            Ok(recording) if recording.session.accesses.is_empty() => continue,
            Ok(recording) if recording.subject.is_of(subject) => recording,
            Ok(_) => {
                log::debug!("{} is of another image: it is not learnt", path.display());
                continue;
            }
            Err(error) => {
                log::debug!("{error}: it is not learnt");
                continue;
            }
        };
        let trainer = trainer.get_or_insert_with(|| begin(shelf, subject));
        if let Err(error) = trainer.add(&recording.session) {
            log::debug!("{}: {error}", path.display());
        }
    }
    if closing() {
        return None;
    }
    let (model, bytes) = trainer?.finish_file();
    shelf.keep_learnt(&bytes, looked_at);
    Some(model)
}

/// A trainer that goes on from what there is.
fn begin(shelf: &Shelf, subject: &Subject) -> Trainer {
    let resume = |name: String, bytes: Vec<u8>| -> Result<Trainer> { Trainer::resume(&name, &bytes[..], LIMITS) };
    let learnt = shelf.learnt().map(|bytes| resume(shelf.learnt_name(), bytes));
    let base = learnt.or_else(|| shelf.published().map(|bytes| resume(shelf.published_name(), bytes)));
    match base {
        Some(Ok(trainer)) if trainer.geometry() == subject.geometry => trainer,
        Some(Err(error)) => {
            log::warn!("{error}");
            Trainer::new(subject.geometry, LIMITS)
        }
        _ => Trainer::new(subject.geometry, LIMITS),
    }
}
