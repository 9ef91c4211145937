//! Looks into a cache without locking or changing it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::chain::Scan;
use super::directory::{self, Directory};
use super::header::Pinned;
use super::lock::Holder;
use super::medium::{Folder, JOURNAL_SUFFIX, Medium, Names};
use super::place::{IMAGE_NAME, image_name};
use super::runs;
use crate::block::BlockRange;
use crate::error::{Error, Result, errno};

/// What a cache holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Path of the image.
    pub image: PathBuf,
    /// What the cache is bound to.
    pub pinned: Pinned,
    /// The blocks that are durably there, as ascending runs.
    pub resident: Vec<BlockRange>,
    /// Their number.
    pub resident_blocks: u64,
    /// Bytes that are durably there.
    pub resident_bytes: u64,
    /// True when every block is there.
    pub complete: bool,
    /// Room that the image takes on the disk, in bytes; `None` when the image is missing.
    pub allocated_bytes: Option<u64>,
    /// Length of the journal's valid part, in bytes.
    pub journal_bytes: u64,
    /// Bytes behind it: a record that is being written, or was cut short by a crash.
    pub tail_bytes: u64,
    /// Who uses the cache now, as far as that can be told without taking the lock.
    pub locked_by: Option<Holder>,
}

/// Looks at the cache at `path`: its directory, its image or its journal.
///
/// Takes no lock and changes nothing, so that it may be called at any time; what a session has not recorded yet is
/// not seen. Errors: `ENOENT` when there is no journal; those of a journal that cannot be read.
pub fn inspect(path: &Path) -> Result<Summary> {
    let (folder, names) = find(path)?;
    let shown = folder.show(&names.journal);
    let Some(journal) = folder.open_with(&names.journal, OFlags::RDONLY)? else {
        let text = format!("{} is no cache of vmstream, or a finished one: there is no {shown}", path.display());
        return Err(Error::new(errno::ENOENT, text));
    };
    let scan = Scan::read(&journal, &shown)?;
    let length = Medium::length(&journal).map_err(|e| Error::io(format_args!("cannot examine {shown}"), e))?;
    let geometry = scan.header.pinned.geometry;
    let resident_blocks = runs::blocks(&scan.runs);
    let image = folder.path(&names.image);
    Ok(Summary {
        resident_blocks,
        resident_bytes: scan.runs.iter().map(|run: &BlockRange| geometry.length(*run)).sum(),
        complete: resident_blocks == geometry.blocks(),
        // By name, not by opening it: closing a descriptor would drop the POSIX locks a monitor in this process has.
        allocated_bytes: image.symlink_metadata().ok().map(|metadata| metadata.blocks() * 512),
        journal_bytes: scan.end,
        tail_bytes: length.saturating_sub(scan.end),
        locked_by: Holder::of(&folder, &names.lock),
        pinned: scan.header.pinned,
        resident: scan.runs,
        image,
    })
}

fn find(path: &Path) -> Result<(Directory, Names)> {
    if path.is_dir() {
        return Ok((Directory::open(path)?, Names::of(IMAGE_NAME.as_ref())));
    }
    let folder = Directory::open(directory::parent(path))?;
    let name = image_name(path)?;
    if let Some(image) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(JOURNAL_SUFFIX)) {
        // An image may itself be named so; then there is a journal with the suffix twice.
        let names = Names::of(image.as_ref());
        if !image.is_empty() && !folder.has_file(&Names::of(name).journal) {
            return Ok((folder, names));
        }
    }
    Ok((folder, Names::of(name)))
}
