//! What training keeps of a session: its first touches, as runs, in milliseconds.
//!
//! The recordings are the evidence from which sequences and paths can be made anew when more sessions are learnt, so they
//! lie in the model file too, in a section that only training reads. The block contents, operations and marks of a session
//! are not in it.

use super::bytes::{Reader, put, put_step};
use crate::block::{Block, BlockRange, Geometry};
use crate::session::Session;

/// Most blocks that a recording lists: the start of the session counts. 512 MiB in blocks of 4 KiB, which no ordinary
/// session reaches, and little of a program that reads a whole disk.
pub(super) const TOUCHES_MAX: u32 = 1 << 17;

/// Neighbouring blocks that were first touched in one millisecond, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Milliseconds since the session's start on the guest's clock.
    pub at_ms: u32,
    /// How many, at least one.
    pub blocks: u32,
    /// The first of them.
    pub start: Block,
}

impl Run {
    /// The blocks.
    pub fn range(self) -> BlockRange {
        BlockRange::new(self.start.0, self.start.0 + u64::from(self.blocks))
    }
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recording {
    /// Sessions that were learnt by later calls.
    pub age: u32,
    /// Blocks that the session touched in all, also those behind the end of `runs`.
    pub touched: u32,
    /// Blocks in `runs`, at most [`TOUCHES_MAX`].
    pub listed: u32,
    /// First touches, in order of time.
    pub runs: Vec<Run>,
}

impl Recording {
    /// The recording of a session, of age 0.
    pub fn new(session: &Session) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        let (mut touched, mut listed) = (0u64, 0);
        for (at, range) in session.first_needs() {
            touched += range.len();
            let blocks = range.len().min(u64::from(TOUCHES_MAX - listed)) as u32;
            if blocks == 0 {
                continue;
            }
            listed += blocks;
            // 49 days; a guest that runs for longer has long ceased to tell anything about a start.
            let at_ms = at.as_millis().try_into().unwrap_or(u32::MAX);
            match runs.last_mut() {
                Some(run) if run.at_ms == at_ms && run.range().end == range.start => run.blocks += blocks,
                _ => runs.push(Run { at_ms, blocks, start: range.start }),
            }
        }
        runs.shrink_to_fit();
        Self { age: 0, touched: touched.try_into().unwrap_or(u32::MAX), listed, runs }
    }

    /// The recording as it would be of another version of the image, where each block lies at `place` of it, or nowhere any
    /// more.
    pub fn moved(&self, place: &dyn Fn(Block) -> Option<Block>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        let mut listed = 0;
        for run in &self.runs {
            for start in run.range().iter().filter_map(place) {
                listed += 1;
                match runs.last_mut() {
                    Some(last) if last.at_ms == run.at_ms && last.range().end == start => last.blocks += 1,
                    _ => runs.push(Run { at_ms: run.at_ms, blocks: 1, start }),
                }
            }
        }
        Self { age: self.age, touched: self.touched - self.listed + listed, listed, runs }
    }

