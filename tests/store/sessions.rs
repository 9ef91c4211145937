//! One session after another, in one process.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use vmstream::block::Geometry;
use vmstream::error::errno;
use vmstream::source::Identity;
use vmstream::store::{Cache, Place, inspect};

use super::{BLOCK, PUBLISHED_S, SIZE, begin, begin_sized, identity, range, refused};

/// All files of a directory with their content, to see that nothing was touched.
fn snapshot(directory: &Path) -> Vec<(PathBuf, Vec<u8>, (i64, i64))> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let metadata = path.metadata().unwrap();
            (path.clone(), fs::read(&path).unwrap(), (metadata.mtime(), metadata.mtime_nsec()))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn the_next_session_finds_what_the_last_one_recorded() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("new/cache");
    {
        let (store, mut journal, present) = begin(&directory).unwrap();
        assert_eq!(present, []);
        store.write(3 * BLOCK, &[7; 2 * BLOCK as usize]).unwrap();
        store.write(64 * BLOCK, &[9; 100]).unwrap();
        store.sync().unwrap();
        journal.record(&[range(64, 65), range(4, 5), range(3, 4), range(9, 9)]).unwrap();
        store.write(10 * BLOCK, &[5; BLOCK as usize]).unwrap();
    }
    let cache = Cache::lock(&Place::Directory(directory.clone())).unwrap();
    let pinned = cache.pinned().unwrap().clone();
    assert_eq!((&pinned.identity, pinned.geometry.block_bytes()), (&identity(SIZE, "one"), BLOCK));
    assert_eq!(pinned.source, "http://host/disk");
    // A cache is opened by what it is bound to, with no network.
    let (store, _journal, present) = cache.begin(&pinned.identity, pinned.geometry, &pinned.source).unwrap();
    assert_eq!(present, [range(3, 5), range(64, 65)]);
    let mut bytes = [0; 100];
    store.read(64 * BLOCK, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 100]);
    assert_eq!((store.size(), store.ephemeral()), (SIZE, false));
    assert_eq!(store.path().unwrap(), directory.join("disk"));
    for name in ["disk", "disk.vmj"] {
        assert_eq!(directory.join(name).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn the_image_shows_the_published_time_whatever_is_written() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("disk");
    let times = || image.metadata().map(|metadata| (metadata.mtime(), metadata.mtime_nsec())).unwrap();
    let (store, ..) = begin(root.path()).unwrap();
    assert_eq!(times(), (PUBLISHED_S, 0));
    store.write(0, b"x").unwrap();
    assert_eq!(times(), (PUBLISHED_S, 0));
    // Somebody else writes and then nobody puts it back, until the next session.
    fs::File::options().write(true).open(&image).unwrap().write_all_at(b"y", 9).unwrap();
    assert_ne!(times(), (PUBLISHED_S, 0));
    drop(store);
    let _session = begin(root.path()).unwrap();
    assert_eq!(times(), (PUBLISHED_S, 0));
}

#[test]
fn another_image_is_refused_and_both_are_named() {
    let root = tempfile::tempdir().unwrap();
    drop(begin(root.path()).unwrap());
    let before = snapshot(root.path());
    let other = |identity: Identity, block_bytes| {
        let cache = Cache::lock(&Place::Directory(root.path().into())).unwrap();
        cache.begin(&identity, Geometry::new(identity.size, block_bytes).unwrap(), "http://other/disk")
    };
    let unknown = Identity { size: SIZE, validator: None, mtime_s: Some(PUBLISHED_S) };
    for (identity, block_bytes) in [
        (identity(SIZE, "two"), BLOCK),
        (identity(SIZE + 1, "one"), BLOCK),
        (identity(SIZE, "one"), 512),
        (unknown, BLOCK),
    ] {
        let error = refused(other(identity, block_bytes));
        assert_eq!(error.errno(), errno::ESTALE);
        let text = error.to_string();
        for part in ["http://host/disk", "http://other/disk", "\"one\"", "remove", "disk.vmj"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }
    assert_eq!(snapshot(root.path()), before);
    // The same bytes on a mirror that dates them otherwise.
    let mirror = Identity { mtime_s: Some(5), ..identity(SIZE, "one") };
    let (store, ..) = other(mirror, BLOCK).unwrap();
    assert_eq!(store.path().unwrap().metadata().unwrap().mtime(), PUBLISHED_S);
}

#[test]
fn somebodys_disk_is_never_touched() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("mine.img");
    fs::write(&image, b"precious").unwrap();
    let before = snapshot(root.path());
    let text = refused(begin_sized(&Place::File(image.clone()), SIZE)).to_string();
    assert!(text.contains("mine.img") && text.contains("not touched"), "{text}");
    assert_eq!(snapshot(root.path()), before);
    // An empty file is nobody's disk, as from mktemp; it keeps its mode.
    fs::write(&image, b"").unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o640)).unwrap();
    drop(begin_sized(&Place::File(image.clone()), SIZE).unwrap());
    let metadata = image.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (SIZE, 0o640));
}

