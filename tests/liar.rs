//! Mirrors that lie, ten thousand times in ways that dice decide: whatever they do to pointer, tree, packs or image, no wrong
//! byte is ever handed on, and every lie is told - by an error, or by a warning that names the place.
//!
//! Most cases are a folder, as nothing there waits; some hundred are a server, and have an honest mirror behind it: then
//! everything can be read as well.

#[allow(dead_code, reason = "much of it is for servers without a publication")]
#[path = "support/bad_server.rs"]
mod bad_server;
#[path = "support/parsers.rs"]
mod parsers;
#[path = "support/site.rs"]
mod site;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, Once};

use parsers::{MADE_UP_BLOCK, MADE_UP_BLOCKS};
use site::Site;
use vmstream::block::{Block, BlockRange};
use vmstream::config::Config;
use vmstream::model::Model;
use vmstream::packs::{HEADER_BYTES, Header, Index};
use vmstream::source::published::Pointer;
use vmstream::source::{self, FrameSink, Sink, Source, Stop};

/// Lies told in folders, by each of so many threads, and by servers.
const THREADS: u64 = 4;
const LIES_A_THREAD: u64 = 2_500;
const SERVED_LIES: u64 = 300;

/// splitmix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// What was logged, by all tests: those of a case name its place.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            LOGGED.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// True when a warning named this place; what was said of it is forgotten.
fn warned(place: &str) -> bool {
    let mut logged = LOGGED.lock().unwrap();
    let before = logged.len();
    logged.retain(|text| !text.contains(place));
    logged.len() < before
}

fn block(number: u64) -> Vec<u8> {
    if number % 5 == 4 { vec![0; MADE_UP_BLOCK as usize] } else { parsers::contents(Block(number)) }
}

/// The published image.
static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| (0..MADE_UP_BLOCKS).flat_map(block).collect());

/// What is published, and an older version of it in which every third block was another one.
fn versions() -> (Site, Site) {
    static START: Once = Once::new();
    START.call_once(|| log::set_logger(&Logger).map(|()| log::set_max_level(log::LevelFilter::Warn)).unwrap());
    let image = IMAGE.clone();
    let mut older = image.clone();
    for (at, block) in older.chunks_mut(MADE_UP_BLOCK as usize).enumerate() {
        if at % 3 == 0 && at % 5 != 4 {
            block[7] ^= 0x55;
        }
    }
    let mut site = Site::of(image, MADE_UP_BLOCK as usize);
    let (packs, tree) = parsers::made_up();
    assert_eq!(tree.root(), site.root(), "the packs are of another image");
    site.pack(packs);
    (site, Site::of(older, MADE_UP_BLOCK as usize))
}

type Files = BTreeMap<String, Vec<u8>>;

/// Rolls a lie: which files differ from the honest ones. Some rolls say nothing false and are rolled again.
fn lie(dice: &mut Dice, honest: &Files, site: &Site, older: &Site) -> (String, Files) {
    loop {
        let mut files = honest.clone();
        let what = change(dice, &mut files, older);
        if is_false(&files, honest, site) {
            return (what, files);
        }
    }
}

