//! What an image records of its guest, seen through [`Image`] and the files it leaves.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmstream::notify::{CompletionQueue, Notifier};
use vmstream::session::{self, Directory, Recording};
use vmstream::source::{FaultControl, FaultSource, PatternSource, Source};
use vmstream::{Answer, Image, Op};

const BLOCK: u64 = 4096;
/// Longer than anything here takes on the busiest machine; only a defect waits for it.
const LIMIT: Duration = Duration::from_secs(60);

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "{what}: not after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The session files in a directory.
fn files(path: &Path) -> Vec<PathBuf> {
    Directory::new(path, 1 << 20).list().unwrap()
}

/// The one session that an image left in its cache.
fn only(cache: &Path) -> Recording {
    let files = files(&cache.join("sessions"));
    assert_eq!(files.len(), 1);
    session::load(&files[0]).unwrap()
}

fn asked(recording: &Recording) -> Vec<(Op, u64, u64)> {
    recording.session.accesses.iter().map(|access| (access.op, access.offset, access.length)).collect()
}

fn open(cache: &Path, more: &[&str]) -> Image {
    let cache = format!("cache={}", cache.display());
    let options = ["source=pattern:4M", &cache, "prefetch=none", "fill=off"];
    Image::open(options.iter().chain(more)).unwrap()
}

/// Waits until what was touched so far has been noted, so that a test knows what comes first.
fn settle(image: &Image, first_hits: u64) {
    wait_until("the notes", || image.stats().first_hits == first_hits);
}

#[test]
fn what_a_guest_touches_is_recorded_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let image = open(root.path(), &[]);
    let mut bytes = vec![0; 3 * BLOCK as usize];
    image.read_at(100 * BLOCK, &mut bytes).unwrap(); // a miss
    image.read_at(101 * BLOCK, &mut bytes[..100]).unwrap(); // touched before
    image.mark("login");
    image.write_at(200 * BLOCK, &bytes).unwrap(); // claimed without a miss
    image.read_at(200 * BLOCK + 5, &mut bytes[..5]).unwrap(); // touched before
    image.write_at(300 * BLOCK + 512, &bytes[..512]).unwrap(); // needs its block first
    image.discard(500 * BLOCK, 2 * BLOCK).unwrap();
    image.flush().unwrap();
    image.close().unwrap();
    let recording = only(root.path());
    assert_eq!(
        asked(&recording),
        [
            (Op::Read, 100 * BLOCK, 3 * BLOCK),
            (Op::Write, 200 * BLOCK, 3 * BLOCK),
            (Op::Write, 300 * BLOCK + 512, 512),
            (Op::Discard, 500 * BLOCK, 2 * BLOCK),
        ]
    );
    assert_eq!(recording.lost_bytes, 0);
    let [(at, name)] = recording.session.marks.as_slice() else { panic!("{:?}", recording.session.marks) };
    assert_eq!(name, "login");
    let times: Vec<_> = recording.session.accesses.iter().map(|access| access.at).collect();
    assert!(times[0] <= *at && *at <= times[1] && times.is_sorted(), "{times:?} {at:?}");
    let identity = PatternSource::open("pattern:4M", None).unwrap().identity().clone();
    assert_eq!(recording.subject.validator, identity.validator);
    assert_eq!(recording.subject.geometry.size(), 4 << 20);
    let needed: Vec<_> = recording.session.first_touches().iter().map(|touch| touch.block.0).collect();
    assert_eq!(needed, [100, 101, 102, 300]);
}

/// A second use of a cache finds all its blocks resident. Its session is as whole as the first one's: recorded is what
/// the guest asked for, not what had to travel. What comes ahead is in neither.
#[test]
fn a_hit_is_recorded_as_a_miss_is_and_what_comes_ahead_is_not() {
    let root = tempfile::tempdir().unwrap();
    let steps: Vec<u64> = (0..64).map(|n| n * 37 % 1000).collect();
    let sessions = |image: &Image| {
        for (count, block) in (1..).zip(&steps) {
            image.block_wait(Op::Read, block * BLOCK, BLOCK).unwrap();
            let stats = image.stats();
            assert_eq!(stats.first_hits + stats.misses, count);
        }
    };
    let image = open(root.path(), &["fill=on"]);
    sessions(&image);
    wait_until("the fill", || image.is_complete());
    image.close().unwrap();
    let image = open(root.path(), &[]);
    sessions(&image);
    assert_eq!(image.stats().misses, 0);
    image.close().unwrap();
    let files = files(&root.path().join("sessions"));
    assert_eq!(files.len(), 2);
    let wanted: Vec<_> = steps.iter().map(|block| (Op::Read, block * BLOCK, BLOCK)).collect();
    for file in &files {
        assert_eq!(asked(&session::load(file).unwrap()), wanted, "{}", file.display());
    }
    let hits = session::load(&files[1]).unwrap();
    assert!(hits.session.accesses.iter().all(|access| access.stalled.is_zero()));
}

