//! The engine as a whole, over synthetic sources that fail on purpose.

use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use vmstream::error::errno;
use vmstream::model::{Limits, Trainer};
use vmstream::notify::{CompletionQueue, Notifier};
use vmstream::session;
use vmstream::source::fault::Injected;
use vmstream::source::pattern::fill;
use vmstream::source::{FaultControl, FaultSource, PatternSource};
use vmstream::{Answer, Completion, Image, Op};

const BLOCK: u64 = 4096;
/// Longer than anything here takes on the busiest machine; only a defect waits for it.
const LIMIT: Duration = Duration::from_secs(60);

/// An image over a source that the test holds by the hand.
fn held(size: &str, options: &[&str]) -> (Image, FaultControl) {
    let source = PatternSource::open(&format!("pattern:{size}"), None).unwrap();
    let control = FaultControl::default();
    let source = FaultSource::controlled(Box::new(source), control.clone());
    let queue = Notifier::Queue(Box::new(CompletionQueue::new().unwrap()));
    let image = Image::open_source(Box::new(source), options.iter().copied(), queue).unwrap();
    (image, control)
}

fn expect(image: &Image, offset: u64, length: usize) {
    let (mut got, mut want) = (vec![0; length], vec![0; length]);
    image.read_at(offset, &mut got).unwrap();
    fill(0, offset, &mut want);
    assert!(got == want, "wrong bytes in {length} at {offset}");
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "{what}: not after {LIMIT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn reap_one(image: &Image) -> Completion {
    let mut out = [Completion { tag: 0, result: 0 }];
    wait_until("a completion", || image.reap(&mut out) == 1);
    out[0]
}

#[test]
fn a_missing_block_is_fetched_once_and_then_ready() {
    let image = Image::open(["source=pattern:1M", "prefetch=none"]).unwrap();
    assert_eq!(image.block_needed(Op::Read, BLOCK, BLOCK, 7).unwrap(), Answer::Pending);
    assert_eq!(reap_one(&image), Completion { tag: 7, result: 0 });
    assert_eq!(image.block_needed(Op::Read, BLOCK, BLOCK, 8).unwrap(), Answer::Ready);
    expect(&image, BLOCK, BLOCK as usize);
    let stats = image.stats();
    assert_eq!((stats.bytes_fetched, stats.resident_bytes, stats.stalls, stats.demand_fetches), (BLOCK, BLOCK, 1, 1));
    assert_eq!(image.reap(&mut [Completion { tag: 0, result: 0 }; 4]), 0);
}

#[test]
fn a_callback_gets_completions_on_a_library_thread() {
    let (sender, inbox) = channel();
    let caller = thread::current().id();
    let image = Image::open_with(["source=pattern:1M"], move |completion| {
        sender.send((completion, thread::current().id() == caller)).unwrap();
    });
    let image = image.unwrap();
    assert_eq!(image.block_needed(Op::Read, 0, 3 * BLOCK, 42).unwrap(), Answer::Pending);
    assert_eq!(inbox.recv_timeout(LIMIT).unwrap(), (Completion { tag: 42, result: 0 }, false));
}

#[test]
fn a_second_reader_joins_the_fetch_of_the_first() {
    let (image, control) = held("1M", &["prefetch=none"]);
    control.hold();
    image.block_needed(Op::Read, 0, BLOCK, 1).unwrap();
    assert!(control.wait_held(1, LIMIT));
    image.block_needed(Op::Read, 100, 200, 2).unwrap();
    wait_until("the join", || image.stats().joined == 1);
    control.release();
    let mut tags = [reap_one(&image).tag, reap_one(&image).tag];
    tags.sort_unstable();
    assert_eq!(tags, [1, 2]);
    assert_eq!(image.stats().bytes_fetched, BLOCK);
}

