//! The state of every block: four bits each, sixteen blocks to a word, in one lazily committed array.
//!
//! Bits 0-1 hold the state, bit 2 whether the guest has touched the block in this session, bit 3 whether the journal
//! on disk says that it is present. All moves are compare-and-swap on whole words, so a request of 64 KiB in blocks of
//! 4 KiB costs one or two of them and a hit costs one Acquire load.
//!
//! ```text
//!            guest write: claim            publish
//! absent ───────────────────────► claimed ─────────► resident   (a failed write: back to absent)
//!    └────────────────────────────► filling ───────► resident   (a failed store: back to absent)
//!            bytes arrived: fill_begin     fill_end
//! ```
//!
//! What is being fetched is not a state: a block stays absent until its bytes are there, so a guest may claim a block
//! whose fetch is under way, and what arrives for it is then dropped.

use super::words::{BLOCKS_PER_WORD, Joiner, having, runs, spans};
use crate::block::{Block, BlockRange};
use crate::error::Result;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::Arena;

const STATE: u64 = 3;
const CLAIMED: u64 = 1;
const FILLING: u64 = 2;
const RESIDENT: u64 = 3;
const TOUCHED: u64 = 4;
const DURABLE: u64 = 8;

/// Blocks in a chunk: the unit in which the journal looks for what is new. One page of state words.
pub const CHUNK_BLOCKS: u64 = 8192;

/// The state of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not here.
    Absent,
    /// A guest write is under way.
    Claimed,
    /// Fetched bytes are being stored.
    Filling,
    /// In the local file.
    Resident,
}

/// Answer of [`States::look`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All resident, all touched before.
    Known,
    /// All resident, some for the first time in this session.
    First,
    /// Some not resident.
    Missing,
}

/// The states of all blocks of an image. Every method may be called by any thread at any time.
#[derive(Debug)]
pub struct States {
    words: Arena,
    blocks: u64,
    /// One bit a chunk: it may hold resident blocks that are not durable.
    dirty: Box<[AtomicU64]>,
    /// One bit a chunk: it may hold blocks that are not absent.
    used: Box<[AtomicU64]>,
    resident: AtomicU64,
}

