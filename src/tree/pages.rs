//! The tree in memory: a head, a hole map, and the pages that have arrived so far.
//!
//! Every byte in it has been checked against the root, so whoever holds a tree and a block can tell whether the block is
//! right. Pages come in any amount, parents first, from anywhere: from the tree file, or as the proof that comes with
//! packed blocks. Pages of block hashes are dropped again, oldest first, when they fill [`LEAF_BYTES_MAX`]; those above
//! them are a hundredth of that and stay.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

use super::Lie;
use super::hash::{HASH_BYTES, Hash, Root, hash_block, hash_page};
use super::head::{FAN_OUT, FAN_OUT_SHIFT, HEAD_BYTES, Head, PageId};
use super::holes::Holes;
use crate::block::{Block, BlockRange, Geometry};
use crate::error::{Error, Result, errno};

/// Most bytes of pages of block hashes that are kept: the hashes of 13 GiB of used blocks of 4 KiB.
const LEAF_BYTES_MAX: usize = 64 << 20;

/// What is known of one image's hashes. All methods may be called from several threads at once.
pub struct Tree {
    head: Head,
    root: Root,
    holes: Holes,
    pages: RwLock<Pages>,
    leaf_bytes_max: usize,
}

#[derive(Default)]
struct Pages {
    known: HashMap<PageId, Arc<[u8]>>,
    /// The pages of level 0 in the order in which they came.
    leaves: VecDeque<PageId>,
    leaf_bytes: usize,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree({})", self.root)
    }
}

impl Tree {
    /// The tree of the image with this `root`, without any page yet. `head` and `map` are the first two parts of a tree
    /// file, the lengths being [`HEAD_BYTES`] and [`Head::map_bytes`].
    ///
    /// # Errors
    /// ESTALE when the head is that of another image, EPROTO when it, or the map, is none at all.
    pub fn open(head: &[u8], map: &[u8], root: Root) -> Result<Self> {
        let decoded = Head::decode(head)?;
        if decoded.root() != root {
            let text = format!("is the tree of another image: its root is {}, and {root} is wanted", decoded.root());
            return Err(Error::new(errno::ESTALE, text));
        }
        if map.len() as u64 != decoded.map_bytes() || blake3::hash(map).as_bytes() != decoded.map_hash() {
            return Err(Error::new(errno::EPROTO, "tree file: the hole map is not the one that was published"));
        }
        let holes = Holes::decode(map, decoded.geometry().blocks())?;
        if holes.used() != decoded.used() {
            return Err(Error::new(errno::EPROTO, "tree file: head and hole map disagree; publish the image anew"));
        }
        let (pages, leaf_bytes_max) = (RwLock::default(), LEAF_BYTES_MAX);
        Ok(Self { head: decoded, root, holes, pages, leaf_bytes_max })
    }

    /// The whole of a tree file with every page, all of which are kept: for publishers.
    ///
    /// # Errors
    /// As [`Tree::open`], and EPROTO when a page is not the one that was published.
    pub fn read(file: &[u8], root: Root) -> Result<Self> {
        let head = Head::decode(file)?;
        let wrong = |what: String| Error::new(errno::EPROTO, format!("tree file: {what}"));
        if file.len() as u64 != head.file_bytes() {
            return Err(wrong(format!("has {} bytes and should have {}", file.len(), head.file_bytes())));
        }
        let (head_bytes, rest) = file.split_at(HEAD_BYTES);
        // Fits: the file holds it.
        let (map, _) = rest.split_at(head.map_bytes() as usize);
        let mut tree = Self::open(head_bytes, map, root)?;
        tree.leaf_bytes_max = usize::MAX;
        for level in (0..head.levels()).rev() {
            for index in 0..head.pages(level) {
                let page = PageId { level, index: index as u32 };
                let (offset, length) = tree.extent(page);
                let bytes = &file[offset as usize..(offset + length) as usize];
                tree.add(page, bytes).map_err(|lie| wrong(lie.to_string()))?;
            }
        }
        Ok(tree)
    }

    /// Size of the image and of its blocks.
    pub fn geometry(&self) -> Geometry {
        self.head.geometry()
    }

