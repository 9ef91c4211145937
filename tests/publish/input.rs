//! The forms that an image may have, and what is none.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmstream::Image;

use crate::support::*;

/// Runs qemu-img; false when it is not installed.
fn qemu_img(arguments: &[&str]) -> bool {
    match Command::new("qemu-img").args(arguments).output() {
        Err(_) => {
            println!("SKIPPED: there is no qemu-img (Debian package qemu-utils)");
            false
        }
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            true
        }
    }
}

#[test]
fn qcow2_is_published_as_the_disk_that_it_shows() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let site = at("site");
    image(&at("disk.img"), 5 << 20, &[(0, 100_000), ((2 << 20) + 5, 1), (3 << 20, 300_000)]);
    let paths = ["disk.img", "base.qcow2", "top.qcow2"].map(at);
    let [disk, base, top] = paths.each_ref().map(|path| text(path));
    if !qemu_img(&["convert", "-q", "-f", "raw", "-O", "qcow2", "-c", disk, base]) {
        return;
    }
    publish(&paths[0], &site, &["--name", "raw"]);
    publish(&paths[1], &site, &["--name", "packed"]);
    let raw = see(&site, "raw");
    assert_eq!(raw.pointer.root, see(&site, "packed").pointer.root, "the root is of the contents alone");

    // On top of it a larger one, with something of its own.
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top, "6M"]);
    let wrote = Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -q -P 0x5a 1M 64k", top]).output().unwrap();
    assert!(wrote.status.success(), "{wrote:?}");
    publish(&paths[2], &site, &["--name", "top"]);
    let mut expected = raw.image.clone();
    expected.resize(6 << 20, 0);
    expected[1 << 20..(1 << 20) + 65536].fill(0x5a);
    assert!(see(&site, "top").image == expected);

    std::fs::rename(&paths[1], at("away.qcow2")).unwrap();
    let said = refused(&paths[2], &site, &["--name", "top"]);
    assert!(said.contains("top.qcow2") && said.contains("base.qcow2, is not there"), "{said}");
    let said = refused(&at("away.qcow2"), &site, &["--name", "l", "--link"]);
    assert!(said.contains("not a raw file"), "{said}");
}

/// Runs qemu-io on an image of qcow2.
fn qemu_io(path: &Path, command: &str) {
    let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", command, text(path)]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn every_kind_of_qcow2_is_read_as_qemu_reads_it_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let site = at("site");
    image(&at("disk.img"), 5 << 20, &[(0, 100_000), ((2 << 20) + 5, 1), (3 << 20, 300_000)]);
    let make = |name: &str, options: &str| {
        let path = at(name);
        let options = format!("cluster_size=64k{options}");
        qemu_img(&["convert", "-q", "-f", "raw", "-O", "qcow2", "-o", &options, text(&at("disk.img")), text(&path)])
            .then_some(path)
    };
    let Some(old) = make("old", ",compat=0.10") else { return };
    let fresh = |name: &str| make(name, "").unwrap();
    // Zeroes that are written down as such, over data; some with a place of their own.
    let zeroes = fresh("zeroes");
    qemu_io(&zeroes, "write -q -z 0 64k");
    qemu_io(&zeroes, "write -q -z -u 3M 128k");
    // What was written after an internal snapshot counts, not what the snapshot holds.
    let snapshot = fresh("snapshot");
    qemu_img(&["snapshot", "-c", "then", text(&snapshot)]);
    qemu_io(&snapshot, "write -q -P 0x77 0 200k");
    // Three on top of each other, the lowest raw, each with something of its own; the top one is larger.
    let (middle, top) = (at("middle"), at("top"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "disk.img", "-F", "raw", text(&middle)]);
    qemu_io(&middle, "write -q -P 1 1M 64k");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", text(&top), "7M"]);
    qemu_io(&top, "write -q -P 2 6M 64k");
    qemu_io(&top, "discard -q 1M 32k");
    let aside = make("aside", &format!(",data_file={},data_file_raw=off", text(&at("data")))).unwrap();
    let small = at("small");
    qemu_img(&[
        "convert",
        "-q",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "cluster_size=512",
        text(&at("disk.img")),
        text(&small),
    ]);

    for path in [&old, &zeroes, &snapshot, &middle, &top, &aside, &small] {
        let (name, raw) = (path.file_name().unwrap().to_str().unwrap(), at("as-qemu-reads-it"));
        qemu_img(&["convert", "-q", "-f", "qcow2", "-O", "raw", text(path), text(&raw)]);
        publish(path, &site, &[]);
        assert!(see(&site, name).image == std::fs::read(&raw).unwrap(), "{name}");
    }

    let before = shown(&site);
    let extended = make("extended", ",extended_l2=on").unwrap();
    let compressed = make("compressed", ",compression_type=zstd").unwrap();
    // Only the header is that of an encrypted one: to make a key, qemu-img measures how fast the machine is, and may give up.
    let secret = fresh("secret");
    let patch = |path: &Path, at: u64, bytes: &[u8]| {
        std::fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
    };
    patch(&secret, 32, &2u32.to_be_bytes());
    let above = at("above");
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "secret", "-F", "qcow2", text(&above), "2M"]);
    let short = fresh("short");
    patch(&short, 24, &(1u64 << 40).to_be_bytes());
    for (path, says) in [
        (&extended, "extended L2 entries"),
        (&compressed, "another way than with zlib"),
        (&secret, "encrypted with LUKS"),
        (&above, "secret cannot be read as a qcow2 image: it is encrypted with LUKS"),
        (&short, "too short for its disk"),
    ] {
        let said = refused(path, &site, &[]);
        assert!(said.contains(says), "{says:?} is not in {said:?}");
    }
    assert_eq!(shown(&site), before);
}

