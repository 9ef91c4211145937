//! Where in an image the parts lie of a restore point, or of a disk that says how to boot it.
//!
//! The latter has no memory and no state.
//!
//! The table is a text at the end of the image, and the head of the hash tree says where it begins; both are covered by the
//! root hash, so nobody but the publisher can have written it. The disk comes first: the image then still is a disk to those
//! who know nothing of regions.

use std::fmt;
use std::ops::Range;

use vmstream::Image;
use vmstream::error::{Error, Result, errno};
use vmstream::tree::TABLE_BYTES_MAX;

use crate::published::Hashes;

use super::{DISK, MACHINE, MEMORY, STATE};

/// What a region's beginning is a multiple of, in bytes: of every page and block size there is, and a round number to a
/// person who reads a trace.
const ALIGN: u64 = 1 << 20;
/// First line of every table.
const FIRST_LINE: &str = "vmstream regions 1";
/// The regions in their order: the word in the table, and the name of the file.
pub const NAMES: [(&str, &str); 4] = [("disk", DISK), ("memory", MEMORY), ("state", STATE), ("machine", MACHINE)];

/// The places of the parts that are there, as byte ranges of the image in the order of [`NAMES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions([Option<Range<u64>>; NAMES.len()]);

impl Regions {
    /// Lays out parts of these lengths, in bytes.
    pub fn of_lengths(lengths: [Option<u64>; NAMES.len()]) -> Self {
        let mut at = 0u64;
        Self(lengths.map(|length| {
            let start = at.next_multiple_of(ALIGN);
            at = start + length?;
            Some(start..at)
        }))
    }

    /// Where the table lies when it follows right behind them.
    pub fn table(&self) -> u64 {
        let end = self.iter().last().map_or(0, |(_, range)| range.end);
        end.next_multiple_of(ALIGN)
    }

    /// File name and place of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Range<u64>)> {
        NAMES.iter().zip(&self.0).filter_map(|((_, file), range)| Some((*file, range.as_ref()?)))
    }

    /// The place of the region whose file has this name.
    pub fn of(&self, file: &str) -> Option<&Range<u64>> {
        self.iter().find(|(name, _)| *name == file).map(|(_, range)| range)
    }

    /// Reads a table, which may be followed by zeroes. `table` is where it begins: all regions lie before it.
    ///
    /// Errors: `EPROTO` for anything but one line for each region, in order, apart from each other; memory and state go
    /// together, and only they may be missing.
    pub fn parse(bytes: &[u8], table: u64) -> Result<Self> {
        let wrong = |what: &str| {
            let text = format!("the image's table of regions {what}; publish the image anew");
            Error::new(errno::EPROTO, text)
        };
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong("is no text"))?;
        let mut lines = text.lines().peekable();
        if lines.next() != Some(FIRST_LINE) {
            return Err(wrong("is of a version that this vmstream does not know, or damaged"));
        }
        let mut found = Self([const { None }; NAMES.len()]);
        let mut before = 0;
        for (place, (name, _)) in found.0.iter_mut().zip(NAMES) {
            let line = lines.peek().copied().unwrap_or_default();
            let words = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')).and_then(|w| w.split_once(' '));
            let Some((offset, length)) = words else { continue };
            lines.next();
            let number = |word: &str| word.parse::<u64>().map_err(|_| wrong("has no number where one belongs"));
            let start = number(offset)?;
            let end = start.checked_add(number(length)?).filter(|&end| end <= table && start >= before);
            before = end.ok_or_else(|| wrong(&format!("has the {name} where it cannot be")))?;
            *place = Some(start..before);
        }
        let there = |file| found.of(file).is_some();
        if !there(DISK) || !there(MACHINE) || there(MEMORY) != there(STATE) {
            return Err(wrong("does not say where all parts are"));
        }
        if lines.next().is_some() || found.of(DISK).is_some_and(|disk| disk.start != 0) {
            return Err(wrong("does not begin or end as it must"));
        }
        Ok(found)
    }
}

