//! What lies at the origin when publishing has ended, and what changes when it is done again.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::*;

#[test]
fn a_published_image_is_the_image_and_can_be_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("a/site"));
    small_image(&disk);
    let link = publish(&disk, &site, &[]);
    let seen = see(&site, "disk");
    assert_eq!(link, format!("{}#{}", site.join("disk.vmp").display(), seen.pointer.root));
    assert_eq!(seen.image, std::fs::read(&disk).unwrap());
    let twelve = &seen.pointer.root.to_string()[..12];
    assert_eq!(shown(&site), [format!("disk-{twelve}.raw"), format!("disk-{twelve}.vmt"), "disk.vmp".to_owned()]);
    // 25 blocks at the start, the lonely byte, 74 at 3 MiB, one at the end; the zeroes count for nothing.
    assert_eq!(seen.tree.holes().used(), 25 + 1 + 74 + 1);
    let metadata = site.join(&seen.pointer.image).metadata().unwrap();
    assert!(metadata.blocks() * 512 < 1 << 20, "the copy is sparse: {}", metadata.blocks());
    let original = disk.metadata().unwrap();
    assert_eq!((metadata.mtime(), Some(metadata.mtime())), (original.mtime(), seen.pointer.mtime_s));

    let link = publish(&disk, &site, &["--name", "other-1.2", "--url", "https://host/images/"]);
    assert_eq!(link, format!("https://host/images/other-1.2.vmp#{}", seen.pointer.root));
}

#[test]
fn the_same_image_gives_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    small_image(&disk);
    let published = |site: &str| {
        let site = dir.path().join(site);
        publish(&disk, &site, &["--collect", "sessions/disk"]);
        files(&site)
    };
    let once = published("once");
    assert_eq!(once.len(), 5, "{:?}", once.keys());
    assert!(once == published("again"));
}

#[test]
fn nothing_is_written_that_is_there_already() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    small_image(&disk);
    let link = publish(&disk, &site, &["--collect", "sessions/disk"]);
    let stamp = |path: &Path| path.metadata().map(|m| (m.ino(), m.ctime(), m.ctime_nsec())).unwrap();
    let stamps = || shown(&site).iter().map(|name| stamp(&site.join(name))).collect::<Vec<_>>();
    let before = stamps();
    assert_eq!(publish(&disk, &site, &[]), link);
    assert_eq!(stamps(), before);
    // Neither if the file was only touched: that is seen when it was read.
    std::fs::File::options().write(true).open(&disk).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    assert_eq!(publish(&disk, &site, &[]), link);
    assert_eq!(stamps(), before);
    // What is not there is made again.
    let tree = site.join(see(&site, "disk").pointer.tree.name);
    std::fs::remove_file(&tree).unwrap();
    assert_eq!(publish(&disk, &site, &[]), link);
    see(&site, "disk");
    assert_eq!(see(&site, "disk").pointer.sessions.as_deref(), Some("sessions/disk"), "kept from before");
}

#[test]
fn publishing_again_mends_what_lies_there() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    small_image(&disk);
    let link = publish(&disk, &site, &[]);
    let right = files(&site);
    let names = see(&site, "disk").pointer;
    // A bad block in what is data, another in what is a hole; a bad hash; files that are cut off, or gone.
    let spoil = |name: &str, at: u64, byte: u8| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(site.join(name)).unwrap();
        file.write_all_at(&[byte], at).unwrap();
    };
    let cut = |name: &str| std::fs::File::options().write(true).open(site.join(name)).unwrap().set_len(200).unwrap();
    let (image, tree) = (&names.image, &names.tree.name);
    let ways: [&dyn Fn(); 7] = [
        &|| spoil(image, 70_000, right[Path::new(image)][70_000] ^ 1),
        &|| spoil(image, 1 << 20, 1),
        &|| spoil(tree, 200, right[Path::new(tree)][200] ^ 1),
        &|| cut(image),
        &|| cut(tree),
        &|| std::fs::remove_file(site.join(image)).unwrap(),
        &|| std::fs::remove_file(site.join(tree)).unwrap(),
    ];
    for (number, way) in ways.iter().enumerate() {
        way();
        assert_ne!(files(&site), right, "{number}");
        assert_eq!(publish(&disk, &site, &[]), link);
        assert!(files(&site) == right, "{number}: all is as it was");
    }
}

