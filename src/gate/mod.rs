//! The gate: what a disk driver calls on every access.
//!
//! A resident block costs one Acquire load. Everything else is a push to a fixed ring and a wake-up. On no path does
//! the gate allocate, touch thread-local storage or errno, take a lock, or use more than a few hundred bytes of stack,
//! because its caller may be a thread made by a raw `clone(CLONE_VM)` that shares its parent's thread-local storage and
//! has a stack of one page. Only the blocking form sleeps, on a futex.
//!
//! Read → resident: ready. Write → the blocks wholly covered are claimed, with no fetch, and only partial edges have to
//! be resident; ready when both hold. What is not ready goes to the engine, which answers exactly once.

mod ring;
mod signal;
pub mod states;
mod waiters;
mod words;

pub use ring::{Entry, Ring};
pub use signal::{ENGINE_SEAT, SEATS, Signal};
pub use states::{Look, State, States};

use crate::block::{Block, BlockRange, Geometry};
use crate::config::Config;
use crate::error::{Result, errno};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence, pause};
use crate::time::Moment;
use waiters::Waiters;

/// What a driver is about to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Read it from the local file.
    Read = 0,
    /// Overwrite it in the local file.
    Write = 1,
    /// Discard it: afterwards it reads as the driver leaves it, usually as zeroes.
    Discard = 2,
    /// Make all finished writes durable. Range ignored.
    Flush = 3,
}

impl Op {
    /// The ranges whose old contents it needs, if it touches these blocks and covers those as a whole: all of a read's, the
    /// edges of a write's.
    pub fn needs(self, touched: BlockRange, covered: BlockRange) -> [BlockRange; 2] {
        let none = BlockRange { start: touched.start, end: touched.start };
        match self {
            Self::Flush => [none, none],
            Self::Read => [touched, none],
            Self::Write | Self::Discard if covered.is_empty() => [touched, none],
            Self::Write | Self::Discard => [
                BlockRange { start: touched.start, end: covered.start },
                BlockRange { start: covered.end, end: touched.end },
            ],
        }
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            1 => Op::Write,
            2 => Op::Discard,
            3 => Op::Flush,
            _ => Op::Read,
        }
    }
}

/// The gate's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go ahead now.
    Ready,
    /// Wait: one completion with the same tag will come.
    Pending,
}

/// Where the answer to a pending request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To the completion callback or queue, with the caller's tag.
    Tag(u64),
    /// To a sleeper in the blocking form.
    Place(usize),
}

/// A request that was not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// What the guest wants to do.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// Where the answer goes.
    pub reply: Reply,
}

/// A first touch of resident blocks. Notes may be lost, never delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// What the guest does.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// When.
    pub at: Moment,
}

/// First touches kept until the engine looks; what does not fit is lost to the predictor, not to the guest.
const NOTES_MAX: usize = 4096;
/// Threads that may sleep in the blocking form at once; further ones try again.
const WAITERS_MAX: usize = 256;

/// The gate of one image.
#[derive(Debug)]
pub struct Gate {
    /// The states of the blocks.
    pub states: States,
    /// Who sleeps where.
    pub signal: Signal,
    geometry: Geometry,
    read_only: bool,
    misses: Ring,
    notes: Ring,
    waiters: Waiters,
    /// Requests that were answered "pending" and not completed yet.
    outstanding: AtomicU64,
    pending_max: u64,
    closed: AtomicBool,
    /// The engine waits for the end of some guest write.
    watching: AtomicBool,
    /// Such an end came.
    attention: AtomicBool,
    /// Somebody should look at the notes soon.
    notes_wanted: AtomicBool,
    /// First touches of resident blocks so far.
    first_hits: AtomicU64,
    /// Those of them for whose notes there was no room, since somebody last asked.
    notes_lost: AtomicU64,
    /// Callers inside the blocking form.
    sleepers: AtomicU32,
}

impl Gate {
    /// A gate for an image whose blocks are all absent.
    pub fn new(geometry: Geometry, config: &Config) -> Result<Self> {
        Ok(Self {
            states: States::new(geometry.blocks())?,
            signal: Signal::default(),
            geometry,
            read_only: config.read_only,
            misses: Ring::new(config.ring),
            notes: Ring::new(if cfg!(vmstream_shuttle) { 2 } else { NOTES_MAX }),
            waiters: Waiters::new(if cfg!(vmstream_shuttle) { 4 } else { WAITERS_MAX }),
            outstanding: AtomicU64::new(0),
            pending_max: config.pending_max as u64,
            closed: AtomicBool::new(false),
            watching: AtomicBool::new(false),
            attention: AtomicBool::new(false),
            notes_wanted: AtomicBool::new(true),
            first_hits: AtomicU64::new(0),
            notes_lost: AtomicU64::new(0),
            sleepers: AtomicU32::new(0),
        })
    }

