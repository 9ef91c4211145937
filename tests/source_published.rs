//! Published images: whatever a place does, only what was published is handed on, and checking costs no round trip.

#[allow(dead_code, reason = "much of it is for servers without a publication")]
#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/published.rs"]
mod published;
#[path = "support/site.rs"]
mod site;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bad_server::{BadServer, Seen};
use published::{Checker, config, fatal, fetch, is_image, is_tree, large, late_data, open, packed};
use site::Site;
use vmstream::block::Geometry;
use vmstream::error::errno;
use vmstream::source::published::{FIRST_BYTES, PACKS_FIRST_BYTES};
use vmstream::source::{self, FetchError, Sink, Stop};
use vmstream::tree::{Head, TreeBuilder, hash_block};
use vmstream::{Image, Op};

/// Two things that have to happen before either goes on.
#[derive(Default)]
struct Meeting(Mutex<[bool; 2]>, Condvar);

impl Meeting {
    fn arrive(&self, side: usize) {
        let mut here = self.0.lock().unwrap();
        here[side] = true;
        self.1.notify_all();
        let met = self.1.wait_timeout_while(here, Duration::from_secs(20), |here| *here != [true; 2]).unwrap();
        assert!(!met.1.timed_out(), "the other request was not sent at the same time");
    }

    fn met(&self) -> bool {
        *self.0.lock().unwrap() == [true; 2]
    }
}

#[test]
fn an_image_is_opened_by_two_requests_and_every_range_of_it_is_right() {
    let site = large();
    let server = site.serve();
    let source = open(&site.link(&server));
    let seen: Vec<_> = server.seen().iter().map(|seen| (seen.target.clone(), seen.range())).collect();
    let tree = format!("/{}", site.pointer.tree.name);
    assert_eq!(seen, [("/disk.vmp".to_owned(), (0, 4095)), (tree, (0, FIRST_BYTES - 1))]);
    assert_eq!((server.connections(), source.requests()), (1, 2));
    let identity = source.identity();
    assert_eq!((identity.size, identity.mtime_s), (4_000_001, Some(1_700_000_000)));
    assert_eq!(identity.validator, Some(format!("root:{}", site.root())));
    let published = source.published().unwrap();
    assert_eq!(published.sessions_url(), Some(server.url("/sessions/disk").as_str()));
    let zeroes = fetch(&*source, &site, 0..4_000_001).unwrap();
    assert!(zeroes > 500_000, "{zeroes} bytes of holes were not sent");
    for range in [0..1, 511..513, 4_000_000..4_000_001, 1_234_567..1_434_567, 99..99] {
        fetch(&*source, &site, range).unwrap();
    }
    assert!(fatal(fetch(&*source, &site, 4_000_000..4_000_002)).to_string().contains("leave"));
}

#[test]
fn a_hole_is_answered_without_any_request() {
    let mut bytes = vec![0; 1 << 20];
    bytes[..512].fill(1);
    bytes[(1 << 20) - 512..].fill(2);
    let site = Site::of(bytes, 512);
    let server = site.serve();
    let source = open(&site.link(&server));
    let before = server.seen().len();
    assert_eq!(fetch(&*source, &site, 512..(1 << 20) - 512).ok(), Some((1 << 20) - 1024));
    assert_eq!(server.seen().len(), before);
    assert_eq!(fetch(&*source, &site, 0..1 << 20).ok(), Some((1 << 20) - 1024));
    assert_eq!(server.seen().len(), before + 2, "one request for each of both ends");
}

#[test]
fn a_cold_read_and_the_pages_that_check_it_are_under_way_at_the_same_time() {
    let site = large();
    let meeting = Arc::new(Meeting::default());
    let waits = meeting.clone();
    let server = site.serve_after(move |seen| {
        if is_image(seen) {
            waits.arrive(0);
        } else if is_tree(seen) && seen.range().0 > 0 {
            waits.arrive(1);
        }
    });
    let source = open(&site.link(&server));
    let at = late_data(&site);
    fetch(&*source, &site, at..at + 4096).unwrap();
    assert!(meeting.met());
}

