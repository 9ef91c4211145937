//! What one damaged answer costs an image with a single origin, and what a place that lies leaves behind.

#[allow(dead_code, reason = "much of it is for servers without a publication")]
#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/site.rs"]
mod site;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bad_server::{BadServer, Seen};
use site::Site;
use vmstream::Image;
use vmstream::config::Config;
use vmstream::source::{self, FetchError, Sink, Source, Stop};

struct Taken(Vec<u8>);

impl Sink for Taken {
    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.0.extend(bytes);
        Ok(())
    }

    fn zeroes(&mut self, _: u64, length: u64) -> Result<(), Stop> {
        self.0.resize(self.0.len() + length as usize, 0);
        Ok(())
    }
}

fn open(places: &[String]) -> Result<Box<dyn Source>, String> {
    let mut options: Vec<_> = places.iter().map(|link| format!("mirror={link}")).collect();
    options[0] = format!("source={}", places[0]);
    options.extend(["proxy=none", "open_timeout=0", "block_size=512"].map(str::to_owned));
    source::open(&Config::parse(&options).unwrap(), None).map_err(|error| error.to_string())
}

/// Reads a range, which must be right and all there; or why it is not.
fn read(source: &dyn Source, site: &Site, from: usize, length: usize) -> Result<(), FetchError> {
    let mut taken = Taken(Vec::new());
    source.fetch(5, from as u64, length as u64, &mut taken)?;
    assert!(taken.0 == site.image[from..from + length], "wrong bytes from {from}");
    Ok(())
}

/// The first and the last block that are not zero, by their first bytes and lengths.
fn ends(site: &Site) -> [(usize, usize); 2] {
    let first = site.image.iter().position(|byte| *byte != 0).unwrap() / 512 * 512;
    let last = site.image.iter().rposition(|byte| *byte != 0).unwrap() / 512 * 512;
    [(first, 512), (last, 512.min(site.image.len() - last))]
}

/// Opens the image at this place alone and reads both ends of it.
fn read_ends(site: &Site, server: &BadServer) -> Result<(), String> {
    let source = open(&[site.link(server)])?;
    ends(site).into_iter().try_for_each(|(from, length)| match read(&*source, site, from, length) {
        Err(FetchError::Fatal(error)) => {
            assert!(read(&*source, site, from, length).is_err(), "a place that was given up is asked again");
            Err(error.to_string())
        }
        other => other.map_err(|error| panic!("{error:?} is neither right nor final")),
    })
}

/// A site in which bit `bit` of a file is another.
fn spoilt(site: &Site, name: &str, bit: usize) -> Site {
    let other = site.mirror();
    other.flip(name, bit);
    other
}

/// Picks the first so many requests that a bit of a file is part of the answer to.
fn first(times: usize, name: &str, bit: usize) -> impl Fn(&Seen) -> bool + use<> {
    let (picked, name, byte) = (AtomicUsize::new(0), format!("/{name}"), bit as u64 / 8);
    move |seen| {
        let (from, to) = seen.range();
        seen.target == name && (from..=to).contains(&byte) && picked.fetch_add(1, Ordering::Relaxed) < times
    }
}

#[test]
fn one_damaged_answer_is_asked_for_again_and_a_second_one_is_final() {
    let site = Site::new(4_000_001, 512, 7);
    let (image, tree) = (&*site.pointer.image, &site.pointer.tree);
    for (what, name, bit) in [
        ("a block", image, 8 * ends(&site)[0].0 + 3),
        ("the head", &tree.name, 8 * 50),
        ("the hole map", &tree.name, 8 * 113),
        ("the first pages", &tree.name, 8 * 10_000),
        ("a later page", &tree.name, 8 * (tree.bytes as usize - 10)),
        ("the pointer", "disk.vmp", 8),
    ] {
        let other = spoilt(&site, name, bit);
        let once = site.serve_or(&other, first(1, name, bit));
        read_ends(&site, &once).unwrap_or_else(|error| panic!("{what}: {error}"));
        let twice = site.serve_or(&other, first(2, name, bit));
        let told = read_ends(&site, &twice).expect_err(what);
        assert!(told.contains(&twice.address.to_string()), "{what}: {told} names nobody");
    }
}

#[test]
fn what_is_asked_for_again_comes_over_a_new_connection() {
    let site = Site::new(400_001, 512, 7);
    let name = &*site.pointer.tree.name;
    let server = site.serve_or(&spoilt(&site, name, 8 * 50), first(1, name, 8 * 50));
    open(&[site.link(&server)]).unwrap();
    assert_eq!(server.connections(), 2, "all that opening asks goes over one lane");
}

#[test]
fn one_damaged_answer_does_not_send_a_reader_to_the_mirror() {
    let site = Site::new(400_001, 512, 7);
    let (name, bit) = (&*site.pointer.image, 8 * ends(&site)[0].0);
    let (server, mirror) = (site.serve_or(&spoilt(&site, name, bit), first(1, name, bit)), site.serve());
    let source = open(&[site.link(&server), site.link(&mirror)]).unwrap();
    ends(&site).into_iter().for_each(|(from, length)| read(&*source, &site, from, length).unwrap());
    assert!(mirror.seen().is_empty());
}

