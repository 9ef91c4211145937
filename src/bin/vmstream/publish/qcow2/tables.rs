//! Tables of qcow2 files: does all that they speak of lie within the file?
//!
//! What lies behind the end of a file reads as zeroes. Of an image that was cut off, as by a download that broke, those would
//! be published for good and with a right hash.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmstream::error::{Error, Result, errno};

use super::head::{DATA_FILE, ENTRY_BITS, first_entries, number};

/// Bits of a table's entry that say where something lies.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is compressed: its place has fewer bits.
const COMPRESSED: u64 = 1 << 62;
/// The cluster is all zeroes, wherever it lies.
const ZERO: u64 = 1;
/// Most bytes of a table that are read at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Refuses an image of which a part lies behind the end of its file. `head` is the header of `file`, which has been checked.
///
/// # Errors
/// EINVAL with where it ends and what to do; those of reading.
pub fn check(path: &Path, file: &File, head: &[u8]) -> Result<()> {
    let failed = |error| Error::io(format_args!("cannot read {}", path.display()), error);
    let length = file.metadata().map_err(failed)?.len();
    let number = |at, bytes| number(head, at, bytes).unwrap_or_default();
    let (cluster_bits, size, l1) = (number(20, 4) as u32, number(24, 8), number(40, 8));
    let beyond = |what: &str, at: u64| {
        let text = format!(
            "{} is cut off: {what} lies at byte {at}, and the file ends at {length}: get it again",
            path.display()
        );
        Error::new(errno::EINVAL, text)
    };
    let entries = |what: &str, from: u64, count: u64, each: &mut dyn FnMut(u64) -> Result<()>| -> Result<()> {
        let end = from.checked_add(count << ENTRY_BITS).filter(|&end| end <= length);
        let end = end.ok_or_else(|| beyond(what, from))?;
        let (mut at, mut piece) = (from, Vec::new());
        while at < end {
            piece.resize(PIECE_BYTES.min(end - at) as usize, 0);
            file.read_exact_at(&mut piece, at).map_err(failed)?;
            let numbers = piece.chunks_exact(1 << ENTRY_BITS).filter_map(|bytes| bytes.try_into().ok());
            numbers.map(u64::from_be_bytes).try_for_each(&mut *each)?;
            at += piece.len() as u64;
        }
        Ok(())
    };
    let elsewhere = number(4, 4) == 3 && number(72, 8) & DATA_FILE != 0;
    let compressed_place = (1u64 << (62 - (cluster_bits - 8))) - 1;
    let cluster = |entry: u64| {
        let at = match entry {
            entry if entry & COMPRESSED != 0 => entry & compressed_place,
            entry if elsewhere || entry & ZERO != 0 => 0,
            entry => entry & OFFSET,
        };
        // The last one may end with the file.
        if at < length { Ok(()) } else { Err(beyond("a cluster", at)) }
    };
    entries("the first table", l1, first_entries(size, cluster_bits), &mut |entry| match entry & OFFSET {
        0 => Ok(()),
        table => entries("a second table", table, 1 << (cluster_bits - ENTRY_BITS), &mut |entry| cluster(entry)),
    })
}
