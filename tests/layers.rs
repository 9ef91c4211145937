//! The guard of the house: layers, homes of `unsafe`, and the length of files.
//!
//! [`LAYERS`] is the table of docs/design.md as a program reads it. A module may use what stands before it: lower
//! layers, and earlier modules of its own. So the modules are in one strict order and no circle can arise, not even
//! within a layer. Test code is held to it as well, because a test that reaches up shows a unit that cannot be
//! understood by itself.
//!
//! The check reads text, not syntax trees: comments, strings and character literals are blanked, and in what is left
//! every path that begins at the crate's root is looked at, wherever it stands. That is enough for a house that spells
//! its imports `crate::module::...`; what it cannot see through, such as a path built by a macro, we do not write.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules, lowest layer first; within a layer each may use those before it.
const LAYERS: [&[&str]; 5] = [
    &["error", "time", "sync", "counters", "stats", "block", "config", "sys"],
    &["link", "notify", "tree", "source", "store", "gate", "session", "model", "packs", "predictor"],
    &["planner"],
    &["engine", "learner", "image", "replay"],
    &["capi"],
];

/// The only modules that may hold `unsafe`.
const UNSAFE_HOMES: [&str; 2] = ["capi", "sys"];

/// Longest file under src, in lines: what a reader takes in at one sitting, tests included.
const LINES_MAX: usize = 500;

/// Longer files: each with its own limit, so that it cannot grow on, and the reason.
const LONGER: [(&str, usize, &str); 0] = [];

/// Position of a module in the order of the table.
fn place(module: &str) -> Option<usize> {
    LAYERS.iter().copied().flatten().position(|&name| name == module)
}

/// The text with comments and the contents of literals blanked; lines stay where they are.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = blank_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// End of the comment or literal that begins at `at`; `at` itself when none does.
fn blank_end(chars: &[char], at: usize) -> usize {
    let next = |ahead: usize| chars.get(at + ahead).copied().unwrap_or('\0');
    let in_word = at > 0 && is_word(chars[at - 1]);
    match chars[at] {
        '/' if next(1) == '/' => chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |n| at + n),
        '/' if next(1) == '*' => comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        'r' if !in_word || (chars[at - 1] == 'b' && (at < 2 || !is_word(chars[at - 2]))) => raw_end(chars, at),
        // A character, not a lifetime: an escape, or closed right behind the one that stands there.
        '\'' if next(1) == '\\' => {
            let close = chars[(at + 3).min(chars.len())..].iter().position(|&c| c == '\'');
            close.map_or(chars.len(), |n| at + 3 + n + 1)
        }
        '\'' if next(2) == '\'' => at + 3,
        _ => at,
    }
}

fn comment_end(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) if depth == 1 => return at + 2,
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// End of a raw string whose `r` stands at `at`; `at` itself when it is another `r` (also that of `r#name`).
fn raw_end(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    let open = at + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return at;
    }
    let closes = |i: &usize| chars[*i] == '"' && chars[i + 1..].iter().take_while(|&&c| c == '#').count() >= hashes;
    (open + 1..chars.len()).find(closes).map_or(chars.len(), |i| i + 1 + hashes)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The words and other signs of a text, each with its line, from 1.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") => 2,
                0 => first.len_utf8(),
                _ => word,
            };
            tokens.push((number + 1, &rest[..length]));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// First names of all paths from the crate's root, each with its line. `depth`: how far the file's module lies below