#[test]
fn a_pointer_is_kept_when_its_image_proved_right_and_not_longer_than_its_place_is_believed() {
    let site = Site::new(400_001, 512, 7);
    let [(from, length), (late, rest)] = ends(&site);
    // One has an image that is not there, one an image of which the beginning is right.
    let (mut nowhere, half) = (site.mirror(), spoilt(&site, &site.pointer.image, 8 * late));
    nowhere.pointer.image = "nowhere.raw".to_owned();
    nowhere.point();
    let mut half_pointer = half.pointer.clone();
    half_pointer.mtime_s = Some(5);
    half.put("disk.vmp", half_pointer.to_string().into_bytes());
    let servers = [nowhere.serve(), half.serve(), site.serve()];
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("disk.origin");
    let read_kept = || std::fs::read_to_string(&kept).ok();
    let source = open(&servers.each_ref().map(|server| site.link(server))).unwrap();
    source.published().unwrap().keep_pointer(kept.clone());
    assert_eq!(read_kept(), None);
    read(&*source, &site, from, length).unwrap();
    assert_eq!(read_kept(), Some(half_pointer.to_string()), "it has told no lie yet");
    read(&*source, &site, late, rest).unwrap();
    assert_eq!(read_kept(), Some(site.pointer.to_string()));
    drop(source);

    // What was kept from before comes back when the one that replaced it turns out to be a liar's.
    let source = open(&[site.link(&servers[1])]).unwrap();
    source.published().unwrap().keep_pointer(kept.clone());
    read(&*source, &site, from, length).unwrap();
    assert_eq!(read_kept(), Some(half_pointer.to_string()));
    assert!(read(&*source, &site, late, rest).is_err());
    assert_eq!(read_kept(), Some(site.pointer.to_string()));
}

#[test]
fn advice_fits_what_happened() {
    let site = Site::new(400_001, 512, 7);
    let [(from, length), _] = ends(&site);
    let read_with = |name: &str, bytes: Option<Vec<u8>>| {
        let other = site.mirror();
        match bytes {
            Some(bytes) => other.put(name, bytes),
            None => drop(other.files.lock().unwrap().remove(name)),
        }
        let server = other.serve();
        match open(&[site.link(&server)]).map(|source| read(&*source, &site, from, length)) {
            Ok(Err(FetchError::Fatal(error))) => error.to_string(),
            Err(text) => text,
            other => panic!("{name}: {other:?}"),
        }
    };
    for name in [&site.pointer.image, &site.pointer.tree.name] {
        let told = read_with(name, Some(vec![1; 70_000]));
        assert!(told.contains("publish it again") && !told.contains("new cache"), "{told}");
    }
    let told = read_with(&site.pointer.image, None);
    assert!(told.contains("the pointer at") && told.contains("disk.vmp names it"), "{told}");
    assert!(!told.contains("published once"), "{told}");
}

#[test]
fn a_folder_may_be_called_anything() {
    use std::os::unix::ffi::OsStrExt;
    let site = Site::new(40_001, 512, 7);
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join(std::ffi::OsStr::from_bytes(b"a \xff%"));
    std::fs::create_dir(&odd).unwrap();
    site.write(&odd);
    let plain = folder.path().display();
    for link in [format!("file://{plain}/a%20%FF%25/disk.vmp"), format!("file:///{plain}/a%20%FF%25/disk.vmp")] {
        read(&*open(&[link]).unwrap(), &site, 0, 40_001).unwrap();
    }
    site.write(folder.path());
    read(&*open(&[format!("/{plain}/disk.vmp")]).unwrap(), &site, 0, 40_001).unwrap();
}

#[test]
fn a_cache_that_opened_without_contact_passes_over_holes_in_long_steps_all_the_same() {
    let mut bytes = vec![0; 64 << 20];
    bytes[..100_000].fill(1);
    bytes[(64 << 20) - 5000..].fill(2);
    let site = Site::of(bytes, 4096);
    let server = site.serve();
    let folder = tempfile::tempdir().unwrap();
    let source = format!("source={}", site.link(&server));
    let cache = format!("cache={}", folder.path().display());
    let options = |more: [&'static str; 2]| {
        [&*source, &cache, "proxy=none", "model=off", "connections=4"].into_iter().chain(more)
    };
    Image::open(options(["fill=off", "prefetch=none"])).unwrap().read_at(0, &mut [0; 4096]).unwrap();
    for more in [["fill=on", "bulk=on"], ["fill=on", "prefetch=none"]] {
        let image = Image::open(options(more)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !image.is_complete() {
            assert!(Instant::now() < deadline, "it is never complete");
            std::thread::sleep(Duration::from_millis(2));
        }
        let fetches = image.stats().prefetch_fetches;
        assert!(fetches < 12, "{more:?}: {fetches} fetches for 27 blocks and one hole");
        image.close().unwrap();
        std::fs::remove_file(folder.path().join("disk")).unwrap();
        let _ = std::fs::remove_file(folder.path().join("disk.vmj"));
        Image::open(options(["fill=off", "prefetch=none"])).unwrap().read_at(0, &mut [0; 4096]).unwrap();
    }
}
