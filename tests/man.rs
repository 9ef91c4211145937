//! The manual pages say what `--help` says: the same commands, the same options, and of each the same sentence.
#![cfg(feature = "tool")]

use std::collections::BTreeMap;
use std::process::Command;

/// The options that every command has; `vmstream.1` describes them.
const COMMON: [&str; 4] = ["help", "quiet", "verbose", "version"];

/// The words of a text, in lower case, with one space around each: what is left when markup is gone.
fn words(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    format!(" {} ", plain.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The long name in a line such as `-o, --output <FILE>` or `.It Fl o , -output Ar FILE`.
fn long_name<'a>(line: &'a str, dashes: &str) -> Option<&'a str> {
    let at = line.find(dashes)? + dashes.len();
    let end = line[at..].find(|c: char| !c.is_ascii_lowercase() && c != '-').map_or(line.len(), |n| at + n);
    Some(&line[at..end]).filter(|name| !name.is_empty())
}

fn help_text(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vmstream")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Option by option, the first paragraph of its help.
fn help_options(help: &str) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    let mut lines = help.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.trim_start().starts_with('-') || !line.starts_with(' ') {
            continue;
        }
        let name = long_name(line, "--").unwrap().to_owned();
        // In the short form the sentence stands on the same line, after two blanks or more.
        let mut text = line.trim_start().split_once("  ").map_or("", |(_, text)| text).to_owned();
        while let Some(more) = lines.next_if(|next| next.starts_with("          ") && !next.trim().is_empty()) {
            text += " ";
            text += more.trim();
        }
        options.insert(name, text);
    }
    options
}

/// Option by option, the text of its item in a page.
fn page_options(page: &str) -> BTreeMap<String, String> {
    let mut options = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in page.lines() {
        if line.starts_with(".It ") || line == ".El" {
            current = line.starts_with(".It Fl").then(|| long_name(line, " -").unwrap().to_owned());
        } else if let Some(name) = &current {
            *options.entry(name.clone()).or_insert_with(String::new) += &format!("{line} ");
        }
    }
    options
}

fn page(name: &str) -> String {
    let path = format!("{}/docs/man/{name}.1", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn agree(name: &str, mut help: BTreeMap<String, String>, page: &BTreeMap<String, String>, common: bool) {
    help.retain(|option, _| COMMON.contains(&option.as_str()) == common);
    assert!(help.keys().eq(page.keys()), "{name}: --help has {:?}, the page {:?}", help.keys(), page.keys());
    for (option, text) in help {
        assert!(!text.is_empty(), "{name} --{option} has no help");
        let text = text.split(" (see").next().unwrap_or_default();
        assert!(words(&page[&option]).contains(&words(text)), "{name} --{option}: the page does not say {text:?}");
    }
}

#[test]
fn every_command_has_a_page_with_its_options() {
    let top = help_text(&["--help"]);
    let listed = top.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let main = words(&page("vmstream"));
    let mut commands = 0;
    for line in listed {
        let (command, summary) = line.trim().split_once(' ').unwrap();
        if command == "help" {
            continue;
        }
        commands += 1;
        assert!(main.contains(&words(summary)), "vmstream.1 does not say of {command}: {summary}");
        let name = format!("vmstream-{command}");
        agree(&name, help_options(&help_text(&[command, "--help"])), &page_options(&page(&name)), false);
    }
    assert!(commands >= 4, "{top}");
}

#[test]
fn the_main_page_has_the_common_options_and_the_exit_codes() {
    let page = page("vmstream");
    let top = help_text(&["--help"]);
    agree("vmstream", help_options(&top), &page_options(&page), true);
    let codes = &page[page.find(".Sh EXIT STATUS").unwrap()..];
    for code in ["0", "1", "2", "128 + N"] {
        assert!(codes.contains(&format!(".It {code}\n")), "exit code {code}");
    }
    assert!(top.contains("Exit codes: 0 done, 1 failed, 2 wrong usage, 128+N ended early by signal N."), "{top}");
}

/// The keys that `Config` reads: the arms of its `match`, and `mirror`, which is read before it.
fn option_keys() -> Vec<String> {
    let path = format!("{}/src/config.rs", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let arms = text.lines().skip_while(|line| !line.contains("match key {")).take_while(|line| !line.contains("_ =>"));
    // `"a" | "b" => ...`: the first spelling is the one that is documented.
    let named = arms.filter(|line| line.contains("=>")).filter_map(|line| line.trim().strip_prefix('"'));
    let mut keys: Vec<_> = named.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect();
    keys.push("mirror".to_owned());
    assert!(keys.len() > 20 && keys.contains(&"ring".to_owned()), "{keys:?}");
    keys
}

#[test]
fn every_option_of_an_image_is_in_the_readme_and_the_manual() {
    let mount = page("vmstream-mount");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for key in option_keys() {
        assert!(readme.contains(&format!("\n| `{key}=")), "README.md has no row for {key}");
        // The source and the cache are arguments of the command itself.
        let itself = ["source", "cache"].contains(&key.as_str());
        assert!(itself || mount.contains(&format!("\n.It Cm {key} Ns =")), "vmstream-mount.1 has no item for {key}");
    }
}

/// The pages of drivers name options as well, in their own words and not all of them: no page and no help may have one
/// that does not exist.
#[test]
fn a_driver_names_no_option_that_does_not_exist() {
    let keys = option_keys();
    let known = |key: &str| key == "url" || keys.iter().any(|known| known == key);
    let text = page("nbdkit-vmstream-plugin");
    let named: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix(".It Cm ").and_then(|rest| rest.split_once(" Ns =")))
        .map(|(key, _)| key)
        .collect();
    assert!(named.len() >= 8, "{named:?}");
    let source =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/c-examples/nbdkit/nbdkit-vmstream-plugin.c"));
    let source = source.unwrap();
    let help: Vec<_> = source
        .lines()
        .skip_while(|line| !line.starts_with("#define vmstream_config_help"))
        .skip(1)
        .take_while(|line| line.starts_with("  \""))
        .filter_map(|line| line.trim_start_matches([' ', '"', '[']).split_once(['=', ']']))
        .map(|(key, _)| key)
        .filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    assert!(help.len() >= 8, "{help:?}");
    for key in named.into_iter().chain(help) {
        assert!(known(key), "the nbdkit plugin has no option {key}");
    }
}
