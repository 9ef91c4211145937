//! The cache on real files: what a session leaves, what the next one finds, and what is refused.

mod limits;
mod processes;
mod sessions;

use std::path::Path;

use vmstream::block::{BlockRange, Geometry};
use vmstream::error::{Error, Result};
use vmstream::source::Identity;
use vmstream::store::{Cache, Journal, Place, Store};

const BLOCK: u64 = 4096;
/// Not a multiple of the block size: the last block is short.
const SIZE: u64 = 64 * BLOCK + 100;
const PUBLISHED_S: i64 = 1_600_000_000;

fn identity(size: u64, tag: &str) -> Identity {
    Identity { size, validator: Some(format!("\"{tag}\"")), mtime_s: Some(PUBLISHED_S) }
}

type Session = (Store, Journal, Vec<BlockRange>);

fn begin_sized(place: &Place, size: u64) -> Result<Session> {
    let geometry = Geometry::new(size, BLOCK)?;
    Cache::lock(place)?.begin(&identity(size, "one"), geometry, "http://host/disk")
}

fn begin(directory: &Path) -> Result<Session> {
    begin_sized(&Place::Directory(directory.into()), SIZE)
}

fn refused(session: Result<Session>) -> Error {
    session.map(|_| ()).expect_err("must be refused")
}

fn range(start: u64, end: u64) -> BlockRange {
    BlockRange::new(start, end)
}

/// The content of a block in its `version`th writing.
fn content(block: u64, version: u64) -> Vec<u8> {
    [block.to_le_bytes(), version.to_le_bytes()].concat().repeat(BLOCK as usize / 16)
}
