//! The head of a tree file, and the shape of the tree that follows from it.
//!
//! The layout is in `docs/format.md`. The head's hash is the root hash, so nothing in a head that has been compared
//! with a root can be a lie; but it may still be nonsense that somebody published, and is checked as such.

use super::hash::{HASH_BYTES, Hash, Root};
use super::holes::Holes;
use crate::block::Geometry;
use crate::error::{Error, Result, errno};

/// Bytes of a head.
pub const HEAD_BYTES: usize = 112;
/// First bytes of every tree file. Not text, with both kinds of line end in it: a transfer that "helps" shows at once.
pub(super) const MAGIC: [u8; 8] = *b"\x89VMT\r\n\x1a\n";
/// The one version of the format that there is so far.
const VERSION: u32 = 1;
/// log2 of the children of a page. A page is needed to check a single block, and bigger pages bring more hashes that
/// nobody asked for: 128 are 2560 bytes, 2.6 % of what a session of real guests transfers; 64 would be 2.1 % and
/// make the tree deeper, 256 would be 3.3 %.
pub const FAN_OUT_SHIFT: u32 = 7;
/// Children of a page, unless it is the last of its level.
pub const FAN_OUT: u64 = 1 << FAN_OUT_SHIFT;

/// Longest table of regions, in bytes: four lines of text are what is in one.
pub const TABLE_BYTES_MAX: u64 = 4096;

/// A page of the tree: its level, 0 being that of the block hashes, and its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId {
    /// 0 for pages of block hashes, 1 for pages of their hashes, and so on.
    pub level: u8,
    /// Place within the level.
    pub index: u32,
}

impl PageId {
    /// The page that holds this one's hash, and the place in it.
    pub fn parent(self) -> (Self, usize) {
        let parent = Self { level: self.level + 1, index: self.index >> FAN_OUT_SHIFT };
        (parent, (u64::from(self.index) % FAN_OUT) as usize)
    }
}

/// What a tree file begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    geometry: Geometry,
    used: u64,
    map_bytes: u64,
    map_hash: [u8; 32],
    top: Hash,
    table: u64,
}

impl Head {
    pub(super) fn new(geometry: Geometry, holes: &Holes, map: &[u8], top: Hash) -> Self {
        let map_hash = *blake3::hash(map).as_bytes();
        Self { geometry, used: holes.used(), map_bytes: map.len() as u64, map_hash, top, table: 0 }
    }

    /// The same for an image whose table of regions begins at `table`.
    pub(super) fn with_table(self, table: u64) -> Self {
        Self { table, ..self }
    }

    /// Size of the image and of its blocks.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Number of used blocks.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Where in the image the table of its regions begins, up to its end, in bytes; `None` for an image that is one disk.
    ///
    /// As the head is what the root hash is made of, no mirror can pass a restore point off as a disk, nor a disk that
    /// a guest has filled with a forged table as a restore point.
    pub fn table(&self) -> Option<u64> {
        Some(self.table).filter(|&table| table != 0)
    }

    /// Bytes of the hole map, which follows the head.
    pub fn map_bytes(&self) -> u64 {
        self.map_bytes
    }

    pub(super) fn map_hash(&self) -> &[u8; 32] {
        &self.map_hash
    }

    pub(super) fn top(&self) -> Hash {
        self.top
    }

    /// Number of levels of pages; 0 when nothing is used.
    pub fn levels(&self) -> u8 {
        let mut levels = 0;
        let mut children = self.used;
        while children > 0 {
            levels += 1;
            children = if children <= FAN_OUT { 0 } else { children.div_ceil(FAN_OUT) };
        }
        levels
    }

    /// Number of hashes in all pages of a level.
    fn hashes(&self, level: u8) -> u64 {
        (0..level).fold(self.used, |children, _| children.div_ceil(FAN_OUT))
    }

    /// Number of pages of a level; 0 when there is no such level.
    pub fn pages(&self, level: u8) -> u64 {
        if level < self.levels() { self.hashes(level).div_ceil(FAN_OUT) } else { 0 }
    }

