//! All that reads bytes from outside, fed with any bytes: the bodies of the fuzz targets (`fuzz/`), which `cargo test`
//! runs over their corpus (`tests/corpus.rs`).
//!
//! A target may refuse its bytes; it may not panic, hang or take memory that the length of its bytes does not explain. What
//! it accepts must make sense: written and read again it is the same. Checksums stand between a fuzzer and what lies behind
//! them, so the bytes are read twice, as they are and with their checksums made right ([`sealed_model`], [`sealed_chain`]).
#![allow(dead_code)] // each target is a program of its own and uses one function

use std::sync::LazyLock;

use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use vmstream::block::{Block, BlockRange, Geometry};
use vmstream::error::Result;
use vmstream::model::{Limits, Model, Trainer};
use vmstream::packs::{Builder, HEADER_BYTES, Header, Index};
use vmstream::session::{Recording, file, text};
use vmstream::source::published::{Frames, Pointer};
use vmstream::tree::{HEAD_BYTES, Head, Holes, PageId, Tree, TreeBuilder};

/// What is done with the bytes of a target.
pub type Target = fn(&[u8]);

/// The targets by the names of their corpora.
pub const TARGETS: [(&str, Target); 7] = [
    ("model", model),
    ("session", session),
    ("session_text", session_text),
    ("journal", journal),
    ("pointer", pointer),
    ("tree", tree),
    ("packs", packs),
];

/// Small, so that a few recordings are enough to make them bite.
const LIMITS: Limits = Limits { paths_max: 4, touches_max: 1 << 12 };

/// A model file: loaded as who follows a guest does, and trained on.
pub fn model(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), sealed_model(bytes)] {
        let Ok(model) = Model::read("fuzz", &bytes[..]) else { continue };
        let blocks: u64 = model.sequences().iter().map(|sequence| u64::from(sequence.blocks)).sum();
        assert!(blocks <= model.geometry().blocks(), "sequences are no partition of the image");
        let Ok(trainer) = Trainer::resume("fuzz", &bytes[..], LIMITS) else { continue };
        trainer.finish();
        let part = Trainer::from_part("fuzz", &bytes[..], LIMITS).expect("what can be gone on from can be merged");
        let (model, file) = part.finish_file();
        let again = Model::read("fuzz", &file[..]).expect("what training writes can be read");
        assert_eq!(again.paths(), model.paths());
        assert_eq!(again.sequences(), model.sequences());
    }
}

/// A recorded session in its compact form.
pub fn session(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), sealed_chain(bytes, 0)] {
        let Ok(recording) = file::parse("fuzz", &bytes) else { continue };
        assert!(recording.lost_bytes <= bytes.len() as u64);
        learn(&recording);
        let again = file::parse("fuzz", &file::encode(&recording)).expect("what is written can be read");
        assert_eq!((again.lost_bytes, &again.session.accesses), (0, &recording.session.accesses));
        assert_eq!(again.session.marks, recording.session.marks);
    }
}

/// A recorded session as text.
pub fn session_text(bytes: &[u8]) {
    let Ok(recording) = text::parse_recording("fuzz", bytes) else { return };
    learn(&recording);
    let printed = text::print_recording(&recording);
    let again = text::parse_recording("fuzz", printed.as_bytes()).expect("what is printed can be read");
    assert_eq!(again.session.accesses, recording.session.accesses);
}

/// What comes of a session that was read.
fn learn(recording: &Recording) {
    let mut trainer = Trainer::new(recording.session.geometry, LIMITS);
    trainer.add(&recording.session).expect("it is of its own image");
    trainer.finish();
}

/// The journal of a cache: its head, and the records that are true.
pub fn journal(bytes: &[u8]) {
    thread_local!(static DIRECTORY: tempfile::TempDir = memory());
    DIRECTORY.with(|directory| {
        let path = directory.path().join("disk.vmj");
        for bytes in [bytes.to_vec(), sealed_chain(bytes, 8)] {
            std::fs::write(&path, &bytes).expect("there is room for it");
            let Ok(summary) = vmstream::store::inspect(directory.path()) else { continue };
            assert!(summary.resident_blocks <= summary.pinned.geometry.blocks());
            assert_eq!(summary.journal_bytes + summary.tail_bytes, bytes.len() as u64);
        }
    });
}

/// A directory that costs no disk, where there is one.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory for the file")
}

/// The pointer to a published image.
pub fn pointer(bytes: &[u8]) {
    let Ok(pointer) = Pointer::parse(bytes) else { return };
    assert_eq!(Pointer::parse(pointer.to_string().as_bytes()).expect("what is written can be read"), pointer);
}