    /// The root hash.
    pub fn root(&self) -> Root {
        self.root
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The hole map.
    pub fn holes(&self) -> &Holes {
        &self.holes
    }

    /// The pages that are needed to check the used blocks of `range` and are not here, parents first, those of a level
    /// in ascending order.
    pub fn missing(&self, range: BlockRange) -> Vec<PageId> {
        let ranks = self.holes.ranks(range);
        if ranks.is_empty() {
            return Vec::new();
        }
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut missing = Vec::new();
        for level in (0..self.head.levels()).rev() {
            let shift = FAN_OUT_SHIFT * (u32::from(level) + 1);
            for index in ranks.start >> shift..=(ranks.end - 1) >> shift {
                let page = PageId { level, index: index as u32 };
                if !pages.known.contains_key(&page) {
                    missing.push(page);
                }
            }
        }
        missing
    }

    /// Length of a page, in bytes; `None` when the tree has no such page.
    pub fn page_length(&self, page: PageId) -> Option<usize> {
        self.head.extent(page).map(|(_, length)| length as usize)
    }

    /// Offset and length of a page in the tree file, in bytes; the length is 0 when the tree has no such page.
    pub fn extent(&self, page: PageId) -> (u64, u64) {
        self.head.extent(page).unwrap_or_default()
    }

    /// Takes a page if it is the right one. Its parent must be here. A page that is here already is taken to be right
    /// only if it is the same.
    pub fn add(&self, page: PageId, bytes: &[u8]) -> std::result::Result<(), Lie> {
        let PageId { level, index } = page;
        match self.page_length(page) {
            None => return Err(Lie::new(format!("hash page {level}/{index}: the tree has no such page"))),
            Some(length) if length != bytes.len() => {
                return Err(Lie::new(format!("hash page {level}/{index} has {} bytes, not {length}", bytes.len())));
            }
            Some(_) => {}
        }
        if let Some(known) = self.page(page) {
            return if *known == *bytes { Ok(()) } else { Err(Self::wrong_page(page)) };
        }
        let expected = if level + 1 == self.head.levels() {
            self.head.top()
        } else {
            let (parent, at) = page.parent();
            let parent = self.page(parent).ok_or_else(|| Lie::missing(parent))?;
            hash_at(&parent, at)
        };
        if hash_page(bytes) != expected {
            return Err(Self::wrong_page(page));
        }
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        if pages.known.insert(page, bytes.into()).is_none() && level == 0 {
            pages.leaves.push_back(page);
            pages.leaf_bytes += bytes.len();
            while pages.leaf_bytes > self.leaf_bytes_max {
                let Some(oldest) = pages.leaves.pop_front() else { break };
                let gone = pages.known.remove(&oldest).map_or(0, |gone| gone.len());
                pages.leaf_bytes -= gone;
            }
        }
        Ok(())
    }

    fn wrong_page(page: PageId) -> Lie {
        Lie::new(format!("hash page {}/{} is not the one that was published", page.level, page.index))
    }

    /// A page that is here.
    pub fn page(&self, page: PageId) -> Option<Arc<[u8]>> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner).known.get(&page).cloned()
    }

    /// The hash that `block` was published with; `None` when it is a hole, or its page is not here.
    pub fn hash(&self, block: Block) -> Option<Hash> {
        let rank = self.holes.rank(block)?;
        let page = self.page(Self::leaf(rank))?;
        Some(hash_at(&page, (rank % FAN_OUT) as usize))
    }

    fn leaf(rank: u64) -> PageId {
        PageId { level: 0, index: (rank >> FAN_OUT_SHIFT) as u32 }
    }

    /// Whether `bytes` are those of `block`; its page must be here. A hole has zeroes.
    pub fn check(&self, block: Block, bytes: &[u8]) -> std::result::Result<(), Lie> {
        let length = self.geometry().length(BlockRange::one(block).intersect(self.geometry().all()));
        let good = bytes.len() as u64 == length
            && match self.holes.rank(block) {
                None => super::is_zero(bytes),
                Some(rank) => {
                    let leaf = Self::leaf(rank);
                    let page = self.page(leaf).ok_or_else(|| Lie::missing(leaf))?;
                    hash_at(&page, (rank % FAN_OUT) as usize) == hash_block(bytes)
                }
            };
        if good {
            return Ok(());
        }
        let offset = block.0 << self.geometry().block_shift();
        Err(Lie::new(format!("the block at byte {offset} is not the one that was published")))
    }
}

/// The hash at a place of a page. The page has been checked, so the place is in it.
fn hash_at(page: &[u8], at: usize) -> Hash {
    page.get(at * HASH_BYTES..(at + 1) * HASH_BYTES).and_then(Hash::from_slice).unwrap_or(Hash::NONE)
}

