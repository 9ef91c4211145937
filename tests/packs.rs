//! Packs from end to end: a published image whose guest gets its blocks by frames, and what happens when they lie.

#[allow(dead_code, reason = "much of it is for servers without a publication")]
#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/site.rs"]
mod site;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bad_server::BadServer;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use site::Site;
use vmstream::model::{Limits, Trainer};
use vmstream::packs::{Builder, Header};
use vmstream::source::published::NamedFile;
use vmstream::tree::Tree;
use vmstream::{Image, Op, session};

const BLOCK: u64 = 4096;
const IMAGE_BYTES: u64 = 24 << 20;

/// The blocks that guests touch first, in order: files of some blocks here and there.
fn walk() -> Vec<u64> {
    (0..60u64).flat_map(|file| (0..1 + file % 9).map(move |at| (file * 977) % 5900 + at)).collect()
}

/// An image of text, and the packs of two sessions that went that way.
fn site() -> Site {
    let mut site = unpacked();
    let file = packs(&site, &walk(), 2);
    site.pack(file);
    site
}

fn unpacked() -> Site {
    let mut image = vec![0; IMAGE_BYTES as usize];
    for (number, block) in image.chunks_mut(BLOCK as usize).enumerate().filter(|(number, _)| number % 11 != 3) {
        let text = format!("block {number} of {} ", number * 7919);
        block.iter_mut().zip(text.bytes().cycle()).for_each(|(to, from)| *to = from);
    }
    Site::of(image, BLOCK as usize)
}

/// The packs of so many sessions that went this way.
fn packs(site: &Site, walk: &[u64], sessions: usize) -> Vec<u8> {
    let mut text = format!("# vmtrace 1 size={IMAGE_BYTES} block={BLOCK}\n");
    for (at, block) in (1000..).step_by(300).zip(walk) {
        text += &format!("{at} R {} {BLOCK}\n", block * BLOCK);
    }
    let session = session::text::parse("made up", text.as_bytes()).unwrap();
    let mut trainer = Trainer::new(session.geometry, Limits::default());
    (0..sessions).for_each(|_| trainer.add(&session).unwrap());
    let (_, model) = trainer.finish_file();
    let tree = Tree::read(&site.get(&site.pointer.tree.name), site.root()).unwrap();
    let mut builder = Builder::new("model", &model, &tree).unwrap();
    let mut frames = Vec::new();
    let mut read = |range: vmstream::block::BlockRange, bytes: &mut [u8]| {
        let from = (range.start.0 * BLOCK) as usize;
        bytes.copy_from_slice(&site.image[from..from + bytes.len()]);
        Ok(())
    };
    let compress = |bytes: &[u8]| Ok(compress_to_vec(bytes, CompressionLevel::Fastest));
    while let Some(frame) = builder.next(&mut read, &compress).unwrap() {
        frames.extend(frame);
    }
    [builder.finish().unwrap(), frames].concat()
}

/// The names of files that were asked for, with how many bytes.
type Asked = Arc<Mutex<Vec<(String, u64)>>>;

/// Serves a site and counts the bytes of each file that are asked for.
fn serve(site: &Site) -> (BadServer, Asked) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let server = site.serve_after(move |seen| {
        let (first, last) = seen.range();
        log.lock().unwrap().push((seen.target.clone(), last - first + 1));
    });
    (server, asked)
}

fn bytes_of(asked: &Asked, ending: &str) -> u64 {
    asked.lock().unwrap().iter().filter(|(name, _)| name.ends_with(ending)).map(|(_, bytes)| bytes).sum()
}

/// Opens the image at these servers.
fn open(site: &Site, servers: &[&BadServer], cache: &std::path::Path) -> Image {
    let mut options = vec![
        format!("cache={}", cache.display()),
        "proxy=none".to_owned(),
        "fill=off".to_owned(),
        "retry_min=5ms".to_owned(),
    ];
    let places = ["source", "mirror"].iter().zip(servers);
    options.extend(places.map(|(option, server)| format!("{option}={}", site.link(server))));
    Image::open(options).unwrap()
}