    /// The image's geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Asks for a byte range before the driver touches it. `Err` is a positive errno: EINVAL for a range outside the
    /// image, EROFS, EAGAIN when too many requests are unanswered, ECANCELED when the image is closing.
    #[inline]
    pub fn needed(&self, op: Op, offset: u64, length: u64, tag: u64) -> std::result::Result<Answer, i32> {
        if self.try_ready(op, offset, length)? {
            return Ok(Answer::Ready);
        }
        self.miss(Miss { op, offset, length, reply: Reply::Tag(tag) })?;
        Ok(Answer::Pending)
    }

    /// True when [`Gate::needed`] would answer "ready" without anything to note: the way of nearly all calls. There is
    /// no panic in it, so the C boundary can do without its guard, which costs as much as all the rest.
    #[inline]
    pub fn is_known(&self, op: Op, offset: u64, length: u64) -> bool {
        (op == Op::Read || (op != Op::Flush && !self.read_only))
            && self.geometry.contains(offset, length)
            && self.states.is_known(self.geometry.touched(offset, length))
    }

    /// Whether the byte at `offset` is resident, and how many bytes from there on, at most `length`, are of the same
    /// kind. Asks for nothing and notes nothing. `Err` is EINVAL for a range outside the image.
    pub fn resident(&self, offset: u64, length: u64) -> std::result::Result<(bool, u64), i32> {
        if !self.geometry.contains(offset, length) {
            return Err(errno::EINVAL);
        }
        let blocks = self.geometry.touched(offset, length);
        let Some(first) = blocks.iter().next() else { return Ok((true, 0)) };
        let until = |other: Option<Block>| {
            let end = other.map_or(offset + length, |block| self.geometry.offset(BlockRange::new(block.0, block.0)));
            end.clamp(offset, offset + length) - offset
        };
        if self.states.state(first) != State::Resident {
            let absent = until(self.states.first_resident(blocks));
            if absent > 0 {
                return Ok((false, absent));
            }
            // The first block has become resident between the two looks, and stays so.
        }
        Ok((true, until(self.states.first_missing(blocks))))
    }

    /// The blocking form: returns when the range is ready. `Err` is a positive errno.
    pub fn wait(&self, op: Op, offset: u64, length: u64) -> std::result::Result<(), i32> {
        if self.try_ready(op, offset, length)? {
            return Ok(());
        }
        self.sleepers.fetch_add(1, Ordering::AcqRel);
        let result = self.wait_missing(op, offset, length);
        self.sleepers.fetch_sub(1, Ordering::AcqRel);
        result
    }

    fn wait_missing(&self, op: Op, offset: u64, length: u64) -> std::result::Result<(), i32> {
        loop {
            let Some(place) = self.waiters.take() else {
                self.check_open()?;
                pause();
                continue;
            };
            match self.miss(Miss { op, offset, length, reply: Reply::Place(place) }) {
                Ok(()) => {
                    return match self.waiters.wait(place) {
                        0 => Ok(()),
                        result => Err(-result),
                    };
                }
                Err(error) => {
                    self.waiters.release(place);
                    if error != errno::EAGAIN {
                        return Err(error);
                    }
                    pause();
                }
            }
        }
    }

    fn check_open(&self) -> std::result::Result<(), i32> {
        if self.closed.load(Ordering::Acquire) { Err(errno::ECANCELED) } else { Ok(()) }
    }

    /// The fast path. True: go ahead.
    #[inline]
    fn try_ready(&self, op: Op, offset: u64, length: u64) -> std::result::Result<bool, i32> {
        if !self.geometry.contains(offset, length) {
            return if op == Op::Flush { Ok(false) } else { Err(errno::EINVAL) };
        }
        if op == Op::Flush {
            return Ok(false);
        }
        if op != Op::Read && self.read_only {
            return Err(errno::EROFS);
        }
        let range = self.geometry.touched(offset, length);
        match self.states.look(range) {
            Look::Known => Ok(true),
            Look::First => {
                self.note(op, offset, length);
                Ok(true)
            }
            Look::Missing if op == Op::Read => Ok(false),
            Look::Missing => Ok(self.try_claim(op, offset, length, range)),
        }
    }

    /// A guest write to blocks that are not all resident: claims what it covers, if its edges are there.
    #[cold]
    fn try_claim(&self, op: Op, offset: u64, length: u64, range: BlockRange) -> bool {
        let covered = self.geometry.covered(offset, length);
        if covered.is_empty() {
            return false;
        }
        if op.needs(range, covered).iter().any(|&edge| self.states.first_missing(edge).is_some()) {
            return false;
        }
        if !self.states.claim(covered) {
            self.write_ended(); // a claim taken back may be what somebody waits for
            return false;
        }
        self.note(op, offset, length);
        true
    }

    #[cold]
    fn note(&self, op: Op, offset: u64, length: u64) {
        self.states.touch(self.geometry.touched(offset, length));
        self.first_hits.fetch_add(1, Ordering::Relaxed);
        if !self.notes.push([op as u64, offset, length, Moment::now().0]) {
            self.notes_lost.fetch_add(1, Ordering::Relaxed);
        } else if self.notes_wanted.load(Ordering::Relaxed) && self.notes_wanted.swap(false, Ordering::AcqRel) {
            self.signal.ring_seat(ENGINE_SEAT);
        }
    }

