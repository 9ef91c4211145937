//! The sink that puts frames together as their bytes come, and opens them.
//!
//! A frame can be opened when the hash pages are here that check its blocks. It brings those that no frame before it in the
//! file has brought, so frames that are fetched in the order of the file never wait. A guest that takes another path has them
//! in another order, and frames that go over several connections overtake each other. Then pages are fetched by
//! themselves, *beside* the frames: before the request for the frames goes out, what they will lack and nothing on its
//! way brings is asked for. What still lacks a page when it is here is laid aside, and those behind it go on. It is opened
//! in the middle of what follows as soon as its pages are here, whoever brought them.
//!
//! When all is here and the lane is free again the worker sees to what is still aside: for a moment it waits for the frames
//! that bring those pages, if they are on their way, and then asks for the pages. It never waits for a frame without limit,
//! so no two workers can wait for each other.

use std::ops::Range;

use super::arrivals::Arrival;
use super::place::Files;
use super::room::Room;
use super::{FrameSink, Frames};
use crate::block::BlockRange;
use crate::source::{FetchError, Sink, Stop};
use crate::tree::PageId;

/// Longest frame that is taken from anywhere, packed and with its proof, in bytes: many times what any publisher makes.
pub const FRAME_BYTES_MAX: u64 = 32 << 20;
/// Zeroes that a place reports are taken in pieces of this many bytes.
const ZEROES_BYTES: usize = 16 << 10;

/// Why frames did not come, or not all of them.
pub(super) enum Ended {
    /// One of them is not what was published.
    Lie(String),
    /// The pages that check it do not come.
    Pages(FetchError),
    /// The packs do not come.
    Packs(FetchError),
}

/// What opening frames takes.
#[derive(Clone, Copy)]
pub(super) struct Opening<'a> {
    /// Who can.
    pub frames: &'a dyn Frames,
    /// Memory.
    pub room: &'a Room,
    /// Says when not to wait for that any more.
    pub stopped: &'a dyn Fn() -> bool,
}

/// The sink of one request for frames.
pub(super) struct Framed<'a> {
    opening: Opening<'a>,
    files: &'a Files,
    sink: &'a mut dyn FrameSink,
    arrival: Arrival<'a>,
    /// The frames that have not come, and the lengths of all that were asked for, in bytes.
    frames: Range<u32>,
    lengths: Vec<u32>,
    /// What has come of the next one.
    held: Vec<u8>,
    /// Frames that lack pages, in order. Together no longer than the request.
    aside: Vec<Aside>,
    /// [`super::pages::Pages::tidings`] when those were looked at last.
    tidings: u64,
    /// The first frame that the sink has not been told of as done.
    undone: u32,
    /// Why no more of them are opened.
    ended: Option<Ended>,
}

/// A frame that was laid aside.
struct Aside {
    frame: u32,
    bytes: Vec<u8>,
    /// It could not be opened though nothing of what others bring was lacking. It waits for the end.
    odd: bool,
}

impl<'a> Framed<'a> {
    /// For so many frames of these `lengths`, which are on their way with `arrival`.
    pub fn new(
        opening: Opening<'a>,
        files: &'a Files,
        sink: &'a mut dyn FrameSink,
        arrival: Arrival<'a>,
        frames: Range<u32>,
        lengths: Vec<u32>,
    ) -> Self {
        let (undone, tidings) = (frames.start, files.pages.tidings());
        let (held, aside, ended) = (Vec::new(), Vec::new(), None);
        Self { opening, files, sink, arrival, frames, lengths, held, aside, tidings, undone, ended }
    }

