//! What readers do with a published image beyond streaming it: compare, and reuse what they have.

use std::os::unix::fs::FileExt;
use std::path::Path;

use vmstream::Image;

use crate::support::*;

/// Runs a command that ends with `code`; answers what it said on both ways out.
fn said(code: i32, arguments: &[&str]) -> String {
    let output = vmstream(arguments);
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// The pages that check an image of some size do not come with the first request, so they have to be fetched meanwhile.
#[test]
fn an_image_of_which_the_tree_is_long_is_compared_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    image(&at("disk.img"), 8 << 20, &[(0, 8 << 20)]);
    let link = publish(&at("disk.img"), &at("site"), &[]);
    said(0, &["fetch", &link, "-o", text(&at("whole.img"))]);
    let whole = said(0, &["verify", text(&at("whole.img")), &link]);
    assert!(whole.contains("different  0 blocks"), "{whole}");
    let file = std::fs::File::options().write(true).open(at("whole.img")).unwrap();
    file.write_all_at(b"?", 7 << 20).unwrap();
    let spoiled = said(3, &["verify", text(&at("whole.img")), &link]);
    assert!(spoiled.contains("  bytes 7340032-7344127"), "{spoiled}");
}

fn fetched_bytes(status: &Path) -> u64 {
    let status: serde_json::Value = serde_json::from_slice(&std::fs::read(status).unwrap()).unwrap();
    status["bytes_fetched"].as_u64().unwrap()
}

#[test]
fn what_a_cache_holds_is_compared_with_what_was_published() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    small_image(&at("disk.img"));
    let link = publish(&at("disk.img"), &at("site"), &[]);
    let options = [format!("source={link}"), format!("cache={}", text(&at("c"))), "fill=off".to_owned()];
    let open = Image::open(&options).unwrap();
    open.read_at(0, &mut [0; 50_000]).unwrap();
    open.read_at(3 << 20, &mut [0; 4096]).unwrap();
    open.read_at(1 << 20, &mut [0; 4096]).unwrap();
    open.flush().unwrap();
    open.close().unwrap();
    // Thirteen blocks at the start at least, one at 3 MiB, and zeroes.
    let clean = said(0, &["verify", text(&at("c"))]);
    assert!(clean.contains("different  0 blocks") && clean.contains(&link[link.len() - 64..]), "{clean}");

    // The guest writes, and a disk that forgets.
    let open = Image::open(&options).unwrap();
    open.write_at(2 << 20, &[1; 8192]).unwrap();
    open.flush().unwrap();
    open.close().unwrap();
    let disk = std::fs::File::options().write(true).open(at("c/disk")).unwrap();
    disk.write_all_at(&[0], 4097).unwrap();
    let spoiled = said(3, &["verify", text(&at("c"))]);
    let ranges: Vec<_> = spoiled.lines().filter(|line| line.starts_with("  bytes ")).collect();
    assert_eq!(ranges, ["  bytes 4096-8191", "  bytes 2097152-2105343"], "{spoiled}");

    // Without a journal all is held; and a link is needed.
    said(0, &["fetch", &link, "-o", text(&at("whole.img"))]);
    let whole = said(0, &["verify", text(&at("whole.img")), &link]);
    assert!(whole.contains("held       1281 blocks"), "{whole}");
    assert!(said(1, &["verify", text(&at("whole.img"))]).contains("give the link as well"));
    assert!(
        said(1, &["verify", text(&at("whole.img")), text(&at("disk.img"))]).contains("no link to a published image")
    );
    std::fs::write(at("short.img"), "short").unwrap();
    assert!(said(1, &["verify", text(&at("short.img")), &link]).contains("has 5 bytes, and the image"));
    assert!(said(1, &["verify", text(&at("none")), &link]).contains("none"));
}

#[test]
fn a_cache_is_compared_with_the_version_it_was_made_from_wherever_that_lies() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    small_image(&at("disk.img"));
    let link = publish(&at("disk.img"), &at("site"), &[]);
    let mirror = link.replace("/site/", "/gone/");
    let cache = |name: &str, places: &[String]| {
        let options = [format!("cache={}", text(&at(name))), "fill=off".to_owned()];
        let open = Image::open(places.iter().chain(&options)).unwrap();
        open.read_at(0, &mut [0; 50_000]).unwrap();
        open.flush().unwrap();
        open.close().unwrap();
    };
    // One place alone, and one behind another that was lost since.
    let copied = std::process::Command::new("cp").arg("-r").args([at("site"), at("gone")]).status().unwrap();
    assert!(copied.success());
    cache("c", &[format!("source={link}")]);
    cache("m", &[format!("source={mirror}"), format!("mirror={link}")]);
    std::fs::remove_dir_all(at("gone")).unwrap();
    // A newer version takes the place of the pointer; the cache knows where the older one lies.
    image(&at("new.img"), 1 << 20, &[(0, 1 << 20)]);
    publish(&at("new.img"), &at("site"), &["--name", "disk"]);
    let kept = std::fs::read(at("c/disk.origin")).unwrap();
    for cache in ["c", "m"] {
        let said = said(0, &["verify", text(&at(cache)), "--progress"]);
        assert!(said.contains(&link[link.len() - 64..]) && said.contains("different  0 blocks"), "{said}");
        assert!(said.contains("compared"), "{said}");
    }
    assert!(std::fs::read(at("c/disk.origin")).unwrap() == kept);
    // What cannot be found is asked for.
    std::fs::rename(at("site"), at("moved")).unwrap();
    let told = said(1, &["verify", text(&at("c"))]);
    assert!(told.contains("give its link as well") && told.contains(&link[link.len() - 65..]), "{told}");
}