/// the root, so many `super` lead there.
fn root_names(code: &str, depth: usize) -> Vec<(usize, &str)> {
    let tokens = tokens(code);
    let word = |at: usize| tokens.get(at).map_or("", |token| token.1);
    let mut names = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let before = if at == 0 { "" } else { word(at - 1) };
        let mut supers = 0;
        while before != "::" && word(at + 2 * supers) == "super" && word(at + 2 * supers + 1) == "::" {
            supers += 1;
        }
        let path = if word(at) == "crate" && word(at + 1) == "::" {
            at + 2
        } else if supers >= depth.max(1) {
            at + 2 * supers
        } else {
            at += 1;
            continue;
        };
        // What `super` leads to inside a `mod tests` is the file itself: only names of the table count then.
        let counts = |name: &str| supers == 0 || place(name).is_some();
        if word(path) == "{" {
            let (mut open, mut i) = (1, path + 1);
            while open > 0 && i < tokens.len() {
                match word(i) {
                    "{" => open += 1,
                    "}" => open -= 1,
                    name if open == 1 && matches!(word(i - 1), "{" | ",") && counts(name) => names.push(tokens[i]),
                    _ => {}
                }
                i += 1;
            }
        } else if counts(word(path)) {
            names.extend(tokens.get(path));
        }
        at = path;
    }
    names
}

/// Everything wrong with one file. `path` begins with `src/` and `text` is what the file holds.
fn faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let lines = text.lines().count();
    let limit = LONGER.iter().find(|longer| longer.0 == path).map_or(LINES_MAX, |longer| longer.1);
    if lines > limit {
        faults.push(format!("{path}: {lines} lines, {limit} are allowed: give a part of it a file of its own"));
    } else if limit > LINES_MAX && lines <= LINES_MAX {
        faults.push(format!("{path}: short enough now: take it out of LONGER in tests/layers.rs"));
    }
    let code = code(text);
    let module = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    if !UNSAFE_HOMES.contains(&module) {
        for (line, word) in tokens(&code) {
            if matches!(word, "unsafe" | "unsafe_code") {
                let homes = UNSAFE_HOMES.join(" and src/");
                faults.push(format!("{path}:{line}: {word}, whose only homes are src/{homes}"));
            }
        }
    }
    // The root sees everything, and the tool is a crate of its own that sees the public API alone.
    if module == "lib" || module == "bin" {
        return faults;
    }
    let Some(own) = place(module) else {
        faults.push(format!("{path}: module {module} has no layer: enter it in LAYERS of tests/layers.rs"));
        return faults;
    };
    let depth = inside.split('/').count() - usize::from(inside.ends_with("/mod.rs"));
    for (line, name) in root_names(&code, depth) {
        match place(name) {
            Some(used) if used <= own => {}
            Some(_) => faults.push(format!("{path}:{line}: {module} uses {name}, which stands above it")),
            None => faults.push(format!("{path}:{line}: crate::{name} is no module: name the one that defines it")),
        }
    }
    faults
}

/// All Rust files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_source_keeps_to_its_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = files(&root.join("src"));
    assert!(files.len() > 50, "only {} files found", files.len());
    let mut wrong = Vec::new();
    for file in &files {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap();
        wrong.extend(faults(path, &fs::read_to_string(file).unwrap()));
    }
    for module in LAYERS.concat() {
        if !root.join(format!("src/{module}.rs")).exists() && !root.join(format!("src/{module}/mod.rs")).exists() {
            wrong.push(format!("tests/layers.rs: {module} is in LAYERS and nowhere else"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_table_is_the_one_of_the_design_document() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/design.md")).unwrap();
    for (layer, modules) in LAYERS.iter().enumerate() {
        let names: Vec<_> = modules.iter().map(|name| format!("`{name}`")).collect();
        let row = format!("| {layer} | {}", names.join(", "));
        assert!(text.contains(&row), "docs/design.md has no row that begins: {row}");
    }
}

#[test]
fn the_compiler_refuses_unsafe_as_well() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\nunsafe_code = \"deny\"\n"));
}

/// True when `path` holding `text` has exactly one fault and it mentions `part`.
#[track_caller]
fn refused(path: &str, text: &str, part: &str) {
    let faults = faults(path, text);
    assert!(faults.len() == 1 && faults[0].contains(part), "{path} {text:?}: {faults:?}");
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    assert_eq!(faults(path, text), Vec::<String>::new(), "{path} {text:?}");
}