    /// Opens a frame and hands its blocks on; false when it lacks pages.
    fn open(&mut self, frame: u32, bytes: &[u8]) -> Result<bool, Stop> {
        let Opening { frames, room, stopped: closing } = self.opening;
        let geometry = self.files.tree.geometry();
        let blocks: u64 = frames.blocks_of(frame).iter().map(|range| geometry.length(*range)).sum();
        // The blocks, and as much again for the decompressor.
        let Some(_room) = room.take(2 * blocks, closing) else { return Err(Stop) };
        let sink = &mut *self.sink;
        let mut stopped = false;
        let mut out = |range: BlockRange, bytes: &[u8]| stopped = stopped || sink.blocks(range, bytes).is_err();
        match frames.unpack(frame, bytes, &self.files.tree, &mut out) {
            Ok(()) if stopped => Err(Stop),
            Ok(()) => {
                self.arrival.leave(frame..frame + 1);
                self.files.pages.tell();
                Ok(true)
            }
            Err(lie) if lie.is_missing() => Ok(false),
            Err(lie) => {
                self.ended = Some(Ended::Lie(format!("frame {frame}: {lie}")));
                Err(Stop)
            }
        }
    }

    /// The hash pages that a frame lacks and does not bring itself.
    fn lacks(&self, frame: u32) -> Vec<PageId> {
        let tree = &self.files.tree;
        let ranges = self.opening.frames.blocks_of(frame).into_iter();
        ranges
            .flat_map(|range| tree.missing(range))
            .filter(|&page| self.opening.frames.prover(page, tree) != Some(frame))
            .collect()
    }

    /// Takes the next frame, which has come as a whole.
    fn take(&mut self) -> Result<(), Stop> {
        let frame = self.frames.start;
        let bytes = std::mem::take(&mut self.held);
        let ready = self.lacks(frame).is_empty();
        if ready && self.open(frame, &bytes)? {
            self.held = bytes;
            self.held.clear();
        } else {
            self.lay_aside(Aside { frame, bytes, odd: ready });
        }
        self.frames.start += 1;
        self.tell()
    }

    fn lay_aside(&mut self, one: Aside) {
        if one.odd {
            // Nobody shall wait for what it brings.
            self.arrival.leave(one.frame..one.frame + 1);
        }
        self.aside.push(one);
    }

    /// Opens those of the frames aside whose pages are here by now.
    fn open_ready(&mut self) -> Result<(), Stop> {
        self.tidings = self.files.pages.tidings();
        let mut aside = std::mem::take(&mut self.aside).into_iter();
        let mut opened = Ok(());
        for mut one in aside.by_ref() {
            if !one.odd && self.lacks(one.frame).is_empty() {
                match self.open(one.frame, &one.bytes) {
                    Ok(true) => continue,
                    Ok(false) => one.odd = true,
                    // It is not what was published. The others may be, and in the end it is looked at again.
                    Err(Stop) if self.ended.take().is_some() => one.odd = true,
                    Err(Stop) => {
                        opened = Err(Stop);
                        self.aside.push(one);
                        break;
                    }
                }
            }
            self.lay_aside(one);
        }
        self.aside.extend(aside);
        opened.and_then(|()| self.tell())
    }

    /// Tells the sink of the frames that are done, in order: up to the first one that was laid aside.
    fn tell(&mut self) -> Result<(), Stop> {
        let end = self.aside.first().map_or(self.frames.start, |aside| aside.frame);
        while self.undone < end {
            self.sink.frame_done(self.undone)?;
            self.undone += 1;
        }
        Ok(())
    }

    /// What was wrong with the frame that came last, when that ended it.
    pub fn lie(&self) -> Option<&str> {
        match &self.ended {
            Some(Ended::Lie(why)) => Some(why),
            _ => None,
        }
    }

    /// Begins anew with the frame that came last, of which nothing was taken: where it and the rest lie, when those that
    /// were asked for begin at `offset`.
    pub fn rest(&mut self, offset: u64) -> (u64, u64) {
        (self.ended, self.held) = (None, Vec::new());
        let bytes = |lengths: &[u32]| lengths.iter().map(|length| u64::from(*length)).sum::<u64>();
        let (come, left) = self.lengths.split_at(self.lengths.len() - self.frames.len());
        (offset + bytes(come), bytes(left))
    }