#[test]
fn a_cache_is_completed_and_published_unless_somebody_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site, cache) = (dir.path().join("disk.img"), dir.path().join("site"), dir.path().join("cache"));
    small_image(&disk);
    let options = [format!("source={}", text(&disk)), format!("cache={}", text(&cache)), "fill=off".to_owned()];
    let open = Image::open(&options).unwrap();
    // The guest has read a little and written something of its own.
    open.read_at(0, &mut [0; 4096]).unwrap();
    open.write_at(1 << 20, &noise(3, 8192)).unwrap();
    open.flush().unwrap();
    let said = refused(&cache, &site, &[]);
    assert!(said.contains("is in use by") && !site.exists(), "{said}");
    open.close().unwrap();

    publish(&cache, &site, &[]);
    let mut expected = std::fs::read(&disk).unwrap();
    expected[1 << 20..(1 << 20) + 8192].copy_from_slice(&noise(3, 8192));
    assert!(see(&site, "cache").image == expected);
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("site");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut vdi = vec![0; 4096];
    vdi[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
    for (path, says) in [
        (dir.path().join("none"), "No such file"),
        (file("empty", b""), "it is empty"),
        (dir.path().to_owned(), "no cache of vmstream"),
        ("/dev/null".into(), "neither a file nor a block device"),
        (file("a.vmdk", b"KDMV...."), "a VMDK file: make a raw image of it first"),
        (file("a.vdi", &vdi), "a VDI file"),
        (file("a.qcow2", b"QFI\xfb\0\0\0\x09 and no more"), "it is of version 9"),
    ] {
        let said = refused(&path, &site, &["--name", "x"]);
        assert!(said.contains(says), "{says:?} is not in {said:?}");
    }
    let disk = file("disk", &noise(1, 5000));
    for name in ["", ".hidden", "a b", "a/b", "a%2fb", &"x".repeat(101)] {
        let said = refused(&disk, &site, &["--name", name]);
        assert!(said.contains("cannot be the name") && said.contains("--name"), "{said}");
    }
    assert!(!site.exists());
    let said = refused(&disk, &disk, &[]);
    assert!(said.contains("cannot make the directory"), "{said}");
}

#[test]
fn an_image_that_changes_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    image(&disk, 16 << 20, &[(0, 16 << 20)]);
    let done = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = std::fs::File::options().write(true).open(&disk).unwrap();
            let began = Instant::now();
            while !done.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(60) {
                file.write_all_at(b"log", 5 << 20).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let said = refused(&disk, &site, &[]);
        done.store(true, Ordering::Relaxed);
        said
    });
    assert!(said.contains("was changed while it was read"), "{said}");
    assert!(shown(&site).is_empty());
    publish(&disk, &site, &[]);
    see(&site, "disk");
    assert_drafts_are_gone(&site);
}

fn assert_drafts_are_gone(site: &Path) {
    assert_eq!(std::fs::read_dir(site.join(".vmstream/disk/new")).unwrap().count(), 0);
}

/// What lies behind the end of a file reads as zeroes, and those would be published for good.
#[test]
fn a_qcow2_file_that_was_cut_off_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let raw = at("disk.img");
    small_image(&raw);
    for more in [&[][..], &["-c"]] {
        let disk = at("disk.qcow2");
        let convert = [&["convert", "-q", "-O", "qcow2"], more, &[text(&raw), text(&disk)]].concat();
        if !qemu_img(&convert) {
            return;
        }
        publish(&disk, &at("site"), &["--name", "whole"]);
        let file = std::fs::File::options().write(true).open(&disk).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        let said = refused(&disk, &at("site"), &["--name", "half"]);
        assert!(said.contains("is cut off") && said.contains("get it again"), "{said}");
        assert!(!at("site/half.vmp").exists());
    }
}