#[test]
fn links_are_not_followed() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("target"), b"").unwrap();
    for name in ["disk", "disk.vmj", "disk.vmj.lock"] {
        let link = root.path().join(name);
        symlink("target", &link).unwrap();
        let text = refused(begin(root.path())).to_string();
        assert!(text.contains("symbolic link") && text.contains(name), "{text}");
        fs::remove_file(link).unwrap();
    }
    // The successor of the journal is replaced, whatever it is.
    symlink("target", root.path().join("disk.vmj.new")).unwrap();
    drop(begin(root.path()).unwrap());
    assert_eq!(fs::read(root.path().join("target")).unwrap(), b"");
}

#[test]
fn a_journal_without_its_image_is_an_error_that_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("disk");
    {
        let (store, mut journal, _) = begin(root.path()).unwrap();
        store.write(0, &[1; BLOCK as usize]).unwrap();
        store.sync().unwrap();
        journal.record(&[range(0, 1)]).unwrap();
    }
    let file = File::options().write(true).open(&image).unwrap();
    // One that is too long is not refused but cut: what a guest flushed must not become unreachable over it.
    for length in [SIZE - 1, 0] {
        file.set_len(length).unwrap();
        let error = refused(begin(root.path()));
        assert_eq!(error.errno(), errno::EIO);
        let text = error.to_string();
        assert!(text.contains(&format!("has {length} bytes")) && text.contains("start afresh"), "{text}");
        assert_eq!(image.metadata().unwrap().len(), length);
    }
    fs::remove_file(&image).unwrap();
    let error = refused(begin(root.path()));
    assert_eq!(error.errno(), errno::ENOENT);
    assert!(error.to_string().contains("missing") && !image.exists(), "{error}");
}

#[test]
fn old_journals_are_read_and_unknown_ones_left_alone() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal");
    let lay = |fixture: &str| {
        let root = tempfile::tempdir().unwrap();
        fs::copy(fixtures.join(fixture), root.path().join("disk.vmj")).unwrap();
        File::create(root.path().join("disk")).unwrap().set_len(SIZE).unwrap();
        root
    };
    for (fixture, runs) in [
        ("format-1.vmj", vec![range(0, 8), range(20, 21), range(40, 65)]),
        ("format-1-torn.vmj", vec![range(0, 8), range(20, 21)]),
        ("format-1-damaged.vmj", vec![range(4, 8)]),
    ] {
        let root = lay(fixture);
        let summary = inspect(root.path()).unwrap();
        assert_eq!(summary.pinned.identity, identity(SIZE, "one"), "{fixture}");
        assert_eq!(summary.resident_blocks, runs.iter().map(|run| run.len()).sum::<u64>(), "{fixture}");
        assert_eq!(begin(root.path()).unwrap().2, runs, "{fixture}");
        assert_eq!(inspect(root.path()).unwrap().tail_bytes, 0, "{fixture}: the rest is cut off");
    }
    for (fixture, number, part) in [
        ("format-2.vmj", errno::EPROTO, "format 2"),
        ("foreign.vmj", errno::EINVAL, "not a journal"),
        ("empty.vmj", errno::EINVAL, "not a journal"),
        ("head-damaged.vmj", errno::EIO, "damaged"),
        ("head-huge.vmj", errno::EIO, "damaged"),
    ] {
        let root = lay(fixture);
        let before = snapshot(root.path());
        for error in [refused(begin(root.path())), inspect(root.path()).unwrap_err()] {
            assert_eq!(error.errno(), number, "{fixture}: {error}");
            assert!(error.to_string().contains(part) && error.to_string().contains("disk.vmj"), "{fixture}: {error}");
        }
        assert_eq!(snapshot(root.path()), before, "{fixture}");
    }
}

