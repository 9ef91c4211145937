//! Made-up guests of one image: a start, tasks with files of their own, libraries that several tasks share.
//!
//! Where everything lies is drawn once for an image. A session then differs from others of the same work as real ones do:
//! neighbours swap places, some accesses are left out, and now and then comes a block that no other session reads.

use std::ops::Range;
use std::time::Duration;

use vmstream::block::Geometry;
use vmstream::gate::Op;
use vmstream::session::{Access, Session};

use crate::dice::Dice;

/// Size of a block, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// Libraries of the image, those of them that a task begins with, and their size in blocks.
const LIBRARIES: u64 = 8;
const LIBRARIES_A_TASK: usize = 2;
const LIBRARY_BLOCKS: u64 = 256;
/// A file is read in so many pieces at most.
const PIECES_A_FILE: u64 = 4;
/// One in so many accesses changes its place with the one before.
const SWAPPED: u64 = 12;
/// One in so many is left out.
const LEFT_OUT: u64 = 25;
/// And behind one in so many comes a read of what is this session's alone: of real sessions, too, about one block in a
/// hundred was never touched by any of fifty others.
const PRIVATE: u64 = 100;

/// What the guests of an image are like.
#[derive(Clone)]
pub struct Shape {
    /// Size of the image, in bytes.
    pub image_bytes: u64,
    /// Blocks that every session reads first.
    pub start_blocks: u64,
    /// Number of tasks.
    pub tasks: u64,
    /// Least and most blocks of a task, its libraries not counted.
    pub task_blocks: Range<u64>,
    /// Most blocks of an access.
    pub piece_blocks_max: u64,
    /// Longest pause between two accesses, in microseconds.
    pub pause_us_max: u64,
}

/// An access that all sessions of a task have.
#[derive(Clone, Copy)]
struct Piece {
    first: u64,
    blocks: u64,
    pause_us: u64,
}

/// An image and what its guests may do.
pub struct Guests {
    shape: Shape,
    start: Vec<Piece>,
    tasks: Vec<Vec<Piece>>,
    /// Blocks from here on are read by single sessions only.
    private: u64,
}

impl Guests {
    /// The same shape and seed make the same guests.
    pub fn new(shape: Shape, seed: u64) -> Self {
        let mut dice = Dice(seed);
        let mut next = 0;
        let start = shape.files(shape.start_blocks, &mut next, &mut dice);
        let libraries: Vec<_> = (0..LIBRARIES).map(|_| shape.files(LIBRARY_BLOCKS, &mut next, &mut dice)).collect();
        let task = |_| {
            let used = dice.shuffled(LIBRARIES).into_iter().take(LIBRARIES_A_TASK);
            let mut pieces: Vec<Piece> = used.flat_map(|library| libraries[library as usize].clone()).collect();
            let blocks = shape.task_blocks.start + dice.below(shape.task_blocks.end - shape.task_blocks.start);
            pieces.extend(shape.files(blocks, &mut next, &mut dice));
            pieces
        };
        let tasks = (0..shape.tasks).map(task).collect();
        assert!(next * 2 < shape.image_bytes / BLOCK_BYTES, "half of the image is left for private blocks");
        Self { shape, start, tasks, private: next }
    }

    /// Size of the image and of its blocks.
    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.shape.image_bytes, BLOCK_BYTES).expect("an ordinary image")
    }

    /// A session of these tasks.
    pub fn session(&self, seed: u64, tasks: &[u64]) -> Session {
        let mut dice = Dice(seed);
        let blocks = self.geometry().blocks();
        let mut accesses = Vec::new();
        let mut at_us = 1000;
        for part in std::iter::once(&self.start).chain(tasks.iter().map(|&task| &self.tasks[task as usize])) {
            let mut pieces = part.clone();
            for at in 1..pieces.len() {
                if dice.below(SWAPPED) == 0 {
                    pieces.swap(at - 1, at);
                }
            }
            for piece in pieces {
                at_us += piece.pause_us + dice.below(200);
                if dice.below(LEFT_OUT) > 0 {
                    accesses.push(access(at_us, piece.first, piece.blocks));
                }
                if dice.below(PRIVATE) == 0 {
                    at_us += 100;
                    let first = self.private + dice.below(blocks - self.private - self.shape.piece_blocks_max);
                    accesses.push(access(at_us, first, 1 + dice.below(self.shape.piece_blocks_max)));
                }
            }
            at_us += 400_000 + dice.below(600_000);
        }
        self.made_of(accesses)
    }

    /// A session of so many different tasks, drawn from `from` in any order.
    pub fn any_session(&self, seed: u64, tasks: usize, from: Range<u64>) -> Session {
        let chosen = Dice(seed ^ 0x7A5C).shuffled(from.end - from.start).into_iter().take(tasks);
        self.session(seed, &chosen.map(|task| from.start + task).collect::<Vec<_>>())
    }

    /// A program that reads blocks here and there over the whole disk, as many as an ordinary session.
    pub fn scan(&self, seed: u64, reads: u64) -> Session {
        let mut dice = Dice(seed);
        let blocks = self.geometry().blocks();
        self.made_of((0..reads).map(|number| access(number * 500, dice.below(blocks), 1)).collect())
    }

    /// A program that reads the disk from a random place to its end and then from the start.
    pub fn whole_disk(&self, seed: u64) -> Session {
        const STEP: u64 = 256;
        let steps = self.geometry().blocks() / STEP;
        let begin = Dice(seed).below(steps);
        self.made_of((0..steps).map(|step| access(step * 1000, (begin + step) % steps * STEP, STEP)).collect())
    }

    fn made_of(&self, accesses: Vec<Access>) -> Session {
        Session { geometry: self.geometry(), accesses, marks: Vec::new() }
    }
}

impl Shape {
    /// Files of so many blocks together, which lie from `next` on with gaps between them, in any order of use.
    fn files(&self, blocks: u64, next: &mut u64, dice: &mut Dice) -> Vec<Piece> {
        let mut files: Vec<Vec<Piece>> = Vec::new();
        let mut left = blocks;
        while left > 0 {
            *next += 1 + dice.below(2 * self.piece_blocks_max);
            let mut file = Vec::new();
            for _ in 0..=dice.below(PIECES_A_FILE) {
                let blocks = left.min(1 + dice.below(self.piece_blocks_max));
                if blocks > 0 {
                    file.push(Piece { first: *next, blocks, pause_us: dice.below(self.pause_us_max) });
                    *next += blocks;
                    left -= blocks;
                }
            }
            files.push(file);
        }
        let order = dice.shuffled(files.len() as u64);
        order.into_iter().flat_map(|at| std::mem::take(&mut files[at as usize])).collect()
    }
}

fn access(at_us: u64, first: u64, blocks: u64) -> Access {
    Access {
        at: Duration::from_micros(at_us),
        op: Op::Read,
        offset: first * BLOCK_BYTES,
        length: blocks * BLOCK_BYTES,
        stalled: Duration::ZERO,
    }
}
