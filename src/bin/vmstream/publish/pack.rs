//! Packs are written, and what published ones hold is found again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmstream::block::BlockRange;
use vmstream::error::{Error, Result, errno};
use vmstream::packs::{Builder, HEADER_BYTES, Header};
use vmstream::source::published::{NamedFile, Pointer};
use vmstream::tree::Tree;

use super::gauge::Gauge;
use super::learn::MODEL_BYTES_MAX;
use super::site::{Desk, Draft, Site};
use super::stop::Stop;

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
    let compress = |bytes: &[u8]| {
        zstd::bulk::compress(bytes, LEVEL)
            .map_err(|e| Error::io(format_args!("cannot compress {}", image.display()), e))
    };
    // What stands before the frames is known when they are made, so they wait in a file of their own.
    let aside = desk.draft("frames")?;
    let unwritable = |draft: &Draft, e| Error::io(format_args!("cannot write {}", draft.path().display()), e);
    let mut builder = Builder::new("the model", model, tree)?;
    let total = builder.bytes_left();
    let mut gauge = Gauge::new("packed", total);
    let mut left = total;
    let mut frames = BufWriter::new(&aside.file);
    while let Some(frame) = builder.next(&mut read, &compress)? {
        stop.check()?;
        frames.write_all(&frame).map_err(|e| unwritable(&aside, e))?;
        gauge.read(left - builder.bytes_left());
        left = builder.bytes_left();
    }
    frames.flush().map_err(|e| unwritable(&aside, e))?;
    drop(frames);

    let draft = desk.draft("packs")?;
    let head = builder.finish()?;
    let (hash, bytes) = join(&head, &aside.file, &draft.file).map_err(|e| unwritable(&draft, e))?;
    Ok((draft, NamedFile { name: desk.file_name(&hash.to_hex(), "vmk"), bytes }))
}

/// Writes `head` and all of `rest` one behind the other; answers the hash and the length of the whole.
fn join(head: &[u8], mut rest: &File, out: &File) -> io::Result<(blake3::Hash, u64)> {
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

/// The model with its record that a pointer's packs hold; `None` when it names none, or they are not there any more.
pub fn kept_model(site: &Site, pointer: &Pointer) -> Result<Option<Vec<u8>>> {
    let Some(packs) = &pointer.packs else { return Ok(None) };
    let path = site.directory().join(&packs.name);
    let failed = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            log::warn!("{} is not there any more: what was learnt before is not known", path.display());
            return Ok(None);
        }
        file => file.map_err(failed)?,
    };
    let mut head = [0; HEADER_BYTES];
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    let place = Header::decode(&path.display().to_string(), &head)?.model();
    let length = place.end - place.start;
    // Also no more than the file has: nothing is reserved because a header says so.
    if length > MODEL_BYTES_MAX || place.end > file.metadata().map_err(failed)?.len() {
        let text = format!("{} has no room for the model it speaks of: publish a model anew", path.display());
        return Err(Error::new(errno::EINVAL, text));
    }
    let mut model = vec![0; length as usize];
    file.read_exact_at(&mut model, place.start).map_err(failed)?;
    Ok(Some(model))
}