    /// Where a page lies in the file: its offset and its length, in bytes; `None` when there is no such page.
    pub fn extent(&self, page: PageId) -> Option<(u64, u64)> {
        if u64::from(page.index) >= self.pages(page.level) {
            return None;
        }
        let above: u64 = (page.level + 1..self.levels()).map(|level| self.hashes(level)).sum();
        let first = u64::from(page.index) << FAN_OUT_SHIFT;
        let hashes = (self.hashes(page.level) - first).min(FAN_OUT);
        let offset = HEAD_BYTES as u64 + self.map_bytes + (above + first) * HASH_BYTES as u64;
        Some((offset, hashes * HASH_BYTES as u64))
    }

    /// Length of the whole tree file, in bytes.
    pub fn file_bytes(&self) -> u64 {
        let hashes: u64 = (0..self.levels()).map(|level| self.hashes(level)).sum();
        HEAD_BYTES as u64 + self.map_bytes + hashes * HASH_BYTES as u64
    }

    /// The root hash.
    pub fn root(&self) -> Root {
        Root::of(&self.encode())
    }

    /// The head as bytes.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.geometry.block_shift().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.geometry.size().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.used.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.map_bytes.to_le_bytes());
        bytes[40..43].copy_from_slice(&[HASH_BYTES as u8, FAN_OUT_SHIFT as u8, self.levels()]);
        bytes[48..80].copy_from_slice(&self.map_hash);
        bytes[80..100].copy_from_slice(self.top.as_bytes());
        bytes[100..108].copy_from_slice(&self.table.to_le_bytes());
        bytes
    }

    /// Reads a head; bytes behind it do not matter.
    ///
    /// # Errors
    /// EPROTO for what is no tree file, one of another version, or one that contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: String| Error::new(errno::EPROTO, what);
        let Some(bytes) = bytes.get(..HEAD_BYTES).filter(|bytes| bytes.starts_with(&MAGIC)) else {
            return Err(wrong("is no tree file of a published image (.vmt)".to_owned()));
        };
        let u32_at = |at: usize| bytes[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        let u64_at = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        let version = u32_at(8);
        if version != VERSION {
            return Err(wrong(format!(
                "is a tree file of version {version}, and this vmstream knows version {VERSION}; use a newer one"
            )));
        }
        let damaged = |what: &str| wrong(format!("tree file: {what}; publish the image anew"));
        let shift = u32_at(12);
        let block_bytes = 1u64.checked_shl(shift).filter(|_| shift < 64).unwrap_or(0);
        let geometry = Geometry::new(u64_at(16), block_bytes).map_err(|error| damaged(&error.to_string()))?;
        let mut map_hash = [0; 32];
        map_hash.copy_from_slice(&bytes[48..80]);
        let top = Hash::from_slice(&bytes[80..100]).unwrap_or(Hash::NONE);
        let head = Self { geometry, used: u64_at(24), map_bytes: u64_at(32), map_hash, top, table: u64_at(100) };
        if head.used > geometry.blocks() {
            return Err(damaged("more blocks are used than the image has"));
        }
        if !is_table(geometry, head.table) {
            return Err(damaged("the table of regions lies where none can be"));
        }
        if head.map_bytes > Holes::bytes_max(geometry) {
            return Err(damaged("the hole map is longer than any may be"));
        }
        // All that is left - widths, levels, padding, the hash of no page - follows from what was read.
        if head.used == 0 && top != Hash::NONE || head.encode() != *bytes {
            return Err(damaged("the head contradicts itself"));
        }
        Ok(head)
    }
}

