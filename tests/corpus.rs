//! The corpus of the fuzz targets (`fuzz/corpus`), read again with every test run: what once was a way to crash a parser,
//! or is the only way to some corner of one, stays a test without a fuzzer. Each file is also cut, and changed bit by bit,
//! which is what a fuzzer would try first.

#[path = "support/parsers.rs"]
mod parsers;

use std::path::Path;

/// Longest prefix of a file of which every bit is changed, in bytes: heads are shorter.
const CHANGED_BYTES_MAX: usize = 112;

#[test]
fn no_target_fails_on_its_corpus_or_near_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in parsers::TARGETS {
        let directory = corpus.join(name);
        let mut files: Vec<_> = std::fs::read_dir(&directory)
            .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no corpus");
        for path in files {
            let bytes = std::fs::read(&path).unwrap();
            target(&bytes);
            for bit in 0..8 * bytes.len().min(CHANGED_BYTES_MAX) {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                target(&changed);
            }
            for keep in 0..bytes.len().min(CHANGED_BYTES_MAX) {
                target(&bytes[..keep]);
            }
        }
    }
}

/// The corpus was made by the same writers as the library's, and nothing that they write is refused.
#[test]
fn what_is_written_is_read_to_the_end() {
    let (packs, tree) = parsers::made_up();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/packs/made");
    // `VMS_UPDATE_CORPUS=1 cargo test --test corpus` writes it anew after a change of the format.
    if std::env::var_os("VMS_UPDATE_CORPUS").is_some() {
        std::fs::write(&kept, &packs).unwrap();
    }
    assert!(std::fs::read(kept).unwrap() == packs, "the format has changed: write its corpus anew");
    let header = vmstream::packs::Header::decode("made", &packs).unwrap();
    let part = |range: std::ops::Range<u64>| &packs[range.start as usize..range.end as usize];
    let model = vmstream::model::Model::read("made", part(header.model())).unwrap();
    let listed = part(header.index());
    let index = vmstream::packs::Index::of_file("made", &header, listed, &model, tree.holes()).unwrap();
    assert!(index.count() > 0 && index.extent(0..index.count()).1.iter().all(|&length| length > 0));
}

/// A target that nobody runs, or one without a body, would be found here.
#[test]
fn every_target_is_built_and_has_a_corpus() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let mut built: Vec<_> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
        .collect();
    let mut known: Vec<_> = parsers::TARGETS.iter().map(|(name, _)| *name).collect();
    built.sort_unstable();
    known.sort_unstable();
    assert_eq!(built, known);
    for name in known {
        let source = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("parsers::{name}(bytes)")), "{name} runs something else");
    }
}
