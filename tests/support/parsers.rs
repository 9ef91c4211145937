//! All that reads bytes from outside, fed with any bytes: the bodies of the fuzz targets (`fuzz/`), which `cargo test`
//! runs over their corpus (`tests/corpus.rs`).
//!
//! A target may refuse its bytes; it may not panic, hang or take memory that the length of its bytes does not explain. What
//! it accepts must make sense: written and read again it is the same. Checksums stand between a fuzzer and what lies behind
//! them, so the bytes are read twice, as they are and with their checksums made right ([`sealed_model`], [`sealed_chain`]).
#![allow(dead_code)] // each target is a program of its own and uses one function

use vmstream::model::{Limits, Model, Trainer};
use vmstream::session::{Recording, file, text};

/// A target by the name of its corpus.
pub const TARGETS: [(&str, fn(&[u8])); 4] =
    [("model", model), ("session", session), ("session_text", session_text), ("journal", journal)];

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
