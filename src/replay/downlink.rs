//! The link of a replay.
//!
//! A request takes half a round trip to the origin, and a whole one more when a connection must be made for it. There it
//! stands in one line with all others, whatever connection it came on: a FIFO of the link's rate, in which an answer
//! takes the room of its blocks and of both headers. Half a round trip later it arrives, piece by piece.

use std::time::Duration;

use super::agenda::{Agenda, News};
use crate::block::{Block, BlockRange, Geometry};
use crate::planner::{Class, FetchId};
use crate::time::Moment;

/// Bytes of headers, request and answer together.
const REQUEST_BYTES: u64 = 300;
/// Bytes that arrive together: about what a receiver finds in its socket at once.
const PIECE_BYTES: u64 = 16 << 10;

/// Rate and distance of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkModel {
    /// Bytes a second towards the guest, greater than 0.
    pub rate: f64,
    /// There and back.
    pub round_trip: Duration,
}

impl LinkModel {
    /// How long so many bytes take.
    pub(super) fn transfer(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.rate)
    }
}

/// A link in use.
#[derive(Debug)]
pub(super) struct Downlink {
    model: LinkModel,
    geometry: Geometry,
    /// When all that was asked for will have left the origin.
    free: Moment,
    /// Connections made, and those of them that wait for an answer.
    connected: usize,
    busy: usize,
}

impl Downlink {
    /// An idle link without connections.
    pub fn new(model: LinkModel, geometry: Geometry) -> Self {
        Self { model, geometry, free: Moment::default(), connected: 0, busy: 0 }
    }

    /// Sends a request.
    pub fn ask(&mut self, now: Moment, id: FetchId, range: BlockRange, class: Class, agenda: &mut Agenda) {
        self.busy += 1;
        let mut there = self.model.round_trip / 2;
        if self.busy > self.connected {
            self.connected = self.busy;
            there += self.model.round_trip;
        }
        agenda.add(now + there, News::Asked(id, range, class));
    }

    /// The request has reached the origin, which answers it.
    pub fn answer(&mut self, now: Moment, id: FetchId, range: BlockRange, class: Class, agenda: &mut Agenda) {
        let back = self.model.round_trip / 2;
        let mut sent = self.free.max(now) + self.model.transfer(REQUEST_BYTES);
        let piece = (PIECE_BYTES / self.geometry.block_bytes()).max(1);
        let mut next = range.start;
        while next < range.end {
            let part = BlockRange { start: next, end: Block((next.0 + piece).min(range.end.0)) };
            sent = sent + self.model.transfer(self.geometry.length(part));
            agenda.add(sent + back, News::Arrived(id, part, class));
            next = part.end;
        }
        agenda.add(sent + back, News::Ended(id));
        self.free = sent;
    }

    /// An answer has arrived as a whole; its connection is free.
    pub fn ended(&mut self) {
        self.busy -= 1;
    }
}