#[test]
fn how_long_a_guest_waited_is_recorded_with_the_access_that_waited() {
    let root = tempfile::tempdir().unwrap();
    let control = FaultControl::default();
    let source: Box<dyn Source> = Box::new(PatternSource::open("pattern:4M", None).unwrap());
    let source = FaultSource::controlled(source, control.clone());
    let queue = Notifier::Queue(Box::new(CompletionQueue::new().unwrap()));
    let cache = format!("cache={}", root.path().display());
    let image = Image::open_source(Box::new(source), [&cache, "prefetch=none", "fill=off"], queue).unwrap();
    image.block_wait(Op::Read, 7 * BLOCK, BLOCK).unwrap();
    control.hold();
    assert_eq!(image.block_needed(Op::Read, 9 * BLOCK, BLOCK, 1).unwrap(), Answer::Pending);
    wait_until("the stall", || image.stats().waiting == 1);
    let stalled = Instant::now();
    image.block_wait(Op::Write, 20 * BLOCK, BLOCK).unwrap(); // needs nothing from the source
    image.block_done(Op::Write, 20 * BLOCK, BLOCK, true).unwrap();
    settle(&image, 1);
    let least = stalled.elapsed();
    control.release();
    wait_until("the answer", || image.stats().waiting == 0);
    // Another one waits when the image is given up; a held source must be let go before it can be closed.
    control.hold();
    assert_eq!(image.block_needed(Op::Read, 30 * BLOCK, BLOCK, 2).unwrap(), Answer::Pending);
    wait_until("the stall", || image.stats().waiting == 1);
    std::thread::sleep(Duration::from_millis(2));
    image.cancel();
    control.release();
    image.close().unwrap();
    let recording = only(root.path());
    let [first, held, write, last] = recording.session.accesses.as_slice() else { panic!("{:?}", asked(&recording)) };
    assert_eq!([first.offset, held.offset, write.offset, last.offset], [7, 9, 20, 30].map(|block| block * BLOCK));
    assert!(held.stalled >= least, "{held:?}");
    assert!(write.stalled.is_zero() && !last.stalled.is_zero());
}

#[test]
fn recording_that_is_off_leaves_nothing_and_neither_does_an_image_that_nobody_uses() {
    let root = tempfile::tempdir().unwrap();
    let image = open(root.path(), &["sessions=off"]);
    image.read_at(0, &mut [0; 10]).unwrap();
    image.mark("nobody hears it");
    image.close().unwrap();
    assert!(!root.path().join("sessions").exists());
    open(root.path(), &[]).close().unwrap();
    assert!(!root.path().join("sessions").exists());
    // Without a cache only into a directory that is named.
    let other = root.path().join("other");
    let image = Image::open(["source=pattern:1M", &format!("sessions={}", other.display())]).unwrap();
    image.read_at(0, &mut [0; 10]).unwrap();
    image.close().unwrap();
    assert_eq!(files(&other).len(), 1);
}

#[test]
fn a_session_that_is_held_back_is_written_whole_once_it_is_kept_and_never_else() {
    let root = tempfile::tempdir().unwrap();
    let sessions = root.path().join("sessions");
    for kept in [false, true] {
        let image = open(root.path(), &[]);
        image.hold_session();
        image.read_at(0, &mut [0; 10]).unwrap();
        image.mark("ready");
        if kept {
            image.keep_session();
            image.read_at(BLOCK, &mut [0; 10]).unwrap();
        }
        image.close().unwrap();
        assert_eq!(sessions.exists(), kept);
    }
    let recording = only(root.path());
    assert_eq!(asked(&recording), [(Op::Read, 0, 10), (Op::Read, BLOCK, 10)]);
    assert_eq!(recording.session.marks.len(), 1);
}

#[test]
fn a_session_is_in_its_file_while_it_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let image = Image::open([
        "source=pattern:64M",
        "block_size=512",
        "prefetch=none",
        "fill=off",
        "bulk=on",
        &format!("sessions={}", root.path().display()),
    ])
    .unwrap();
    image.block_wait(Op::Read, 0, 4 << 20).unwrap();
    // So many touches go out at once, long before their time has come.
    for block in 8192..8192 + 4096 {
        image.block_wait(Op::Write, block * 512, 512).unwrap();
        image.block_done(Op::Write, block * 512, 512, true).unwrap();
    }
    wait_until("the first chunk", || !files(root.path()).is_empty());
    let path = files(root.path()).remove(0);
    wait_until("its bytes", || session::load(&path).is_ok_and(|recording| recording.session.accesses.len() >= 4096));
    drop(image);
    assert_eq!(session::load(&path).unwrap().session.accesses.len(), 4097);
}

