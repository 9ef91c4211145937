//! `include/vmstream.h` is what cbindgen makes of `src/capi`.
//!
//! `VMS_UPDATE_HEADER=1 cargo test --test header` (or `make header`) writes it anew.

use std::path::Path;

/// The files of the C ABI, in the order in which the header shall have them.
const SOURCES: [&str; 3] = ["src/capi/types.rs", "src/capi/image.rs", "src/capi/info.rs"];

fn generated(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let builder = SOURCES
        .iter()
        .fold(cbindgen::Builder::new().with_config(config), |builder, source| builder.with_src(root.join(source)));
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("include/vmstream.h");
    let fresh = generated(root);
    if std::env::var_os("VMS_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = fresh.lines().zip(committed.lines()).position(|(a, b)| a != b);
    assert!(
        fresh == committed,
        "include/vmstream.h is out of date, first at line {}: run `make header`",
        differing.unwrap_or_else(|| fresh.lines().count().min(committed.lines().count())) + 1
    );
}

#[test]
fn the_header_speaks_c() {
    let text = generated(Path::new(env!("CARGO_MANIFEST_DIR")));
    for foreign in ["# Safety", "Result<", "Option<", "::", "`", "[`", "panic", "unsafe", "image_"] {
        assert!(!text.contains(foreign), "the header contains {foreign:?}");
    }
    for line in text.lines() {
        assert!(line.chars().count() <= 120, "too long for a header: {line}");
    }
}