#[test]
fn holes_are_not_read_and_what_lies_in_one_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // To read a hole of this size takes minutes.
    let size = 512 << 30;
    image(&at("disk.img"), size, &[(0, 1 << 20), (size - 4096, 4096)]);
    let link = publish(&at("disk.img"), &at("site"), &["--link"]);
    let whole = said(0, &["verify", text(&at("disk.img")), &link]);
    assert!(whole.contains(&format!("held       {} blocks", size / 4096)), "{whole}");
    image(&at("copy.img"), size, &[(0, 1 << 20), (size - 4096, 4096)]);
    let copy = std::fs::File::options().write(true).open(at("copy.img")).unwrap();
    copy.write_all_at(&[1], 7 << 30).unwrap();
    let spoiled = said(3, &["verify", text(&at("copy.img")), &link]);
    assert!(spoiled.contains(&format!("  bytes {}-{}\n", 7_u64 << 30, (7_u64 << 30) + 4095)), "{spoiled}");
    assert!(spoiled.contains("different  1 blocks"), "{spoiled}");
}

#[test]
fn what_is_to_be_reused_is_looked_at_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    small_image(&at("disk.img"));
    let link = publish(&at("disk.img"), &at("site"), &[]);
    let refused = |source: &str, old: &Path| {
        let said = said(1, &["fetch", source, "-o", text(&at("x")), "--reuse", text(old)]);
        assert!(!at("x").exists() && !at("x.vmj").exists(), "{said}");
        said
    };
    assert!(refused(&link, &at("none")).contains("none"));
    assert!(refused(&link, Path::new("/dev/null")).contains("neither a file nor a block device"));
    assert!(refused(text(&at("disk.img")), &at("disk.img")).contains("not published"));
    std::fs::copy(at("disk.img"), at("x")).unwrap();
    std::os::unix::fs::symlink(at("x"), at("same")).unwrap();
    let own = said(1, &["fetch", &link, "-o", text(&at("x")), "--reuse", text(&at("same"))]);
    assert!(own.contains("what is to be made") && !at("x.vmj").exists(), "{own}");
}

#[test]
fn what_an_older_version_has_is_not_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    image(&at("disk.img"), 5 << 20, &[(0, 1 << 20), (2 << 20, 2 << 20)]);
    let old = publish(&at("disk.img"), &at("site"), &[]);
    // Half of the old version lies in a cache, and its guest has written there.
    let alone = ["fill=off", "prefetch=none", "model=off"].map(str::to_owned);
    let options = [format!("source={old}"), format!("cache={}", text(&at("c")))].into_iter().chain(alone);
    let open = Image::open(options).unwrap();
    open.read_at(0, &mut vec![0; 1 << 20]).unwrap();
    open.read_at(2 << 20, &mut vec![0; 1 << 20]).unwrap();
    open.write_at(64 << 10, &[9; 64 << 10]).unwrap();
    open.close().unwrap();

    // The new one has something before it, and one change.
    let mut bytes = noise(77, 256 << 10);
    bytes.extend(std::fs::read(at("disk.img")).unwrap());
    bytes[(256 << 10) + 5000] ^= 1;
    std::fs::write(at("new.img"), &bytes).unwrap();
    let new = publish(&at("new.img"), &at("site"), &["--name", "disk"]);
    let status = at("status.json");
    let fetch = ["fetch", &new, "--json-status", text(&status), "-o"];
    said(0, &[&fetch[..], &[text(&at("plain"))]].concat());
    let without = fetched_bytes(&status);
    let heard = said(0, &[&fetch[..], &[text(&at("reused")), "-v", "--reuse", text(&at("c"))]].concat());
    let with = fetched_bytes(&status);
    assert!(std::fs::read(at("plain")).unwrap() == bytes && std::fs::read(at("reused")).unwrap() == bytes);
    // Of 2 MiB all but what the guest wrote and the changed block.
    let reused = (2 << 20) - (64 << 10) - 4096;
    assert!(heard.contains(&format!("{:.1} MiB copied", reused as f64 / f64::from(1 << 20))), "{heard}");
    assert_eq!(without - with, reused);

    // Any raw image will do; a plain source has no hashes to go by.
    said(0, &[&fetch[..], &[text(&at("again")), "--reuse", text(&at("new.img"))]].concat());
    assert_eq!(fetched_bytes(&status), 0);
    assert!(std::fs::read(at("again")).unwrap() == bytes);
    let said = said(1, &["fetch", text(&at("new.img")), "-o", text(&at("x")), "--reuse", text(&at("c"))]);
    assert!(said.contains("not published"), "{said}");
}