#[test]
fn tree_and_packs_begin_to_come_at_the_same_time() {
    let mut site = large();
    site.pack(vec![7; 100_000]);
    let meeting = Arc::new(Meeting::default());
    let waits = meeting.clone();
    let server = site.serve_after(move |seen| {
        if is_tree(seen) {
            waits.arrive(0);
        } else if seen.target.ends_with(".vmk") {
            waits.arrive(1);
        }
    });
    let source = open(&site.link(&server));
    let published = source.published().unwrap();
    let packs = published.packs().unwrap();
    assert_eq!((packs.bytes, packs.head.len() as u64), (100_000, PACKS_FIRST_BYTES));
    assert_eq!(published.read_packs(50_000, 8).ok(), Some(vec![7; 8]));
}

#[test]
fn nothing_is_left_of_an_image_that_was_closed() {
    let site = packed();
    let server = site.serve();
    let source = open(&site.link(&server));
    let at = late_data(&site);
    fetch(&*source, &site, at..at + 512).unwrap();
    let published = source.published().unwrap();
    let left = Arc::downgrade(&published);
    drop(source);
    assert!(published.read_packs(50_000, 8).is_err(), "there is nobody to ask any more");
    drop(published);
    assert!(left.upgrade().is_none());
}

#[test]
fn a_page_that_is_on_its_way_is_not_asked_for_again() {
    let site = large();
    let at = late_data(&site);
    let both = Arc::new(Meeting::default());
    let waits = both.clone();
    // Neither lane gets its data before both have asked, and so wanted their pages.
    let server = site.serve_after(move |seen| {
        if is_image(seen) {
            waits.arrive(usize::from(seen.range().0 > at));
        }
    });
    let source = open(&site.link(&server));
    std::thread::scope(|scope| {
        for (lane, offset) in [(1, at), (2, at + 512)] {
            let (source, site) = (&source, &site);
            scope.spawn(move || {
                let mut sink = Checker { image: &site.image, at: offset, zeroes: 0 };
                source.fetch(lane, offset, 512, &mut sink).unwrap();
            });
        }
    });
    let mut pages: Vec<_> = server.seen().iter().filter(|seen| is_tree(seen)).map(Seen::range).skip(1).collect();
    let asked = pages.len();
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), asked, "{pages:?}");
}

/// What a place may do to a site, each a lie.
fn spoiled(site: &Site) -> Vec<(&'static str, Site)> {
    let at = late_data(site);
    let tree = &site.pointer.tree;
    let with = |change: &dyn Fn(&mut Site)| {
        let mut other = site.mirror();
        change(&mut other);
        other
    };
    let cut = |other: &Site, name: &str| {
        let mut bytes = other.get(name);
        bytes.pop();
        other.put(name, bytes);
    };
    vec![
        ("a block", with(&|other| other.flip(&site.pointer.image, 8 * at as usize + 3))),
        ("a hash page", with(&|other| other.flip(&tree.name, 8 * (tree.bytes as usize - 300)))),
        ("the first pages", with(&|other| other.flip(&tree.name, 8 * 10_000))),
        ("the hole map", with(&|other| other.flip(&tree.name, 8 * 113))),
        ("the head", with(&|other| other.flip(&tree.name, 8 * 50))),
        ("a short image", with(&|other| cut(other, &site.pointer.image))),
        ("a short tree", with(&|other| cut(other, &tree.name))),
        ("another image", with(&|other| other.put(&site.pointer.image, vec![9; site.image.len()]))),
        ("an image for a tree", with(&|other| other.put(&tree.name, site.image[..tree.bytes as usize].to_vec()))),
        (
            "a pointer to a longer image",
            with(&|other| {
                other.pointer.geometry = Geometry::new(4_000_513, 512).unwrap();
                other.point();
            }),
        ),
        ("no pointer", with(&|other| other.put("disk.vmp", b"<html>".to_vec()))),
    ]
}