/// A whole tree file: head, hole map, pages.
pub fn tree(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), sealed_tree(bytes)] {
        let Ok(head) = Head::decode(&bytes) else { continue };
        assert_eq!(head.encode()[..], bytes[..HEAD_BYTES], "a head has one spelling");
        let Ok(tree) = Tree::read(&bytes, head.root()) else { continue };
        let all = tree.geometry().all();
        assert!(tree.missing(all).is_empty(), "pages are missing in a whole file");
        assert_eq!(tree.holes().used_in(all).map(|run| run.len()).sum::<u64>(), head.used());
        assert!(tree.check(Block(0), &[1]).is_err(), "one byte is no block");
    }
}

/// A packs file, beside the tree and the model of a made-up image.
pub fn packs(bytes: &[u8]) {
    static MADE: LazyLock<(Vec<u8>, Tree)> = LazyLock::new(made_up);
    let (_, whole) = &*MADE;
    for bytes in [bytes.to_vec(), sealed_packs(bytes)] {
        let Ok(header) = Header::decode("fuzz", &bytes) else { continue };
        let part = |range: std::ops::Range<u64>| {
            let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
            bytes.get(start..end)
        };
        let (geometry, holes) = (whole.geometry(), whole.holes());
        if let Some(Ok(index)) = part(header.start()).map(|s| Index::of_start("fuzz", &header, s, geometry, holes)) {
            open_frames(&index, &bytes, whole);
        }
        let Some(Ok(model)) = part(header.model()).map(|model| Model::read("fuzz", model)) else { continue };
        let index = part(header.index()).map(|listed| Index::of_file("fuzz", &header, listed, &model, holes));
        if let Some(Ok(index)) = index {
            open_frames(&index, &bytes, whole);
        }
    }
}

/// Opens all frames that the bytes hold, with the pages that `whole` has and with none.
fn open_frames(index: &Index, bytes: &[u8], whole: &Tree) {
    // The head of the made-up tree, so that pages come from the frames alone.
    static HEAD: LazyLock<Vec<u8>> = LazyLock::new(|| made_up_tree().0);
    let map_bytes = whole.head().map_bytes() as usize;
    let (head, map) = HEAD[..HEAD_BYTES + map_bytes].split_at(HEAD_BYTES);
    let bare = Tree::open(head, map, whole.root()).expect("it is the made-up one");
    for frame in 0..index.count() {
        let (offset, lengths) = index.extent(frame..frame + 1);
        let end = offset.saturating_add(u64::from(lengths[0]));
        let Some(packed) = bytes.get(offset as usize..end as usize) else { continue };
        for tree in [&bare, whole] {
            let _ = index.unpack(frame, packed, tree, &mut |range, bytes| {
                for (block, bytes) in range.iter().zip(bytes.chunks(MADE_UP_BLOCK as usize)) {
                    assert_eq!(bytes, contents(block), "a wrong byte came through");
                }
            });
        }
    }
}

/// The made-up image of [`packs`]: small blocks, every fifth a hole, so many that leaf hashes take more than one page.
pub const MADE_UP_BLOCK: u64 = 512;
pub const MADE_UP_BLOCKS: u64 = 200;

pub fn contents(block: Block) -> Vec<u8> {
    format!("block {} ", block.0).bytes().cycle().take(MADE_UP_BLOCK as usize).collect()
}

fn made_up_tree() -> (Vec<u8>, Tree) {
    let geometry = Geometry::new(MADE_UP_BLOCK * MADE_UP_BLOCKS, MADE_UP_BLOCK).expect("it is a small image");
    let mut builder = TreeBuilder::new(geometry);
    for block in geometry.all().iter() {
        if block.0 % 5 == 4 { builder.zero(1) } else { builder.block(&contents(block)) }
    }
    let (file, root) = builder.finish().expect("it is a small tree");
    let tree = Tree::read(&file, root).expect("it was made just now");
    (file, tree)
}

/// The packs of the made-up image, and its tree: what the corpus of [`packs`] begins with.
pub fn made_up() -> (Vec<u8>, Tree) {
    let (_, tree) = made_up_tree();
    let lines: String = (0..40).map(|n| format!("{} R {} 2048\n", n * 9000, (n * 7 % 50) * 2048)).collect();
    let size = MADE_UP_BLOCK * MADE_UP_BLOCKS;
    let session = format!("# vmtrace 1 size={size} block={MADE_UP_BLOCK}\n{lines}");
    let session = text::parse("made up", session.as_bytes()).expect("it is a session");
    let mut trainer = Trainer::new(tree.geometry(), Limits::default());
    trainer.add(&session).expect("it is of its image");
    let (_, model) = trainer.finish_file();
    let mut read = |range: BlockRange, bytes: &mut [u8]| -> Result<()> {
        let blocks = range.iter().zip(bytes.chunks_mut(MADE_UP_BLOCK as usize));
        blocks.for_each(|(block, bytes)| bytes.copy_from_slice(&contents(block)));
        Ok(())
    };
    let compress = |bytes: &[u8]| Ok(compress_to_vec(bytes, CompressionLevel::Fastest));
    let mut builder = Builder::new("made up", &model, &tree).expect("the model is one of the tree");
    let mut frames = Vec::new();
    while let Some(frame) = builder.next(&mut read, &compress).expect("reading cannot fail") {
        frames.extend(frame);
    }
    let mut file = builder.finish().expect("all frames are there");
    file.extend(frames);
    (file, tree)
}

