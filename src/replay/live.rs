//! Replaying a session in real time, against an image that is really streamed.
//!
//! The guest is that of the virtual replay, a serial closed loop, but its pauses are slept, and what it asks for goes
//! through the gate, the engine's threads, a source and a cache, as a driver's requests do. So what virtual time leaves
//! out shows in the same [`Figures`]: waking threads, speaking HTTP, storing blocks, writing the journal.
//!
//! *The schedule.* A step is due its think time after the one before was served, not after the guest came round to it: a
//! sleep that lasts too long shortens the next one, and so does the time in which the guest looks at what it got. A
//! flush is done, and its time too is part of the pause that follows, as the recorded pause had one in it.
//!
//! *The contents* (`contents`) of a made-up image can be told, so each byte that the guest reads of one is compared with what
//! must be there: the published image, or what the guest itself wrote or discarded.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::contents::Contents;
use super::oracle::Needs;
use super::{Figures, Step};
use crate::block::Geometry;
use crate::error::{Error, Result};
use crate::gate::{Answer, Op};
use crate::image::Image;
use crate::notify::Completion;
use crate::predictor::Foresight;
use crate::source::pattern::PatternSource;

/// Longest time between two calls of [`Setup::go_on`]: soon enough for a person who wants to end it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is replayed.
pub struct Setup<'a> {
    /// The guest.
    pub steps: &'a [Step],
    /// Options of the image, `key=value`: its source serves what `contents` makes up, and nothing of it is here yet.
    /// Without a fill, whose bytes could not be told from the others.
    pub options: &'a [String],
    /// Whose image it is.
    pub image: Subject,
    /// Called with the number of steps done, at each and in between ten times a second; false ends the replay.
    pub go_on: &'a mut dyn FnMut(usize) -> bool,
}

/// The image that a guest works on.
pub enum Subject {
    /// One that was made up for the replay.
    MadeUp {
        /// What it holds.
        contents: PatternSource,
        /// What follows the guest.
        foresight: Option<Box<dyn Foresight>>,
    },
    /// One of somebody else, with whatever model the options find for it. What the guest reads is not compared.
    Real,
}

/// Replays `setup` to the guest's last step; fewer steps in the answer mean that it was ended before. Time begins when
/// the image is open. Errors: the image cannot be opened, a request failed, or the guest read what it should not.
pub fn run(setup: Setup<'_>) -> Result<Figures> {
    let Setup { steps, options, image: subject, go_on } = setup;
    let (done, inbox) = channel();
    let image = Image::open_with(options, move |completion| {
        let _ = done.send(completion); // nobody listens any more once the replay has been ended
    })?;
    let published = match subject {
        Subject::MadeUp { contents, foresight } => {
            image.follow(foresight);
            Some(contents)
        }
        Subject::Real => None,
    };
    let guest = Guest { image: &image, inbox, contents: Contents::new(published), go_on, figures: Figures::default() };
    let mut figures = guest.work(steps)?;
    let stats = image.stats();
    log::info!("the link as the engine measured it: {} bytes/s, round trip {:.1?}", stats.rate, stats.round_trip);
    figures.bytes = stats.bytes_fetched;
    figures.requests = stats.demand_fetches + stats.prefetch_fetches;
    image.close()?;
    Ok(figures)
}

struct Guest<'a> {
    image: &'a Image,
    inbox: Receiver<Completion>,
    contents: Contents,
    go_on: &'a mut dyn FnMut(usize) -> bool,
    figures: Figures,
}

/// How a request was met.
enum Met {
    /// At once.
    Ready,
    /// It had to wait until then.
    Served(Instant),
    /// Not at all: the replay is to end.
    Ended,
}

impl Guest<'_> {
    /// Does the steps, or as many as it may.
    fn work(mut self, steps: &[Step]) -> Result<Figures> {
        let mut needs = Needs::new(Geometry::new(self.image.size(), self.image.block_size())?);
        let began = Instant::now();
        let mut due = began;
        for step in steps {
            due += step.think;
            if !self.sleep_until(due) {
                break;
            }
            match self.ask(step)? {
                Met::Ready => {}
                Met::Served(at) => due = at,
                Met::Ended => break,
            }
            self.act(step)?;
            self.figures.used_bytes += needs.new_bytes(step);
            self.figures.steps += 1;
            self.figures.total = began.elapsed();
        }
        Ok(self.figures)
    }

    fn go_on(&mut self) -> bool {
        (self.go_on)(self.figures.steps)
    }

    /// Sleeps; false when the replay is to end.
    fn sleep_until(&mut self, due: Instant) -> bool {
        while self.go_on() {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
        false
    }

    /// Asks for what a step touches, and waits for it.
    fn ask(&mut self, step: &Step) -> Result<Met> {
        if step.op == Op::Flush {
            return self.image.flush().map(|()| Met::Ready);
        }
        let asked = Instant::now();
        // The guest is serial, so one tag does for all.
        if self.image.block_needed(step.op, step.offset, step.length, 0)? == Answer::Ready {
            return Ok(Met::Ready);
        }
        loop {
            match self.inbox.recv_timeout(LOOK_EVERY) {
                Ok(completion) if completion.result == 0 => break,
                Ok(completion) => {
                    let why = self.image.last_error().unwrap_or_default();
                    let what = format!("the guest's {:?} of {} bytes at {}", step.op, step.length, step.offset);
                    return Err(Error::new(-completion.result, format!("{what} failed: {why}")));
                }
                Err(RecvTimeoutError::Timeout) if self.go_on() => {}
                // Without a sender the image is gone, which it never is before the guest.
                Err(_) => return Ok(Met::Ended),
            }
        }
        let served = Instant::now();
        self.figures.stall(served - asked);
        Ok(Met::Served(served))
    }

    /// Does with the local file what the guest does, and looks at what it reads.
    fn act(&mut self, step: &Step) -> Result<()> {
        let Step { op, offset, length, .. } = *step;
        match op {
            Op::Flush => Ok(()),
            Op::Read => {
                self.image.read_local(offset, self.contents.buffer(length))?;
                self.contents.check(offset)
            }
            Op::Write => {
                let written = self.image.write_local(offset, self.contents.write(offset, length));
                self.image.block_done(op, offset, length, written.is_ok())?;
                written
            }
            Op::Discard => {
                self.contents.discard(offset, length);
                let zeroed = self.image.zero_local(offset, length);
                self.image.block_done(op, offset, length, zeroed.is_ok())?;
                zeroed
            }
        }
    }
}
