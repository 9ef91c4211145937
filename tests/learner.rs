//! Where the model of an image comes from: beside it at its origin, from the sessions that were recorded here, or both.

#[allow(dead_code)] // not all tests need all of it
#[path = "support/bad_server.rs"]
mod bad_server;

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bad_server::{BadServer, Next, SIZE, Seen, Wire, answer, status};
use vmstream::model::{Limits, Model, Trainer};
use vmstream::{Image, Op, session};

const BLOCK: u64 = 4096;
/// Longer than anything here takes on the busiest machine; only a defect waits for it.
const LIMIT: Duration = Duration::from_secs(30);
/// What the session of a model reads after its first block, which is block 0.
const FORESEEN: [u64; 5] = [70, 30, 31, 90, 50];

/// The file of a model of one session that reads block 0 and then, elsewhere, some others.
fn model(size: u64, then: &[u64]) -> Vec<u8> {
    let mut text = format!("# vmtrace 1 size={size} block={BLOCK}\n1000 R 0 {BLOCK}\n");
    for (at, block) in (2000..).step_by(1000).zip(then) {
        text += &format!("{at} R {} {BLOCK}\n", block * BLOCK);
    }
    let session = session::text::parse("made up", text.as_bytes()).unwrap();
    let mut trainer = Trainer::new(session.geometry, Limits::default());
    trainer.add(&session).unwrap();
    trainer.finish_file().1
}

/// The range of `file` that was asked for, with an ETag of its own.
fn part_of(file: &[u8], seen: &Seen) -> Vec<u8> {
    let (first, last) = seen.range();
    let last = last.min(file.len() as u64 - 1);
    let edition: u64 = file.iter().map(|&byte| u64::from(byte)).sum();
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"{edition}\"\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{}\r\n",
        last - first + 1,
        file.len()
    );
    answer(&head, &file[first as usize..=last as usize])
}