#[test]
fn a_guest_write_wins_over_the_fetch_that_was_under_way() {
    let (image, control) = held("1M", &["prefetch=none"]);
    control.hold();
    image.block_needed(Op::Read, 0, 4 * BLOCK, 1).unwrap();
    assert!(control.wait_held(1, LIMIT));
    image.write_at(BLOCK, &[0xAA; BLOCK as usize]).unwrap();
    control.release();
    assert_eq!(reap_one(&image).tag, 1);
    let mut block = [0; BLOCK as usize];
    image.read_at(BLOCK, &mut block).unwrap();
    assert!(block.iter().all(|b| *b == 0xAA), "the fetch overwrote the guest");
    expect(&image, 0, BLOCK as usize);
    expect(&image, 2 * BLOCK, 2 * BLOCK as usize);
    assert_eq!(image.stats().bytes_dropped, BLOCK);
}

#[test]
fn a_partial_write_fetches_its_edges_only() {
    let image = Image::open(["source=pattern:1M", "prefetch=none"]).unwrap();
    image.write_at(BLOCK - 512, &vec![0xBB; 4 * BLOCK as usize + 1024]).unwrap();
    assert_eq!(image.stats().bytes_fetched, 2 * BLOCK);
    expect(&image, 0, BLOCK as usize - 512);
    expect(&image, 5 * BLOCK + 512, BLOCK as usize - 512);
    let mut middle = vec![0; 4 * BLOCK as usize + 1024];
    image.read_at(BLOCK - 512, &mut middle).unwrap();
    assert!(middle.iter().all(|b| *b == 0xBB));
}