impl States {
    /// `blocks` blocks, all absent.
    pub fn new(blocks: u64) -> Result<Self> {
        let bits = |n: u64| (0..n.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let chunks = blocks.div_ceil(CHUNK_BLOCKS);
        Ok(Self {
            words: Arena::new(blocks.div_ceil(BLOCKS_PER_WORD) as usize)?,
            blocks,
            dirty: bits(chunks),
            used: bits(chunks),
            resident: AtomicU64::new(0),
        })
    }

    /// Number of blocks that are resident.
    pub fn resident_count(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// The gate's fast path: one Acquire load a word.
    #[inline]
    pub fn look(&self, range: BlockRange) -> Look {
        let mut known = true;
        for (index, mask) in spans(range) {
            let word = self.words.word(index).load(Ordering::Acquire);
            let want = mask * (STATE | TOUCHED);
            if word & want != want {
                if word & (mask * STATE) != mask * STATE {
                    return Look::Missing;
                }
                known = false;
            }
        }
        if known { Look::Known } else { Look::First }
    }

    /// True when [`States::look`] would say [`Look::Known`]. There is no panic in it, whatever the range.
    #[inline]
    pub fn is_known(&self, range: BlockRange) -> bool {
        spans(range).all(|(index, mask)| {
            let want = mask * (STATE | TOUCHED);
            self.words.get(index).is_some_and(|word| word.load(Ordering::Acquire) & want == want)
        })
    }

    /// Marks blocks as touched by the guest in this session.
    pub fn touch(&self, range: BlockRange) {
        for (index, mask) in spans(range) {
            let word = self.words.word(index);
            if word.load(Ordering::Relaxed) & (mask * TOUCHED) != mask * TOUCHED {
                word.fetch_or(mask * TOUCHED, Ordering::Relaxed);
            }
        }
    }

    /// The state of one block.
    pub fn state(&self, block: Block) -> State {
        let word = self.words.word((block.0 / BLOCKS_PER_WORD) as usize).load(Ordering::Acquire);
        match word >> (4 * (block.0 % BLOCKS_PER_WORD)) & STATE {
            CLAIMED => State::Claimed,
            FILLING => State::Filling,
            RESIDENT => State::Resident,
            _ => State::Absent,
        }
    }

    /// The first block of `range` that is not resident.
    pub fn first_missing(&self, range: BlockRange) -> Option<Block> {
        self.first(range, |word, mask| mask & !having(word, mask, RESIDENT))
    }

    /// The first block of `range` that is resident.
    pub fn first_resident(&self, range: BlockRange) -> Option<Block> {
        self.first(range, |word, mask| having(word, mask, RESIDENT))
    }

    /// The first block of `range` that is absent.
    pub fn first_absent(&self, range: BlockRange) -> Option<Block> {
        self.first(range, |word, mask| having(word, mask, 0))
    }

    /// The first block of `range` that is not absent.
    pub fn first_present(&self, range: BlockRange) -> Option<Block> {
        self.first(range, |word, mask| mask & !having(word, mask, 0))
    }

    fn first(&self, range: BlockRange, pick: impl Fn(u64, u64) -> u64) -> Option<Block> {
        spans(range).find_map(|(index, mask)| {
            let hit = pick(self.words.word(index).load(Ordering::Acquire), mask);
            (hit != 0).then(|| Block(index as u64 * BLOCKS_PER_WORD + u64::from(hit.trailing_zeros() / 4)))
        })
    }

    /// Replaces the state of those blocks of `mask` that `change` picks from the word; answers which they were.
    fn change(&self, index: usize, mask: u64, from: u64, to: u64, ordering: Ordering) -> u64 {
        let word = self.words.word(index);
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let picked = having(seen, mask, from);
            if picked == 0 {
                return 0;
            }
            let next = (seen & !(picked * STATE)) | (picked * to);
            match word.compare_exchange_weak(seen, next, ordering, Ordering::Relaxed) {
                Ok(_) => return picked,
                Err(now) => seen = now,
            }
        }
    }

    /// Claims the absent blocks of `range` for a guest write; resident blocks stay as they are. False, with nothing
    /// claimed, when another write or fetch is at work on one of them.
    pub fn claim(&self, range: BlockRange) -> bool {
        for (index, mask) in spans(range) {
            let word = self.words.word(index);
            let mut seen = word.load(Ordering::Acquire);
            loop {
                let absent = having(seen, mask, 0);
                if absent | having(seen, mask, RESIDENT) != mask {
                    // All that is claimed before this word was claimed here: any other claim would have stopped us.
                    let done = BlockRange::new(range.start.0, (index as u64 * BLOCKS_PER_WORD).max(range.start.0));
                    self.publish(done, false);
                    return false;
                }
                if absent == 0 {
                    break;
                }
                match word.compare_exchange_weak(seen, seen | (absent * CLAIMED), Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break,
                    Err(now) => seen = now,
                }
            }
        }
        true
    }

    /// Ends a guest write: what was claimed in `range` becomes resident, or absent again when the write failed.
    /// Answers whether any block changed.
    pub fn publish(&self, range: BlockRange, written: bool) -> bool {
        let mut count = 0;
        for (index, mask) in spans(range) {
            let to = if written { RESIDENT } else { 0 };
            // Release: who sees the new state also sees the bytes written before this call.
            let changed = self.change(index, mask, CLAIMED, to, Ordering::AcqRel);
            if changed != 0 && written {
                self.arrived(index, changed);
            }
            count += u64::from(changed.count_ones());
        }
        count > 0
    }

    /// Marks the blocks of `range` that are still absent as filling and answers them as runs, in order.
    pub fn fill_begin(&self, range: BlockRange, visit: impl FnMut(BlockRange)) {
        let mut joiner = Joiner::new(visit);
        for (index, mask) in spans(range) {
            let got = self.change(index, mask, 0, FILLING, Ordering::AcqRel);
            runs(index, got, |start, end| joiner.add(start, end));
        }
        joiner.finish();
    }

    /// Ends what [`States::fill_begin`] began, for one of its runs: resident, or absent again when storing failed.
    pub fn fill_end(&self, run: BlockRange, stored: bool) {
        for (index, mask) in spans(run) {
            let to = if stored { RESIDENT } else { 0 };
            let changed = self.change(index, mask, FILLING, to, Ordering::AcqRel);
            debug_assert_eq!(changed, mask, "a filling block belongs to its filler alone");
            if stored {
                self.arrived(index, changed);
            }
        }
    }

    fn arrived(&self, index: usize, blocks: u64) {
        self.resident.fetch_add(u64::from(blocks.count_ones()), Ordering::Relaxed);
        let chunk = index as u64 * BLOCKS_PER_WORD / CHUNK_BLOCKS;
        let bit = 1 << (chunk % 64);
        let at = (chunk / 64) as usize;
        if self.used[at].load(Ordering::Relaxed) & bit == 0 {
            self.used[at].fetch_or(bit, Ordering::Relaxed);
        }
        // Release, and always a read-modify-write: whoever takes this bit must see the state stored before it.
        self.dirty[at].fetch_or(bit, Ordering::AcqRel);
    }

    /// Sets blocks that the journal knows from an earlier session. Only while the image is being opened.
    pub fn restore(&self, range: BlockRange) {
        for (index, mask) in spans(range) {
            let old = self.words.word(index).fetch_or(mask * (RESIDENT | DURABLE), Ordering::Relaxed);
            let new = mask & !having(old, mask, RESIDENT);
            self.resident.fetch_add(u64::from(new.count_ones()), Ordering::Relaxed);
            let chunk = index as u64 * BLOCKS_PER_WORD / CHUNK_BLOCKS;
            self.used[(chunk / 64) as usize].fetch_or(1 << (chunk % 64), Ordering::Relaxed);
        }
    }

    fn chunk(&self, number: u64) -> BlockRange {
        BlockRange::new(number * CHUNK_BLOCKS, ((number + 1) * CHUNK_BLOCKS).min(self.blocks))
    }

    /// True when some blocks may be resident and not durable.
    pub fn has_dirty(&self) -> bool {
        self.dirty.iter().any(|bits| bits.load(Ordering::Relaxed) != 0)
    }

    /// Takes all runs that are resident and not durable. Who takes them must make them durable or hand them back
    /// with [`States::put_back`].
    pub fn take_dirty(&self) -> Vec<BlockRange> {
        let mut found = Vec::new();
        let mut joiner = Joiner::new(|run| found.push(run));
        for (at, cell) in self.dirty.iter().enumerate() {
            if cell.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = cell.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let chunk = at as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                for (index, mask) in spans(self.chunk(chunk)) {
                    let word = self.words.word(index).load(Ordering::Acquire);
                    let new = having(word, mask, RESIDENT) & !(word >> 3);
                    runs(index, new, |start, end| joiner.add(start, end));
                }
            }
        }
        joiner.finish();
        found
    }