#[test]
fn whatever_a_place_lies_about_no_wrong_byte_passes_and_the_next_place_is_asked() {
    let site = large();
    let at = late_data(&site);
    let good = site.serve();
    for (what, other) in spoiled(&site) {
        let bad = other.serve();
        let alone = source::open(&config(&[&format!("source={}", site.link(&bad))]), None);
        match alone {
            Err(error) => assert_ne!(error.errno(), errno::EHOSTUNREACH, "{what}: {error}"),
            Ok(source) => {
                // The checker lets no wrong byte pass, whatever the result.
                let error =
                    fatal(fetch(&*source, &site, at..at + 8192).and(fetch(&*source, &site, 3_900_000..4_000_001)));
                assert!(error.to_string().contains(&bad.address.to_string()), "{what}: {error} names nobody");
                assert!(fatal(fetch(&*source, &site, at..at + 512)).errno() > 0, "{what}: it is asked again");
            }
        }
        let options = [&*format!("source={}", site.link(&bad)), &*format!("mirror={}", site.link(&good))];
        let source = source::open(&config(&options), None).unwrap_or_else(|error| panic!("{what}: {error}"));
        fetch(&*source, &site, 0..4_000_001).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    }
}

#[test]
fn a_mirror_of_another_version_is_dropped_and_one_without_the_packs_is_not() {
    let (mut site, other) = (large(), Site::new(4_000_001, 512, 8));
    let without = site.mirror();
    site.pack(vec![7; 1000]);
    let (first, second, third) = (other.serve(), without.serve(), site.serve());
    let options = [
        &*format!("source={}", site.link(&first)),
        &*format!("mirror={}", second.url("/disk.vmp")),
        &*format!("mirror={}", third.url("/disk.vmp")),
    ];
    let source = source::open(&config(&options), None).unwrap();
    assert_eq!(source.identity().validator, Some(format!("root:{}", site.root())));
    fetch(&*source, &site, 0..100_000).unwrap();
    assert!(second.seen().iter().any(is_image), "the one without packs serves");
    let alone = source::open(&config(&options[..1]), None).err().unwrap();
    assert_eq!(alone.errno(), errno::ESTALE);
    assert!(alone.to_string().contains("another version") && alone.to_string().contains("new link"), "{alone}");
}

#[test]
fn a_pointer_with_nothing_behind_it_does_not_decide_which_image_is_meant() {
    let (site, empty) = (large(), large().mirror());
    let nonsense = site.get("disk.vmp").iter().map(|byte| if *byte == b'7' { b'8' } else { *byte }).collect();
    empty.put("disk.vmp", nonsense);
    let (first, second) = (empty.serve(), site.serve());
    let options = [&*format!("source={}", first.url("/disk.vmp")), &*format!("mirror={}", second.url("/disk.vmp"))];
    let source = source::open(&config(&options), None).unwrap();
    assert_eq!(source.published().unwrap().root(), Some(site.root()));
    fetch(&*source, &site, 0..10_000).unwrap();
}

#[test]
fn links_that_contradict_each_other_or_are_half_published_are_refused() {
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    for (options, part) in [
        ([format!("source=http://h/d.vmp#{one}"), format!("mirror=http://i/d.vmp#{two}")], "different versions"),
        ([format!("source=http://h/d.vmp#{one}"), "mirror=http://i/d.raw".to_owned()], "all or none"),
    ] {
        let error = source::open(&config(&[&options[0], &options[1]]), None).err().unwrap();
        assert!(error.errno() == errno::EINVAL || error.errno() == errno::ESTALE);
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_pinned_image_is_opened_without_contact_and_found_again_when_the_origin_has_a_newer_one() {
    let (site, newer) = (large(), Site::new(5_000_000, 512, 9));
    let server = site.serve();
    let link = server.url("/disk.vmp");
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("disk.origin");
    let identity = {
        let source = open(&link);
        source.published().unwrap().keep_pointer(kept.clone());
        assert!(!kept.exists(), "nothing that it leads to was checked yet");
        fetch(&*source, &site, 0..512).unwrap();
        source.identity().clone()
    };
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), site.pointer.to_string());
    let reopen = || {
        let source = source::open(&config(&[&format!("source={link}")]), Some(&identity)).unwrap();
        source.published().unwrap().keep_pointer(kept.clone());
        source
    };
    let before = server.seen().len();
    let source = reopen();
    assert_eq!((server.seen().len(), source.identity()), (before, &identity));
    fetch(&*source, &site, 0..100_000).unwrap();

    // A newer version is published; the older files stay for a while.
    site.put("disk.vmp", newer.get("disk.vmp"));
    fetch(&*reopen(), &site, 0..100_000).unwrap();
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), site.pointer.to_string());
    site.files.lock().unwrap().remove(&site.pointer.image);
    let error = fatal(fetch(&*reopen(), &site, 0..100_000));
    assert_eq!(error.errno(), errno::ESTALE);
    assert!(error.to_string().contains("--reuse") && error.to_string().contains(&site.root().to_string()), "{error}");
}