    /// Opens what was laid aside, and says how it all ended: `result` is that of the transfer, `failures` what
    /// [`super::pages::Pages::want_these`] answered before it. The `lane` must be free again.
    pub fn finish(mut self, result: Result<(), FetchError>, failures: u64, lane: usize) -> Result<(), Ended> {
        // Also when the transfer broke off: those frames need not come again.
        let opened = if self.ended.is_some() { Err(Stop) } else { self.open_aside(failures, lane) };
        match (self.ended, opened, result) {
            (Some(ended), _, _) => Err(ended),
            (None, _, Err(failure)) => Err(Ended::Packs(failure)),
            (None, Err(Stop), Ok(())) => Err(Ended::Packs(FetchError::Stopped)),
            (None, Ok(()), Ok(())) if self.frames.is_empty() => Ok(()),
            (None, Ok(()), Ok(())) => {
                let name = self.files.packs.as_ref().map_or_else(String::new, |(_, packs)| packs.name());
                Err(Ended::Packs(FetchError::transient(format!("{name}: sent less than asked for"))))
            }
        }
    }

    fn open_aside(&mut self, failures: u64, lane: usize) -> Result<(), Stop> {
        // Nobody shall wait for what does not come any more.
        self.arrival.leave(self.frames.clone());
        self.open_ready()?;
        while self.aside.iter().any(|aside| !aside.odd) {
            let settled = self.files.pages.settle_these(|| self.lacking(), |page| self.comes(page), failures, lane);
            self.settled(settled)?;
            self.open_ready()?;
        }
        for Aside { frame, bytes, .. } in std::mem::take(&mut self.aside) {
            for range in self.opening.frames.blocks_of(frame) {
                let settled = self.files.pages.settle(range, failures, lane);
                self.settled(settled)?;
            }
            if !self.open(frame, &bytes)? {
                self.ended = Some(Ended::Lie(format!("frame {frame}: its proof does not prove it")));
                return Err(Stop);
            }
        }
        self.tell()
    }

    fn settled(&mut self, settled: Result<(), FetchError>) -> Result<(), Stop> {
        settled.map_err(|failure| {
            self.ended = Some(Ended::Pages(failure));
            Stop
        })
    }

    /// The pages that keep frames aside; none as soon as one of those can be opened.
    fn lacking(&self) -> Vec<PageId> {
        let mut lacking = Vec::new();
        for aside in self.aside.iter().filter(|aside| !aside.odd) {
            let lacks = self.lacks(aside.frame);
            if lacks.is_empty() {
                return Vec::new();
            }
            lacking.extend(lacks);
        }
        lacking.sort_unstable();
        lacking.dedup();
        lacking
    }

    /// True for a page that a frame brings which is on its way.
    fn comes(&self, page: PageId) -> bool {
        self.opening.frames.prover(page, &self.files.tree).is_some_and(|frame| self.arrival.has(frame))
    }
}

impl Sink for Framed<'_> {
    fn data(&mut self, _: u64, mut bytes: &[u8]) -> Result<(), Stop> {
        self.sink.received(bytes.len() as u64);
        if !self.aside.is_empty() && self.tidings != self.files.pages.tidings() {
            self.open_ready()?;
        }
        while !bytes.is_empty() {
            let at = self.lengths.len() - self.frames.len();
            let Some(length) = self.lengths.get(at).map(|length| *length as usize) else { return Err(Stop) };
            let (now, later) = bytes.split_at(bytes.len().min(length - self.held.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() == length {
                self.take()?;
            }
        }
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        // Frames of zeroes are no frames: the first one ends it, at the latest when all are here.
        let mut left = length;
        while left > 0 {
            let piece = left.min(ZEROES_BYTES as u64);
            self.data(offset, &[0; ZEROES_BYTES][..piece as usize])?;
            left -= piece;
        }
        Ok(())
    }
}