    /// Hands back what could not be made durable.
    pub fn put_back(&self, taken: &[BlockRange]) {
        for run in taken {
            for chunk in run.start.0 / CHUNK_BLOCKS..run.end.0.div_ceil(CHUNK_BLOCKS) {
                self.dirty[(chunk / 64) as usize].fetch_or(1 << (chunk % 64), Ordering::AcqRel);
            }
        }
    }

    /// Marks blocks as durable: their bytes and the journal's record of them are on disk.
    pub fn set_durable(&self, taken: &[BlockRange]) {
        for &run in taken {
            for (index, mask) in spans(run) {
                self.words.word(index).fetch_or(mask * DURABLE, Ordering::Relaxed);
            }
        }
    }

    /// All durable runs in order, for a snapshot of the journal.
    pub fn durable(&self) -> Vec<BlockRange> {
        let mut found = Vec::new();
        let mut joiner = Joiner::new(|run| found.push(run));
        for (at, cell) in self.used.iter().enumerate() {
            let mut bits = cell.load(Ordering::Relaxed);
            while bits != 0 {
                let chunk = at as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                for (index, mask) in spans(self.chunk(chunk)) {
                    let durable = self.words.word(index).load(Ordering::Relaxed) >> 3 & mask;
                    runs(index, durable, |start, end| joiner.add(start, end));
                }
            }
        }
        joiner.finish();
        found
    }
}