    /// A number that tells sessions apart, whatever they are called and in whatever order they come: the first eight bytes
    /// of BLAKE3 over the recorded bytes. Of two sessions with one number only one would be learnt, and which of many are
    /// kept goes by it, so a stranger who sends sessions must not be able to make a number at will.
    pub fn identity(&self) -> u64 {
        let mut bytes = Vec::new();
        self.put_touches(&mut bytes);
        let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(&bytes).as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Appends the recording in the form of the file.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.age.into());
        self.put_touches(out);
    }

    fn put_touches(&self, out: &mut Vec<u8>) {
        put(out, self.touched.into());
        put(out, self.runs.len() as u64);
        let (mut at_ms, mut end) = (0, 0);
        for run in &self.runs {
            let later = run.at_ms - at_ms;
            // Most runs come in the millisecond of the one before.
            put(out, u64::from(run.blocks - 1) << 1 | u64::from(later > 0));
            if later > 0 {
                put(out, later.into());
            }
            put_step(out, end, run.start.0);
            (at_ms, end) = (run.at_ms, run.range().end.0);
        }
    }

    /// Reads a recording; `None` unless all of it makes sense for the image.
    pub fn decode(reader: &mut Reader<'_>, geometry: Geometry) -> Option<Self> {
        let age = reader.take_small()?;
        let touched = reader.take_small()?;
        let count = reader.take_count()?;
        let mut runs = Vec::with_capacity(count);
        let (mut at_ms, mut end, mut listed) = (0u32, 0, 0u32);
        for _ in 0..count {
            let head = reader.take()?;
            let blocks = u32::try_from(head >> 1).ok()?.checked_add(1)?;
            if head & 1 == 1 {
                at_ms = at_ms.checked_add(reader.take_small()?)?;
            }
            let start = reader.take_step(end)?;
            end = start.checked_add(blocks.into())?;
            listed = listed.checked_add(blocks)?;
            if end > geometry.blocks() || listed > TOUCHES_MAX {
                return None;
            }
            runs.push(Run { at_ms, blocks, start: Block(start) });
        }
        (touched >= listed).then_some(Self { age, touched, listed, runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::text;

    fn session(lines: &str) -> Session {
        text::parse("test", format!("# vmtrace 1 size=1000000000 block=4096\n{lines}").as_bytes()).unwrap()
    }

    fn roundtrip(recording: &Recording, geometry: Geometry) -> Option<Recording> {
        let mut bytes = Vec::new();
        recording.encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        Recording::decode(&mut reader, geometry).filter(|_| reader.is_empty())
    }

    #[test]
    fn a_recording_is_the_first_touches_in_milliseconds() {
        let session = session("1000 R 8192 8192\n1100 R 16384 4096\n3000 R 0 16384\n3000 R 999997440 2560\n");
        let recording = Recording { age: 300, ..Recording::new(&session) };
        let run = |at_ms, start, blocks| Run { at_ms, blocks, start: Block(start) };
        assert_eq!(recording.runs, [run(1, 2, 3), run(3, 0, 2), run(3, 244_140, 1)]);
        assert_eq!((recording.touched, recording.listed), (6, 6));
        assert_eq!(roundtrip(&recording, session.geometry).as_ref(), Some(&recording));
        let smaller = Geometry::new(4096 * 1000, 4096).unwrap();
        assert_eq!(roundtrip(&recording, smaller), None, "its last block lies outside");
    }

    #[test]
    fn a_recording_moves_with_its_blocks() {
        let recording = Recording { age: 7, ..Recording::new(&session("1000 R 0 16384\n2000 R 40960 4096\n")) };
        // 0 stays, 1 is gone, 2 and 3 lie further on, 10 has come to lie behind them.
        let moved = recording.moved(&|block| match block.0 {
            0 => Some(block),
            2 | 3 => Some(Block(block.0 + 5)),
            10 => Some(Block(9)),
            _ => None,
        });
        let run = |at_ms, start, blocks| Run { at_ms, blocks, start: Block(start) };
        assert_eq!(moved.runs, [run(1, 0, 1), run(1, 7, 2), run(2, 9, 1)]);
        assert_eq!((moved.age, moved.listed, moved.touched), (7, 4, 4));
    }

    /// The example of docs/format-model.md.
    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut bytes = Vec::new();
        Recording::new(&session("1000 R 8192 12288\n3000 R 0 8192\n")).encode(&mut bytes);
        assert_eq!(bytes, [0, 5, 2, 5, 1, 4, 3, 2, 9]);
    }

    #[test]
    fn a_session_without_end_is_cut_and_its_size_remembered() {
        let lines: String = (0..200).map(|i| format!("{i} R {} 4194304\n", i * 4_194_304u64)).collect();
        let session = session(&lines);
        let recording = Recording::new(&session);
        assert_eq!((recording.touched, recording.listed), (200 << 10, TOUCHES_MAX));
        assert_eq!(roundtrip(&recording, session.geometry), Some(recording));
    }

    #[test]
    fn identity_is_of_what_was_touched_and_when() {
        let a = Recording::new(&session("1000 R 8192 8192\n"));
        assert_eq!(a.identity(), Recording { age: 7, ..a.clone() }.identity());
        assert_ne!(a.identity(), Recording::new(&session("2000 R 8192 8192\n")).identity());
        assert_ne!(a.identity(), Recording::new(&session("1000 R 8192 4096\n")).identity());
    }
}
