//! Chunks: what happened in a session, as bytes.
//!
//! A chunk is `length u32 · crc u32 · payload`, little-endian. The checksum (CRC-32C) continues that of the chunk before,
//! back to the file's head, so a chunk is accepted only behind the very ones it was written behind, and a tail that was
//! torn or left over from another file ends the part that is believed. A payload can be read by itself: its first
//! event counts time and place from 0, each other one from its predecessor.
//!
//! An event is a varint whose low four bits are its kind and whose rest is the time since the event before, in
//! microseconds; what follows depends on the kind. A guest reads on where it stopped, so places are counted from the end
//! of the last access; and as nearly all accesses are whole blocks, blocks are their unit unless a bit says bytes. So most
//! accesses take five bytes or six.

use std::time::Duration;

use super::{Access, Event, Session};
use crate::block::{BlockRange, Geometry};
use crate::gate::Op;
use crate::store::{put_varint, take_varint};

/// Bytes before the payload.
pub(super) const HEAD_BYTES: usize = 8;
/// Largest payload, in bytes: what a corrupt length can make a reader look at. Some ten thousand accesses.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Longest name of a mark, in bytes; longer ones are cut.
pub(super) const MARK_BYTES_MAX: usize = 256;
/// Most bytes of an event: a mark with the longest name.
const EVENT_BYTES_MAX: usize = 10 + 2 + MARK_BYTES_MAX;
/// Latest time and longest wait, in microseconds (about 35 years): leaves room for the kind beside it. Later ones are
/// written as this.
const TIME_US_MAX: u64 = 1 << 50;

/// Bits of the kind: the operation as in [`Op`], ...
const OP: u64 = 3;
/// ... the guest waited, and how long follows, ...
const WAITED: u64 = 4;
/// ... the range is in bytes. A flush has no range: with this bit it is a mark.
const BYTES: u64 = 8;
const MARK: u64 = BYTES | Op::Flush as u64;
/// Width of the kind.
const KIND_BITS: u32 = 4;

/// Makes chunks of events, each behind all before it.
#[derive(Debug)]
pub(super) struct Encoder {
    geometry: Geometry,
    /// The checksum so far.
    crc: u32,
    payload: Vec<u8>,
    /// Time and place that the next event is counted from.
    at_us: u64,
    end: u64,
    /// Time of the last event of all chunks.
    last_us: u64,
    sealed: Vec<u8>,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).min(TIME_US_MAX)
}

/// The number of a signed distance: 0, -1, 1, -2, ...
fn fold(distance: i64) -> u64 {
    ((distance << 1) ^ (distance >> 63)) as u64
}

fn unfold(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// The first block at or behind a byte.
fn block_from(geometry: Geometry, byte: u64) -> i64 {
    byte.div_ceil(geometry.block_bytes()) as i64
}

/// The blocks of a byte range that is made of whole ones.
fn whole_blocks(geometry: Geometry, offset: u64, length: u64) -> Option<BlockRange> {
    let range = geometry.touched(offset, length);
    (geometry.offset(range) == offset && geometry.length(range) == length).then_some(range)
}

impl Encoder {
    /// Continues the checksum of what is in the file.
    pub fn new(geometry: Geometry, crc: u32) -> Self {
        Self { geometry, crc, payload: Vec::new(), at_us: 0, end: 0, last_us: 0, sealed: Vec::new() }
    }

    /// Adds an event. One that is earlier than its predecessor counts as simultaneous; an access outside the image is
    /// left out.
    pub fn push(&mut self, event: &Event) {
        if self.payload.len() + EVENT_BYTES_MAX > PAYLOAD_BYTES_MAX {
            self.seal();
        }
        match event {
            Event::Mark(at, name) => {
                self.put_time(*at, MARK);
                let end = (0..=MARK_BYTES_MAX.min(name.len())).rev().find(|&at| name.is_char_boundary(at));
                let name = &name.as_bytes()[..end.unwrap_or(0)];
                put_varint(&mut self.payload, name.len() as u64);
                self.payload.extend_from_slice(name);
            }
            Event::Access(access) => self.put_access(access),
        }
    }

    fn put_access(&mut self, access: &Access) {
        let Access { at, op, offset, length, stalled } = *access;
        let inside = op == Op::Flush || (length > 0 && self.geometry.contains(offset, length));
        if !inside {
            return;
        }
        let stalled_us = micros(stalled);
        let waited = if stalled_us > 0 { WAITED } else { 0 };
        if op == Op::Flush {
            self.put_time(at, op as u64 | waited);
        } else if let Some(range) = whole_blocks(self.geometry, offset, length) {
            self.put_time(at, op as u64 | waited);
            let from = block_from(self.geometry, self.end);
            put_varint(&mut self.payload, fold(range.start.0 as i64 - from));
            put_varint(&mut self.payload, range.len());
        } else {
            self.put_time(at, op as u64 | waited | BYTES);
            put_varint(&mut self.payload, fold(offset as i64 - self.end as i64));
            put_varint(&mut self.payload, length);
        }
        if waited != 0 {
            put_varint(&mut self.payload, stalled_us);
        }
        if op != Op::Flush {
            self.end = offset + length;
        }
    }

    fn put_time(&mut self, at: Duration, kind: u64) {
        self.last_us = micros(at).max(self.last_us);
        put_varint(&mut self.payload, (self.last_us - self.at_us) << KIND_BITS | kind);
        self.at_us = self.last_us;
    }

    fn seal(&mut self) {
        if self.payload.is_empty() {
            return;
        }
        let length = (self.payload.len() as u32).to_le_bytes();
        self.crc = chain(self.crc, length, &self.payload);
        self.sealed.extend_from_slice(&length);
        self.sealed.extend_from_slice(&self.crc.to_le_bytes());
        self.sealed.append(&mut self.payload);
        (self.at_us, self.end) = (0, 0);
    }

    /// Ends the chunk and takes all that is ready to be appended.
    pub fn take(&mut self) -> Vec<u8> {
        self.seal();
        std::mem::take(&mut self.sealed)
    }
}

fn chain(crc: u32, length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &length), payload)
}