#[cfg(all(test, not(vmstream_shuttle)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const N: u64 = 3 * CHUNK_BLOCKS + 77;

    #[derive(Clone, Debug)]
    enum Step {
        Claim(BlockRange),
        Publish(BlockRange, bool),
        Fill(BlockRange, bool),
        Touch(BlockRange),
        Sync(bool),
    }

    fn range() -> impl Strategy<Value = BlockRange> {
        (0..N, 0..90u64).prop_map(|(s, n)| BlockRange::new(s, (s + n).min(N)))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            range().prop_map(Step::Claim),
            (range(), any::<bool>()).prop_map(|(r, ok)| Step::Publish(r, ok)),
            (range(), any::<bool>()).prop_map(|(r, ok)| Step::Fill(r, ok)),
            range().prop_map(Step::Touch),
            any::<bool>().prop_map(Step::Sync),
        ]
    }

    proptest! {
        /// Every operation agrees with one byte a block.
        #[test]
        fn states_agree_with_a_plain_model(steps in proptest::collection::vec(step(), 1..60)) {
            let s = States::new(N).unwrap();
            let mut model = vec![State::Absent; N as usize];
            let mut touched = vec![false; N as usize];
            let mut durable = vec![false; N as usize];
            let slice = |r: BlockRange| r.start.0 as usize..r.end.0 as usize;
            for step in steps {
                match step {
                    Step::Claim(r) => {
                        let free = model[slice(r)].iter().all(|s| matches!(s, State::Absent | State::Resident));
                        prop_assert_eq!(s.claim(r), free);
                        if free {
                            model[slice(r)].iter_mut().filter(|s| **s == State::Absent).for_each(|s| *s = State::Claimed);
                        }
                    }
                    Step::Publish(r, ok) => {
                        s.publish(r, ok);
                        let to = if ok { State::Resident } else { State::Absent };
                        model[slice(r)].iter_mut().filter(|s| **s == State::Claimed).for_each(|s| *s = to);
                    }
                    Step::Fill(r, ok) => {
                        let mut got = Vec::new();
                        s.fill_begin(r, |run| got.push(run));
                        let want: Vec<_> = r.iter().filter(|b| model[b.0 as usize] == State::Absent).collect();
                        prop_assert_eq!(got.iter().flat_map(|run| run.iter()).collect::<Vec<_>>(), want);
                        for run in got {
                            prop_assert!(run.iter().all(|b| s.state(b) == State::Filling));
                            s.fill_end(run, ok);
                            if ok {
                                model[slice(run)].fill(State::Resident);
                            }
                        }
                    }
                    Step::Touch(r) => {
                        s.touch(r);
                        touched[slice(r)].fill(true);
                    }
                    Step::Sync(ok) => {
                        let taken = s.take_dirty();
                        let want: Vec<_> = (0..N).filter(|&b| model[b as usize] == State::Resident && !durable[b as usize]).collect();
                        prop_assert_eq!(taken.iter().flat_map(|r| r.iter()).map(|b| b.0).collect::<Vec<_>>(), want);
                        if ok {
                            s.set_durable(&taken);
                            taken.iter().for_each(|&r| durable[slice(r)].fill(true));
                        } else {
                            s.put_back(&taken);
                        }
                    }
                }
            }
            for b in 0..N {
                prop_assert_eq!(s.state(Block(b)), model[b as usize]);
            }
            prop_assert_eq!(s.resident_count(), model.iter().filter(|s| **s == State::Resident).count() as u64);
            prop_assert_eq!(s.durable().iter().map(|r| r.len()).sum::<u64>(), durable.iter().filter(|d| **d).count() as u64);
            for start in (0..N - 40).step_by(97) {
                let r = BlockRange::new(start, start + 40);
                let resident = model[slice(r)].iter().all(|s| *s == State::Resident);
                let known = touched[slice(r)].iter().all(|t| *t);
                let want = if !resident { Look::Missing } else if known { Look::Known } else { Look::First };
                prop_assert_eq!(s.look(r), want);
                prop_assert_eq!(s.is_known(r), want == Look::Known);
                let first = |f: &dyn Fn(State) -> bool| r.iter().find(|b| f(model[b.0 as usize]));
                prop_assert_eq!(s.first_missing(r), first(&|s| s != State::Resident));
                prop_assert_eq!(s.first_resident(r), first(&|s| s == State::Resident));
                prop_assert_eq!(s.first_absent(r), first(&|s| s == State::Absent));
                prop_assert_eq!(s.first_present(r), first(&|s| s != State::Absent));
            }
        }
    }

    #[test]
    fn restored_blocks_are_resident_durable_and_not_new() {
        let s = States::new(N).unwrap();
        s.restore(BlockRange::new(10, 9000));
        s.restore(BlockRange::new(8990, 9001));
        assert_eq!(s.resident_count(), 8991);
        assert!(!s.has_dirty() && s.take_dirty().is_empty());
        assert_eq!(s.durable(), [BlockRange::new(10, 9001)]);
    }
}
