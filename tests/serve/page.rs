//! The pages in a real browser: Chromium without a window, as tests/system/page.sh runs it.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vmstream::block::Geometry;
use vmstream::gate::Op;
use vmstream::session::{Access, Recording, Session, Subject, file};
use vmstream::tree::{TreeBuilder, hash_block};

use crate::harness::{Server, eventually};

/// Blocks of the image: 512 MiB, of which one in eight is not zero, in eight runs.
const BLOCKS: u64 = 1 << 17;
/// Blocks from the start of one run to that of the next, and of a run.
const EVERY: u64 = BLOCKS / 8;
const RUN: u64 = EVERY / 8;
/// Sessions that are learnt at a time.
const LESSON: u64 = 4;
const LESSONS: u64 = 6;

/// Publishes a sparse image; answers its root hash.
fn publish(site: &Path) -> String {
    let mut builder = TreeBuilder::new(geometry());
    let hash = hash_block(&[1; 4096]);
    let image = std::fs::File::create(site.join("debian-12.raw")).unwrap();
    image.set_len(BLOCKS * 4096).unwrap();
    for run in 0..8 {
        builder.used(&vec![hash; RUN as usize]);
        builder.zero(EVERY - RUN);
        image.write_all_at(&vec![1; RUN as usize * 4096], run * EVERY * 4096).unwrap();
    }
    let (tree, root) = builder.finish().unwrap();
    std::fs::write(site.join("debian-12.vmt"), &tree).unwrap();
    let pointer = format!(
        "vmstream 1\nsize {}\nblock 4096\nimage debian-12.raw\ntree debian-12.vmt {}\nroot {root}\nsessions sessions/debian-12\n",
        BLOCKS * 4096,
        tree.len()
    );
    std::fs::write(site.join("debian-12.vmp"), pointer).unwrap();
    root.to_string()
}

fn geometry() -> Geometry {
    Geometry::new(BLOCKS * 4096, 4096).unwrap()
}

/// A guest that boots, does two of five tasks in runs of eight blocks, and something of its own.
fn session(root: &str, seed: u64) -> Vec<u8> {
    let run = |task: u64, n: u64| {
        let mixed = (task * 1000 + n).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        mixed % 8 * EVERY + mixed / 8 % (RUN / 8) * 8
    };
    let task = |task: u64, runs: u64| (0..runs).map(move |n| run(task, n));
    let (first, second) = (1 + seed % 5, 1 + (seed / 2 + 3) % 5);
    let runs = task(0, 60).chain(task(first, 30)).chain(task(second, 30)).chain(task(100 + seed, 5));
    let access = |(n, start): (u64, u64)| Access {
        at: Duration::from_millis(n * 20),
        op: Op::Read,
        offset: start * 4096,
        length: 8 * 4096,
        stalled: Duration::ZERO,
    };
    let session = Session { geometry: geometry(), accesses: (0..).zip(runs).map(access).collect(), marks: Vec::new() };
    let subject = Subject { validator: Some(format!("root:{root}")), ..Subject::nameless(geometry()) };
    file::encode(&Recording { subject, session, lost_bytes: 0 })
}

/// What Chromium makes of a page: its document as text. A picture of it goes to `picture`, if one is wanted.
fn browse(url: &str, picture: Option<(&Path, &str)>) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]);
    command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.args(["--enable-logging=stderr", "--hide-scrollbars"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    match picture {
        Some((path, size)) => {
            command.arg(format!("--window-size={size}")).arg(format!("--screenshot={}", path.display()))
        }
        None => command.arg("--dump-dom"),
    };
    let output = command.arg(url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{url}: {said}");
    // What the page's own policy forbids, and what could not be loaded, is said on the console.
    assert!(!said.contains(":CONSOLE"), "{url}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn learnt(server: &Server) -> u64 {
    let text = server.client().get("/metrics", "").text();
    let value = text.lines().find_map(|line| line.strip_prefix("vmstream_trainings_total{outcome=\"learnt\"} "));
    value.unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs Chromium: tests/system/page.sh runs it"]
fn the_pages_are_whole_in_a_browser() {
    let site = tempfile::tempdir().unwrap();
    let root = publish(site.path());
    let lesson = LESSON.to_string();
    let arguments = ["--collect", "--trust-proxy", "--retrain-every", "1000m", "--retrain-after", &lesson];
    let server = Server::start(site.path(), &arguments);
    let mut client = server.client();
    for n in 0..LESSON * LESSONS {
        let body = session(&root, n);
        let (length, from) = (body.len(), n % 12);
        client.send(&format!(
            "POST /sessions/debian-12 HTTP/1.1\r\nHost: here\r\nX-Forwarded-For: 10.0.0.{from}\r\nContent-Length: {length}\r\n\r\n"
        ));
        client.send_bytes(&body);
        let mut answer = client.head();
        client.body(&mut answer);
        assert_eq!(answer.status, 201, "{}", answer.text());
        if n % LESSON == LESSON - 1 {
            eventually("a lesson", || (learnt(&server) == n / LESSON + 1).then_some(()));
        }
    }
    for _ in 0..3 {
        client.get("/debian-12.vmp", "");
        client.get("/debian-12.vmt", "Range: bytes=0-32767\r\n");
        client.get("/debian-12.raw", "Range: bytes=0-9999999\r\n");
    }
    let url = format!("http://{}", server.address);
    let (front, image) = (format!("{url}/"), format!("{url}/?image=debian-12"));
    let document = browse(&front, None);
    let document = plain(&document);
    for part in ["<h1>Published images</h1>", &format!("/debian-12.vmp#{root}"), "<td>24</td>", "<td>3</td>"] {
        assert!(document.contains(part), "{part} is not in {document}");
    }
    let document = plain(&browse(&image, None));
    for part in ["Opened 3 times", "12 %", "Zeroes, never sent", "<h2>Learning curve</h2>"] {
        assert!(document.contains(part), "{part} is not in {document}");
    }
    let folder = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("target");
    browse(&front, Some((&folder.join("page-front.png"), "1500,520")));
    browse(&image, Some((&folder.join("page-image.png"), "1560,2900")));
    for picture in ["page-front.png", "page-image.png"] {
        let bytes = std::fs::read(folder.join(picture)).unwrap();
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 20_000, "{picture} has {} bytes", bytes.len());
    }
    // The browser has asked for the pictures and got them: nothing failed since the start.
    let text = server.client().get("/metrics", "").text();
    let failed = text.lines().filter(|line| line.contains("code=\"5xx\"") || line.contains("outcome=\"failed\""));
    assert!(failed.clone().count() == 2 && failed.clone().all(|line| line.ends_with(" 0")), "{text}");
}

/// A document with one space where there are several or line ends, so that markup can be looked for.
fn plain(document: &str) -> String {
    document.split_whitespace().collect::<Vec<_>>().join(" ").replace("> <", "><")
}
