//! Landing: fetched bytes become resident blocks.
//!
//! A source delivers pieces of any length; only whole blocks land, the cut one waits in `carry` for its rest. A block
//! that is no longer absent was written by the guest meanwhile, and its fetched bytes are dropped.

use super::syncer::SyncJob;
use super::{Answer, FRESH_MAX, Shared, lock};
use crate::block::{Block, BlockRange};
use crate::error::Error;
use crate::planner::{Event, FetchId};
use crate::source::{Sink, Stop};

/// The sink of one fetch.
pub(super) struct Landing<'a> {
    shared: &'a Shared,
    fetch: FetchId,
    /// What was asked for.
    range: BlockRange,
    /// The first block that has not landed.
    next: Block,
    /// The beginning of that block, as far as it came.
    carry: &'a mut Vec<u8>,
    answers: &'a mut Vec<Answer>,
    runs: Vec<BlockRange>,
    /// Why the local file refused bytes.
    pub store_error: Option<Error>,
}

/// What lands.
enum Load<'a> {
    Bytes(&'a [u8]),
    Zeroes,
}

impl<'a> Landing<'a> {
    pub fn new(
        shared: &'a Shared,
        fetch: FetchId,
        range: BlockRange,
        carry: &'a mut Vec<u8>,
        answers: &'a mut Vec<Answer>,
    ) -> Self {
        carry.clear();
        Self { shared, fetch, range, next: range.start, carry, answers, runs: Vec::new(), store_error: None }
    }

    /// True when every block of the fetch has landed.
    pub fn is_whole(&self) -> bool {
        self.next == self.range.end
    }

    fn block_length(&self) -> usize {
        self.shared.gate.geometry().length(BlockRange::one(self.next)) as usize
    }

    /// The whole blocks among the next `length` bytes of the fetch; none while the beginning of one is carried.
    fn whole_blocks(&self, length: u64) -> BlockRange {
        if !self.carry.is_empty() {
            return BlockRange { start: self.next, end: self.next };
        }
        let geometry = self.shared.gate.geometry();
        let end = (self.next.0 << geometry.block_shift()).saturating_add(length);
        let last = if end >= geometry.size() { geometry.blocks() } else { end >> geometry.block_shift() };
        BlockRange { start: self.next, end: Block(last).min(self.range.end).max(self.next) }
    }

    /// Lands whole blocks from `next` on.
    fn land(&mut self, range: BlockRange, load: Load<'_>) -> Result<(), Stop> {
        let shared = self.shared;
        if shared.is_closing() {
            return Err(Stop);
        }
        let geometry = shared.gate.geometry();
        let states = &shared.gate.states;
        self.runs.clear();
        states.fill_begin(range, |run| self.runs.push(run));
        let mut kept = 0;
        for &run in &self.runs {
            let (offset, length) = (geometry.offset(run), geometry.length(run));
            let result = match (&self.store_error, &load) {
                (Some(_), _) => Ok(()),
                (None, Load::Zeroes) => shared.store.zero(offset, length),
                (None, Load::Bytes(bytes)) => {
                    let at = (offset - geometry.offset(range)) as usize;
                    shared.store.write(offset, &bytes[at..at + length as usize])
                }
            };
            self.store_error = self.store_error.take().or(result.err());
            states.fill_end(run, self.store_error.is_none());
            kept += length;
        }
        if self.store_error.is_some() {
            return Err(Stop);
        }
        let length = geometry.length(range);
        match load {
            Load::Bytes(_) => shared.counters.bytes_dropped.add(length - kept),
            Load::Zeroes => shared.counters.bytes_zero.add(length),
        }
        self.next = range.end;
        {
            let mut core = lock(&shared.core);
            if kept > 0 {
                core.checkpoint_at.get_or_insert(crate::time::Moment::now() + shared.checkpoint);
                core.fresh += kept;
                if core.fresh >= FRESH_MAX {
                    core.fresh = 0;
                    let _ = shared.sync.send(SyncJob::Checkpoint); // fails only while the image is closing
                }
            }
            shared.turn(&mut core, Some(Event::Arrived(self.fetch, range)), self.answers);
        }
        if shared.jobs.load(std::sync::atomic::Ordering::Acquire) != 0 {
            shared.gate.signal.ring();
        }
        shared.answer(self.answers);
        Ok(())
    }

    /// Lands the carried block once it is whole.
    fn land_carry(&mut self) -> Result<(), Stop> {
        let bytes = std::mem::take(self.carry);
        let result = self.land(BlockRange::one(self.next), Load::Bytes(&bytes));
        *self.carry = bytes;
        self.carry.clear();
        result
    }
}

impl Sink for Landing<'_> {
    fn data(&mut self, offset: u64, mut bytes: &[u8]) -> Result<(), Stop> {
        let shared = self.shared;
        shared.counters.bytes_fetched.add(bytes.len() as u64);
        let geometry = shared.gate.geometry();
        debug_assert_eq!(offset, (self.next.0 << geometry.block_shift()) + self.carry.len() as u64);
        while !bytes.is_empty() {
            if self.is_whole() {
                return Err(Stop); // more than was asked for
            }
            let range = self.whole_blocks(bytes.len() as u64);
            if !range.is_empty() {
                // All at once, straight from the source's buffer.
                let (now, later) = bytes.split_at(geometry.length(range) as usize);
                self.land(range, Load::Bytes(now))?;
                bytes = later;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.block_length() - self.carry.len()));
            self.carry.extend_from_slice(now);
            bytes = later;
            if self.carry.len() == self.block_length() {
                self.land_carry()?;
            }
        }
        Ok(())
    }

    fn zeroes(&mut self, _offset: u64, mut length: u64) -> Result<(), Stop> {
        let geometry = self.shared.gate.geometry();
        while length > 0 {
            if self.is_whole() {
                return Err(Stop);
            }
            let range = self.whole_blocks(length);
            if !range.is_empty() {
                length -= geometry.length(range);
                self.land(range, Load::Zeroes)?;
                continue;
            }
            let part = (length as usize).min(self.block_length() - self.carry.len());
            self.carry.resize(self.carry.len() + part, 0);
            length -= part as u64;
            if self.carry.len() == self.block_length() {
                self.land_carry()?;
            }
        }
        Ok(())
    }
}
