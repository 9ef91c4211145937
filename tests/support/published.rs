//! What the tests of published images have in common: a site that is large enough, and who looks at what comes.

#![allow(dead_code, reason = "each test uses the part that it needs")]

use std::ops::Range;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use vmstream::Error;
use vmstream::config::Config;
use vmstream::source::published::FIRST_BYTES;
use vmstream::source::{self, FetchError, Sink, Source, Stop};

use crate::bad_server::Seen;
use crate::site::Site;

/// Blocks of a frame of the packs for tests.
pub const FRAME_BLOCKS: u64 = 16;

/// Compares what arrives with the image, byte by byte.
pub struct Checker<'a> {
    pub image: &'a [u8],
    pub at: u64,
    pub zeroes: u64,
}

impl Sink for Checker<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        assert_eq!(offset, self.at, "a piece out of order");
        assert!(bytes == &self.image[offset as usize..][..bytes.len()], "wrong bytes from {offset}");
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        assert_eq!(offset, self.at, "a piece out of order");
        assert!(self.image[offset as usize..][..length as usize].iter().all(|byte| *byte == 0), "no hole at {offset}");
        (self.at, self.zeroes) = (self.at + length, self.zeroes + length);
        Ok(())
    }
}

pub fn config(options: &[&str]) -> Config {
    let more = ["proxy=none", "stall_timeout=20s", "open_timeout=0", "block_size=512"];
    Config::parse(options.iter().copied().chain(more)).unwrap()
}

pub fn open(link: &str) -> Box<dyn Source> {
    source::open(&config(&[&format!("source={link}")]), None).unwrap_or_else(|error| panic!("{link}: {error}"))
}

/// Fetches from lane 5, which opening does not use, and answers how much of it were zeroes that nobody sent.
pub fn fetch(source: &dyn Source, site: &Site, range: Range<u64>) -> Result<u64, FetchError> {
    let mut sink = Checker { image: &site.image, at: range.start, zeroes: 0 };
    source.fetch(5, range.start, range.end - range.start, &mut sink)?;
    assert_eq!(sink.at, range.end);
    Ok(sink.zeroes)
}

#[track_caller]
pub fn fatal<T>(result: Result<T, FetchError>) -> Error {
    match result {
        Err(FetchError::Fatal(error)) => error,
        Err(other) => panic!("{other:?} is not fatal"),
        Ok(_) => panic!("no error"),
    }
}

pub fn is_tree(seen: &Seen) -> bool {
    seen.target.contains(".vmt")
}

pub fn is_image(seen: &Seen) -> bool {
    seen.target.contains(".raw")
}

/// A site whose tree does not fit into the first request.
pub fn large() -> Site {
    let site = Site::new(4_000_001, 512, 7);
    assert!(site.pointer.tree.bytes > 3 * FIRST_BYTES / 2, "{} bytes of tree", site.pointer.tree.bytes);
    site
}

/// A site whose packs are its image, sixteen blocks a frame.
pub fn packed() -> Site {
    let mut site = large();
    let whole = site.image.len() - site.image.len() % (FRAME_BLOCKS as usize * 512);
    site.pack(site.image[..whole].to_vec());
    site
}

/// Where a long run of data lies whose hashes are not in the first request.
pub fn late_data(site: &Site) -> u64 {
    let blocks: Vec<bool> = site.image.chunks(512).map(|block| block.iter().any(|byte| *byte != 0)).collect();
    let late = (7 * blocks.len() / 8..blocks.len()).find(|at| blocks[*at..].iter().take(16).all(|used| *used));
    late.unwrap() as u64 * 512
}

/// True for a request for hash pages, as against that for the beginning of the tree.
pub fn is_pages(seen: &Seen) -> bool {
    is_tree(seen) && seen.range().0 > 0
}

/// Something that one thread does and another one waits for.
#[derive(Default)]
pub struct Moment(Mutex<bool>, Condvar);

impl Moment {
    pub fn come(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    pub fn wait(&self, what: &str) {
        assert!(self.comes(), "waited in vain for {what}");
    }

    /// The same; false when it was in vain.
    pub fn comes(&self) -> bool {
        let waited = self.1.wait_timeout_while(self.0.lock().unwrap(), Duration::from_secs(20), |come| !*come);
        !waited.unwrap().1.timed_out()
    }
}
