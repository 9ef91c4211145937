//! Headers of qcow2 files: is this one that can be read rightly?
//!
//! A header may speak of things without which the data clusters mean something else. The library that reads the clusters does
//! not look at all of them: of an encrypted image it would give the ciphertext, and of one whose first table is too
//! short for its disk it would take the rest for zeroes. Such bytes would be published for good and with a right hash.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use vmstream::error::{Error, Result, errno};

use super::{MAGIC, tables};

/// Bytes of a header of version 2, and those of version 3 that are looked at.
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 80;
/// Bytes of an entry in a table, as a power of two.
pub(super) const ENTRY_BITS: u32 = 3;
/// Sizes of clusters that the format knows, as powers of two.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The incompatible feature that can be read: a data file beside the image.
pub(super) const DATA_FILE: u64 = 1 << 2;
/// Others by their bits, with what they are called and what to do about them.
const FEATURES: [(u32, &str, &str); 4] = [
    (0, "was not closed by who wrote it last", "repair it ('qemu-img check -r all')"),
    (1, "is marked as corrupt", "repair it ('qemu-img check -r all')"),
    (3, "is compressed in another way than with zlib", CONVERT),
    (4, "has extended L2 entries", CONVERT),
];
const CONVERT: &str = "make a raw image of it first ('qemu-img convert -O raw')";

/// Refuses a qcow2 file that would not be read rightly. What is no qcow2 file is not looked at.
///
/// # Errors
/// EINVAL with what it is and what to do; those of reading.
pub fn check(path: &Path) -> Result<()> {
    let failed = |e| Error::io(format_args!("cannot read {}", path.display()), e);
    let file = File::open(path).map_err(failed)?;
    let mut head = Vec::new();
    (&file).take(V3_BYTES as u64).read_to_end(&mut head).map_err(failed)?;
    if !head.starts_with(MAGIC) {
        return Ok(());
    }
    judge(&head).map_err(|(what, advice)| {
        let text = format!("{} cannot be read as a qcow2 image: it {what}: {advice}", path.display());
        Error::new(errno::EINVAL, text)
    })?;
    tables::check(path, &file, &head)
}

/// The number of so many bytes that stands at a place of a header.
pub(super) fn number(head: &[u8], at: usize, bytes: usize) -> Option<u64> {
    Some(head.get(at..at + bytes)?.iter().fold(0, |value: u64, &byte| value << 8 | u64::from(byte)))
}

/// Entries of the first table that a disk of `size` bytes takes: each stands for a second table of one cluster, and each entry
/// there for a cluster.
pub(super) fn first_entries(size: u64, cluster_bits: u32) -> u64 {
    size.div_ceil(1 << (2 * cluster_bits - ENTRY_BITS))
}

/// What is wrong with a header, and what to do.
fn judge(head: &[u8]) -> std::result::Result<(), (String, &'static str)> {
    let number = |at, bytes| number(head, at, bytes);
    let wrong = |what: &str, advice| Err((what.to_owned(), advice));
    let cut = || ("is cut off in its header".to_owned(), "get it again");
    let version = number(4, 4).ok_or_else(cut)?;
    if !(2..=3).contains(&version) {
        return Err((format!("is of version {version}, and 2 and 3 are known"), CONVERT));
    }
    let needed = if version == 2 { V2_BYTES } else { V3_BYTES };
    if head.len() < needed {
        return Err(cut());
    }
    let word = |at| number(at, 4).unwrap_or_default();
    match word(32) {
        0 => {}
        2 => return wrong("is encrypted with LUKS", "publish what is inside ('qemu-img convert' with its secret)"),
        _ => return wrong("is encrypted", "publish what is inside ('qemu-img convert' with its secret)"),
    }
    if version == 3 {
        let features = number(72, 8).unwrap_or_default() & !DATA_FILE;
        if let Some((_, what, advice)) = FEATURES.iter().find(|(bit, ..)| features >> bit & 1 == 1) {
            return wrong(what, advice);
        }
        if features != 0 {
            return Err((format!("has features that are not known (bits {features:#x})"), CONVERT));
        }
    }
    let (cluster_bits, size, l1_entries) = (word(20) as u32, number(24, 8).unwrap_or_default(), word(36));
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err((format!("has clusters of 2^{cluster_bits} bytes, which no image has"), "get it again"));
    }
    if l1_entries < first_entries(size, cluster_bits) {
        return wrong("has a first table that is too short for its disk", "repair it ('qemu-img check -r all')");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of a disk of 1 GiB in clusters of 64 KiB: two entries of the first table.
    fn head(version: u32) -> Vec<u8> {
        let mut head = vec![0; 104];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(4, &version.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &(1u64 << 30).to_be_bytes());
        put(36, &2u32.to_be_bytes());
        head
    }

    fn said(change: impl Fn(&mut Vec<u8>)) -> String {
        let mut head = head(3);
        change(&mut head);
        judge(&head).map_or_else(|(what, advice)| format!("{what}: {advice}"), |()| "good".to_owned())
    }

    #[test]
    fn what_would_be_read_wrongly_is_refused_with_its_reason() {
        assert_eq!((judge(&head(2)), judge(&head(3))), (Ok(()), Ok(())));
        assert_eq!(said(|head| head[79] = 4), "good", "a data file beside it is read");
        for (at, value, says) in [
            (35, 2, "LUKS"),
            (35, 1, "is encrypted: "),
            (79, 1, "not closed"),
            (79, 2, "corrupt"),
            (79, 8, "compressed in another way"),
            (79, 16, "extended L2"),
            (72, 1, "bits 0x100000000000000"),
            (39, 1, "too short for its disk"),
            (23, 8, "clusters of 2^8"),
            (7, 4, "version 4"),
        ] {
            let text = said(|head| head[at] = value);
            assert!(text.contains(says), "{at}: {text}");
        }
        assert!(said(|head| head[24..32].fill(0xff)).contains("too short"), "the largest number is no overflow");
        for cut in [5, 40, 79] {
            assert!(said(|head| head.truncate(cut)).contains("cut off"), "{cut}");
        }
    }
}