/// Reads a block as a guest would.
fn read(image: &Image, site: &Site, block: u64) {
    image.block_wait(Op::Read, block * BLOCK, BLOCK).unwrap();
    let mut bytes = [0; BLOCK as usize];
    image.read_local(block * BLOCK, &mut bytes).unwrap();
    assert!(bytes == site.image[(block * BLOCK) as usize..][..BLOCK as usize], "block {block}");
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_foreseen_comes_packed_and_is_what_was_published() {
    let (site, dir) = (site(), tempfile::tempdir().unwrap());
    let (server, asked) = serve(&site);
    let image = open(&site, &[&server], dir.path());
    read(&image, &site, walk()[0]);
    let walk = walk();
    wait("not all that is foreseen came", || {
        walk.iter().all(|block| image.resident(block * BLOCK, BLOCK).unwrap().0) && image.model().settled
    });
    assert_eq!(image.model().sessions, 2, "{}", image.model().text);
    walk.iter().for_each(|&block| read(&image, &site, block));
    // A guest that leaves the known ways is served by ranges.
    read(&image, &site, 5950);
    let raw = walk.len() as u64 * BLOCK;
    assert!(bytes_of(&asked, ".raw") < raw / 4, "{:?}", asked.lock().unwrap());
    let header = Header::decode("disk.vmk", &site.get("disk.vmk")).unwrap();
    assert!(bytes_of(&asked, ".vmk") <= header.packed().end + (64 << 10), "nothing is sent twice");
    image.close().unwrap();
    // The next session finds the model in its cache.
    asked.lock().unwrap().clear();
    let image = open(&site, &[&server], dir.path());
    wait("the model that was kept", || image.model().settled);
    assert!(image.model().sessions >= 2, "{}", image.model().text);
    walk.iter().for_each(|&block| read(&image, &site, block));
    image.close().unwrap();
}

#[test]
fn a_place_whose_packs_lie_is_left_and_the_next_one_asked() {
    let (site, dir) = (site(), tempfile::tempdir().unwrap());
    let honest = site.mirror();
    let header = Header::decode("disk.vmk", &site.get("disk.vmk")).unwrap();
    let packed = header.packed();
    // A bit of each frame at least.
    for at in (packed.start..packed.end).step_by(1024) {
        site.flip("disk.vmk", at as usize * 8 + 3);
    }
    let (server, _) = serve(&site);
    let (second, asked) = serve(&honest);
    let image = open(&site, &[&server, &second], dir.path());
    walk().iter().for_each(|&block| read(&image, &site, block));
    assert!(!image.stats().failed && bytes_of(&asked, ".vmk") > 0);
    image.close().unwrap();
}

#[test]
fn packs_of_another_image_are_left_alone_and_named() {
    let (mut site, dir) = (site(), tempfile::tempdir().unwrap());
    let mut other = site.image.clone();
    other[0] ^= 1;
    let mut wrong = Site::of(other, BLOCK as usize);
    wrong.pack(site.get("disk.vmk"));
    std::mem::swap(&mut site, &mut wrong);
    let (server, asked) = serve(&site);
    let image = open(&site, &[&server], dir.path());
    walk().iter().take(20).for_each(|&block| read(&image, &site, block));
    wait("the learner", || image.model().settled);
    let text = image.model().text;
    assert!(text.contains("disk.vmk") && text.contains(&wrong.root().to_string()), "{text}");
    assert!(bytes_of(&asked, ".vmk") <= 64 << 10, "only looked at");
    image.close().unwrap();
}

/// Waits until all that guests usually want came, of which this one touches the first block.
fn wait_for_walk(image: &Image, site: &Site) {
    let walk = walk();
    read(image, site, walk[0]);
    wait("not all that is foreseen came", || walk.iter().all(|block| image.resident(block * BLOCK, BLOCK).unwrap().0));
}

#[test]
fn packs_are_taken_from_the_first_place_that_has_any_of_use() {
    let site = site();
    let header = Header::decode("disk.vmk", &site.get("disk.vmk")).unwrap();
    let spoilt = |at: u64| {
        let mut other = site.mirror();
        other.flip("disk.vmk", 8 * at as usize);
        // Other packs have another name.
        let bytes = other.get("disk.vmk");
        other.pointer.packs = Some(NamedFile { name: "other.vmk".to_owned(), bytes: bytes.len() as u64 });
        other.put("other.vmk", bytes);
        other.point();
        other
    };
    let places = [
        ("no packs", unpacked()),
        ("the header", spoilt(20)),
        ("the start", spoilt(header.start().start + 3)),
        ("the index", spoilt(header.index().start + 3)),
        ("the model", spoilt(header.model().start + 40)),
    ];
    for (what, first) in places {
        let dir = tempfile::tempdir().unwrap();
        let (server, _) = serve(&first);
        let (second, asked) = serve(&site);
        let image = open(&site, &[&server, &second], dir.path());
        wait_for_walk(&image, &site);
        wait("the learner", || image.model().settled);
        assert_eq!(image.model().sessions, 2, "{what}: {}", image.model().text);
        assert!(bytes_of(&asked, ".vmk") > header.packed().end / 2, "{what}: the packs of the second are used");
        image.close().unwrap();
    }
}

#[test]
fn a_false_model_does_not_outlive_the_session_it_came_in() {
    let site = site();
    let header = Header::decode("disk.vmk", &site.get("disk.vmk")).unwrap();
    // Where nobody goes; and under the name of the honest ones.
    let astray: Vec<u64> = (0..200).map(|at| 5500 + at).filter(|block| block % 11 != 3).collect();
    let consistent = packs(&site, &astray, 3);
    let mut lying = consistent.clone();
    let frames = Header::decode("disk.vmk", &lying).unwrap().packed();
    (frames.start..frames.end).step_by(512).for_each(|at| lying[at as usize] ^= 8);
    for (what, false_packs, noticed) in [("consistent", consistent, false), ("found out", lying, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut other = site.mirror();
        other.pack(false_packs);
        let (server, _) = serve(&other);
        let image = open(&site, &[&server], dir.path());
        read(&image, &site, astray[0]);
        wait("the learner", || image.model().settled);
        assert_eq!(image.model().sessions, 3, "{what}: {}", image.model().text);
        if noticed {
            wait("the lie is not found out", || image.published().unwrap().packs_lied());
        }
        image.close().unwrap();
        let ledger = std::fs::read_to_string(dir.path().join("sessions/learnt.txt")).unwrap();
        assert_eq!(ledger.contains("published"), !noticed, "{what}: {ledger}");

        let (server, asked) = serve(&site);
        let image = open(&site, &[&server], dir.path());
        wait_for_walk(&image, &site);
        let model = header.model();
        assert!(bytes_of(&asked, ".vmk") > model.end - model.start, "{what}: the model is fetched anew");
        image.close().unwrap();
    }
}