#[cfg(test)]
mod tests {
    use super::super::builder::tests::{Sample, sample};
    use super::*;
    use proptest::prelude::*;

    fn opened(sample: &Sample) -> Tree {
        let head = Head::decode(&sample.file).unwrap();
        let map = &sample.file[HEAD_BYTES..HEAD_BYTES + head.map_bytes() as usize];
        Tree::open(&sample.file[..HEAD_BYTES], map, sample.root).unwrap()
    }

    fn page_bytes<'a>(sample: &'a Sample, tree: &Tree, page: PageId) -> &'a [u8] {
        let (offset, length) = tree.extent(page);
        &sample.file[offset as usize..(offset + length) as usize]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
        #[test]
        fn the_pages_that_are_missing_for_a_range_suffice_to_check_it(
            blocks in 1u64..600, cut in 0u64..512, seed in any::<u64>(), a in 0u64..600, b in 0u64..600,
        ) {
            let sample = sample(blocks * 512 - cut.min(511), 512, seed);
            let tree = opened(&sample);
            let range = BlockRange::new(a.min(b), a.max(b)).intersect(tree.geometry().all());
            for page in tree.missing(range) {
                tree.add(page, page_bytes(&sample, &tree, page)).unwrap();
            }
            prop_assert!(tree.missing(range).is_empty());
            for block in range.iter() {
                tree.check(block, sample.block(block)).unwrap();
                let mut spoiled = sample.block(block).to_vec();
                let bit = (seed % (8 * spoiled.len() as u64)) as usize;
                spoiled[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(tree.check(block, &spoiled).is_err());
                prop_assert!(tree.check(block, &sample.block(block)[1..]).is_err());
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_in_the_file_is_noticed() {
        let sample = sample(300 * 512 + 7, 512, 3);
        assert!(Tree::read(&sample.file, sample.root).is_ok());
        for bit in (0..8 * sample.file.len()).step_by(3) {
            let mut spoiled = sample.file.clone();
            spoiled[bit / 8] ^= 1 << (bit % 8);
            assert!(Tree::read(&spoiled, sample.root).is_err(), "bit {bit}");
        }
        assert!(Tree::read(&sample.file[..sample.file.len() - 1], sample.root).is_err());
        assert!(Tree::read(&[&sample.file[..], &[0]].concat(), sample.root).is_err());
    }

    #[test]
    fn another_images_tree_is_called_that() {
        let (mine, other) = (sample(100_000, 512, 1), sample(100_000, 512, 2));
        assert_eq!(Tree::read(&other.file, mine.root).unwrap_err().errno(), errno::ESTALE);
    }

    #[test]
    fn a_page_without_its_parent_and_a_block_without_its_page_are_missing_and_no_lie() {
        let sample = sample(400 * 512, 512, 5);
        let tree = opened(&sample);
        let pages = tree.missing(tree.geometry().all());
        let (top, leaf) = (pages[0], *pages.last().unwrap());
        assert!(top.level > leaf.level);
        assert!(tree.add(leaf, page_bytes(&sample, &tree, leaf)).unwrap_err().is_missing());
        let block = tree.holes().used_in(tree.geometry().all()).next().unwrap().start;
        assert!(tree.check(block, sample.block(block)).unwrap_err().is_missing());
        assert!(!tree.add(top, &vec![0; tree.page_length(top).unwrap()]).unwrap_err().is_missing());
        assert!(!tree.add(PageId { level: 9, index: 0 }, &[]).unwrap_err().is_missing());
    }

    #[test]
    fn old_leaf_pages_make_room_and_can_come_again() {
        let sample = sample(2000 * 512, 512, 5);
        let mut tree = opened(&sample);
        tree.leaf_bytes_max = 2 * 2560;
        let all = tree.missing(tree.geometry().all());
        for &page in &all {
            tree.add(page, page_bytes(&sample, &tree, page)).unwrap();
        }
        let left = tree.missing(tree.geometry().all());
        assert_eq!(left, all.iter().copied().filter(|page| page.level == 0).take(left.len()).collect::<Vec<_>>());
        assert!(left.len() >= 3);
        tree.add(left[0], page_bytes(&sample, &tree, left[0])).unwrap();
        assert!(tree.page(left[0]).is_some());
    }
}
