//! One pass over an image: it is read once, and on the way hashed, searched for zeroes and copied.
//!
//! The image is cut into pieces, and two threads take one after the other: each reads its piece where there may be data,
//! looks at it block by block, writes what is not zero into the copy, and hands over the hashes. The thread that began the
//! pass puts them in order and builds the tree. Two, because one core hashes about as fast as one disk reads; more would
//! only fight for the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use vmstream::block::Geometry;
use vmstream::error::{Error, Result};
use vmstream::tree::{Hash, Root, TreeBuilder, hash_block, is_zero};

use super::gauge::Gauge;
use super::image::Input;
use super::stop::Stop;

/// Threads that read and hash.
const THREADS: usize = 2;
/// Bytes of the image that a thread takes at a time: enough for the disk to read on end, few enough to stay in a cache.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces that may be done before the one that comes next in order: bounds the memory for their hashes.
const AHEAD_MAX: usize = 64;

/// What one piece came to: its blocks in order, as runs that are all zero or all not.
struct Piece {
    number: u64,
    runs: Vec<Run>,
    read_bytes: u64,
}

enum Run {
    Zero(u64),
    Used(Vec<Hash>),
}

/// The tree of an image.
pub struct Hashed {
    /// The whole tree file.
    pub tree: Vec<u8>,
    /// Its root.
    pub root: Root,
}

/// What the threads share.
struct Work<'a> {
    input: &'a Input,
    geometry: Geometry,
    copy: Option<&'a File>,
    copy_name: &'a str,
    next: AtomicU64,
    given_up: AtomicBool,
}

/// Reads all of `input`, writes what is not zero to the same places of `copy` when there is one (`copy_name` is for
/// messages), and makes the tree. The copy must be an empty file; it gets the image's length, and holes where there are
/// zeroes. Ends early when `stop` says so.
pub fn pass(
    input: &Input,
    geometry: Geometry,
    copy: Option<(&File, &str)>,
    gauge: &mut Gauge,
    stop: &Stop,
) -> Result<Hashed> {
    if let Some((file, name)) = copy {
        file.set_len(geometry.size()).map_err(|e| Error::io(format_args!("cannot make {name} large enough"), e))?;
    }
    let work = Work {
        input,
        geometry,
        copy: copy.map(|copy| copy.0),
        copy_name: copy.map_or("", |copy| copy.1),
        next: AtomicU64::new(0),
        given_up: AtomicBool::new(false),
    };
    let mut builder = TreeBuilder::new(geometry);
    input.table().map_or(Ok(()), |table| builder.table(table))?;
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD_MAX);
        for _ in 0..THREADS {
            let (work, sender) = (&work, sender.clone());
            scope.spawn(move || work.run(&sender));
        }
        drop(sender);
        let collected = collect(&work, &receiver, &mut builder, gauge, stop);
        // A thread that waits for room in the channel goes on when the receiver is gone.
        work.given_up.store(true, Ordering::Release);
        drop(receiver);
        collected
    })?;
    let (tree, root) = builder.finish()?;
    Ok(Hashed { tree, root })
}

fn collect(
    work: &Work<'_>,
    receiver: &Receiver<Result<Piece>>,
    builder: &mut TreeBuilder,
    gauge: &mut Gauge,
    stop: &Stop,
) -> Result<()> {
    let mut early: BTreeMap<u64, Piece> = BTreeMap::new();
    let mut next = 0;
    for piece in receiver {
        stop.check()?;
        let piece = piece?;
        gauge.read(piece.read_bytes);
        early.insert(piece.number, piece);
        while let Some(piece) = early.remove(&next) {
            for run in piece.runs {
                match run {
                    Run::Zero(blocks) => builder.zero(blocks),
                    Run::Used(hashes) => builder.used(&hashes),
                }
            }
            next += 1;
        }
    }
    debug_assert!(early.is_empty() && next == work.pieces());
    Ok(())
}

impl Work<'_> {
    fn pieces(&self) -> u64 {
        self.geometry.size().div_ceil(PIECE_BYTES)
    }

    /// A thread: one piece after the other until there are no more, something fails, or nobody wants them.
    fn run(&self, sender: &SyncSender<Result<Piece>>) {
        let mut buffer = vec![0; PIECE_BYTES as usize];
        while !self.given_up.load(Ordering::Acquire) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.pieces() {
                return;
            }
            let piece = self.piece(number, &mut buffer);
            let failed = piece.is_err();
            if sender.send(piece).is_err() || failed {
                return;
            }
        }
    }

    fn piece(&self, number: u64, buffer: &mut [u8]) -> Result<Piece> {
        let block_bytes = self.geometry.block_bytes();
        let start = number * PIECE_BYTES;
        let end = (start + PIECE_BYTES).min(self.geometry.size());
        let mut piece = Piece { number, runs: Vec::new(), read_bytes: 0 };
        let mut at = start;
        while at < end {
            let data = self.input.next_data(at, end)?;
            // In whole blocks; what is no data reads as zeroes as well.
            let from = data.as_ref().map_or(end, |data| data.start / block_bytes * block_bytes).max(at);
            let to = data.map_or(end, |data| data.end.next_multiple_of(block_bytes).min(end));
            if from > at {
                piece.zero((from - at).div_ceil(block_bytes));
            }
            if to > from {
                let bytes = &mut buffer[..(to - from) as usize];
                self.input.read(from, bytes)?;
                piece.read_bytes += to - from;
                self.blocks(from, bytes, &mut piece)?;
            }
            at = to;
        }
        Ok(piece)
    }

    /// Takes blocks that were read at `offset`.
    fn blocks(&self, offset: u64, bytes: &[u8], piece: &mut Piece) -> Result<()> {
        let block_bytes = self.geometry.block_bytes() as usize;
        // Where the blocks began that are still to be written to the copy.
        let mut unwritten = None;
        for (at, block) in (0..).step_by(block_bytes).zip(bytes.chunks(block_bytes)) {
            if is_zero(block) {
                piece.zero(1);
                self.write(offset, bytes, unwritten.take(), at)?;
            } else {
                piece.used(hash_block(block));
                unwritten.get_or_insert(at);
            }
        }
        self.write(offset, bytes, unwritten, bytes.len())
    }

    fn write(&self, offset: u64, bytes: &[u8], from: Option<usize>, to: usize) -> Result<()> {
        let (Some(file), Some(from)) = (self.copy, from) else { return Ok(()) };
        let written = file.write_all_at(&bytes[from..to], offset + from as u64);
        written.map_err(|e| {
            let error = Error::io(format_args!("cannot write {}", self.copy_name), e);
            if error.is_full() {
                let text = format!("{error}; make room there, or leave the image where it lies with --link");
                return Error::new(error.errno(), text);
            }
            error
        })
    }
}

impl Piece {
    fn zero(&mut self, blocks: u64) {
        match self.runs.last_mut() {
            Some(Run::Zero(run)) => *run += blocks,
            _ => self.runs.push(Run::Zero(blocks)),
        }
    }

    fn used(&mut self, hash: Hash) {
        match self.runs.last_mut() {
            Some(Run::Used(hashes)) => hashes.push(hash),
            _ => self.runs.push(Run::Used(vec![hash])),
        }
    }
}