/// A packs file (docs/format.md) of the made-up image with right checksums, as far as it is long enough to have them.
fn sealed_packs(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    let mut at = HEADER_BYTES;
    for (length, crc) in [(52, 80), (56, 84)] {
        let length = number(&bytes, length, 4).unwrap_or(0) as usize;
        let Some(section) = bytes.get(at..at + length) else { break };
        let sum = crc32c::crc32c(section);
        put_crc(&mut bytes, crc, sum);
        at += length;
    }
    let crc = crc32c::crc32c(&bytes[..88]);
    put_crc(&mut bytes, 88, crc);
    bytes
}

/// A tree file (docs/format.md) with right hashes, where head, map and length fit together.
fn sealed_tree(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let Ok(head) = Head::decode(&bytes) else { return bytes };
    let map_end = HEAD_BYTES.saturating_add(head.map_bytes() as usize);
    let Some(map) = bytes.get(HEAD_BYTES..map_end) else { return bytes };
    let Ok(holes) = Holes::decode(map, head.geometry().blocks()) else { return bytes };
    let hash = blake3::hash(map);
    bytes[24..32].copy_from_slice(&holes.used().to_le_bytes());
    bytes[48..80].copy_from_slice(hash.as_bytes());
    let Ok(head) = Head::decode(&bytes) else { return bytes };
    if head.file_bytes() != bytes.len() as u64 {
        return bytes;
    }
    for level in 0..head.levels() {
        for index in 0..head.pages(level) {
            let page = PageId { level, index: index as u32 };
            let Some((offset, length)) = head.extent(page) else { return bytes };
            let content = &bytes[offset as usize..(offset + length) as usize];
            let hash = blake3::Hasher::new_derive_key("vmstream 2026-11 hash page").update(content).finalize();
            let at = if level + 1 == head.levels() {
                80
            } else {
                let (parent, child) = page.parent();
                let Some((offset, _)) = head.extent(parent) else { return bytes };
                offset as usize + 20 * child
            };
            bytes[at..at + 20].copy_from_slice(&hash.as_bytes()[..20]);
        }
    }
    bytes
}

/// The number of so many bytes at `at`, when they are there.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn put_crc(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A model file (docs/format-model.md) with right checksums, as far as it is long enough to have them.
pub fn sealed_model(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    // Version 1 has no spares.
    let fields: &[usize] = if number(&bytes, 8, 4) == Some(1) { &[36, 48, 60] } else { &[36, 48, 60, 72] };
    let header_bytes = 40 + 12 * fields.len();
    if bytes.len() < header_bytes {
        return bytes;
    }
    let mut at = header_bytes;
    for &field in fields {
        let length = number(&bytes, field, 8).and_then(|length| usize::try_from(length).ok());
        let Some(end) = length.and_then(|length| at.checked_add(length)).filter(|&end| end <= bytes.len()) else {
            break;
        };
        let crc = crc32c::crc32c(&bytes[at..end]);
        put_crc(&mut bytes, field + 8, crc);
        at = end;
    }
    let crc = crc32c::crc32c(&bytes[..header_bytes - 4]);
    put_crc(&mut bytes, header_bytes - 4, crc);
    bytes
}

/// A head and records, each with its length and a checksum that continues the one before it: a session file
/// (docs/format-session.md) or a journal (docs/format-journal.md), whose records have `more` bytes before the payload.
pub fn sealed_chain(bytes: &[u8], more: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let Some(end) = number(&bytes, 12, 4).map(|length| 16 + length as usize).filter(|end| end + 4 <= bytes.len())
    else {
        return bytes;
    };
    let mut crc = crc32c::crc32c(&bytes[..end]);
    put_crc(&mut bytes, end, crc);
    let mut at = end + 4;
    while let Some(length) = number(&bytes, at, 4) {
        let end = at + 8 + more + length as usize;
        if end > bytes.len() {
            break;
        }
        crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &bytes[at..at + 4]), &bytes[at + 8..end]);
        put_crc(&mut bytes, at + 4, crc);
        at = end;
    }
    bytes
}