#[test]
fn overlapping_partial_writes_do_not_wait_for_each_other_for_ever() {
    let image = Image::open(["source=pattern:8M", "prefetch=none", "fault=delay=1ms"]).unwrap();
    thread::scope(|scope| {
        for writer in 0..4u64 {
            let image = &image;
            scope.spawn(move || {
                for i in 0..200u64 {
                    let at = (i * 7919 + writer * 2048) % (image.size() - 5 * BLOCK);
                    image.write_at(at, &vec![writer as u8; 3 * BLOCK as usize + 700]).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_failed_write_leaves_the_origins_bytes() {
    let image = Image::open(["source=pattern:1M", "prefetch=none"]).unwrap();
    image.block_wait(Op::Write, 0, BLOCK).unwrap();
    image.write_local(0, &[9; 100]).unwrap();
    image.block_done(Op::Write, 0, BLOCK, false).unwrap();
    expect(&image, 0, BLOCK as usize);
}

#[test]
fn discarded_ranges_read_as_zeroes_and_are_never_fetched() {
    let image = Image::open(["source=pattern:1M", "prefetch=none"]).unwrap();
    image.discard(0, 8 * BLOCK).unwrap();
    let mut bytes = vec![1; 8 * BLOCK as usize];
    image.read_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b == 0));
    assert_eq!(image.stats().bytes_fetched, 0);
}

#[test]
fn the_last_short_block_is_whole() {
    let image = Image::open(["source=pattern:10000", "fill=on"]).unwrap();
    wait_until("the fill", || image.is_complete());
    expect(&image, 0, 10_000);
    assert!(image.read_at(9_999, &mut [0; 2]).is_err());
    image.write_at(8192, &[3; 1808]).unwrap();
    assert_eq!(image.stats().resident_bytes, 10_000);
}

#[test]
fn a_bad_source_costs_time_and_never_a_byte() {
    let rules = "fault=seed=11,error=10%,cut=10%,short=10%,stall=2%:5ms,delay=50us";
    let image = Image::open(["source=pattern:16M", rules, "retry_min=1ms", "retry_max=5ms", "fill=on"]).unwrap();
    thread::scope(|scope| {
        for reader in 0..3u64 {
            let image = &image;
            scope.spawn(move || {
                for i in 0..150u64 {
                    let at = (i * 104_729 + reader * 65_537) % (image.size() - 70_000);
                    expect(image, at, 1 + (i as usize * 977) % 69_000);
                }
            });
        }
    });
    wait_until("the fill", || image.is_complete());
    expect(&image, 0, 16 << 20);
    let stats = image.stats();
    assert!(stats.fetch_errors > 10 && !stats.failed, "{stats:?}");
    let excess = stats.bytes_fetched as f64 / image.size() as f64;
    assert!(excess < 1.1, "blocks were fetched twice: {excess} times the image");
}

#[test]
fn a_dead_link_is_a_stall_and_not_an_error() {
    let (image, control) = held("1M", &["prefetch=none", "retry_min=1ms", "retry_max=2ms"]);
    for _ in 0..20 {
        control.fail_next(Injected::Error);
    }
    expect(&image, 0, BLOCK as usize);
    let stats = image.stats();
    assert!(stats.fetch_errors >= 20 && stats.failures_on_end == 0, "{stats:?}");
}

#[test]
fn a_deadline_turns_a_dead_link_into_an_error() {
    let options = ["prefetch=none", "retry_min=1ms", "retry_max=2ms", "error_after=50ms"];
    let (image, control) = held("1M", &options);
    for _ in 0..100_000 {
        control.fail_next(Injected::Error);
    }
    let error = image.read_at(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.errno(), errno::EIO);
    assert!(!image.stats().failed);
}

#[test]
fn a_final_error_is_told_once_and_for_all() {
    let image = Image::open(["source=pattern:1M", "prefetch=none", "fault=fatal-after=1"]).unwrap();
    expect(&image, 0, BLOCK as usize);
    for at in [BLOCK, 5 * BLOCK] {
        assert_eq!(image.read_at(at, &mut [0; 512]).unwrap_err().errno(), errno::EIO);
    }
    expect(&image, 0, BLOCK as usize);
    image.write_at(BLOCK, &[1; BLOCK as usize]).unwrap();
    assert!(image.stats().failed && image.last_error().is_some());
}

#[test]
fn close_answers_what_is_pending_and_wakes_who_sleeps() {
    let (image, control) = held("1M", &["prefetch=none"]);
    control.hold();
    for tag in 0..5 {
        assert_eq!(image.block_needed(Op::Read, tag * 64 * BLOCK / 4, BLOCK, tag).unwrap(), Answer::Pending);
    }
    assert!(control.wait_held(5, LIMIT));
    let image = std::sync::Arc::new(image);
    let sleeper = {
        let image = image.clone();
        thread::spawn(move || image.block_wait(Op::Read, 200 * BLOCK, BLOCK).unwrap_err().errno())
    };
    wait_until("the sleeper", || image.stats().waiting == 6);
    control.release();
    // Released or cancelled: either way everything is answered and nothing hangs.
    drop(image);
    let code = sleeper.join();
    assert!(code.is_err() || code.is_ok_and(|code| code == errno::ECANCELED));
}

#[test]
fn a_cache_is_used_again_and_bound_to_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let cache = format!("cache={}", dir.path().join("c").display());
    let open = |source: &str, fault: &str| Image::open([source, &cache, fault, "prefetch=none", "fill=off"]);
    let image = open("source=pattern:1M", "connections=2").unwrap();
    expect(&image, 0, 10 * BLOCK as usize);
    image.write_at(20 * BLOCK, &[5; BLOCK as usize]).unwrap();
    let error = open("source=pattern:1M", "connections=2").unwrap_err();
    assert_eq!(error.errno(), errno::EBUSY);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    image.close().unwrap();

    let image = open("source=pattern:1M", "fault=fatal-after=0").unwrap();
    expect(&image, 0, 10 * BLOCK as usize);
    let mut block = [0; BLOCK as usize];
    image.read_at(20 * BLOCK, &mut block).unwrap();
    assert!(block.iter().all(|b| *b == 5), "a write that was closed cleanly is gone");
    image.close().unwrap();

    let error = open("source=pattern:2M", "connections=2").unwrap_err();
    assert_eq!(error.errno(), errno::ESTALE);
}

#[test]
fn a_cache_under_another_name_is_asked_about_and_bytes_behind_its_end_are_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let cache = format!("cache={}", dir.path().join("c").display());
    let open = |source: &str| Image::open([source, &cache, "prefetch=none", "fill=off"]);
    let image = open("source=pattern:1M").unwrap();
    expect(&image, 0, BLOCK as usize);
    image.write_at(BLOCK, &[5; BLOCK as usize]).unwrap();
    image.close().unwrap();
    // The same size, other bytes.
    assert_eq!(open("source=pattern:1M,seed=5").unwrap_err().errno(), errno::ESTALE);
    // As a write past the end leaves it that the kernel passed through.
    let path = dir.path().join("c/disk");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len((1 << 20) + 3).unwrap();
    let image = open("source=pattern:1M").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
    let mut block = [0; BLOCK as usize];
    image.read_at(BLOCK, &mut block).unwrap();
    assert!(block.iter().all(|b| *b == 5));
}

#[test]
fn a_file_that_was_fetched_is_ordinary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let file = format!("file={}", path.display());
    let image = Image::open(["source=pattern:3M,zero=30", &file, "bulk=on", "fill=on", "prefetch=none"]).unwrap();
    wait_until("the fetch", || image.is_complete());
    let zeroes = image.stats().bytes_zero;
    image.finish().unwrap();
    assert!(zeroes > 0);
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["image"], "only the image is left");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
}

#[test]
fn read_only_refuses_writes_and_bad_ranges_are_named() {
    let image = Image::open(["source=pattern:1M", "read_only=on"]).unwrap();
    assert_eq!(image.write_at(0, &[1]).unwrap_err().errno(), errno::EROFS);
    let error = image.read_at((1 << 20) - 1, &mut [0; 2]).unwrap_err();
    assert_eq!(error.errno(), errno::EINVAL);
    assert!(error.to_string().contains("1048576"), "{error}");
}

#[test]
fn options_change_while_the_image_is_open() {
    let image = Image::open(["source=pattern:4M", "prefetch=none", "fill=off"]).unwrap();
    expect(&image, 0, 512);
    assert!(!image.is_complete());
    image.set("fill", "on").unwrap();
    wait_until("the fill", || image.is_complete());
    assert!(image.set("cache", "/x").unwrap_err().to_string().contains("cannot be changed"));
    let forecast = image.forecast(Duration::from_secs(10));
    assert_eq!((forecast.missing_bytes, forecast.stall_risk, forecast.foreseen), (0, 0.0, false));
    let zero = Duration::ZERO;
    assert_eq!((forecast.expected_stall, forecast.calm_in, forecast.complete_in), (zero, Some(zero), Some(zero)));
}

/// A model of sessions that read one block and then, elsewhere, some others.
fn model(size: u64) -> Vec<u8> {
    let mut text = format!("# vmtrace 1 size={size} block=4096\n1000 R 0 4096\n");
    for (at, block) in (2000..).step_by(1000).zip([700, 300, 301, 900, 500]) {
        text += &format!("{at} R {} 4096\n", block * 4096);
    }
    let session = session::text::parse("made up", text.as_bytes()).unwrap();
    let mut trainer = Trainer::new(session.geometry, Limits::default());
    trainer.add(&session).unwrap();
    trainer.finish_file().1
}

#[test]
fn a_guest_is_followed_by_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.vmm");
    std::fs::write(&path, model(4 << 20)).unwrap();
    let option = format!("model={}", path.display());
    let image = Image::open(["source=pattern:4M", "fill=off", &option]).unwrap();
    image.block_wait(Op::Read, 0, 4096).unwrap();
    // Nobody asks for them; they come by themselves.
    for block in [700, 300, 301, 900, 500u64] {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !image.resident(block * 4096, 4096).unwrap().0 {
            assert!(Instant::now() < deadline, "block {block} did not come");
            thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(!image.resident(600 * 4096, 4096).unwrap().0, "and nothing else does");
    image.close().unwrap();
}

#[test]
fn a_model_that_cannot_be_used_does_not_keep_an_image_from_opening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.vmm");
    let option = format!("model={}", path.display());
    for content in [None, Some(b"no model".to_vec()), Some(model(8 << 20))] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let image = Image::open(["source=pattern:4M", "fill=off", &option]).unwrap();
        image.block_wait(Op::Read, 0, 4096).unwrap();
        image.close().unwrap();
    }
}
