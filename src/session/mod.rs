//! Sessions: what one guest asked of an image, and when.
//!
//! A session is places, operations and times, nothing of what the blocks hold. It has what the guest asked for whether the
//! bytes were here already or not, and nothing of what was fetched ahead of it: what is learnt from sessions shall be
//! the guest's habits and not our own guesses. Of each block the first touch matters alone, so nothing else is recorded.
//!
//! It has two forms: text for people and other programs ([`text`]), and a compact one ([`mod@file`], made of a [`Subject`] and
//! chunks) that an image writes while it is used. The [`Recorder`] hears of what happens, on the threads that make it
//! happen, and keeps it in memory only; the [`Writer`] has the file, on a thread that may wait for a disk. A
//! [`Directory`] holds the sessions of many uses within limits.

mod chunk;
mod clock;
pub mod directory;
pub mod file;
mod recorder;
mod seen;
mod subject;
pub mod text;

use std::time::Duration;

pub use clock::{GuestClock, WallTime};
pub use directory::Directory;
pub use file::{Writer, load};
pub use recorder::Recorder;
pub use subject::Subject;

use crate::block::{Block, BlockRange, Geometry};
use crate::gate::Op;
use seen::Seen;

/// One access of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Since the session's start.
    pub at: Duration,
    /// What the guest did.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Number of bytes, at least one.
    pub length: u64,
    /// How long the guest waited for it.
    pub stalled: Duration,
}

/// One use of an image from its opening to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Size of the image and of its blocks.
    pub geometry: Geometry,
    /// In order of time.
    pub accesses: Vec<Access>,
    /// Names of moments, for people: no prediction looks at them.
    pub marks: Vec<(Duration, String)>,
}

/// Something that happened in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest asked for something.
    Access(Access),
    /// Somebody gave this moment, counted from the session's start, a name.
    Mark(Duration, String),
}

/// A session as it was found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// What it is a session of.
    pub subject: Subject,
    /// What happened.
    pub session: Session,
    /// Bytes at the end of the file that are not believed: 0 unless the recorder was killed or the file is damaged.
    pub lost_bytes: u64,
}

impl Recording {
    /// The same with nothing in it but the image, numbers of blocks and times: what may leave the machine it was made on.
    /// Left out are marks, the time of day, the image's date, flushes, and where in a block an access began or ended; a
    /// write keeps its kind for blocks that it covers, as their old contents were not needed, and counts as a read of the
    /// others.
    pub fn anonymous(&self) -> Self {
        let geometry = self.session.geometry;
        let mut accesses = Vec::with_capacity(self.session.accesses.len());
        for access in self.session.accesses.iter().filter(|access| access.op != Op::Flush) {
            let reads = needs(geometry, access.op, access.offset, access.length).map(|range| (Op::Read, range));
            let covered = match access.op {
                Op::Read | Op::Flush => None,
                op => Some((op, geometry.covered(access.offset, access.length))),
            };
            let parts = reads.into_iter().chain(covered).filter(|(_, range)| !range.is_empty());
            for (op, range) in parts {
                let (offset, length) = (geometry.offset(range), geometry.length(range));
                accesses.push(Access { op, offset, length, ..*access });
            }
        }
        Self {
            subject: Subject { validator: self.subject.validator.clone(), ..Subject::nameless(geometry) },
            session: Session { geometry, accesses, marks: Vec::new() },
            lost_bytes: 0,
        }
    }
}

/// The first time that a session needed a block, on the guest's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Since the session's start, without the time that the guest stood still for want of bytes.
    pub at: Duration,
    /// Which block.
    pub block: Block,
}

/// The blocks whose old contents an access needs: all of a read's, the edges of a write's.
pub fn needs(geometry: Geometry, op: Op, offset: u64, length: u64) -> [BlockRange; 2] {
    op.needs(geometry.touched(offset, length), geometry.covered(offset, length))
}

impl Session {
    /// What the session needed from the origin, when on the guest's clock: each block once, in order of first need. A block
    /// that was overwritten before it was read was never needed. Takes memory for the accesses, not for the blocks.
    pub fn first_needs(&self) -> impl Iterator<Item = (Duration, BlockRange)> {
        let mut seen = Seen::default();
        let mut clock = GuestClock::default();
        self.accesses.iter().flat_map(move |access| {
            let at = clock.at(access);
            let needs = needs(self.geometry, access.op, access.offset, access.length);
            let new: Vec<_> = needs.into_iter().flat_map(|range| seen.insert(range)).collect();
            if access.op != Op::Read && access.op != Op::Flush {
                seen.insert(self.geometry.touched(access.offset, access.length));
            }
            new.into_iter().map(move |range| (at, range))
        })
    }

    /// The same block by block.
    pub fn first_touches(&self) -> Vec<Touch> {
        self.first_needs().flat_map(|(at, range)| range.iter().map(move |block| Touch { at, block })).collect()
    }

    /// Time in which the guest waited for at least one of its accesses.
    pub fn stood_still(&self) -> Duration {
        let mut clock = GuestClock::default();
        for access in &self.accesses {
            clock.at(access);
        }
        clock.stood_still()
    }

    /// All that happened, in order of time; at equal times marks come first.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let mut marks = self.marks.iter().peekable();
        let mut accesses = self.accesses.iter().peekable();
        std::iter::from_fn(move || {
            let mark = marks.next_if(|mark| accesses.peek().is_none_or(|access| mark.0 <= access.at));
            mark.map(|(at, name)| Event::Mark(*at, name.clone()))
                .or_else(|| accesses.next().copied().map(Event::Access))
        })
    }

    /// Adds what happened next.
    pub fn add(&mut self, event: Event) {
        match event {
            Event::Access(access) => self.accesses.push(access),
            Event::Mark(at, name) => self.marks.push((at, name)),
        }
    }

    /// Time from the start to the last thing that happened.
    pub fn length(&self) -> Duration {
        let access = self.accesses.last().map_or(Duration::ZERO, |access| access.at.saturating_add(access.stalled));
        self.marks.last().map_or(access, |mark| mark.0.max(access))
    }
}

impl Event {
    /// When it happened, since the session's start.
    pub fn at(&self) -> Duration {
        match self {
            Self::Access(access) => access.at,
            Self::Mark(at, _) => *at,
        }
    }
}