/// True for a place where a table of regions may begin, and for 0, which is no table.
pub(super) fn is_table(geometry: Geometry, table: u64) -> bool {
    let bytes = geometry.size().checked_sub(table);
    table == 0
        || table.is_multiple_of(geometry.block_bytes())
            && bytes.is_some_and(|bytes| (1..=TABLE_BYTES_MAX).contains(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BLOCK_BYTES_MIN, BlockRange, IMAGE_BYTES_MAX};

    fn head(used: u64, blocks: u64) -> Head {
        let geometry = Geometry::new(blocks * 4096, 4096).unwrap();
        let runs: Vec<_> = (used > 0).then(|| BlockRange::new(0, used)).into_iter().collect();
        let holes = Holes::of_runs(&runs, blocks);
        let top = if used == 0 { Hash::NONE } else { super::super::hash_block(b"top") };
        Head::new(geometry, &holes, &holes.encode(), top)
    }

    #[test]
    fn pages_lie_one_behind_the_other_from_the_map_to_the_end() {
        for used in [0, 1, 127, 128, 129, 128 * 128, 128 * 128 + 1, 3_000_000, 1 << 34] {
            let head = head(used, 1 << 34);
            let mut at = HEAD_BYTES as u64 + head.map_bytes();
            for level in (0..head.levels()).rev() {
                let (pages, begin) = (head.pages(level), at);
                assert!(level + 1 < head.levels() || pages == 1, "one page at the top");
                for index in [0, 1, pages / 2, pages - 1] {
                    let Some((offset, length)) = head.extent(PageId { level, index: index as u32 }) else { continue };
                    assert_eq!(offset, begin + index * 2560);
                    assert!(length > 0 && length <= 2560 && length % 20 == 0);
                    if index == pages - 1 {
                        at = offset + length;
                    }
                }
                assert_eq!(head.extent(PageId { level, index: pages as u32 }), None);
            }
            assert_eq!(at, head.file_bytes());
            assert_eq!(head.extent(PageId { level: head.levels(), index: 0 }), None);
        }
    }

    #[test]
    fn a_head_is_read_back_and_every_byte_of_it_counts() {
        for used in [0, 1, 5000] {
            let head = head(used, 5000);
            let bytes = head.encode();
            assert_eq!(Head::decode(&bytes).ok().as_ref(), Some(&head));
            assert!(Head::decode(&bytes[..HEAD_BYTES - 1]).is_err());
            for bit in 0..8 * HEAD_BYTES {
                let mut spoiled = bytes;
                spoiled[bit / 8] ^= 1 << (bit % 8);
                // Some flips make another good head; none makes one with the same root.
                assert!(Head::decode(&spoiled).map_or(true, |other| other.root() != head.root()), "bit {bit}");
                assert_ne!(Root::of(&spoiled), head.root(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_table_lies_in_the_last_block_and_is_part_of_the_root() {
        let plain = head(5, 10);
        let point = plain.clone().with_table(9 * 4096);
        assert_eq!((plain.table(), point.table()), (None, Some(9 * 4096)));
        assert_eq!(Head::decode(&point.encode()).ok(), Some(point.clone()));
        assert_ne!(plain.root(), point.root());
        for table in [1, 9 * 4096 + 512, 8 * 4096, 10 * 4096, u64::MAX] {
            assert!(Head::decode(&plain.clone().with_table(table).encode()).is_err(), "{table}");
        }
    }

    #[test]
    fn a_newer_version_is_called_one() {
        let mut bytes = head(1, 1).encode();
        bytes[8] = 2;
        let text = Head::decode(&bytes).unwrap_err().to_string();
        assert!(text.contains("version 2") && text.contains("newer"), "{text}");
    }

    #[test]
    fn no_number_in_a_head_is_believed() {
        let good = head(5, 10).encode();
        let spoil = |at: usize, bytes: &[u8]| {
            let mut spoiled = good;
            spoiled[at..at + bytes.len()].copy_from_slice(bytes);
            Head::decode(&spoiled).is_err()
        };
        assert!(spoil(12, &u32::MAX.to_le_bytes()) && spoil(12, &0u32.to_le_bytes()), "block size");
        assert!(
            spoil(16, &0u64.to_le_bytes()) && spoil(16, &(IMAGE_BYTES_MAX + BLOCK_BYTES_MIN).to_le_bytes()),
            "size"
        );
        assert!(spoil(24, &11u64.to_le_bytes()) && spoil(24, &u64::MAX.to_le_bytes()), "used");
        assert!(spoil(32, &u64::MAX.to_le_bytes()) && spoil(32, &(17u64 << 10).to_le_bytes()), "map");
        assert!(spoil(42, &[9]) && spoil(43, &[1]) && spoil(111, &[1]), "levels and padding");
    }
}
