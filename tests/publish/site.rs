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
    // That is remembered.
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
