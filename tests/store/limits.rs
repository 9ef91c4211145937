//! Filesystems that are full, and images larger than they hold or than memory is.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use vmstream::error::errno;
use vmstream::store::{Place, inspect};

use super::{BLOCK, begin, begin_sized, content, range, refused};

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
