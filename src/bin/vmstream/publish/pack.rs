//! Packs are written, and what published ones hold is found again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmstream::block::BlockRange;
use vmstream::error::{Error, Result, errno};
use vmstream::model::{self, Limits, Trainer};
use vmstream::packs::{Builder, HEADER_BYTES, Header};
use vmstream::source::published::{NamedFile, Pointer};
use vmstream::tree::Tree;

use super::compress;
use super::gauge::Gauge;
use super::learn::MODEL;
use super::site::{Desk, Draft, Site};
use super::stop::Stop;
use crate::files;

/// How hard packs are compressed, as a level of zstd. In frames of 128 KiB the levels 3, 6, 9, 15 and 19 shrink a Debian system
/// to one part in 2.63, 2.80, 2.83, 3.04 and 3.07, at 170, 66, 42, 4.8 and 2.4 MB/s: beyond the sixth it soon takes hours to
/// publish what is sent in minutes.
const LEVEL: i32 = 6;

/// Makes a packs file of an image and a model of it: a draft, and the name it is to have. `image` is the raw image that
/// `tree` is of.
///
/// Errors: `EINVAL` for a model that has no record, is damaged or is of another image; `EIO` for an image that is not what
/// was published; `ECANCELED` when `stop` says so.
pub fn pack(desk: &Desk, tree: &Tree, model: &[u8], image: &Path, stop: &Stop) -> Result<(Draft, NamedFile)> {
    let source = File::open(image).map_err(|e| Error::io(format_args!("cannot open {}", image.display()), e))?;
    let mut read = |range: BlockRange, bytes: &mut [u8]| {
        let unreadable = |e| Error::io(format_args!("cannot read {}", image.display()), e);
        source.read_exact_at(bytes, tree.geometry().offset(range)).map_err(unreadable)
    };
    // What stands before the frames is known when they are made, so they wait in a file of their own.
    let aside = desk.draft("frames")?;
    let unwritable = |draft: &Draft, e| Error::io(format_args!("cannot write {}", draft.path().display()), e);
    let mut builder = Builder::new("the model", model, tree)?;
    let mut gauge = Gauge::new("packed", builder.bytes_left());
    let mut frames = BufWriter::new(&aside.file);
    compress::all(&mut builder, &mut read, LEVEL, &mut |frame, blocks_bytes| {
        stop.check()?;
        gauge.read(blocks_bytes);
        frames.write_all(frame).map_err(|e| unwritable(&aside, e))
    })?;
    frames.flush().map_err(|e| unwritable(&aside, e))?;
    drop(frames);

    let draft = desk.draft("packs")?;
    let head = builder.finish()?;
    let (hash, bytes) = join(&head, &aside.file, &draft.file).map_err(|e| unwritable(&draft, e))?;
    Ok((draft, NamedFile { name: desk.file_name(&hash.to_hex(), "vmk"), bytes }))
}

/// Writes `head` and all of `rest` one behind the other; answers the hash and the length of the whole.
fn join(head: &[u8], mut rest: &File, out: impl Write) -> io::Result<(blake3::Hash, u64)> {
    rest.rewind()?;
    let (mut whole, mut out) = (head.chain(BufReader::new(rest)), BufWriter::new(out));
    let (mut hasher, mut length) = (blake3::Hasher::new(), 0);
    let mut piece = vec![0; 128 << 10];
    loop {
        let read = whole.read(&mut piece)?;
        if read == 0 {
            break;
        }
        hasher.update(&piece[..read]);
        out.write_all(&piece[..read])?;
        length += read as u64;
    }
    out.flush()?;
    Ok((hasher.finalize(), length))
}

/// What is kept of what was learnt.
#[derive(Debug)]
pub struct Kept {
    /// The model with its record.
    pub model: Option<Vec<u8>>,
    /// Whether the packs are there as they were published; true where the pointer names none.
    pub sound: bool,
}

impl Default for Kept {
    fn default() -> Self {
        Self { model: None, sound: true }
    }
}

/// What was learnt of the image that `pointer` leads to, and whether its packs still are what their name says.
pub fn kept(site: &Site, name: &str, pointer: &Pointer) -> Result<Kept> {
    let Some(packs) = &pointer.packs else { return Ok(Kept::default()) };
    let path = site.directory().join(&packs.name);
    let sound = is_what_it_is_called(&path, packs);
    if !sound {
        log::warn!("{} is not what was published: it is made again", packs.name);
    }
    Ok(Kept { model: published_model(site, name, pointer)?, sound })
}

/// True when a file has the length that the pointer says and the hash that is part of its name.
fn is_what_it_is_called(path: &Path, packs: &NamedFile) -> bool {
    let hash = |file: File| join(&[], &file, io::sink()).ok();
    let Some((hash, bytes)) = File::open(path).ok().and_then(hash) else { return false };
    bytes == packs.bytes && packs.name.contains(&hash.to_hex()[..12])
}

/// The model with its record that readers get, the one truth about what was learnt: it lies in the packs that the pointer
/// names. Where these are gone or damaged it is the copy among the publisher's own files. `None` when there are no packs, or
/// no copy either.
pub fn published_model(site: &Site, name: &str, pointer: &Pointer) -> Result<Option<Vec<u8>>> {
    let Some(packs) = &pointer.packs else { return Ok(None) };
    let path = site.directory().join(&packs.name);
    let usable = |model: &Vec<u8>| {
        let trainer = Trainer::resume("the model", &model[..], Limits::default());
        trainer.is_ok_and(|trainer| trainer.geometry() == pointer.geometry)
    };
    let why = match model_within(&path) {
        Ok(model) if usable(&model) => return Ok(Some(model)),
        Ok(_) => "its model is damaged".to_owned(),
        Err(error) => error.to_string(),
    };
    let copy = files::read(&site.own(name).join(MODEL), model::FILE_BYTES_MAX).ok().flatten().filter(usable);
    let instead = if copy.is_some() { "the publisher's copy counts" } else { "what was learnt before is not known" };
    log::warn!("{}: {why}: {instead}", path.display());
    Ok(copy)
}

/// The model in a packs file.
fn model_within(path: &Path) -> Result<Vec<u8>> {
    let failed = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    let file = File::open(path).map_err(failed)?;
    let mut head = [0; HEADER_BYTES];
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    let place = Header::decode(&path.display().to_string(), &head)?.model();
    // No more than the file has: nothing is reserved because a header says so.
    if place.end > file.metadata().map_err(failed)?.len() {
        let text = format!("{} is cut off before the end of its model", path.display());
        return Err(Error::new(errno::EINVAL, text));
    }
    let mut model = vec![0; (place.end - place.start) as usize];
    file.read_exact_at(&mut model, place.start).map_err(failed)?;
    Ok(model)
}