    #[cold]
    fn miss(&self, miss: Miss) -> std::result::Result<(), i32> {
        self.check_open()?;
        if self.outstanding.fetch_add(1, Ordering::AcqRel) >= self.pending_max {
            self.outstanding.fetch_sub(1, Ordering::AcqRel);
            return Err(errno::EAGAIN);
        }
        let (kind, reply) = match miss.reply {
            Reply::Tag(tag) => (0, tag),
            Reply::Place(place) => (4, place as u64),
        };
        if !self.misses.push([miss.op as u64 | kind, miss.offset, miss.length, reply]) {
            self.outstanding.fetch_sub(1, Ordering::AcqRel);
            return Err(errno::EAGAIN);
        }
        self.signal.ring();
        Ok(())
    }

    /// The end of a write or discard that was answered "ready": `written` says whether the local file now holds it.
    pub fn done(&self, op: Op, offset: u64, length: u64, written: bool) -> std::result::Result<(), i32> {
        if !self.geometry.contains(offset, length) {
            return Err(errno::EINVAL);
        }
        if matches!(op, Op::Write | Op::Discard) && self.states.publish(self.geometry.covered(offset, length), written)
        {
            self.write_ended();
        }
        Ok(())
    }

    fn write_ended(&self) {
        // Pairs with the fence in `watch`: either the engine sees the new state, or this sees the engine watching.
        fence(Ordering::SeqCst);
        if self.watching.load(Ordering::Relaxed) {
            self.attention.store(true, Ordering::Release);
            self.signal.ring();
        }
    }

    // --- the engine's side: one thread at a time ---

    /// Says whether the engine waits for guest writes to end. It looks at the states again afterwards.
    pub fn watch(&self, on: bool) {
        self.watching.store(on, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// True once after guest writes ended that the engine waits for.
    pub fn take_attention(&self) -> bool {
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::AcqRel)
    }

    /// The next miss.
    pub fn next_miss(&self) -> Option<Miss> {
        let [bits, offset, length, reply] = self.misses.pop()?;
        let reply = if bits & 4 == 0 { Reply::Tag(reply) } else { Reply::Place(reply as usize) };
        Some(Miss { op: Op::from_bits(bits), offset, length, reply })
    }

    /// The next note of a first touch.
    pub fn next_note(&self) -> Option<Note> {
        let [op, offset, length, at] = self.notes.pop()?;
        Some(Note { op: Op::from_bits(op), offset, length, at: Moment(at) })
    }

    /// How many notes have been lost since this was last asked.
    pub fn take_lost_notes(&self) -> u64 {
        let lost = self.notes_lost.load(Ordering::Relaxed);
        if lost > 0 {
            self.notes_lost.fetch_sub(lost, Ordering::Relaxed);
        }
        lost
    }

    /// Asks that the next note wakes the engine.
    pub fn want_notes(&self) {
        self.notes_wanted.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// True when a miss or the end of a watched write waits for the engine; any thread may ask.
    pub fn has_work(&self) -> bool {
        !self.misses.is_empty() || self.attention.load(Ordering::Acquire)
    }

    /// True when notes wait.
    pub fn has_notes(&self) -> bool {
        !self.notes.is_empty()
    }

    /// Answers a sleeper of the blocking form.
    pub fn answer(&self, place: usize, result: i32) {
        self.waiters.answer(place, result);
    }

    /// Counts one pending request as completed. Exactly once for each miss, before its answer is given.
    pub fn completed(&self) {
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
    }

    /// Requests that are not completed yet.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Acquire)
    }

    /// First touches of resident blocks so far.
    pub fn first_hits(&self) -> u64 {
        self.first_hits.load(Ordering::Relaxed)
    }

    /// Refuses new misses from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// True once [`Gate::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// True while some thread is inside the blocking form's slow path.
    pub fn has_sleepers(&self) -> bool {
        self.sleepers.load(Ordering::Acquire) != 0
    }
}

#[cfg(all(test, not(vmstream_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn notes_for_which_there_is_no_room_are_counted() {
        let blocks = NOTES_MAX as u64 + 1000;
        let gate = Gate::new(Geometry::new(blocks * 4096, 4096).unwrap(), &Config::default()).unwrap();
        gate.states.restore(BlockRange::new(0, blocks));
        for block in 0..blocks {
            assert_eq!(gate.needed(Op::Read, block * 4096, 4096, 0), Ok(Answer::Ready));
        }
        assert_eq!((gate.first_hits(), gate.take_lost_notes(), gate.take_lost_notes()), (blocks, 1000, 0));
        let noted = std::iter::from_fn(|| gate.next_note()).map(|note| note.offset);
        assert!(noted.eq((0..NOTES_MAX as u64).map(|block| block * 4096)), "the first ones are kept");
        assert_eq!(gate.needed(Op::Read, 0, 4096, 0), Ok(Answer::Ready));
        assert_eq!(gate.take_lost_notes(), 0, "it was touched before");
    }
}