/// Reads chunks behind a head with checksum `crc` into `session`, up to the first that is not whole and true. Answers
/// the number of bytes that were not believed.
pub(super) fn read(mut bytes: &[u8], mut crc: u32, session: &mut Session) -> u64 {
    while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
        let [l0, l1, l2, l3, c0, c1, c2, c3] = *head;
        let length = [l0, l1, l2, l3];
        let payload_bytes = u32::from_le_bytes(length) as usize;
        if !(1..=PAYLOAD_BYTES_MAX).contains(&payload_bytes) {
            break;
        }
        let Some(payload) = rest.get(..payload_bytes) else { break };
        let next = chain(crc, length, payload);
        if next != u32::from_le_bytes([c0, c1, c2, c3]) || !decode(payload, session) {
            break;
        }
        crc = next;
        bytes = &rest[payload_bytes..];
    }
    bytes.len() as u64
}

/// Adds what a payload says to `session`; false, and nothing added, unless every byte of it makes sense.
fn decode(mut payload: &[u8], session: &mut Session) -> bool {
    let (accesses, marks) = (session.accesses.len(), session.marks.len());
    // Time does not run back from chunk to chunk.
    let access_us = session.accesses.last().map_or(0, |access| micros(access.at));
    let mut last_us = session.marks.last().map_or(0, |mark| micros(mark.0)).max(access_us);
    let (mut at_us, mut end) = (0, 0);
    while !payload.is_empty() {
        let event = take_event(&mut payload, session.geometry, &mut at_us, &mut end);
        if event.is_none() || at_us < last_us {
            session.accesses.truncate(accesses);
            session.marks.truncate(marks);
            return false;
        }
        last_us = at_us;
        match event {
            Some(Event::Access(access)) => session.accesses.push(access),
            Some(Event::Mark(at, name)) => session.marks.push((at, name)),
            None => {}
        }
    }
    true
}