#[test]
fn a_directory_that_cannot_be_written_is_no_trouble_for_the_guest() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("file"), b"").unwrap();
    let image = Image::open(["source=pattern:1M", &format!("sessions={}/file/x", root.path().display())]).unwrap();
    image.read_at(0, &mut [0; 10]).unwrap();
    image.close().unwrap();
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/session").join(name)
}

/// What every later version must read the same way.
#[test]
fn a_file_of_format_1_says_what_it_always_said() {
    let (compact, text) = (fixture("format-1.vms"), fixture("format-1.vmtrace"));
    let recording = session::load(&compact).unwrap();
    assert_eq!(recording, session::load(&text).unwrap());
    assert_eq!(session::text::print_recording(&recording), std::fs::read_to_string(&text).unwrap());
    assert_eq!(session::file::encode(&recording), std::fs::read(&compact).unwrap());
}

/// Every byte of a file changed in every bit, alone and with the rest cut off: an error, or a part that is true.
#[test]
fn a_broken_file_is_refused_or_says_less_and_never_otherwise() {
    let whole = std::fs::read(fixture("format-1.vms")).unwrap();
    let truth: Vec<_> = session::file::parse("whole", &whole).unwrap().session.events().collect();
    let judge = |bytes: &[u8], what: &str| {
        if let Ok(recording) = session::file::parse("broken", bytes) {
            let events: Vec<_> = recording.session.events().collect();
            assert!(truth.starts_with(&events) && events.len() < truth.len(), "{what}: {events:?}");
        }
    };
    for at in 0..whole.len() {
        judge(&whole[..at], &format!("cut at {at}"));
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            judge(&bytes, &format!("bit {bit} of byte {at}"));
            judge(&bytes[..=at], &format!("bit {bit} of byte {at}, cut behind it"));
        }
    }
}

#[cfg(feature = "tool")]
fn vmstream(arguments: &[&str]) -> (bool, Vec<u8>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vmstream")).args(arguments).output().unwrap();
    (output.status.success(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

#[cfg(feature = "tool")]
#[test]
fn the_tool_lists_sessions_and_turns_them_into_text_and_back() {
    let root = tempfile::tempdir().unwrap();
    let cache = root.path().to_str().unwrap();
    for _ in 0..2 {
        let image = open(root.path(), &[]);
        image.block_wait(Op::Read, 5 * BLOCK, 3 * BLOCK).unwrap();
        image.mark("ready to use");
        image.close().unwrap();
    }
    let (done, list, _) = vmstream(&["sessions", cache, "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&list).unwrap();
    assert!(done && rows.as_array().unwrap().len() == 2, "{rows}");
    assert_eq!((&rows[0]["needed_bytes"], &rows[0]["marks"][0]), (&(3 * BLOCK).into(), &"ready to use".into()));
    assert!(rows[0]["stalls"] == 1 && rows[1]["stalls"] == 0, "a miss, and a hit: {rows}");
    let (_, lines, _) = vmstream(&["sessions", cache]);
    assert!(String::from_utf8(lines).unwrap().contains("12.0 KiB"));

    let paths: Vec<_> = files(&root.path().join("sessions")).iter().map(|path| path.display().to_string()).collect();
    let (_, text, _) = vmstream(&["trace", &paths[0]]);
    let as_text = root.path().join("a.vmtrace");
    std::fs::write(&as_text, &text).unwrap();
    assert!(text.starts_with(b"# vmtrace 1 size=4194304 block=4096 validator="));
    assert!(String::from_utf8_lossy(&text).contains(" R 20480 12288 wait="));
    let (_, again, _) = vmstream(&["trace", "--compact", as_text.to_str().unwrap()]);
    assert_eq!(again, std::fs::read(&paths[0]).unwrap(), "there and back it is the same file");

    // Several at once go into a directory, and nothing else will do.
    let (done, _, says) = vmstream(&["trace", &paths[0], &paths[1]]);
    assert!(!done && says.contains("existing directory"), "{says}");
    let (done, _, says) = vmstream(&["trace", "--compact", "-o", &format!("{cache}/sessions"), &paths[0]]);
    assert!(!done && says.contains("replaced by itself"), "{says}");
    let (done, _, _) = vmstream(&["trace", "-o", cache, &paths[0], &paths[1]]);
    let made =
        paths.iter().map(|path| root.path().join(Path::new(path).file_name().unwrap()).with_extension("vmtrace"));
    assert!(done && made.clone().all(|path| path.exists()), "{:?}", made.collect::<Vec<_>>());

    // The end of the second is torn off.
    let bytes = std::fs::read(&paths[1]).unwrap();
    std::fs::write(&paths[1], &bytes[..bytes.len() - 1]).unwrap();
    let (done, text, says) = vmstream(&["trace", &paths[1]]);
    assert!(done && says.contains("cut off or damaged"), "{says}");
    assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 1, "only the first line is left");
}
