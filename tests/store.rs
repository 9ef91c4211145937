//! The cache on real files: what a session leaves, what the next one finds, and what is refused.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use vmstream::block::{BlockRange, Geometry};
use vmstream::error::{Error, Result, errno};
use vmstream::source::Identity;
use vmstream::store::{Cache, Journal, Place, Store, inspect};

const BLOCK: u64 = 4096;
/// Not a multiple of the block size: the last block is short.
const SIZE: u64 = 64 * BLOCK + 100;
const PUBLISHED_S: i64 = 1_600_000_000;

fn identity(size: u64, tag: &str) -> Identity {
    Identity { size, validator: Some(format!("\"{tag}\"")), mtime_s: Some(PUBLISHED_S) }
}

type Session = (Store, Journal, Vec<BlockRange>);

fn begin_sized(place: &Place, size: u64) -> Result<Session> {
    let geometry = Geometry::new(size, BLOCK)?;
    Cache::lock(place)?.begin(&identity(size, "one"), geometry, "http://host/disk")
}

fn begin(directory: &Path) -> Result<Session> {
    begin_sized(&Place::Directory(directory.into()), SIZE)
}

fn refused(session: Result<Session>) -> Error {
    session.map(|_| ()).expect_err("must be refused")
}

fn range(start: u64, end: u64) -> BlockRange {
    BlockRange::new(start, end)
}

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
    for length in [SIZE - 1, SIZE + 1, 0] {
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

// --- more than one process ---

/// Names the cache to a child process; its absence tells a child's test that it is an ordinary run.
const CHILD_CACHE: &str = "VMSTREAM_TEST_CACHE";

/// Runs one of the tests below in another process.
fn child(test: &str, cache: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", test]).env(CHILD_CACHE, cache);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
    (child, lines)
}

/// The content of a block in its `version`th writing.
fn content(block: u64, version: u64) -> Vec<u8> {
    [block.to_le_bytes(), version.to_le_bytes()].concat().repeat(BLOCK as usize / 16)
}

/// Writes, syncs and records block after block until it is killed; says each block that is recorded.
#[test]
#[ignore = "a child process of the tests below"]
fn child_records_until_killed() {
    let cache = PathBuf::from(std::env::var_os(CHILD_CACHE).expect("only run by another test"));
    let (store, mut journal, present) = begin(&cache).unwrap();
    let mut claimed: Vec<bool> =
        (0..64).map(|block| present.iter().any(|run| run.iter().any(|b| b.0 == block))).collect();
    println!("ready");
    for version in 1.. {
        for block in 0..64 {
            store.write(block * BLOCK, &content(block, version)).unwrap();
            store.sync().unwrap();
            journal.record(&[range(block, block + 1)]).unwrap();
            claimed[block as usize] = true;
            println!("recorded {block} {version}");
            if block % 16 == 15 {
                journal
                    .compact((0..64).filter(|block| claimed[*block as usize]).map(|block| range(block, block + 1)))
                    .unwrap();
            }
        }
    }
}

#[test]
fn another_process_that_has_the_cache_is_named_until_it_is_killed() {
    let root = tempfile::tempdir().unwrap();
    let (mut holder, mut lines) = child("child_records_until_killed", root.path());
    lines.find(|line| line.ends_with("ready")).expect("the child gets the cache");
    let error = refused(begin(root.path()));
    let summary = inspect(root.path());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(error.errno(), errno::EBUSY);
    assert!(error.to_string().contains(&format!("(pid {})", holder.id())), "{error}");
    assert_eq!(summary.unwrap().locked_by.unwrap().pid, holder.id());
    // The text of the dead one is still there, and misleads nobody.
    assert!(root.path().join("disk.vmj.lock").exists());
    assert_eq!(inspect(root.path()).unwrap().locked_by, None);
    begin(root.path()).unwrap();
}

#[test]
fn a_kill_at_any_time_loses_no_record() {
    let root = tempfile::tempdir().unwrap();
    let mut recorded = [0u64; 64];
    for round in 0..12u64 {
        let (mut writer, mut lines) = child("child_records_until_killed", root.path());
        lines.find(|line| line.ends_with("ready")).expect("the child gets the cache");
        let mut note = |line: String| {
            let mut words = line.split(' ');
            if words.next() == Some("recorded") {
                let block: usize = words.next().unwrap().parse().unwrap();
                recorded[block] = words.next().unwrap().parse().unwrap();
            }
        };
        lines.by_ref().take(5 + 7 * round as usize).for_each(&mut note);
        writer.kill().unwrap();
        writer.wait().unwrap();
        lines.for_each(&mut note);

        let (store, _journal, present) = begin(root.path()).unwrap();
        for block in 0..64 {
            let claimed = present.iter().any(|run| run.start.0 <= block && block < run.end.0);
            assert!(claimed || recorded[block as usize] == 0, "round {round}: block {block} is forgotten");
            if claimed {
                let mut bytes = vec![0; BLOCK as usize];
                store.read(block * BLOCK, &mut bytes).unwrap();
                let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                assert!(bytes == content(block, version), "round {round}: block {block} is wrong");
            }
        }
    }
    assert!(recorded.iter().filter(|version| **version > 0).count() > 30);
}

// --- filesystems with limits ---

/// Says why a test did nothing, past the harness, which shows only what failing tests print.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// A small filesystem in memory, unmounted when dropped. `None`, said aloud, where mounting is not possible.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(options: &str) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(root.path()).status();
        if !done.is_ok_and(|status| status.success()) {
            skip("cannot mount a tmpfs here (this test needs root)");
            return None;
        }
        Some(Self(root))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_said_and_work_goes_on_when_there_is_space() {
    let Some(mount) = Mount::new("size=2m") else { return };
    let cache = mount.0.path().join("cache");
    let size = 16 << 20;
    let place = Place::Directory(cache.clone());
    let (store, mut journal, _) = begin_sized(&place, size).unwrap();
    let blocks = size / BLOCK;
    let mut written = 0;
    let error = loop {
        match store.write(written * BLOCK, &content(written, 1)) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_full() && error.to_string().contains("free some space"), "{error}");
    assert!((100..blocks).contains(&written));
    store.sync().unwrap();
    // Every page is taken, so the journal can grow to the end of its own page only. One block at a time takes
    // more than that.
    let mut recorded = 0;
    let error = loop {
        match journal.record(&[range(recorded, recorded + 1)]) {
            Ok(()) => recorded += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_full() && error.to_string().contains("disk.vmj"), "{error}");
    assert!((1..written).contains(&recorded), "{recorded} of {written}");
    assert!(journal.record(&[range(recorded, recorded + 1)]).unwrap_err().is_full());
    assert!(journal.compact([range(0, recorded)]).unwrap_err().is_full());
    assert!(!cache.join("disk.vmj.new").exists());
    assert_eq!(inspect(&cache).unwrap().resident_blocks, recorded);
    // Opening and reading what is there needs no space at all.
    drop((store, journal));
    let (store, mut journal, present) = begin_sized(&place, size).unwrap();
    assert_eq!(present, [range(0, recorded)]);
    assert!(journal.record(&[range(recorded, recorded + 1)]).unwrap_err().is_full());
    // Space returns.
    store.zero((written - 10) * BLOCK, 10 * BLOCK).unwrap();
    journal.record(&[range(recorded, written - 10)]).unwrap();
    drop((store, journal));
    let (store, _journal, present) = begin_sized(&place, size).unwrap();
    assert_eq!(present, [range(0, written - 10)]);
    let mut bytes = vec![0; BLOCK as usize];
    store.read((written - 11) * BLOCK, &mut bytes).unwrap();
    assert!(bytes == content(written - 11, 1));
}

fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn sixteen_tebibytes_cost_what_is_in_them() {
    let Some(mount) = Mount::new("size=8m") else { return };
    let size = 16 << 40;
    let blocks = size / BLOCK;
    let place = Place::Directory(mount.0.path().join("cache"));
    // One bit for each block would be 512 MiB, one run for each of these few KiB.
    let runs: Vec<_> = (0..1000).map(|n| range(n * (blocks / 1000), n * (blocks / 1000) + n)).collect();
    let before = peak_memory_kib();
    {
        let (store, mut journal, _) = begin_sized(&place, size).unwrap();
        store.write(size - 3, b"end").unwrap();
        store.zero(1 << 40, 8 << 40).unwrap();
        store.sync().unwrap();
        journal.record(&runs).unwrap();
        journal.record(&[range(blocks - 1, blocks)]).unwrap();
        journal.compact(runs.iter().copied().chain([range(blocks - 1, blocks)])).unwrap();
    }
    let (store, _journal, present) = begin_sized(&place, size).unwrap();
    // The first of the runs is empty.
    assert_eq!(present[..999], runs[1..]);
    assert_eq!(present[999..], [range(blocks - 1, blocks)]);
    let mut bytes = [0; 3];
    store.read(size - 3, &mut bytes).unwrap();
    assert_eq!(&bytes, b"end");
    assert!(peak_memory_kib() - before < 64 << 10, "{} KiB", peak_memory_kib() - before);
}

#[test]
fn a_filesystem_that_cannot_hold_the_image_is_explained() {
    let root = tempfile::tempdir().unwrap();
    let size = 32 << 40;
    if File::create(root.path().join("probe")).unwrap().set_len(size).is_ok() {
        skip(&format!("the filesystem of {} holds files of 32 TiB", root.path().display()));
        return;
    }
    let cache = root.path().join("cache");
    let error = refused(begin_sized(&Place::Directory(cache.clone()), size));
    assert_eq!(error.errno(), errno::EFBIG);
    let text = error.to_string();
    assert!(text.contains("16 TiB - 4 KiB") && text.contains("XFS") && text.contains("cache/disk"), "{text}");
    // Nothing is left in the way of another attempt with another image.
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
    begin(&cache).unwrap();
}
