//! A published image made by the library alone, in memory or in a folder, and a server for it.

#![allow(dead_code, reason = "each test uses the part that it needs")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use vmstream::block::Geometry;
use vmstream::source::published::{NamedFile, Pointer};
use vmstream::tree::{Root, TreeBuilder};

use crate::bad_server::{BadServer, Next, Seen, Wire, answer, status};

/// The files of a site by their names, which may be changed while they are served.
pub type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// A published image.
#[derive(Clone)]
pub struct Site {
    pub image: Vec<u8>,
    pub pointer: Pointer,
    pub files: Files,
}

impl Site {
    /// An image of `size` bytes, in which runs of data and holes of many lengths follow each other, and its tree.
    pub fn new(size: usize, block_bytes: usize, seed: u64) -> Self {
        let mut image = vec![0; size];
        let mut dice = 2 * seed + 1;
        let mut roll = || {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice
        };
        let mut rest = &mut image[..];
        while !rest.is_empty() {
            // Runs of up to 64 blocks, and holes of up to 512: some of them are worth a request of their own.
            let data = (1 + roll() % 64) as usize * block_bytes;
            let hole = if roll() % 4 == 0 { (roll() % 512) as usize * block_bytes } else { block_bytes };
            let (now, later) = rest.split_at_mut(data.min(rest.len()));
            now.chunks_mut(8).for_each(|word| word.copy_from_slice(&roll().to_le_bytes()[..word.len()]));
            rest = later.split_at_mut(hole.min(later.len())).1;
        }
        Self::of(image, block_bytes)
    }

    /// This image and its tree.
    pub fn of(image: Vec<u8>, block_bytes: usize) -> Self {
        let geometry = Geometry::new(image.len() as u64, block_bytes as u64).unwrap();
        let mut builder = TreeBuilder::new(geometry);
        image.chunks(block_bytes).for_each(|block| builder.block(block));
        let (tree, root) = builder.finish().unwrap();
        let name = |ending: &str| format!("disk-{}.{ending}", &root.to_string()[..12]);
        let pointer = Pointer {
            geometry,
            mtime_s: Some(1_700_000_000),
            image: name("raw"),
            tree: NamedFile { name: name("vmt"), bytes: tree.len() as u64 },
            root,
            packs: None,
            sessions: Some("sessions/disk".to_owned()),
        };
        let files = [(name("raw"), image.clone()), (name("vmt"), tree), ("disk.vmp".to_owned(), Vec::new())];
        let site = Self { image, pointer, files: Arc::new(Mutex::new(files.into())) };
        site.point();
        site
    }

    /// Puts the pointer, as it is now, in its place.
    pub fn point(&self) {
        self.put("disk.vmp", self.pointer.to_string().into_bytes());
    }

    /// Adds packs with these bytes.
    pub fn pack(&mut self, bytes: Vec<u8>) {
        self.pointer.packs = Some(NamedFile { name: "disk.vmk".to_owned(), bytes: bytes.len() as u64 });
        self.put("disk.vmk", bytes);
        self.point();
    }

    pub fn root(&self) -> Root {
        self.pointer.root
    }

    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.files.lock().unwrap().insert(name.to_owned(), bytes);
    }

    pub fn get(&self, name: &str) -> Vec<u8> {
        self.files.lock().unwrap()[name].clone()
    }

    /// A copy of the site whose files are its own.
    pub fn mirror(&self) -> Self {
        let files = self.files.lock().unwrap().clone();
        Self { files: Arc::new(Mutex::new(files)), ..self.clone() }
    }

    /// Flips a bit of a file.
    pub fn flip(&self, name: &str, bit: usize) {
        self.files.lock().unwrap().get_mut(name).unwrap()[bit / 8] ^= 1 << (bit % 8);
    }

    /// Serves the site.
    pub fn serve(&self) -> BadServer {
        self.serve_after(|_| {})
    }

    /// Serves the site; `before` each answer something may happen.
    pub fn serve_after(&self, before: impl Fn(&Seen) + Send + Sync + 'static) -> BadServer {
        let files = self.files.clone();
        BadServer::start(move |seen, wire| {
            before(seen);
            serve(&files, seen, wire)
        })
    }

    /// Serves the site; `send` writes the right answers as it likes.
    pub fn serve_by(&self, send: impl Fn(&Seen, &mut Wire<'_>, &[u8]) + Send + Sync + 'static) -> BadServer {
        let files = self.files.clone();
        BadServer::start(move |seen, wire| {
            send(seen, wire, &reply(&files, seen));
            Next::Keep
        })
    }

    /// Serves the site, and `other` to the requests that `which` picks.
    pub fn serve_or(&self, other: &Self, which: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> BadServer {
        let (files, others) = (self.files.clone(), other.files.clone());
        BadServer::start(move |seen, wire| serve(if which(seen) { &others } else { &files }, seen, wire))
    }

    /// The link to the image at this server.
    pub fn link(&self, server: &BadServer) -> String {
        format!("{}#{}", server.url("/disk.vmp"), self.root())
    }

    /// Writes the site to a folder.
    pub fn write(&self, folder: &Path) {
        for (name, bytes) in &*self.files.lock().unwrap() {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

/// Answers a range request rightly.
fn serve(files: &Files, seen: &Seen, wire: &mut Wire<'_>) -> Next {
    wire.send(&reply(files, seen));
    Next::Keep
}

/// The right answer to a range request.
fn reply(files: &Files, seen: &Seen) -> Vec<u8> {
    let name = seen.target.trim_start_matches('/').split('?').next().unwrap_or_default();
    match files.lock().unwrap().get(name) {
        None => status("404 Not Found", ""),
        Some(bytes) => {
            let (first, last) = seen.range();
            let last = last.min((bytes.len() as u64).saturating_sub(1));
            if first > last || bytes.is_empty() {
                status("416 Range Not Satisfiable", &format!("Content-Range: bytes */{}\r\n", bytes.len()))
            } else {
                let head = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{}\r\n",
                    last - first + 1,
                    bytes.len()
                );
                answer(&head, &bytes[first as usize..=last as usize])
            }
        }
    }
}