fn change(dice: &mut Dice, files: &mut Files, older: &Site) -> String {
    let names: Vec<String> = files.keys().cloned().collect();
    let name = names[dice.below(names.len())].clone();
    let other = names[dice.below(names.len())].clone();
    let length = files[&name].len();
    let Some(bytes) = files.get_mut(&name) else { unreachable!() };
    match dice.below(8) {
        // Most often, as it is the smallest.
        0..3 => {
            let bit = dice.below(8 * length);
            bytes[bit / 8] ^= 1 << (bit % 8);
            format!("{name}: bit {bit} flipped")
        }
        3 => {
            let left = dice.below(length);
            bytes.truncate(left);
            format!("{name}: cut to {left}")
        }
        4 => {
            let mine = std::mem::take(bytes);
            let theirs =
                if other == name { mine.clone() } else { files.insert(other.clone(), mine).unwrap_or_default() };
            files.insert(name.clone(), theirs);
            format!("{name} and {other} swapped")
        }
        5 => {
            // Old bytes under the new name.
            let ending = name.rsplit('.').next().unwrap_or_default();
            let old = older.files.lock().unwrap();
            if let Some((_, old)) = old.iter().find(|(name, _)| name.ends_with(ending)) {
                bytes.clone_from(old);
            }
            format!("{name} of an older version")
        }
        6 => {
            let by = 1 + dice.below(length - 1);
            bytes.rotate_left(by);
            format!("{name}: another range, {by} further on")
        }
        _ => {
            // A page of hashes, a block or less once more in the place of another.
            let piece = [20, 512, 2560][dice.below(3)].min(length / 2);
            let (from, to) = (dice.below(length - piece + 1), dice.below(length - piece + 1));
            bytes.copy_within(from..from + piece, to);
            format!("{name}: {piece} bytes from {from} again at {to}")
        }
    }
}

/// True unless a reader who reads everything sees the same: holes of the image are not read, and of a pointer time
/// and address of sessions cannot be checked, and packs need not be named.
fn is_false(files: &Files, honest: &Files, site: &Site) -> bool {
    let image = &site.pointer.image;
    let seen = |files: &Files| {
        let pointer = Pointer::parse(&files["disk.vmp"]).map(|pointer| {
            let packs = pointer.packs.or_else(|| site.pointer.packs.clone());
            (pointer.geometry, pointer.root, pointer.image, pointer.tree, packs)
        });
        let used: Vec<Vec<u8>> = files[image]
            .chunks(MADE_UP_BLOCK as usize)
            .enumerate()
            .filter(|(at, _)| at % 5 != 4)
            .map(|(_, block)| block.to_vec())
            .collect();
        let rest: Files = files
            .iter()
            .filter(|(name, _)| *name != image && *name != "disk.vmp")
            .map(|(name, bytes)| (name.clone(), bytes.clone()))
            .collect();
        (pointer.ok(), files[image].len(), used, rest)
    };
    seen(files) != seen(honest)
}

/// Compares all that comes with the image.
struct Checker(u64);

impl Sink for Checker {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        assert_eq!(offset, self.0, "a piece out of order");
        assert!(bytes == &IMAGE[offset as usize..][..bytes.len()], "wrong bytes from {offset}");
        self.0 += bytes.len() as u64;
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        self.data(offset, &vec![0; length as usize])
    }
}

impl FrameSink for Checker {
    fn received(&mut self, _: u64) {}

    fn blocks(&mut self, range: BlockRange, bytes: &[u8]) -> Result<(), Stop> {
        for (number, bytes) in range.iter().zip(bytes.chunks(MADE_UP_BLOCK as usize)) {
            let at = (number.0 * MADE_UP_BLOCK) as usize;
            assert!(bytes == &IMAGE[at..at + bytes.len()], "a wrong block out of a frame: {number:?}");
        }
        Ok(())
    }

    fn frame_done(&mut self, _: u32) -> Result<(), Stop> {
        self.0 += 1;
        Ok(())
    }
}

fn open(options: &[&str]) -> Result<Box<dyn Source>, String> {
    let more = ["proxy=none", "open_timeout=0", "stall_timeout=5s", "block_size=512"];
    let config = Config::parse(options.iter().copied().chain(more)).unwrap();
    source::open(&config, None).map_err(|error| error.to_string())
}

fn read_image(source: &dyn Source) -> Result<(), String> {
    let mut checker = Checker(0);
    let size = MADE_UP_BLOCK * MADE_UP_BLOCKS;
    source.fetch(5, 0, size, &mut checker).map_err(|error| format!("{error:?}"))?;
    assert_eq!(checker.0, size, "less came than was asked for, and it was called right");
    Ok(())
}