#[test]
fn a_compaction_keeps_the_claims_and_the_lock() {
    let root = tempfile::tempdir().unwrap();
    let (store, mut journal, _) = begin(root.path()).unwrap();
    for block in (0..60).step_by(2) {
        journal.record(&[range(block, block + 1)]).unwrap();
    }
    let inode = || root.path().join("disk.vmj").metadata().unwrap().ino();
    let (before, long) = (inode(), inspect(root.path()).unwrap().journal_bytes);
    journal.compact((0..60).step_by(2).map(|block| range(block, block + 1))).unwrap();
    let summary = inspect(root.path()).unwrap();
    assert!(inode() != before && summary.journal_bytes < long / 2);
    assert_eq!(summary.resident_blocks, 30);
    assert_eq!(refused(begin(root.path())).errno(), errno::EBUSY);
    journal.record(&[range(1, 2)]).unwrap();
    drop((store, journal));
    assert_eq!(begin(root.path()).unwrap().2[0], range(0, 3));
}

#[test]
fn a_finished_image_is_an_ordinary_file() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("image.raw");
    let place = Place::File(image.clone());
    let (store, mut journal, _) = begin_sized(&place, SIZE).unwrap();
    store.write(0, &vec![3; SIZE as usize]).unwrap();
    store.sync().unwrap();
    journal.record(&[range(0, 64)]).unwrap();
    assert!(!inspect(&image).unwrap().complete);
    let text = journal.finish().unwrap_err().to_string();
    assert!(text.contains("64 of 65"), "{text}");
    drop(store);

    let (store, mut journal, _) = begin_sized(&place, SIZE).unwrap();
    journal.record(&[range(64, 65)]).unwrap();
    let summary = inspect(&image).unwrap();
    assert_eq!((summary.complete, summary.resident_bytes), (true, SIZE));
    journal.finish().unwrap();
    drop(store);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "only the image is left");
    assert_eq!(image.metadata().unwrap().mtime(), PUBLISHED_S);
    assert_eq!(inspect(&image).unwrap_err().errno(), errno::ENOENT);
    assert!(refused(begin_sized(&place, SIZE)).to_string().contains("complete already"));
}

#[test]
fn looking_changes_nothing_and_needs_no_lock() {
    let root = tempfile::tempdir().unwrap();
    let (store, mut journal, _) = begin(root.path()).unwrap();
    store.write(63 * BLOCK, &[1; BLOCK as usize + 100]).unwrap();
    store.sync().unwrap();
    journal.record(&[range(63, 65)]).unwrap();
    // What a record that is being written looks like.
    let path = root.path().join("disk.vmj");
    let journal_bytes = path.metadata().unwrap().len();
    File::options().write(true).open(&path).unwrap().write_all_at(&[9, 0, 0], journal_bytes).unwrap();
    let before = snapshot(root.path());
    for name in ["", "disk", "disk.vmj"] {
        let summary = inspect(&root.path().join(name)).unwrap();
        assert_eq!((summary.resident_blocks, summary.resident_bytes, summary.complete), (2, BLOCK + 100, false));
        assert_eq!((summary.journal_bytes, summary.tail_bytes), (journal_bytes, 3));
        assert_eq!(summary.image, root.path().join("disk"));
        assert_eq!(summary.locked_by.unwrap().pid, std::process::id());
        assert!(summary.allocated_bytes.unwrap() >= 2 * BLOCK);
    }
    assert_eq!(snapshot(root.path()), before);
    drop((store, journal));
    assert_eq!(inspect(root.path()).unwrap().locked_by, None);
    let error = inspect(&root.path().join("nothing")).unwrap_err();
    assert!(error.errno() == errno::ENOENT && error.to_string().contains("nothing"), "{error}");
}

#[test]
fn an_ephemeral_image_leaves_nothing() {
    let (store, mut journal, present) = begin_sized(&Place::Ephemeral, SIZE).unwrap();
    let (other, ..) = begin_sized(&Place::Ephemeral, SIZE).unwrap();
    assert!(store.ephemeral() && store.path().is_none() && present.is_empty());
    store.write(5, b"mine").unwrap();
    let mut bytes = [9; 4];
    other.read(5, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4]);
    let file = File::from(store.fd().try_clone_to_owned().unwrap());
    file.read_exact_at(&mut bytes, 5).unwrap();
    assert_eq!((&bytes, file.metadata().unwrap().nlink(), file.metadata().unwrap().len()), (b"mine", 0, SIZE));
    store.sync().unwrap();
    journal.record(&[range(0, 1)]).unwrap();
    assert!(!journal.wants_compaction());
    journal.finish().unwrap();
}
