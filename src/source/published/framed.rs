//! The sink that puts frames together as their bytes come, and opens them.
//!
//! A frame can be opened when the hash pages are here that check its blocks. It brings those that no frame before it in the
//! file has brought, so frames that are fetched in the order of the file never wait. A guest that takes another path has them
//! in another order, and then pages are fetched by themselves, *beside* the frames: before the request for the frames goes
//! out, what they will lack and nothing on its way brings is asked for. What still lacks a page when it is here is laid
//! aside, and those behind it go on. Only when all is here and the lane is free again does the worker see to the rest. So
//! what one frame lacks holds up no other one, and no connection stands still for it.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::place::Files;
use super::{FrameSink, Frames};
use crate::block::BlockRange;
use crate::source::{FetchError, Sink, Stop};

/// Longest frame that is taken from anywhere, packed and with its proof, in bytes: many times what any publisher makes.
pub const FRAME_BYTES_MAX: u64 = 32 << 20;

/// The frames that are being fetched from a place.
#[derive(Default)]
pub(super) struct Arrivals(Mutex<HashMap<u32, u32>>);

/// Some frames among them, until it is dropped.
pub(super) struct Arrival<'a> {
    arrivals: &'a Arrivals,
    frames: Range<u32>,
}

impl Arrivals {
    /// These frames are asked for now, perhaps not for the first time.
    pub fn begin(&self, frames: Range<u32>) -> Arrival<'_> {
        let mut coming = self.coming();
        frames.clone().for_each(|frame| *coming.entry(frame).or_default() += 1);
        drop(coming);
        Arrival { arrivals: self, frames }
    }

    /// True when a frame is on its way.
    pub fn has(&self, frame: u32) -> bool {
        self.coming().contains_key(&frame)
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<u32, u32>> {
        // Each change is complete in itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        let mut coming = self.arrivals.coming();
        for frame in self.frames.clone() {
            if let Some(times) = coming.get_mut(&frame) {
                *times -= 1;
                if *times == 0 {
                    coming.remove(&frame);
                }
            }
        }
    }
}

/// Why frames did not come, or not all of them.
pub(super) enum Ended {
    /// One of them is not what was published.
    Lie(String),
    /// The pages that check it do not come.
    Pages(FetchError),
    /// The packs do not come.
    Packs(FetchError),
}

/// The sink of one request for frames.
pub(super) struct Framed<'a> {
    opener: &'a Arc<dyn Frames>,
    files: &'a Files,
    sink: &'a mut dyn FrameSink,
    /// The frames that have not come, and the lengths of all that were asked for, in bytes.
    frames: Range<u32>,
    lengths: Vec<u32>,
    /// What has come of the next one.
    held: Vec<u8>,
    /// Frames that lack pages, in order. Together no longer than the request.
    aside: VecDeque<(u32, Vec<u8>)>,
    /// The first frame that the sink has not been told of as done.
    undone: u32,
    /// Why no more of them are opened.
    ended: Option<Ended>,
}

impl<'a> Framed<'a> {
    /// For so many frames of these `lengths`.
    pub fn new(
        opener: &'a Arc<dyn Frames>,
        files: &'a Files,
        sink: &'a mut dyn FrameSink,
        frames: Range<u32>,
        lengths: Vec<u32>,
    ) -> Self {
        let undone = frames.start;
        Self { opener, files, sink, frames, lengths, held: Vec::new(), aside: VecDeque::new(), undone, ended: None }
    }

    /// Opens a frame and hands its blocks on; false when it lacks pages.
    fn open(&mut self, frame: u32, bytes: &[u8]) -> Result<bool, Stop> {
        let sink = &mut *self.sink;
        let mut stopped = false;
        let mut out = |range: BlockRange, bytes: &[u8]| stopped = stopped || sink.blocks(range, bytes).is_err();
        match self.opener.unpack(frame, bytes, &self.files.tree, &mut out) {
            Ok(()) if stopped => Err(Stop),
            Ok(()) => Ok(true),
            Err(lie) if lie.is_missing() => Ok(false),
            Err(lie) => {
                self.ended = Some(Ended::Lie(format!("frame {frame}: {lie}")));
                Err(Stop)
            }
        }
    }

    /// Takes the next frame, which has come as a whole.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let frame = self.frames.start;
        if !self.open(frame, bytes)? {
            self.aside.push_back((frame, bytes.to_vec()));
        }
        self.frames.start += 1;
        self.tell()
    }

    /// Tells the sink of the frames that are done, in order: up to the first one that was laid aside.
    fn tell(&mut self) -> Result<(), Stop> {
        let end = self.aside.front().map_or(self.frames.start, |aside| aside.0);
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
        while let Some((frame, bytes)) = self.aside.pop_front() {
            if !self.open(frame, &bytes)? {
                for range in self.opener.blocks_of(frame) {
                    if let Err(failure) = self.files.pages.settle(range, failures, lane) {
                        self.ended = Some(Ended::Pages(failure));
                        return Err(Stop);
                    }
                }
                if !self.open(frame, &bytes)? {
                    self.ended = Some(Ended::Lie(format!("frame {frame}: its proof does not prove it")));
                    return Err(Stop);
                }
            }
            self.tell()?;
        }
        Ok(())
    }
}

impl Sink for Framed<'_> {
    fn data(&mut self, _: u64, mut bytes: &[u8]) -> Result<(), Stop> {
        self.sink.received(bytes.len() as u64);
        while !bytes.is_empty() {
            let at = self.lengths.len() - self.frames.len();
            let Some(length) = self.lengths.get(at).map(|length| *length as usize) else { return Err(Stop) };
            let (now, later) = bytes.split_at(bytes.len().min(length - self.held.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() == length {
                let mut held = std::mem::take(&mut self.held);
                self.take(&held)?;
                held.clear();
                self.held = held;
            }
        }
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        // Frames of zeroes are no frames; but the length of the next one bounds what is made of them.
        let piece = length.min(FRAME_BYTES_MAX) as usize;
        self.data(offset, &vec![0; piece])
    }
}