/// Reads what there is of packs, as one who follows a guest would.
fn read_packs(source: &dyn Source) -> Result<(), String> {
    let published = source.published().ok_or("not published")?;
    let tree = published.tree().ok_or("no tree")?.clone();
    let Some(packs) = published.packs() else { return Ok(()) };
    let read = |range: std::ops::Range<u64>| {
        published.read_packs(range.start, range.end - range.start).map_err(|error| format!("{error:?}"))
    };
    let wrong = |error: vmstream::Error| error.to_string();
    let header = Header::decode("packs", &read(0..HEADER_BYTES as u64)?).map_err(wrong)?;
    let model = Model::read("packs", &read(header.model())?[..]).map_err(wrong)?;
    let start = read(header.start())?;
    Index::of_start("packs", &header, &start, tree.geometry(), tree.holes()).map_err(wrong)?;
    let index = Index::of_file("packs", &header, &read(header.index())?, &model, tree.holes()).map_err(wrong)?;
    let count = index.count();
    published.set_frames(&packs.name, Arc::new(index));
    let mut checker = Checker(0);
    source.fetch_frames(6, 0..count, &mut checker).map_err(|error| format!("{error:?}"))?;
    assert_eq!(checker.0, u64::from(count), "frames are missing");
    Ok(())
}

/// True when only such bytes of the packs differ as mean the same: the record of a model, which those see who train on;
/// and of a packed frame bits that unpacking does not look at. What comes out of frames was compared.
fn means_the_same(site: &Site, files: &Files) -> bool {
    let (honest, now) = (site.get("disk.vmk"), &files["disk.vmk"]);
    let Ok(header) = Header::decode("packs", &honest) else { return false };
    let (model, frames) = (header.model(), header.packed());
    let free = |at: u64| model.contains(&at) || frames.contains(&at);
    honest.len() == now.len()
        && honest.iter().zip(now).enumerate().all(|(at, (a, b))| a == b || free(at as u64))
        && Model::read("packs", &now[model.start as usize..model.end as usize]).is_ok()
}

#[test]
fn ten_thousand_lies_pass_no_wrong_byte_and_each_is_told() {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || lies_in_a_folder(thread));
        }
    });
}

fn lies_in_a_folder(thread: u64) {
    let (site, older) = versions();
    let honest = site.files.lock().unwrap().clone();
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let name = folder.path().display().to_string();
    let link = format!("source={name}/disk.vmp#{}", site.root());
    let read = || open(&[&link]).and_then(|source| read_image(&*source).and_then(|()| read_packs(&*source)));
    write(&honest, folder.path());
    read().unwrap();
    assert!(!warned(&name), "the honest place is accused");
    for number in 0..LIES_A_THREAD {
        let (what, files) = lie(&mut Dice(thread << 32 | number), &honest, &site, &older);
        write(&files, folder.path());
        let told = read().is_err() | warned(&name);
        assert!(told || means_the_same(&site, &files), "lie {thread}/{number} was not told: {what}");
    }
}

fn write(files: &Files, folder: &Path) {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn behind_an_honest_mirror_everything_can_be_read_and_the_liar_is_named() {
    let (site, older) = versions();
    let honest = site.files.lock().unwrap().clone();
    let good = site.serve();
    for number in 0..SERVED_LIES {
        let (what, files) = lie(&mut Dice(1 << 48 | number), &honest, &site, &older);
        let liar = site.mirror();
        *liar.files.lock().unwrap() = files.clone();
        let bad = liar.serve();
        let about_image =
            ["disk.vmp", &site.pointer.image, &site.pointer.tree.name].iter().any(|name| files[*name] != honest[*name]);
        let places = [format!("source={}", liar.link(&bad)), format!("mirror={}", good.url("/disk.vmp"))];
        let source = open(&places.each_ref().map(|place| &**place)).unwrap_or_else(|error| panic!("{what}: {error}"));
        read_image(&*source).unwrap_or_else(|error| panic!("{what}: {error}"));
        // A liar about packs alone is found out by who reads them; what it says of them holds up nobody.
        let packs = read_packs(&*source);
        let named = warned(&bad.address.to_string());
        assert!(named || !about_image || packs.is_err(), "lie {number} was not told: {what}");
    }
}
