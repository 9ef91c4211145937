//! The frames of packs are compressed on all processors, and come out in their order.
//!
//! One thread reads blocks, checks them and writes finished frames; the others compress, each frame by itself, so the bytes
//! are those that one thread alone would make. Reading is some ten times as fast as compressing, so one reader is enough.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use vmstream::error::{Error, Result, errno};
use vmstream::packs::{Builder, ReadBlocks, Unpacked};

/// Most threads that compress: beyond that the one that reads is too slow.
const THREADS_MAX: usize = 8;
/// Frames under way for each thread: one that it works on and one that waits for it, of 128 KiB each as a rule.
const AHEAD: usize = 2;

/// A frame and its place in the order.
type Job = (usize, Unpacked);
type Done = (usize, Unpacked, Result<Vec<u8>>);

/// Packs all frames of `builder`. `written` gets them in order, with the bytes of blocks that each holds.
///
/// # Errors
/// Those of reading, of packing and of `written`, which end it.
pub fn all(
    builder: &mut Builder<'_>,
    read: &mut ReadBlocks<'_>,
    level: i32,
    written: &mut dyn FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX);
    let (jobs, waiting) = channel();
    let (sender, done) = channel();
    let waiting = Mutex::new(waiting);
    thread::scope(|scope| {
        for _ in 0..threads {
            let (waiting, sender) = (&waiting, sender.clone());
            scope.spawn(move || compress(waiting, &sender, level));
        }
        drop(sender);
        // The threads end when this does, as nobody gives them jobs any more.
        in_order(builder, read, written, &Pool { jobs, done, ahead: AHEAD * threads })
    })
}

/// The other side of the threads.
struct Pool {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    ahead: usize,
}

/// Reads ahead of the threads and takes what they have done, in order.
fn in_order(
    builder: &mut Builder<'_>,
    read: &mut ReadBlocks<'_>,
    written: &mut dyn FnMut(&[u8], u64) -> Result<()>,
    pool: &Pool,
) -> Result<()> {
    let gone = || Error::new(errno::EIO, "cannot pack: a thread that compresses has ended, which is a defect");
    let (mut gathered, mut next, mut more) = (0, 0, true);
    let mut early = BTreeMap::new();
    loop {
        while more && gathered - next < pool.ahead {
            match builder.gather(read)? {
                Some(frame) => {
                    pool.jobs.send((gathered, frame)).map_err(|_| gone())?;
                    gathered += 1;
                }
                None => more = false,
            }
        }
        if next == gathered {
            return Ok(());
        }
        let (number, frame, packed) = pool.done.recv().map_err(|_| gone())?;
        early.insert(number, (frame, packed?));
        while let Some((frame, packed)) = early.remove(&next) {
            let bytes = frame.blocks.len() as u64;
            written(&builder.add(frame, &packed)?, bytes)?;
            next += 1;
        }
    }
}

/// A thread: one frame after the other until there are no more, or nobody wants them.
fn compress(waiting: &Mutex<Receiver<Job>>, done: &Sender<Done>, level: i32) {
    loop {
        // The lock is held while it waits, so the others wait for the lock.
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, frame)) = job else { return };
        let packed = zstd::bulk::compress(&frame.blocks, level).map_err(|e| Error::io("cannot compress a frame", e));
        if done.send((number, frame, packed)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmstream::block::{Block, BlockRange, Geometry};
    use vmstream::gate::Op;
    use vmstream::model::{Limits, Trainer};
    use vmstream::session::{Access, Session};
    use vmstream::tree::{Tree, TreeBuilder};

    use super::*;

    const BLOCKS: u64 = 2048;

    /// Blocks that differ in how long they take to compress.
    fn contents(block: Block) -> Vec<u8> {
        let word = |n: u64| (block.0 * 512 + n / (1 + block.0 % 5)).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        (0..512).flat_map(word).collect()
    }

    fn image() -> (Tree, Vec<u8>) {
        let geometry = Geometry::new(BLOCKS * 4096, 4096).unwrap();
        let mut builder = TreeBuilder::new(geometry);
        geometry.all().iter().for_each(|block| builder.block(&contents(block)));
        let (bytes, root) = builder.finish().unwrap();
        let access = |n: u64| Access {
            at: Duration::from_millis(n * 50),
            op: Op::Read,
            offset: n * 8 * 4096,
            length: 8 * 4096,
            stalled: Duration::ZERO,
        };
        let session = Session { geometry, accesses: (0..BLOCKS / 8).map(access).collect(), marks: Vec::new() };
        let mut trainer = Trainer::new(geometry, Limits::default());
        trainer.add(&session).unwrap();
        (Tree::read(&bytes, root).unwrap(), trainer.finish_file().1)
    }

    fn read(range: BlockRange, bytes: &mut [u8]) -> Result<()> {
        range.iter().zip(bytes.chunks_mut(4096)).for_each(|(block, bytes)| bytes.copy_from_slice(&contents(block)));
        Ok(())
    }

    #[test]
    fn the_bytes_are_those_of_one_thread() {
        let (tree, model) = image();
        let mut alone = Builder::new("m", &model, &tree).unwrap();
        let mut frames = Vec::new();
        let compress = |bytes: &[u8]| Ok(zstd::bulk::compress(bytes, 3).unwrap());
        while let Some(frame) = alone.next(&mut read, &compress).unwrap() {
            frames.push(frame);
        }
        assert!(frames.len() > 50, "{}", frames.len());
        let mut together = Builder::new("m", &model, &tree).unwrap();
        let (mut got, mut bytes) = (Vec::new(), 0);
        let mut written = |frame: &[u8], blocks: u64| {
            got.push(frame.to_vec());
            bytes += blocks;
            Ok(())
        };
        all(&mut together, &mut read, 3, &mut written).unwrap();
        assert_eq!(bytes, BLOCKS * 4096);
        assert!(got == frames && together.finish().unwrap() == alone.finish().unwrap());
    }

    #[test]
    fn what_fails_ends_it() {
        let (tree, model) = image();
        let full = || Error::new(errno::ENOSPC, "full");
        let mut builder = Builder::new("m", &model, &tree).unwrap();
        let mut left = 5;
        let mut written = |_: &[u8], _: u64| {
            left -= 1;
            if left == 0 { Err(full()) } else { Ok(()) }
        };
        assert_eq!(all(&mut builder, &mut read, 3, &mut written).unwrap_err().errno(), errno::ENOSPC);
        let mut builder = Builder::new("m", &model, &tree).unwrap();
        let broken = all(&mut builder, &mut |_, _| Err(full()), 3, &mut |_, _| Ok(()));
        assert_eq!(broken.unwrap_err().errno(), errno::ENOSPC);
    }
}
