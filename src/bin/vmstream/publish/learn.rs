//! What was learnt of guests goes out to the readers: a model and packs beside an image that is published already.
//!
//! The one truth about what was learnt is the model inside the published packs file, because the pointer names it and the
//! pointer is replaced in one step; `model.vmm` among the publisher's own files is a copy for people and for `vmstream
//! train`. What belongs to the model - the list of sessions that were learnt, and the base beneath collected ones - is
//! [`prepared`] before it is published. So a publisher that is killed in the middle has published the old model, and learns
//! the new one again, or the new one, and nothing of it is learnt twice or forgotten.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use vmstream::error::{Error, Result, errno};
use vmstream::model::{self, Limits, Trainer};
use vmstream::session::{self, Directory, Subject};
use vmstream::source::published::{NamedFile, Pointer};
use vmstream::tree::Tree;

use super::collected::{self, Collected};
use super::pack::pack;
use super::prepared;
use super::site::{Desk, Site};
use super::stop::Stop;
use crate::files;

/// Name of the copy of the model.
pub const MODEL: &str = "model.vmm";

/// What a republishing came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Republished {
    /// The packs file, by its name in the site.
    pub packs: NamedFile,
    /// False when exactly this was published already.
    pub changed: bool,
}

/// Puts a model and packs made of it beside the image `name`, which is published already, and replaces the pointer. Takes
/// the desk for that long: `EBUSY` when somebody else has it. The model must have its record and be one of this image,
/// else `EINVAL`; where another version may be published meanwhile, take the desk first and use [`republish_at`].
#[allow(dead_code, reason = "for those who have no desk yet, as a server that retrains")]
pub fn republish(site: &Site, name: &str, model: &[u8]) -> Result<Republished> {
    republish_at(&site.desk(name)?, model, &Stop::default())
}

/// The same for who has the desk.
pub fn republish_at(desk: &Desk, model: &[u8], stop: &Stop) -> Result<Republished> {
    let Some(mut pointer) = desk.pointer()? else {
        let text = format!("no image {} is published in {}", desk.name(), desk.site().directory().display());
        return Err(Error::new(errno::ENOENT, text));
    };
    let tree = read_tree(desk, &pointer)?;
    let image = desk.path(&pointer.image);
    let (draft, packs) = pack(desk, &tree, model, &image, stop)?;
    let changed = pointer.packs.as_ref() != Some(&packs) || !desk.path(&packs.name).is_file();
    if changed {
        pointer.packs = Some(packs.clone());
        desk.publish(&pointer, vec![(draft, packs.name.clone())], None)?;
    }
    desk.write_own(MODEL, model)?;
    Ok(Republished { packs, changed })
}

/// The tree of a published image, all of it, checked against the pointer.
pub fn read_tree(desk: &Desk, pointer: &Pointer) -> Result<Tree> {
    let path = desk.path(&pointer.tree.name);
    let bytes = std::fs::read(&path).map_err(|e| Error::io(format_args!("cannot read {}", path.display()), e))?;
    Tree::read(&bytes, pointer.root).map_err(|e| Error::new(e.errno(), format!("{}: {e}", path.display())))
}

/// Reads a model file that was given by name.
pub fn read_model(path: &Path) -> Result<Vec<u8>> {
    let bytes = files::read(path, model::FILE_BYTES_MAX)?;
    let none =
        || Error::io(format_args!("cannot read {}", path.display()), io::Error::from_raw_os_error(errno::ENOENT));
    let bytes = bytes.ok_or_else(none)?;
    // With its record, so that it can learn more; this also says what is wrong with it under the name it was given by.
    Trainer::resume(&path.display().to_string(), &bytes[..], Limits::default())?;
    Ok(bytes)
}

/// A model on its way to the readers.
pub struct Lesson {
    /// The model file, with its record.
    pub model: Vec<u8>,
    /// False when the readers have it already.
    pub changed: bool,
    ledger: BTreeSet<String>,
    collected: Option<Beneath>,
}

/// A model that has collected sessions in it, as a server made it: what it knew without them, and which they are.
struct Beneath {
    base: Option<Vec<u8>>,
    collected: Collected,
}

/// What is known, and what is being added to it.
pub struct Learning<'a> {
    tree: &'a Tree,
    base: Option<Vec<u8>>,
    ledger: BTreeSet<String>,
    beneath: Option<Beneath>,
}

impl<'a> Learning<'a> {
    /// Goes on from a model with its record, or from nothing.
    pub fn new(base: Option<Vec<u8>>, tree: &'a Tree) -> Self {
        Self { tree, base, ledger: BTreeSet::new(), beneath: None }
    }