/// Takes one event; `None` unless it is spelled as [`Encoder`] spells it.
fn take_event(bytes: &mut &[u8], geometry: Geometry, at_us: &mut u64, end: &mut u64) -> Option<Event> {
    let head = take_varint(bytes)?;
    *at_us = at_us.checked_add(head >> KIND_BITS).filter(|&us| us <= TIME_US_MAX)?;
    let at = Duration::from_micros(*at_us);
    let kind = head & ((1 << KIND_BITS) - 1);
    if kind == MARK {
        let length = usize::try_from(take_varint(bytes)?).ok().filter(|&length| length <= MARK_BYTES_MAX)?;
        let (name, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        return Some(Event::Mark(at, String::from_utf8(name.to_vec()).ok()?));
    }
    let op = Op::from_bits(kind & OP);
    if op == Op::Flush && kind & BYTES != 0 {
        return None;
    }
    let (offset, length) = match (op, kind & BYTES != 0) {
        (Op::Flush, _) => (0, 0),
        (_, false) => {
            let start = block_from(geometry, *end).checked_add(unfold(take_varint(bytes)?))?;
            let start = u64::try_from(start).ok()?;
            let last = start.checked_add(take_varint(bytes)?).filter(|&last| last <= geometry.blocks())?;
            let range = BlockRange::new(start, last);
            (geometry.offset(range), geometry.length(range))
        }
        (_, true) => {
            let offset = i64::try_from(*end).ok()?.checked_add(unfold(take_varint(bytes)?))?;
            let (offset, length) = (u64::try_from(offset).ok()?, take_varint(bytes)?);
            // Whole blocks have a spelling of their own.
            let inside = geometry.contains(offset, length);
            (inside && whole_blocks(geometry, offset, length).is_none()).then_some((offset, length))?
        }
    };
    let stalled_us =
        if kind & WAITED == 0 { 0 } else { take_varint(bytes).filter(|us| (1..=TIME_US_MAX).contains(us))? };
    if op != Op::Flush {
        if length == 0 {
            return None;
        }
        *end = offset + length;
    }
    Some(Event::Access(Access { at, op, offset, length, stalled: Duration::from_micros(stalled_us) }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A size that ends in the middle of a block.
    fn geometry() -> Geometry {
        Geometry::new(1_000_100, 512).unwrap()
    }

    fn empty() -> Session {
        Session { geometry: geometry(), accesses: Vec::new(), marks: Vec::new() }
    }

    fn access(at_us: u64, op: Op, offset: u64, length: u64, stalled_us: u64) -> Event {
        let (at, stalled) = (Duration::from_micros(at_us), Duration::from_micros(stalled_us));
        Event::Access(Access { at, op, offset, length, stalled })
    }

    /// One chunk for each list of events.
    fn write(lists: &[Vec<Event>]) -> Vec<u8> {
        let mut encoder = Encoder::new(geometry(), 7);
        lists
            .iter()
            .flat_map(|events| {
                events.iter().for_each(|event| encoder.push(event));
                encoder.take()
            })
            .collect()
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let range =
            (0..1_000_100u64, 1..70_000u64).prop_map(|(offset, length)| (offset, length.min(1_000_100 - offset)));
        let blocks = (0..1953u64, 1..200u64).prop_map(|(start, count)| {
            let range = BlockRange::new(start, (start + count).min(1954));
            (geometry().offset(range), geometry().length(range))
        });
        prop_oneof![
            (0..1u64 << 40, 0..3u64, prop_oneof![range, blocks], prop_oneof![Just(0), 1..1u64 << 33])
                .prop_map(|(at, op, (offset, length), stalled)| access(at, Op::from_bits(op), offset, length, stalled)),
            (0..1u64 << 40, 0..9u64).prop_map(|(at, stalled)| access(at, Op::Flush, 0, 0, stalled)),
            (0..1u64 << 40, ".{0,20}").prop_map(|(at, name)| Event::Mark(Duration::from_micros(at), name)),
        ]
    }

    /// Events in order of time, in several chunks.
    fn any_lists() -> impl Strategy<Value = Vec<Vec<Event>>> {
        prop::collection::vec(prop::collection::vec(any_event(), 1..8), 0..5).prop_map(|mut lists| {
            let mut times: Vec<_> = lists.iter().flatten().map(Event::at).collect();
            times.sort();
            for (event, time) in lists.iter_mut().flatten().zip(times) {
                match event {
                    Event::Access(access) => access.at = time,
                    Event::Mark(at, _) => *at = time,
                }
            }
            lists
        })
    }

    fn session(lists: &[Vec<Event>]) -> Session {
        let mut session = empty();
        lists.iter().flatten().cloned().for_each(|event| session.add(event));
        session
    }

    #[test]
    fn the_example_of_the_format_document_is_true() {
        let geometry = Geometry::new(1 << 20, 4096).unwrap();
        let mut encoder = Encoder::new(geometry, 0);
        encoder.push(&access(1000, Op::Read, 8192, 8192, 0));
        encoder.push(&access(1300, Op::Read, 16384, 4096, 50));
        encoder.push(&access(1301, Op::Write, 1024, 1024, 0));
        encoder.push(&Event::Mark(Duration::from_micros(1301), "up".to_owned()));
        let bytes = encoder.take();
        let payload = [
            0x80, 0x7d, 0x04, 0x02, // 1000 us later: read, 2 blocks on, 2 blocks
            0xc4, 0x25, 0x00, 0x01, 0x32, // 300 us later: waited, read, 0 blocks on, 1 block, 50 us
            0x19, 0xff, 0xaf, 0x02, 0x80, 0x08, // 1 us later: write in bytes, 19456 back, 1024 of them
            0x0b, 0x02, b'u', b'p',
        ];
        assert_eq!(bytes[..4], [payload.len() as u8, 0, 0, 0]);
        assert_eq!(bytes[HEAD_BYTES..], payload);
    }

    #[test]
    fn times_that_run_back_and_ranges_outside_do_no_harm() {
        let events = vec![
            access(10, Op::Read, 512, 512, 0),
            access(5, Op::Read, 1024, 512, 0),
            access(6, Op::Read, 1_000_000, 101, 0),
            access(7, Op::Write, 0, 0, 0),
            access(u64::MAX, Op::Read, 0, 512, u64::MAX),
        ];
        let mut got = empty();
        assert_eq!(read(&write(&[events]), 7, &mut got), 0);
        let latest = TIME_US_MAX;
        let wanted = [(10, 512, 0), (10, 1024, 0), (latest, 0, latest)];
        let seen: Vec<_> = got.accesses.iter().map(|a| (micros(a.at), a.offset, micros(a.stalled))).collect();
        assert_eq!(seen, wanted);
    }

    #[test]
    fn a_long_name_is_cut_between_characters_and_many_events_become_several_chunks() {
        let name = "\u{20ac}".repeat(100);
        let mut got = empty();
        read(&write(&[vec![Event::Mark(Duration::ZERO, name.clone())]]), 7, &mut got);
        assert_eq!(got.marks[0].1, name[..255]);
        let events: Vec<_> = (0..50_000).map(|n| access(n * 1000, Op::Read, n % 1000 * 512, 512, n % 3)).collect();
        let bytes = write(std::slice::from_ref(&events));
        assert!(bytes.len() > 2 * PAYLOAD_BYTES_MAX && bytes.len() < 8 * events.len(), "{} bytes", bytes.len());
        let mut got = empty();
        assert_eq!(read(&bytes, 7, &mut got), 0);
        assert_eq!(got, session(&[events]));
    }

    #[test]
    fn a_chunk_is_accepted_only_behind_what_it_was_written_behind() {
        let lists = [1, 2, 3].map(|n| vec![access(n, Op::Read, n * 512, 512, 0)]);
        let bytes = write(&lists);
        let third = bytes.len() / 3;
        for wrong in [&bytes[third..], &[&bytes[..third], &bytes[2 * third..]].concat()] {
            let mut got = empty();
            let lost = read(wrong, 7, &mut got);
            assert_eq!(lost as usize, wrong.len() - got.accesses.len() * third);
            assert!(got.accesses.len() < 2);
        }
        assert_eq!(read(&bytes, 8, &mut empty()) as usize, bytes.len(), "behind another head");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(lists in any_lists()) {
            let mut got = empty();
            prop_assert_eq!(read(&write(&lists), 7, &mut got), 0);
            prop_assert_eq!(got, session(&lists));
        }

        /// A file that was cut off anywhere loses the chunk that was cut and nothing before it.
        #[test]
        fn a_torn_tail_costs_the_tail_only(lists in any_lists()) {
            let bytes = write(&lists);
            let ends: Vec<_> = (0..=lists.len()).map(|n| write(&lists[..n]).len()).collect();
            for cut in 0..=bytes.len() {
                let whole = ends.iter().rposition(|&end| end <= cut).unwrap();
                let mut got = empty();
                prop_assert_eq!(read(&bytes[..cut], 7, &mut got) as usize, cut - ends[whole]);
                prop_assert_eq!(got, session(&lists[..whole]), "cut at {}", cut);
            }
        }

        #[test]
        fn damage_leaves_a_prefix(lists in any_lists(), at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut bytes = write(&lists);
            prop_assume!(!bytes.is_empty());
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let mut got = empty();
            let lost = read(&bytes, 7, &mut got) as usize;
            prop_assert!(bytes.len() - lost <= at);
            prop_assert!((0..=lists.len()).any(|n| got == session(&lists[..n])));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), crc in any::<u32>()) {
            prop_assert!(read(&bytes, crc, &mut empty()) as usize <= bytes.len());
        }

        /// Random bytes hardly ever pass the checksum, so payloads are also tried without it: damaged ones of real
        /// events. What is accepted lies in the image and must be the one spelling of its events.
        #[test]
        fn any_payload_is_refused_or_is_the_one_spelling_of_its_events(
            events in prop::collection::vec(any_event(), 1..8),
            at in any::<prop::sample::Index>(),
            patch in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let mut payload = write(&[events])[HEAD_BYTES..].to_vec();
            let at = at.index(payload.len());
            let end = (at + patch.len()).min(payload.len());
            payload[at..end].copy_from_slice(&patch[..end - at]);
            let mut rest = payload.as_slice();
            let (mut at_us, mut place) = (0, 0);
            let mut again = Encoder::new(geometry(), 0);
            while !rest.is_empty() {
                let Some(event) = take_event(&mut rest, geometry(), &mut at_us, &mut place) else { return Ok(()) };
                if let Event::Access(access) = &event {
                    prop_assert!(geometry().contains(access.offset, access.length));
                }
                again.push(&event);
            }
            prop_assert_eq!(&again.take()[HEAD_BYTES..], payload);
        }
    }
}
