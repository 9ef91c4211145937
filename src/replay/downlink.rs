//! The link of a replay.
//!
//! A request takes half a round trip to the origin, and a whole one more when a connection must be made for it. There it
//! stands in one line with all others, whatever connection it came on: a FIFO of the link's rate, in which an answer
//! takes the room of its blocks and of both headers. Half a round trip later it arrives, piece by piece.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::agenda::{Agenda, News};
use crate::block::{Block, BlockRange, Geometry};
use crate::packs::Index;
use crate::planner::{Cargo, Class, FetchId};
use crate::time::Moment;

/// Bytes of headers, request and answer together.
const REQUEST_BYTES: u64 = 300;
/// Bytes that arrive together: about what a receiver finds in its socket at once.
const PIECE_BYTES: u64 = 16 << 10;

/// Blocks whose hashes are in a page, and its bytes.
const PAGE_BLOCKS: u64 = 128;
const PAGE_BYTES: u64 = PAGE_BLOCKS * 20;

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
    /// What lies packed at the origin; then hashes travel too.
    packs: Option<Packs>,
    /// Connections made, and those of them that wait for an answer.
    connected: usize,
    busy: usize,
}

impl Downlink {
    /// An idle link without connections.
    pub fn new(model: LinkModel, geometry: Geometry, packs: Option<Arc<Index>>) -> Self {
        Self { model, geometry, free: Moment::default(), packs: packs.map(Packs::new), connected: 0, busy: 0 }
    }

    /// Sends a request.
    pub fn ask(&mut self, now: Moment, id: FetchId, cargo: Cargo, class: Class, agenda: &mut Agenda) {
        self.busy += 1;
        let mut there = self.model.round_trip / 2;
        if self.busy > self.connected {
            self.connected = self.busy;
            there += self.model.round_trip;
        }
        agenda.add(now + there, News::Asked(id, cargo, class));
    }

    /// The request has reached the origin, which answers it with so many bytes.
    pub fn answer(&mut self, now: Moment, id: FetchId, cargo: Cargo, class: Class, agenda: &mut Agenda) -> u64 {
        let back = self.model.round_trip / 2;
        let mut sent = self.free.max(now) + self.model.transfer(REQUEST_BYTES);
        let mut bytes = 0;
        let piece = (PIECE_BYTES / self.geometry.block_bytes()).max(1);
        let mut send = |length: u64| {
            bytes += length;
            sent = sent + self.model.transfer(length);
            sent + back
        };
        match (cargo, &mut self.packs) {
            (Cargo::Range(range), packs) => {
                send(packs.as_mut().map_or(0, |packs| packs.hashes(range, None)));
                let mut next = range.start;
                while next < range.end {
                    let part = BlockRange { start: next, end: Block((next.0 + piece).min(range.end.0)) };
                    agenda.add(send(self.geometry.length(part)), News::Arrived(id, part, class));
                    next = part.end;
                }
            }
            (Cargo::Frames(frames), Some(packs)) => {
                let index = packs.index.clone();
                for frame in frames {
                    for &run in index.runs(frame) {
                        send(packs.hashes(run, Some(frame)));
                    }
                    let mut rest = index.wire_bytes(frame..frame + 1);
                    while rest > 0 {
                        let part = rest.min(PIECE_BYTES);
                        agenda.add(send(part), News::Received(id, part));
                        rest -= part;
                    }
                    // As a whole, for nothing of it can be unpacked before.
                    let at = send(0);
                    index.runs(frame).iter().for_each(|&run| agenda.add(at, News::Arrived(id, run, class)));
                }
            }
            (Cargo::Frames(_), None) => {}
        }
        agenda.add(sent + back, News::Ended(id));
        self.free = sent;
        bytes
    }

    /// An answer has arrived as a whole; its connection is free.
    pub fn ended(&mut self) {
        self.busy -= 1;
    }
}

/// Packs, and the hashes that the guest's side has: those of a dense tree, of which only the lowest level counts.
#[derive(Debug)]
struct Packs {
    index: Arc<Index>,
    /// The frame that brings a page of hashes with it.
    proves: HashMap<u64, u32>,
    here: HashSet<u64>,
}

impl Packs {
    fn new(index: Arc<Index>) -> Self {
        let mut proves = HashMap::new();
        for frame in 0..index.count() {
            for page in index.runs(frame).iter().flat_map(|&run| pages(run)) {
                proves.entry(page).or_insert(frame);
            }
        }
        Self { index, proves, here: HashSet::new() }
    }

    /// Bytes of the hashes that `range` needs and that are not here yet, without those that its frame brings.
    fn hashes(&mut self, range: BlockRange, frame: Option<u32>) -> u64 {
        let Self { proves, here, .. } = self;
        let news = pages(range).filter(|&page| here.insert(page));
        let apart = news.filter(|page| frame.is_none() || proves.get(page).copied() != frame);
        apart.count() as u64 * PAGE_BYTES
    }
}

/// The pages of hashes that a range needs.
fn pages(range: BlockRange) -> impl Iterator<Item = u64> {
    range.start.0 / PAGE_BLOCKS..=(range.end.0 - 1) / PAGE_BLOCKS
}