    /// So that sessions which went into that model already are not learnt again, by us or by a server. `kept` is the published
    /// model, and `same_image` says that it is of this version of the image.
    pub fn remember(&mut self, desk: &Desk, kept: &[u8], same_image: bool) -> Result<()> {
        let own = desk.site().own(desk.name());
        prepared::settle(&own, kept)?;
        self.ledger = read_ledger(&own);
        let collected = Collected::load(&own);
        if same_image && collected.has_made(kept) {
            self.beneath = Some(Beneath { base: collected::read_base(&own)?, collected });
        }
        Ok(())
    }

    /// Learns those sessions in a directory that are of this image and were not learnt before. What cannot be read or is
    /// of something else is said and passed over. Answers how many were new.
    pub fn learn(&mut self, directory: &Path) -> Result<usize> {
        if !directory.is_dir() {
            let text = format!("{} is no directory: give the one where the sessions are", directory.display());
            return Err(Error::new(errno::ENOENT, text));
        }
        let begin = |base: &Option<Vec<u8>>| match base {
            Some(model) => Trainer::resume("the model", &model[..], Limits::default()),
            None => Ok(Trainer::new(self.tree.geometry(), Limits::default())),
        };
        let mut trainer = begin(&self.base)?;
        let mut below = self.beneath.as_ref().map(|beneath| begin(&beneath.base)).transpose()?;
        let this = Subject {
            validator: Some(format!("root:{}", self.tree.root())),
            ..Subject::nameless(self.tree.geometry())
        };
        let mut new = 0;
        for path in Directory::new(directory, 0).list()? {
            let bytes =
                std::fs::read(&path).map_err(|e| Error::io(format_args!("cannot read {}", path.display()), e))?;
            let mark = blake3::hash(&bytes).to_hex()[..32].to_owned();
            let collected = self.beneath.as_ref().is_some_and(|beneath| beneath.collected.has_learnt(&mark));
            if collected || self.ledger.contains(&mark) {
                continue;
            }
            match session::file::parse(&path.display().to_string(), &bytes) {
                Ok(recording) if !is_of(&recording.subject, &this) => {
                    log::warn!("{} is a session of another image and is left out", path.display());
                }
                Ok(recording) => {
                    trainer.add(&recording.session)?;
                    below.iter_mut().try_for_each(|below| below.add(&recording.session))?;
                    self.ledger.insert(mark);
                    new += 1;
                }
                Err(error) => log::warn!("{error}"),
            }
        }
        if new > 0 {
            self.base = Some(trainer.finish_file().1);
            if let (Some(beneath), Some(below)) = (&mut self.beneath, below) {
                beneath.base = Some(below.finish_file().1);
            }
        }
        Ok(new)
    }

    /// What there is to publish, if anything is known at all; `published` is the model that the readers have.
    pub fn finish(self, published: Option<&[u8]>) -> Option<Lesson> {
        let Self { base, ledger, beneath, .. } = self;
        base.map(|model| Lesson { changed: published != Some(&model[..]), model, ledger, collected: beneath })
    }
}

impl Lesson {
    /// Says, before it is published, what belongs to this model; and that it has collected sessions in it, if it has: a
    /// server that finds it must not take them for the publisher's own.
    pub fn announce(&self, desk: &Desk) -> Result<()> {
        let own = desk.site().own(desk.name());
        let ledger: String = self.ledger.iter().map(|mark| format!("{mark}\n")).collect();
        let beneath = self.collected.as_ref();
        prepared::prepare(&own, &self.model, beneath.and_then(|beneath| beneath.base.as_deref()), &ledger)?;
        let Some(Beneath { collected, .. }) = beneath else { return Ok(()) };
        let mut collected = collected.clone();
        if !collected.has_made(&self.model) {
            collected.models.push(collected::hash(&self.model));
            collected.save(&own)?;
        }
        Ok(())
    }

    /// After it was published: puts what belongs to it in place among the publisher's own files, and a copy of it.
    pub fn keep(&self, desk: &Desk) -> Result<()> {
        let own = desk.site().own(desk.name());
        prepared::settle(&own, &self.model)?;
        prepared::clear(&own);
        desk.write_own(MODEL, &self.model)
    }
}

/// Whether a session is one of this version of the image. One that was recorded before the image was published has
/// another kind of validator, or none; its size is all there is to go by.
fn is_of(session: &Subject, this: &Subject) -> bool {
    let published = session.validator.as_ref().is_some_and(|text| text.starts_with("root:"));
    session.geometry == this.geometry && (!published || session.validator == this.validator)
}

/// Sessions that the publisher has learnt, by the first 32 digits of the hash of their files; from the private directory of an
/// image.
pub fn read_ledger(own: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(prepared::ledger_path(own));
    text.map(|text| text.lines().map(str::to_owned).collect()).unwrap_or_default()
}
