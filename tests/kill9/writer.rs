//! A writer: works on its region of the disk, at random, until the disk dies under it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use rustix::fs::FallocateFlags;

use crate::ledger::Ledger;
use crate::stamp::{self, Generation, Random, SECTOR_BYTES};

/// Most sectors of one read, write or discard: 128 KiB, many blocks with partial ones at both ends.
pub const SECTORS_MAX: u64 = 256;
/// Size of the part of a region that sees half of all operations, in sectors.
const HOT_SECTORS: u64 = 1024;
/// Alignment of memory for O_DIRECT, in bytes: the page size suits every file system.
const ALIGN_BYTES: usize = 4096;

/// A buffer of up to [`SECTORS_MAX`] sectors at an address that O_DIRECT takes.
pub struct Buffer {
    memory: Vec<u8>,
    begin: usize,
}

impl Buffer {
    /// A buffer of zeroes.
    pub fn new() -> Self {
        let memory = vec![0; SECTORS_MAX as usize * SECTOR_BYTES + ALIGN_BYTES];
        let begin = memory.as_ptr().align_offset(ALIGN_BYTES);
        Self { memory, begin }
    }

    /// Its first `sectors` sectors.
    pub fn sectors(&mut self, sectors: u64) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + sectors as usize * SECTOR_BYTES]
    }
}

/// Where the round is in its course, for all who work on the disk.
#[derive(Default)]
pub struct Course {
    /// Set before the kill: from here on an operation may fail.
    pub killing: AtomicBool,
    /// Set after the kill. Not before, so that the kill finds everybody at work.
    pub over: AtomicBool,
}

/// One writer and what it knows of its region. The ledger outlives the mount, the file does not.
pub struct Writer {
    /// The sectors that nobody else writes.
    pub region: Range<u64>,
    /// Works past the page cache.
    pub direct: bool,
    /// What the region holds.
    pub ledger: Ledger,
    generation: u32,
    random: Random,
}

/// How a round of a writer ended.
pub type Outcome = Result<(), String>;

impl Writer {
    /// A writer that has written nothing.
    pub fn new(region: Range<u64>, direct: bool, seed: u64) -> Self {
        Self { region, direct, ledger: Ledger::default(), generation: 0, random: Random::new(seed) }
    }

    /// Works until an operation fails or the kill is known; each finished operation is told to `progress`.
    ///
    /// A failing operation is right once the kill has begun, and a broken disk before. A wrong byte is always wrong.
    pub fn work(&mut self, disk: &File, course: &Course, progress: &SyncSender<()>) -> Outcome {
        let mut buffer = Buffer::new();
        while !course.over.load(Ordering::SeqCst) {
            let done = match self.random.below(16) {
                0..=8 => self.write(disk, &mut buffer),
                9 => self.discard(disk),
                10..=13 => match self.read(disk, &mut buffer) {
                    Ok(checked) => Ok(checked?),
                    Err(error) => Err(error),
                },
                _ => self.flush(disk),
            };
            match done {
                // A full channel has told enough already.
                Ok(()) => drop(progress.try_send(())),
                Err(_) if course.killing.load(Ordering::SeqCst) => break,
                Err(error) => return Err(format!("an operation failed while the mount was alive: {error}")),
            }
        }
        Ok(())
    }

    /// Mostly short ranges, so that many writes meet in one block, and some long ones.
    fn range(&mut self) -> Range<u64> {
        let most = if self.random.below(4) == 0 { SECTORS_MAX } else { 12 };
        let length = 1 + self.random.below(most);
        // Every other one near the beginning of the region, so that old and new meet often.
        let span = if self.random.below(2) == 0 { HOT_SECTORS } else { self.region.end - self.region.start };
        let begin = self.region.start + self.random.below(span - length + 1);
        begin..begin + length
    }

    fn next_generation(&mut self) -> Generation {
        self.generation += 1;
        Generation::written(self.generation)
    }

    fn write(&mut self, disk: &File, buffer: &mut Buffer) -> io::Result<()> {
        let (range, generation) = (self.range(), self.next_generation());
        let bytes = buffer.sectors(range.end - range.start);
        for (sector, piece) in range.clone().zip(bytes.chunks_exact_mut(SECTOR_BYTES)) {
            stamp::fill(sector, generation, piece);
            self.ledger.begin(sector, generation);
        }
        disk.write_all_at(bytes, range.start * SECTOR_BYTES as u64)
    }

    fn discard(&mut self, disk: &File) -> io::Result<()> {
        let range = self.range();
        range.clone().for_each(|sector| self.ledger.begin(sector, Generation::ZERO));
        let (offset, length) = (range.start * SECTOR_BYTES as u64, (range.end - range.start) * SECTOR_BYTES as u64);
        Ok(rustix::fs::fallocate(disk, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?)
    }

    fn flush(&mut self, disk: &File) -> io::Result<()> {
        disk.sync_data()?;
        self.ledger.flushed();
        Ok(())
    }

    /// The outer result is the read's own, the inner one that of the comparison.
    fn read(&mut self, disk: &File, buffer: &mut Buffer) -> io::Result<Outcome> {
        let range = self.range();
        let bytes = buffer.sectors(range.end - range.start);
        disk.read_exact_at(bytes, range.start * SECTOR_BYTES as u64)?;
        for (sector, piece) in range.zip(bytes.chunks_exact(SECTOR_BYTES)) {
            let (expected, found) = (self.ledger.current(sector), stamp::recognise(sector, piece));
            if found != Some(expected) {
                return Ok(Err(format!("sector {sector} reads as {found:?}, last written was {expected:?}")));
            }
        }
        Ok(Ok(()))
    }
}