#[test]
fn an_upward_use_is_found_however_it_is_spelled() {
    refused("src/gate/ring.rs", "use crate::engine::Engine;", "ring.rs:1: gate uses engine");
    refused("src/planner/fill.rs", "\nuse crate::{block::Block, image};", "fill.rs:2: planner uses image");
    refused(
        "src/planner/fill.rs",
        "use crate::{\n    gate::{Op, State},\n    capi,\n};",
        "fill.rs:3: planner uses capi",
    );
    refused("src/link.rs", "fn f() { crate::planner::run() }", "link uses planner");
    refused("src/link.rs", "use super::planner::Planner;", "link uses planner");
    refused("src/gate/ring.rs", "use super::super::{block, engine};", "gate uses engine");
    refused("src/gate/mod.rs", "pub(crate) use crate :: image::Image;", "gate uses image");
    refused("src/source/file.rs", "use crate::store::Store;", "source uses store");
    refused("src/store/file.rs", "#[cfg(test)]\nmod tests {\n    use crate::engine::E;\n}", "file.rs:3: store uses");
}

#[test]
fn a_module_outside_the_table_is_found() {
    refused("src/novelty.rs", "", "module novelty has no layer");
    refused("src/novelty/part.rs", "", "module novelty has no layer");
    refused("src/link.rs", "use crate::novelty::New;", "crate::novelty is no module");
    // The re-exports of lib.rs stand above all.
    refused("src/link.rs", "use crate::Result;", "crate::Result is no module");
}

#[test]
fn unsafe_outside_its_homes_is_found() {
    refused("src/gate/ring.rs", "fn f() {\n    unsafe { g() }\n}", "ring.rs:2: unsafe");
    refused("src/link.rs", "#![allow(unsafe_code)]", "unsafe_code");
    refused("src/bin/vmstream/main.rs", "unsafe impl Send for X {}", "unsafe");
    accepted("src/sys/map.rs", "#![allow(unsafe_code)] fn f() { unsafe { g() } }");
    accepted("src/capi/edge.rs", "unsafe extern \"C\" {}");
}

#[test]
fn a_long_file_is_found() {
    accepted("src/link.rs", &"\n".repeat(LINES_MAX));
    refused("src/link.rs", &"\n".repeat(LINES_MAX + 1), "501 lines, 500 are allowed");
    for (path, limit, why) in LONGER {
        assert!(!why.is_empty());
        refused(path, &"\n".repeat(limit + 1), "are allowed");
        refused(path, "", "take it out of LONGER");
    }
}

#[test]
fn downward_uses_and_the_own_module_are_fine() {
    accepted("src/planner/fill.rs", "use crate::block::{Block, BlockRange};\nuse crate::planner::demand::Demand;");
    accepted("src/store/cache.rs", "use crate::source::Identity;\nuse super::header::Header;");
    accepted("src/link.rs", "mod tests { use super::*; use super::Link; }");
    accepted("src/lib.rs", "pub mod novelty; pub use crate::engine::Engine;");
    accepted("src/bin/vmstream/mount.rs", "use crate::report::Reporter; use vmstream::Image;");
}

#[test]
fn only_code_counts() {
    accepted("src/link.rs", "//! [`crate::engine`], unsafe\n/* crate::engine /* nested */ unsafe */");
    accepted(
        "src/link.rs",
        r####"const A: &str = "\"unsafe"; const B: &str = r#"" unsafe "#; const C: &[u8] = br"unsafe";"####,
    );
    // Neither a quote in a character nor a lifetime may hide what follows.
    refused("src/link.rs", "const Q: char = '\"'; use crate::engine; const R: char = '\"';", "uses engine");
    refused("src/link.rs", "const Q: char = '\\''; use crate::engine;", "uses engine");
    refused("src/link.rs", "fn f<'a>(x: &'a str) { unsafe {} }", "unsafe");
    refused("src/link.rs", "const S: &str = \"//\"; use crate::engine;", "uses engine");
}
