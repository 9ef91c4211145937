//! The sink that stands between a place and the guest's disk: only checked blocks pass.

use super::lie_of;
use super::pages::Pages;
use super::place::Files;
use crate::block::{Block, BlockRange};
use crate::source::{FetchError, Sink, Source, Stop};
use crate::tree::Tree;

/// Bytes that may wait for their pages before the transfer itself has to: what a fast link brings in a round trip.
const HELD_MAX: usize = 4 << 20;
/// Zeroes that a place reports are checked in pieces of this many bytes.
const ZEROES_BYTES: usize = 64 << 10;

/// The part of the image that somebody asked for, and the sink that waits for it. Blocks are checked whole, so more may
/// be fetched than was asked for; of that nothing is handed on.
pub(super) struct Wanted<'a> {
    /// Where it goes.
    pub sink: &'a mut dyn Sink,
    /// First byte, and the one behind the last.
    pub begin: u64,
    /// The byte behind the last.
    pub end: u64,
}

impl Wanted<'_> {
    /// Hands on what is wanted of checked bytes.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        let (from, to) = self.cut(offset, bytes.len() as u64);
        if from == to { Ok(()) } else { self.sink.data(from, &bytes[(from - offset) as usize..(to - offset) as usize]) }
    }

    /// Hands on what is wanted of a hole.
    pub fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        let (from, to) = self.cut(offset, length);
        if from == to { Ok(()) } else { self.sink.zeroes(from, to - from) }
    }

    fn cut(&self, offset: u64, length: u64) -> (u64, u64) {
        let from = offset.max(self.begin);
        (from, (offset + length).min(self.end).max(from))
    }
}

/// Checks the blocks of a range as they come.
pub(super) struct Checked<'a, 'b> {
    /// The place's image, for messages.
    image: &'a dyn Source,
    tree: &'a Tree,
    pages: &'a Pages,
    /// As [`Pages::want`] answered.
    failures: u64,
    lane: usize,
    wanted: &'a mut Wanted<'b>,
    /// The range that is fetched.
    range: BlockRange,
    /// The first block that was not handed on.
    next: Block,
    /// What came of it, and behind it.
    held: Vec<u8>,
    /// Why it ended, if not by the wish of the sink behind it.
    ended: Option<FetchError>,
}

impl<'a, 'b> Checked<'a, 'b> {
    /// For `range` of what lies at a place; `failures` is what [`Pages::want`] answered for it.
    pub fn new(files: &'a Files, failures: u64, lane: usize, range: BlockRange, wanted: &'a mut Wanted<'b>) -> Self {
        let Files { image, tree, pages, .. } = files;
        let (next, held) = (range.start, Vec::new());
        Self { image: &**image, tree, pages, failures, lane, wanted, range, next, held, ended: None }
    }

    /// Hands on the whole blocks at the beginning of `bytes` whose pages are here; answers how many bytes that were.
    fn pass(&mut self, bytes: &[u8]) -> Result<usize, Stop> {
        let geometry = self.tree.geometry();
        let begin = self.next;
        let mut passed = 0;
        while self.next < self.range.end {
            let length = geometry.length(BlockRange::one(self.next)) as usize;
            let Some(block) = bytes.get(passed..passed + length) else { break };
            match self.tree.check(self.next, block) {
                Ok(()) => {}
                Err(lie) if lie.is_missing() => break,
                Err(lie) => {
                    self.ended = Some(lie_of(&self.image.name(), lie));
                    break;
                }
            }
            passed += length;
            self.next.0 += 1;
        }
        self.wanted.data(begin.0 << geometry.block_shift(), &bytes[..passed])?;
        if self.ended.is_some() { Err(Stop) } else { Ok(passed) }
    }

    /// The same with what is held.
    fn pass_held(&mut self) -> Result<(), Stop> {
        let mut held = std::mem::take(&mut self.held);
        let passed = self.pass(&held)?;
        held.drain(..passed);
        self.held = held;
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Stop> {
        self.pages.settle(self.range, self.failures, self.lane).map_err(|failure| {
            self.ended = Some(failure);
            Stop
        })
    }

    /// Hands on the rest, waiting for pages if need be, when the transfer has ended with `result`.
    pub fn finish(mut self, result: Result<(), FetchError>) -> Result<(), FetchError> {
        let whole_blocks = |this: &Self| this.held.len() as u64 >= this.tree.geometry().block_bytes() || result.is_ok();
        let mut rest = Ok(());
        if self.ended.is_none() && !self.held.is_empty() && whole_blocks(&self) {
            // After a failure too: what came is good, and the sooner here the better.
            rest = self.settle().and_then(|()| self.pass_held());
        }
        match (self.ended, rest, result) {
            (Some(ended), _, _) => Err(ended),
            (None, Err(Stop), _) => Err(FetchError::Stopped),
            (None, Ok(()), Err(failure)) => Err(failure),
            (None, Ok(()), Ok(())) if self.next == self.range.end => Ok(()),
            (None, Ok(()), Ok(())) => {
                Err(FetchError::transient(format!("{}: sent less than was asked for", self.image.name())))
            }
        }
    }
}

impl Sink for Checked<'_, '_> {
    fn data(&mut self, _: u64, bytes: &[u8]) -> Result<(), Stop> {
        if self.held.is_empty() {
            // The usual case: straight from the source's buffer.
            let passed = self.pass(bytes)?;
            self.held.extend_from_slice(&bytes[passed..]);
        } else {
            self.held.extend_from_slice(bytes);
            self.pass_held()?;
        }
        if self.held.len() > HELD_MAX {
            self.settle()?;
            self.pass_held()?;
        }
        Ok(())
    }

    fn zeroes(&mut self, mut offset: u64, mut length: u64) -> Result<(), Stop> {
        // A place whose file is sparse where the image has blocks that are zero.
        while length > 0 {
            let piece = length.min(ZEROES_BYTES as u64);
            self.data(offset, &[0; ZEROES_BYTES][..piece as usize])?;
            (offset, length) = (offset + piece, length - piece);
        }
        Ok(())
    }
}