/// A server of the image at /disk, with `beside` for whoever asks for something else.
fn server(beside: impl Fn(&Seen, &mut Wire<'_>) -> Next + Send + Sync + 'static) -> BadServer {
    BadServer::start(move |seen, wire| {
        if !seen.target.starts_with("/disk.vmm") {
            wire.send(&seen.good());
            return Next::Keep;
        }
        beside(seen, wire)
    })
}

fn publishing(file: Vec<u8>) -> BadServer {
    server(move |seen, wire| {
        wire.send(&part_of(&file, seen));
        Next::Keep
    })
}

fn open(server: &BadServer, options: &[&str]) -> Image {
    let source = format!("source={}", server.url("/disk"));
    let options = [&source, "proxy=none", "fill=off"].into_iter().chain(options.iter().copied());
    Image::open(options).unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "{what}: not after {LIMIT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn resident(image: &Image, block: u64) -> bool {
    image.resident(block * BLOCK, BLOCK).unwrap().0
}

/// Nobody asks for these blocks; they come by themselves.
fn come(image: &Image, blocks: &[u64]) {
    for &block in blocks {
        wait_until(&format!("block {block} ({:?})", image.model()), || resident(image, block));
    }
}

/// The learner has made up its mind that there is no model.
fn says(image: &Image, part: &str) {
    wait_until(&format!("a status with '{part}', not {:?}", image.model()), || image.model().text.contains(part));
    assert_eq!(image.model().sessions, 0);
}

#[test]
fn a_model_beside_the_image_is_found_with_the_image_s_own_credentials() {
    let file = model(SIZE, &FORESEEN);
    let server = server(move |seen, wire| {
        // "u:p"; without it nobody gets anything.
        let allowed = seen.header("authorization") == Some("Basic dTpw");
        wire.send(&if allowed { part_of(&file, seen) } else { status("404 Not Found", "") });
        Next::Keep
    });
    let image = open(&server, &["user=u:p"]);
    come(&image, &FORESEEN);
    assert_eq!((image.model().sessions, resident(&image, 200)), (1, false));
    image.close().unwrap();
}

#[test]
fn a_foresight_of_the_embedder_s_own_is_not_replaced_by_a_model() {
    let (asked, release) = (Arc::new(Mutex::new(false)), Arc::new(Condvar::new()));
    let (begun, go) = (asked.clone(), release.clone());
    let file = model(SIZE, &FORESEEN);
    let server = server(move |seen, wire| {
        // As slow as can be: until the fetch is broken off.
        let mut asked = begun.lock().unwrap();
        *asked = true;
        drop(go.wait_timeout(asked, LIMIT));
        wire.send(&part_of(&file, seen));
        Next::Keep
    });
    let image = open(&server, &["prefetch=none"]);
    wait_until("the question for a model", || *asked.lock().unwrap());
    assert!(!image.model().settled);
    image.follow(None);
    release.notify_all();
    assert!(image.model().settled && image.model().text.contains("embedder"), "{:?}", image.model());
    image.block_wait(Op::Read, 0, BLOCK).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(!resident(&image, FORESEEN[0]));
    image.close().unwrap();
}

#[test]
fn what_is_no_model_of_this_image_is_done_without() {
    let whole = model(SIZE, &FORESEEN);
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for file in [damaged, whole[..80].to_vec(), b"<html>".to_vec(), model(SIZE + BLOCK, &FORESEEN)] {
        let server = publishing(file);
        let image = open(&server, &[]);
        image.block_wait(Op::Read, 0, BLOCK).unwrap();
        says(&image, "none: ");
        assert!(image.model().text.contains("/disk.vmm"), "{:?}", image.model());
        image.close().unwrap();
    }
    let huge = "HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\nContent-Range: bytes 0-0/1000000000000\r\n";
    let answers = [
        (status("404 Not Found", ""), "none: nothing at http://"),
        (status("500 Oh", ""), "500"),
        (answer(huge, b"x"), "more than"),
    ];
    for (answer, why) in answers {
        let server = server(move |_, wire| {
            wire.send(&answer);
            Next::Close
        });
        let image = open(&server, &[]);
        image.block_wait(Op::Read, 0, BLOCK).unwrap();
        says(&image, why);
        image.close().unwrap();
    }
}

#[test]
fn a_model_that_never_comes_holds_up_neither_the_guest_nor_the_end() {
    let server = server(|_, wire| wire.until_gone());
    // With this limit a wait for the server would be noticed.
    let image = open(&server, &["stall_timeout=10000s"]);
    image.block_wait(Op::Read, 0, BLOCK).unwrap();
    image.close().unwrap();
}

#[test]
fn off_asks_nobody() {
    let asked = Arc::new(Mutex::new(false));
    let seen = asked.clone();
    let server = server(move |_, wire| {
        *seen.lock().unwrap() = true;
        wire.send(&status("404 Not Found", ""));
        Next::Keep
    });
    for option in ["model=off", "bulk=on"] {
        let image = open(&server, &[option]);
        image.block_wait(Op::Read, 0, BLOCK).unwrap();
        assert!(image.model().text.starts_with("none: "), "{:?}", image.model());
        image.close().unwrap();
        assert!(!*asked.lock().unwrap(), "{option}");
    }
}

#[test]
fn a_model_may_come_from_another_place_and_late() {
    let file = model(SIZE, &FORESEEN);
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let held = gate.clone();
    let server = BadServer::start(move |seen, wire| {
        if seen.target != "/elsewhere" {
            wire.send(&seen.good());
            return Next::Keep;
        }
        let open = held.1.wait_while(held.0.lock().unwrap(), |open| !*open).unwrap();
        drop(open);
        wire.send(&part_of(&file, seen));
        Next::Keep
    });
    let image = open(&server, &[&format!("model={}", server.url("/elsewhere")), "prefetch=readahead"]);
    image.block_wait(Op::Read, 0, BLOCK).unwrap();
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    come(&image, &FORESEEN);
    image.close().unwrap();
}

/// A session of a guest that reads some blocks one by one, on an empty cache; then what the learner says.
fn session(server: &BadServer, sessions: &Path, blocks: &[u64]) {
    let image = open(server, &[&format!("sessions={}", sessions.display()), "prefetch=none"]);
    for block in blocks {
        image.block_wait(Op::Read, block * BLOCK, BLOCK).unwrap();
    }
    // What is learnt at the opening is learnt before the end, so that the next one has it.
    wait_until("the learner's word", || !image.model().text.contains("being looked for"));
    image.close().unwrap();
}

fn nothing_beside() -> BadServer {
    server(|_, wire| {
        wire.send(&status("404 Not Found", ""));
        Next::Keep
    })
}

#[test]
fn the_sessions_recorded_here_are_learnt_once_each() {
    let directory = tempfile::tempdir().unwrap();
    let sessions = directory.path().join("sessions");
    let server = nothing_beside();
    session(&server, &sessions, &[0, 70, 30]);
    for learnt in [1, 2, 2] {
        let image = open(&server, &[&format!("sessions={}", sessions.display())]);
        wait_until("a model", || image.model().sessions == learnt);
        assert!(image.model().text.contains("learnt from the sessions in"), "{:?}", image.model());
        come(&image, &[70, 30]);
        if learnt == 1 {
            // The one session that the next opening has to learn.
            image.block_wait(Op::Read, 90 * BLOCK, BLOCK).unwrap();
        }
        image.close().unwrap();
    }
    let model = Model::load(&sessions.join("learnt.vmm")).unwrap();
    assert_eq!((model.learnt().sessions, model.paths().len()), (2, 2));
}

#[test]
fn sessions_are_learnt_on_top_of_what_is_published() {
    let directory = tempfile::tempdir().unwrap();
    let sessions = directory.path();
    let option = format!("sessions={}", sessions.display());
    session(&nothing_beside(), sessions, &[0, 100, 101]);
    let publisher = publishing(model(SIZE, &FORESEEN));
    let image = open(&publisher, &[&option]);
    wait_until("both", || image.model().sessions == 2);
    assert!(image.model().text.contains("on top of the one published"), "{:?}", image.model());
    come(&image, &FORESEEN);
    come(&image, &[100, 101]);
    image.close().unwrap();
    // The next start has both at once, also when the publisher is gone.
    let away = nothing_beside();
    let image = open(&away, &[&option]);
    wait_until("both again", || image.model().sessions == 2);
    image.close().unwrap();
    // A new edition takes the place of the old one, and what was learnt here is learnt again on top of it.
    let publisher = publishing(model(SIZE, &[110, 111, 112, 120, 200, 201]));
    let image = open(&publisher, &[&option]);
    come(&image, &[110, 120, 200]);
    come(&image, &[100, 101]);
    image.close().unwrap();
    assert!(sessions.join("published.vmm").exists());
}

#[test]
fn a_model_beside_a_file_is_found_too() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.img");
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    std::fs::write(directory.path().join("disk.img.vmm"), model(1 << 20, &FORESEEN)).unwrap();
    let image = Image::open([&format!("source={}", disk.display()), "fill=off"]).unwrap();
    come(&image, &FORESEEN);
    image.close().unwrap();
}