#[test]
fn how_many_versions_are_kept_can_be_changed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    for version in 0..3u64 {
        image(&disk, 1 << 20, &[(version << 16, 5000)]);
        publish(&disk, &site, &["--keep", "3"]);
    }
    assert_eq!(shown(&site).len(), 7);
    publish(&disk, &site, &["--keep", "1"]);
    assert_eq!(shown(&site).len(), 3, "{:?}", shown(&site));
    see(&site, "disk");
}

#[test]
fn a_base_address_may_have_a_query_and_no_fragment() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    small_image(&disk);
    let link = publish(&disk, &site, &["--url", "https://host/images/?sig=a/b"]);
    let root = see(&site, "disk").pointer.root;
    assert_eq!(link, format!("https://host/images/disk.vmp?sig=a/b#{root}"));
    for bad in
        ["https://host/images#part", "https://host/a b", "host/images", "https:///images", "ftp://host/images", ""]
    {
        let output = vmstream(&["publish", text(&disk), "-o", text(&site), "--url", bad]);
        assert_eq!(output.status.code(), Some(2), "{bad}: {output:?}");
    }
}

#[test]
fn a_directory_in_the_place_of_an_image_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    small_image(&disk);
    publish(&disk, &site, &[]);
    let image = site.join(see(&site, "disk").pointer.image);
    std::fs::remove_file(&image).unwrap();
    std::fs::create_dir(&image).unwrap();
    let output = vmstream(&["publish", text(&disk), "-o", text(&site)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(text(&image)) && said.contains("move it away"), "{said}");
    std::fs::remove_dir(&image).unwrap();
    publish(&disk, &site, &[]);
    see(&site, "disk");
}

#[test]
fn old_versions_stay_as_long_as_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    // What looks like ours and is not stays.
    std::fs::create_dir(&site).unwrap();
    std::fs::write(site.join("disk-notes.raw"), "mine").unwrap();
    let mut published = Vec::new();
    for version in 0..4u64 {
        image(&disk, 1 << 20, &[(version << 16, 5000)]);
        publish(&disk, &site, &[]);
        published.push(see(&site, "disk").pointer);
        let expected = published.iter().rev().take(2).flat_map(|pointer| [&pointer.image, &pointer.tree.name]);
        let mut expected: Vec<_> = expected.cloned().collect();
        expected.extend(["disk-notes.raw".to_owned(), "disk.vmp".to_owned()]);
        expected.sort();
        assert_eq!(shown(&site), expected, "version {version}");
    }
    image(&disk, 1 << 20, &[(9 << 16, 5000)]);
    publish(&disk, &site, &["--keep", "1"]);
    assert_eq!(shown(&site).len(), 4, "one version, the pointer, the notes");
    // That is remembered. What was published before is known even where the publisher's own files were lost.
    std::fs::remove_file(site.join(".vmstream/disk/versions")).unwrap();
    image(&disk, 1 << 20, &[(11 << 16, 5000)]);
    publish(&disk, &site, &["--keep", "1"]);
    assert_eq!(shown(&site).len(), 4);
    image(&disk, 1 << 20, &[(10 << 16, 5000)]);
    publish(&disk, &site, &[]);
    assert_eq!(shown(&site).len(), 4);
}

#[test]
fn a_linked_image_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("site");
    let (within, beside) = (site.join("images/disk.img"), dir.path().join("disk.img"));
    std::fs::create_dir_all(within.parent().unwrap()).unwrap();
    small_image(&within);
    publish(&within, &site, &["--link", "--name", "within"]);
    assert_eq!(see(&site, "within").pointer.image, "images/disk.img");

    small_image(&beside);
    publish(&beside, &site, &["--link", "--name", "beside"]);
    let linked = site.join(see(&site, "beside").pointer.image);
    assert_eq!(linked.metadata().unwrap().ino(), beside.metadata().unwrap().ino());
    // Published again nothing changes, and the next version does not take the user's own file away.
    publish(&beside, &site, &["--link", "--name", "beside"]);
    image(&within, 1 << 20, &[(0, 5000)]);
    publish(&within, &site, &["--link", "--name", "within", "--keep", "1"]);
    assert!(within.exists() && see(&site, "within").pointer.geometry.size() == 1 << 20);
}

#[test]
fn two_publishers_of_one_name_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, site) = (dir.path().join("disk.img"), dir.path().join("site"));
    small_image(&disk);
    publish(&disk, &site, &[]);
    let lock = std::fs::File::open(site.join(".vmstream/disk/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let said = refused(&disk, &site, &[]);
    assert!(said.contains("being published by somebody else"), "{said}");
    publish(&disk, &site, &["--name", "other"]);
    drop(lock);
    publish(&disk, &site, &[]);
}