#[test]
fn a_folder_is_as_good_as_a_server() {
    let site = large();
    let folder = tempfile::tempdir().unwrap();
    site.write(folder.path());
    let link = format!("{}/disk.vmp#{}", folder.path().display(), site.root());
    let source = open(&link);
    fetch(&*source, &site, 0..4_000_001).unwrap();
    let wrong = format!("{}/disk.vmp#{}", folder.path().display(), "1".repeat(64));
    let error = source::open(&config(&[&format!("source={wrong}")]), None).err().unwrap();
    assert_eq!(error.errno(), errno::ESTALE);
    site.flip(&site.pointer.image, 8 * late_data(&site) as usize);
    site.write(folder.path());
    assert_eq!(fatal(fetch(&*open(&link), &site, late_data(&site)..4_000_001)).errno(), errno::EIO);
}

#[test]
fn a_hole_map_that_is_longer_than_the_first_request_comes_with_a_second() {
    // A disk of 16 GiB on which one block in so many is used; just one of those is ever looked at.
    const PERIOD: u64 = 1290;
    let geometry = Geometry::new(16 << 30, 512).unwrap();
    let block = [7; 512];
    let mut builder = TreeBuilder::new(geometry);
    for _ in 0..geometry.blocks() / PERIOD {
        builder.used(&[hash_block(&block)]);
        builder.zero(PERIOD - 1);
    }
    builder.zero(geometry.blocks() % PERIOD);
    let (tree, root) = builder.finish().unwrap();
    assert!(Head::decode(&tree).unwrap().map_bytes() > 2 * FIRST_BYTES);
    let folder = tempfile::tempdir().unwrap();
    let image = std::fs::File::create(folder.path().join("disk.raw")).unwrap();
    image.set_len(geometry.size()).unwrap();
    let at = 12_345 * PERIOD * 512;
    std::os::unix::fs::FileExt::write_all_at(&image, &block, at).unwrap();
    let pointer = format!(
        "vmstream 1\nsize {}\nblock 512\nimage disk.raw\ntree disk.vmt {}\nroot {root}\n",
        geometry.size(),
        tree.len()
    );
    std::fs::write(folder.path().join("disk.vmt"), tree).unwrap();
    std::fs::write(folder.path().join("disk.vmp"), pointer).unwrap();
    let source = open(&format!("{}/disk.vmp#{root}", folder.path().display()));
    let mut sink = Checker { image: &block, at: 0, zeroes: 0 };
    source.fetch(5, at, 512, &mut Moved(&mut sink, at)).unwrap();
    assert_eq!(sink.at, 512);
    // A used block that the disk does not have as it was published.
    assert_eq!(fatal(source.fetch(5, 0, 512, &mut Moved(&mut sink, 0))).errno(), errno::EIO);
}

/// A sink whose image begins later.
struct Moved<'a>(&'a mut dyn Sink, u64);

impl Sink for Moved<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.0.data(offset - self.1, bytes)
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        self.0.zeroes(offset - self.1, length)
    }
}