impl fmt::Display for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}")?;
        let mut named = NAMES.iter().zip(&self.0).filter_map(|((name, _), range)| Some((name, range.as_ref()?)));
        named.try_for_each(|(name, range)| writeln!(f, "{name} {} {}", range.start, range.end - range.start))
    }
}

/// Those of an open image. Blocks until the table has come; the origin is asked what only it knows.
///
/// Errors: `EINVAL` when the image has none; those of the origin.
pub fn of_image(image: &Image) -> Result<Regions> {
    find(image)?.ok_or_else(|| {
        let text = format!(
            "{} is no restore point, nor does it say how to boot it: 'vmstream publish' makes both, with --restore-point or --boot",
            image.source_name()
        );
        Error::new(errno::EINVAL, text)
    })
}

/// The same; `None` when the image is a disk and nothing else.
pub fn find(image: &Image) -> Result<Option<Regions>> {
    let Some(published) = image.published() else { return Ok(None) };
    let head = match published.head() {
        Some(head) => head,
        None => {
            let asked = Hashes::new(published).map(|hashes| hashes.tree().head().clone());
            let unknown = |e: Error| {
                let text =
                    format!("what kind of image it is is not in the cache yet, and its origin has to say it: {e}");
                Error::new(e.errno(), text)
            };
            asked.map_err(unknown)?
        }
    };
    let Some(table) = head.table() else { return Ok(None) };
    // Its length was checked when the head was read.
    let mut bytes = vec![0; (image.size() - table).min(TABLE_BYTES_MAX) as usize];
    image.read_at(table, &mut bytes)?;
    Regions::parse(&bytes, table).map(Some)
}

/// The bytes of a table, as long as the room for it.
pub fn table_bytes(regions: &Regions) -> Vec<u8> {
    let mut bytes = regions.to_string().into_bytes();
    bytes.resize(TABLE_BYTES_MAX as usize, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_laid_out_is_read_back() {
        let regions = Regions::of_lengths([(5 << 20) + 512, 64 << 20, 370_001, 400].map(Some));
        assert_eq!(regions.of(MEMORY), Some(&(6 << 20..70 << 20)));
        assert_eq!(regions.table(), 72 << 20);
        assert_eq!(Regions::parse(&table_bytes(&regions), regions.table()).unwrap(), regions);
        let bootable = Regions::of_lengths([Some(5 << 20), None, None, Some(70)]);
        assert_eq!((bootable.of(MEMORY), bootable.of(MACHINE)), (None, Some(&(5 << 20..(5 << 20) + 70))));
        assert_eq!(bootable.to_string(), "vmstream regions 1\ndisk 0 5242880\nmachine 5242880 70\n");
        assert_eq!(Regions::parse(&table_bytes(&bootable), bootable.table()).unwrap(), bootable);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let regions = Regions::of_lengths([1 << 20, 1 << 20, 10, 10].map(Some));
        let (text, table) = (regions.to_string(), regions.table());
        let refused = |text: &str| Regions::parse(text.as_bytes(), table).unwrap_err().to_string();
        assert!(refused(&text.replace("regions 1", "regions 2")).contains("version"));
        assert!(refused(&text.replace("memory 1048576", "memory 1048575")).contains("memory where it cannot be"));
        assert!(refused(&text.replace("machine 3145728 10", "machine 3145728 99999999")).contains("machine where"));
        assert!(
            refused(&text.replace("machine 3145728 10", &format!("machine 3145728 {}", u64::MAX))).contains("where")
        );
        assert!(refused(&text.replace("state", "stage")).contains("where all parts are"));
        assert!(refused(&text.replace("machine", "engine")).contains("where all parts are"));
        assert!(refused(&text.replace("machine 3145728", "disk 3145728")).contains("where all parts are"));
        assert!(refused(&text.replace("disk 0", "disk 512")).contains("memory where it cannot be"));
        assert!(refused(&format!("{text}more 1 2\n")).contains("begin or end"));
        assert!(refused(&text.replace("disk 0", "disk -1")).contains("no number"));
    }
}
