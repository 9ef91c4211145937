//! Whole packs files: made, read back, fetched in any order, and spoiled.

use std::sync::LazyLock;

use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::listing::encode_start;
use super::*;
use crate::block::{Block, BlockRange, Geometry};
use crate::error::Result;
use crate::model::{Limits, Model, Trainer, testing as made_up};
use crate::source::published::Frames;
use crate::tree::{HEAD_BYTES, Hash, Head, Lie, Root, Tree, TreeBuilder, hash_block};

/// An image, what was learnt of it, and its packs.
struct Published {
    geometry: Geometry,
    tree_file: Vec<u8>,
    root: Root,
    model: Vec<u8>,
    file: Vec<u8>,
}

/// One for all tests: hashing and training take a second.
fn published() -> &'static Published {
    static PUBLISHED: LazyLock<Published> = LazyLock::new(Published::new);
    &PUBLISHED
}

/// The bytes of a block: text that can be packed and is another one in each block.
fn contents(block: Block) -> Vec<u8> {
    let line = format!("{} {} ", block.0, block.0.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    line.as_bytes().iter().copied().cycle().take(4096).collect()
}

/// Every seventh block of a file is a hole.
fn is_hole(block: Block) -> bool {
    block.0 % 7 == 3
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    Ok(compress_to_vec(bytes, CompressionLevel::Fastest))
}

fn read(range: BlockRange, bytes: &mut [u8]) -> Result<()> {
    range.iter().zip(bytes.chunks_mut(4096)).for_each(|(block, bytes)| bytes.copy_from_slice(&contents(block)));
    Ok(())
}

fn pack(model: &[u8], tree: &Tree) -> Result<Vec<u8>> {
    let mut builder = Builder::new("model.vmm", model, tree)?;
    let mut frames = Vec::new();
    while let Some(frame) = builder.next(&mut read, &compress)? {
        frames.extend(frame);
    }
    assert_eq!(builder.bytes_left(), 0);
    let mut file = builder.finish()?;
    file.extend(frames);
    Ok(file)
}

impl Published {
    fn new() -> Self {
        let sessions =
            [(1, [0, 1]), (2, [0, 2]), (3, [1, 2]), (4, [0, 1])].map(|(n, tasks)| made_up::session(n, &tasks));
        let geometry = sessions[0].geometry;
        let mut trainer = Trainer::new(geometry, Limits::default());
        sessions.iter().for_each(|session| trainer.add(session).unwrap());
        let (learnt, model) = trainer.finish_file();
        let mut builder = TreeBuilder::new(geometry);
        // What no session touches is used as well, so that the tree has three levels; nobody looks at it.
        let unseen = hash_block(b"unseen");
        let hashes: Vec<Option<Hash>> = geometry
            .all()
            .iter()
            .map(|block| match learnt.owner(block) {
                Some(_) if is_hole(block) => None,
                Some(_) => Some(hash_block(&contents(block))),
                None => (block.0 < 40_000).then_some(unseen),
            })
            .collect();
        hashes.iter().for_each(|hash| match hash {
            Some(hash) => builder.used(&[*hash]),
            None => builder.zero(1),
        });
        let (tree_file, root) = builder.finish().unwrap();
        let file = pack(&model, &Tree::read(&tree_file, root).unwrap()).unwrap();
        Self { geometry, tree_file, root, model, file }
    }

    /// The tree as its publisher has it.
    fn whole_tree(&self) -> Tree {
        Tree::read(&self.tree_file, self.root).unwrap()
    }

    /// The tree as a reader has it after the first contact: no page yet.
    fn tree(&self) -> Tree {
        let map = Head::decode(&self.tree_file).unwrap().map_bytes() as usize;
        Tree::open(&self.tree_file[..HEAD_BYTES], &self.tree_file[HEAD_BYTES..HEAD_BYTES + map], self.root).unwrap()
    }

    fn header(&self) -> Header {
        Header::decode("p", &self.file).unwrap()
    }

    fn part(&self, range: std::ops::Range<u64>) -> &[u8] {
        &self.file[range.start as usize..range.end as usize]
    }

    fn index(&self, tree: &Tree) -> Index {
        let header = self.header();
        let model = Model::read("m", self.part(header.model())).unwrap();
        Index::of_file("p", &header, self.part(header.index()), &model, tree.holes()).unwrap()
    }

    /// The pages that a source fetches beside a frame.
    fn fetch_pages(&self, tree: &Tree, runs: &[BlockRange]) {
        for page in runs.iter().flat_map(|&run| tree.missing(run)).collect::<Vec<_>>() {
            let (offset, length) = tree.extent(page);
            tree.add(page, &self.tree_file[offset as usize..(offset + length) as usize]).unwrap();
        }
    }

    /// Unpacks a frame as a source does: pages that are missing are fetched first. Checks all that comes out.
    fn unpack(&self, index: &Index, frame: u32, bytes: &[u8], tree: &Tree) -> std::result::Result<u64, Lie> {
        let mut blocks = 0;
        let mut out = |range: BlockRange, bytes: &[u8]| {
            assert_eq!(bytes.len() as u64, self.geometry.length(range));
            range.iter().zip(bytes.chunks(4096)).for_each(|(block, bytes)| assert_eq!(bytes, contents(block)));
            blocks += range.len();
        };
        match index.unpack(frame, bytes, tree, &mut out) {
            Err(lie) if lie.is_missing() => {
                self.fetch_pages(tree, index.runs(frame));
                index.unpack(frame, bytes, tree, &mut out)?;
            }
            other => other?,
        }
        Ok(blocks)
    }

    fn frame_bytes(&self, index: &Index, frame: u32) -> &[u8] {
        let (offset, lengths) = index.extent(frame..frame + 1);
        self.part(offset..offset + u64::from(lengths[0]))
    }
}

#[test]
fn what_was_packed_comes_out_in_any_order() {
    let published = published();
    let tree = published.tree();
    let index = published.index(&tree);
    assert!(index.count() > 10, "{} frames", index.count());
    let mut blocks = 0;
    for frame in 0..index.count() {
        blocks += published.unpack(&index, frame, published.frame_bytes(&index, frame), &tree).unwrap();
    }
    let model = Model::read("m", &published.model[..]).unwrap();
    let owned = published.geometry.all().iter().filter(|&block| model.owner(block).is_some());
    let (holes, used): (Vec<_>, Vec<_>) = owned.partition(|&block| is_hole(block));
    assert_eq!(blocks, used.len() as u64, "each used block of the model, once");
    assert!(used.iter().all(|&block| index.frame_of(block).is_some()));
    assert!(!holes.is_empty() && holes.iter().all(|&block| index.frame_of(block).is_none()), "holes do not travel");
    let backwards = published.tree();
    for frame in (0..index.count()).rev() {
        published.unpack(&index, frame, published.frame_bytes(&index, frame), &backwards).unwrap();
    }
    // In their order only what lies above the proofs is missing.
    let in_order = published.tree();
    let top = tree.head().levels() - 1;
    let above: Vec<_> =
        in_order.missing(published.geometry.all()).into_iter().filter(|page| page.level == top).collect();
    for page in above {
        in_order.add(page, &tree.page(page).unwrap()).unwrap();
    }
    for frame in 0..index.count() {
        index.unpack(frame, published.frame_bytes(&index, frame), &in_order, &mut |_, _| ()).unwrap();
    }
}

#[test]
fn the_same_model_and_image_give_the_same_bytes() {
    let published = published();
    assert!(pack(&published.model, &published.whole_tree()).unwrap() == published.file);
    let header = published.header();
    assert_eq!((header.root, header.packed().end), (published.root, published.file.len() as u64));
    assert!(published.part(header.model()) == published.model, "with its record");
}

#[test]
fn frames_may_be_gathered_ahead_and_are_added_in_order() {
    let published = published();
    let tree = published.whole_tree();
    let mut builder = Builder::new("model.vmm", &published.model, &tree).unwrap();
    let (mut frames, mut held) = (Vec::new(), std::collections::VecDeque::new());
    loop {
        let gathered = builder.gather(&mut read).unwrap();
        let last = gathered.is_none();
        held.extend(gathered);
        while held.len() > if last { 0 } else { 3 } {
            let frame: Unpacked = held.pop_front().unwrap();
            let packed = compress(&frame.blocks).unwrap();
            frames.extend(builder.add(frame, &packed).unwrap());
        }
        if last {
            break;
        }
    }
    let mut file = builder.finish().unwrap();
    file.extend(frames);
    assert!(file == published.file);

    let mut builder = Builder::new("model.vmm", &published.model, &tree).unwrap();
    let [first, second] = [(); 2].map(|()| builder.gather(&mut read).unwrap().unwrap());
    let packed = compress(&second.blocks).unwrap();
    assert!(builder.add(second, &packed).unwrap_err().to_string().contains("not in order"));
    let packed = compress(&first.blocks).unwrap();
    builder.add(first, &packed).unwrap();
    while builder.gather(&mut read).unwrap().is_some() {}
    assert!(builder.finish().is_err(), "what was gathered and not added is missing");
}

#[test]
fn the_start_tells_of_the_first_frames_what_the_index_tells_of_all() {
    let published = published();
    let tree = published.tree();
    let (header, index) = (published.header(), published.index(&tree));
    let start = published.part(header.start());
    let first = Index::of_start("p", &header, start, published.geometry, tree.holes()).unwrap();
    assert!(first.count() > 0 && first.count() <= index.count());
    for frame in 0..first.count() {
        assert_eq!(first.runs(frame), index.runs(frame));
        assert_eq!(first.extent(frame..frame + 1), index.extent(frame..frame + 1));
        published.unpack(&first, frame, published.frame_bytes(&first, frame), &tree).unwrap();
    }
    let beyond = index.count();
    assert_eq!(
        (index.wire_bytes(beyond..beyond + 3), index.runs(beyond), first.frame_of(Block(1 << 30))),
        (0, &[][..], None)
    );
    assert!(index.unpack(u32::MAX, &[], &tree, &mut |_, _| ()).is_err());
}

#[test]
fn a_long_start_is_cut_to_what_the_first_request_brings() {
    let listed = |at: u64| index::Listed {
        runs: (0..40)
            .map(|run| BlockRange::new(at * 1_000_000 + run * 9999, at * 1_000_000 + run * 9999 + 1))
            .collect(),
        proof: 1000,
        packed: 40_000,
    };
    let frames: Vec<_> = (0..500).map(listed).collect();
    let start = encode_start(&frames);
    assert!(start.len() <= START_BYTES_MAX as usize && start.len() > START_BYTES_MAX as usize - 400);
}

#[test]
fn a_model_of_another_image_and_a_changed_image_are_refused() {
    let published = published();
    let geometry = Geometry::new(1 << 20, 4096).unwrap();
    let mut builder = TreeBuilder::new(geometry);
    builder.zero(256);
    let (file, root) = builder.finish().unwrap();
    let other = Tree::read(&file, root).unwrap();
    let error = Builder::new("m.vmm", &published.model, &other).err().unwrap().to_string();
    assert!(error.contains("m.vmm") && error.contains("1048576"), "{error}");
    let tree = published.whole_tree();
    let mut builder = Builder::new("m", &published.model, &tree).unwrap();
    let mut wrong = |range, bytes: &mut [u8]| {
        read(range, bytes)?;
        bytes[0] ^= 1;
        Ok(())
    };
    let error = builder.next(&mut wrong, &compress).unwrap_err().to_string();
    assert!(error.contains("changed"), "{error}");
    assert!(builder.finish().is_err(), "not all frames were taken");
    let lacking = published.tree();
    let mut builder = Builder::new("m", &published.model, &lacking).unwrap();
    assert!(builder.next(&mut read, &compress).is_err());
}

#[test]
fn what_unpacks_to_more_or_less_than_its_blocks_is_a_lie() {
    let published = published();
    let tree = published.whole_tree();
    let index = published.index(&tree);
    let runs = index.runs(0).to_vec();
    for bytes in [0, 4096, 1 << 26] {
        let packed = compress(&vec![0; bytes]).unwrap();
        let listed = index::Listed { runs: runs.clone(), proof: 1, packed: packed.len() as u32 };
        let forged = Index::new(published.geometry, 0, &[listed]).unwrap();
        let frame = [&[0][..], &packed].concat();
        let lie = forged.unpack(0, &frame, &tree, &mut |_, _| panic!("nothing may come out")).unwrap_err();
        // Whoever asked for the frame knows its number, and says it.
        assert!(!lie.is_missing() && !lie.to_string().contains("frame 0"), "{lie}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_frame_never_brings_a_wrong_byte(changes in prop::collection::vec((any::<usize>(), 1u8..), 1..4)) {
        let published = published();
        let tree = published.tree();
        let index = published.index(&tree);
        let frame = (changes[0].0 % index.count() as usize) as u32;
        let mut bytes = published.frame_bytes(&index, frame).to_vec();
        let length = bytes.len();
        changes.iter().for_each(|&(at, bits)| bytes[at / 64 % length] ^= bits);
        // What comes out is checked there: a change of bits that no decompressor reads is none.
        let _ = published.unpack(&index, frame, &bytes, &tree);
        prop_assert!(published.unpack(&index, frame, &bytes[..length - 1], &tree).is_err());
    }

    #[test]
    fn no_number_of_the_sections_is_believed(
        changes in prop::collection::vec((any::<usize>(), 1u8..), 1..6), cut in any::<usize>(),
    ) {
        let published = published();
        let tree = published.tree();
        let header = published.header();
        let model = Model::read("m", &published.model[..]).unwrap();
        for (section, is_start) in [(header.start(), true), (header.index(), false)] {
            let mut bytes = published.part(section).to_vec();
            if cut % 4 == 0 {
                bytes.truncate(cut / 4 % bytes.len());
            }
            let length = bytes.len().max(1);
            for &(at, bits) in &changes {
                if let Some(byte) = bytes.get_mut(at % length) {
                    *byte ^= bits;
                }
            }
            let mut header = header;
            let read = |header: &Header| match is_start {
                true => Index::of_start("p", header, &bytes, published.geometry, tree.holes()),
                false => Index::of_file("p", header, &bytes, &model, tree.holes()),
            };
            if bytes != published.part(if is_start { header.start() } else { header.index() }) {
                prop_assert!(read(&header).is_err(), "the checksum is wrong");
            }
            // Sealed again: what is accepted then must at least be sound.
            let crc = crc32c::crc32c(&bytes);
            let length = bytes.len() as u32;
            if is_start {
                (header.start_bytes, header.start_crc) = (length, crc);
            } else {
                (header.index_bytes, header.index_crc) = (length, crc);
            }
            let Ok(index) = read(&header) else { continue };
            for frame in 0..index.count() {
                prop_assert!(index.raw_bytes(frame) <= FRAME_BYTES_MAX);
                prop_assert!(index.wire_bytes(frame..frame + 1) <= 2 * FRAME_BYTES_MAX);
                for &run in index.runs(frame) {
                    prop_assert!(run.end <= published.geometry.all().end);
                    prop_assert_eq!(index.frame_of(run.start), Some(frame));
                    prop_assert_eq!(tree.holes().used_in(run).next(), Some(run));
                }
            }
        }
    }
}