#[test]
fn a_signature_and_credentials_go_to_all_files_of_the_folder_and_the_root_to_nobody() {
    let site = large();
    let server = site.serve();
    let link = format!("{}?sig=a/b#{}", server.url("/disk.vmp"), site.root()).replace("//", "//me:word@");
    let source = open(&link);
    let at = late_data(&site);
    fetch(&*source, &site, at..at + 512).unwrap();
    let seen = server.seen();
    assert!(seen.iter().any(is_image) && seen.iter().any(is_tree));
    for seen in seen {
        assert!(seen.target.ends_with("?sig=a/b"), "{}", seen.target);
        assert_eq!(seen.header("authorization"), Some("Basic bWU6d29yZA=="), "{}", seen.target);
    }
    assert_eq!(source.name(), format!("{}?...", server.url("/disk.vmp")));
}

#[test]
fn a_place_that_is_away_is_asked_again_and_one_that_closes_gives_up_at_once() {
    let site = large();
    let server = site.serve();
    let source = open(&site.link(&server));
    let missing = site.files.lock().unwrap().remove(&site.pointer.tree.name).unwrap();
    // Whether a file that is gone comes back nobody knows; a broken connection may pass.
    let at = late_data(&site);
    drop(server);
    assert!(matches!(fetch(&*source, &site, at..at + 512), Err(FetchError::Transient { .. })));
    site.put(&site.pointer.tree.name, missing);
    source.abort();
    assert!(fetch(&*source, &site, at..at + 512).is_err());
}

#[test]
fn corruption_on_purpose_never_reaches_a_guest() {
    let site = large();
    let folder = tempfile::tempdir().unwrap();
    site.write(folder.path());
    let link = format!("{}/disk.vmp#{}", folder.path().display(), site.root());
    let (mut refused, mut right) = (0, 0);
    for seed in 0..12 {
        let fault = format!("fault=seed={seed},corrupt=20%");
        let options = [&*format!("source={link}"), "fill=off", "prefetch=none", &fault];
        // A bit may be flipped in the tree already.
        let Ok(image) = Image::open(options) else {
            refused += 1;
            continue;
        };
        assert_eq!(image.block_size(), 512, "that of the tree, as none was given");
        for at in (0..site.image.len() - 4096).step_by(300_000) {
            match image.block_wait(Op::Read, at as u64, 4096) {
                Ok(()) => {
                    let mut bytes = [0; 4096];
                    image.read_local(at as u64, &mut bytes).unwrap();
                    assert!(bytes == site.image[at..at + 4096], "seed {seed}: wrong bytes at {at}");
                    right += 1;
                }
                Err(error) => {
                    assert_eq!(error.errno(), errno::EIO, "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 0 && right > 0, "{refused} refused, {right} right");
}

#[test]
fn an_image_with_a_cache_goes_on_without_the_origin_and_keeps_the_pointer() {
    let site = large();
    let folder = tempfile::tempdir().unwrap();
    let cache = format!("cache={}", folder.path().display());
    let server = site.serve();
    let options = [&*format!("source={}", site.link(&server)), &cache, "proxy=none", "fill=off", "model=off"];
    let at = late_data(&site) - late_data(&site) % 512;
    {
        let image = Image::open(options).unwrap();
        assert_eq!(image.published().unwrap().root(), Some(site.root()));
        image.block_wait(Op::Read, at, 512).unwrap();
        image.flush().unwrap();
    }
    let kept = std::fs::read_to_string(folder.path().join("disk.origin")).unwrap();
    assert_eq!(kept, site.pointer.to_string());
    // The same image by a link without a root, and nobody there.
    drop::<BadServer>(server);
    let again = options[0].split('#').next().unwrap().to_owned();
    let image = Image::open([&*again, &cache, "proxy=none", "fill=off", "model=off"]).unwrap();
    let mut bytes = [0; 512];
    image.read_at(at, &mut bytes).unwrap();
    assert!(bytes == site.image[at as usize..][..512]);
    drop(image);
    let other = format!("{again}#{}", "3".repeat(64));
    let error = Image::open([&*other, &cache, "proxy=none"]).unwrap_err();
    assert_eq!(error.errno(), errno::ESTALE);
}
