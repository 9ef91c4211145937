//! Records: runs of blocks as bytes, each record chained to all that came before it.
//!
//! A record is `length u32 · crc u32 · sequence u64 · payload`, little-endian. The payload is a list of pairs of
//! variable-length integers (seven bits to a byte, low bits first): the gap between the end of the previous run and
//! the start of this one, and the number of blocks. A record starts at gap 0 from block 0, so each one can be read
//! by itself; a run that lies before its predecessor simply starts a new record.
//!
//! The checksum (CRC-32C) goes over everything since the start of the file except the checksums themselves, that
//! is, it *continues* the previous record's. Therefore a record is accepted at one place only: right behind the
//! very records it was written behind. Bytes left over from a failed append, or from an older journal whose disk
//! space was used again, cannot continue the chain. A length of 0 is never valid, so neither is a run of zero bytes.

use crate::block::BlockRange;

/// Bytes before the payload of a record.
pub(super) const HEAD_BYTES: usize = 16;
/// Largest payload, in bytes: what a corrupt length can make a reader allocate. Still holds over 5,000 runs of any
/// place and length.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a varint: a u64 in groups of seven bits.
const VARINT_BYTES_MAX: usize = 10;

/// Where a chain of records stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Checksum over all so far.
    pub crc: u32,
    /// Number of the last record; 0 before the first.
    pub sequence: u64,
}

/// Builds records from runs; takes them in any order, but is most compact when they ascend.
pub(super) struct Writer {
    link: Link,
    sealed: Vec<u8>,
    payload: Vec<u8>,
    /// End of the last run in `payload`.
    end: u64,
}

impl Writer {
    /// Continues the chain at `link`.
    pub fn new(link: Link) -> Self {
        Self { link, sealed: Vec::new(), payload: Vec::new(), end: 0 }
    }

    /// Adds a run; an empty one is left out.
    pub fn push(&mut self, run: BlockRange) {
        if run.is_empty() {
            return;
        }
        if run.start.0 < self.end || self.payload.len() + 2 * VARINT_BYTES_MAX > PAYLOAD_BYTES_MAX {
            self.seal();
        }
        put_varint(&mut self.payload, run.start.0 - self.end);
        put_varint(&mut self.payload, run.len());
        self.end = run.end.0;
    }

    /// Bytes of whole records that are ready.
    pub fn sealed_bytes(&self) -> usize {
        self.sealed.len()
    }

    /// Takes the whole records that are ready, to be written before any others.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sealed)
    }

    /// Takes all that is left and says where the chain stands behind it.
    pub fn finish(mut self) -> (Vec<u8>, Link) {
        self.seal();
        (self.sealed, self.link)
    }

    fn seal(&mut self) {
        self.end = 0;
        if self.payload.is_empty() {
            return;
        }
        let length = (self.payload.len() as u32).to_le_bytes();
        let sequence = self.link.sequence + 1;
        let crc = chain(self.link.crc, length, sequence, &self.payload);
        self.sealed.extend_from_slice(&length);
        self.sealed.extend_from_slice(&crc.to_le_bytes());
        self.sealed.extend_from_slice(&sequence.to_le_bytes());
        self.sealed.append(&mut self.payload);
        self.link = Link { crc, sequence };
    }
}

/// The head of a record that may or may not be true.
pub(super) struct Head {
    length: [u8; 4],
    crc: u32,
    sequence: u64,
}

impl Head {
    /// Reads a head and refuses a length that no record has.
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> Option<Self> {
        let [l0, l1, l2, l3, c0, c1, c2, c3, sequence @ ..] = bytes;
        let head = Self {
            length: [l0, l1, l2, l3],
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
            sequence: u64::from_le_bytes(sequence),
        };
        (1..=PAYLOAD_BYTES_MAX).contains(&head.payload_bytes()).then_some(head)
    }

    /// Bytes of payload that follow; at most [`PAYLOAD_BYTES_MAX`].
    pub fn payload_bytes(&self) -> usize {
        u32::from_le_bytes(self.length) as usize
    }

    /// Checks that this record continues the chain at `link` and that its runs lie within `blocks` blocks; answers
    /// the runs and where the chain stands now.
    pub fn accept(&self, link: Link, payload: &[u8], blocks: u64) -> Option<(Vec<BlockRange>, Link)> {
        let next = Link { crc: self.crc, sequence: self.sequence };
        let continues = self.sequence == link.sequence.checked_add(1)?
            && self.crc == chain(link.crc, self.length, self.sequence, payload);
        if !continues {
            return None;
        }
        Some((parse_runs(payload, blocks)?, next))
    }
}

fn chain(crc: u32, length: [u8; 4], sequence: u64, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc, &length);
    let crc = crc32c::crc32c_append(crc, &sequence.to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

/// Reads a payload; `None` unless every byte of it makes sense.
fn parse_runs(mut payload: &[u8], blocks: u64) -> Option<Vec<BlockRange>> {
    let mut runs = Vec::new();
    let mut end = 0u64;
    while !payload.is_empty() {
        let start = end.checked_add(take_varint(&mut payload)?)?;
        let length = take_varint(&mut payload)?;
        end = start.checked_add(length)?;
        if length == 0 || end > blocks {
            return None;
        }
        runs.push(BlockRange::new(start, end));
    }
    Some(runs)
}

/// Appends a varint: seven bits to a byte, low bits first.
pub(crate) fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Reads a varint; refuses one that is cut off, overflows or is longer than it need be.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for at in 0..VARINT_BYTES_MAX {
        let byte = *bytes.get(at)?;
        let group = u64::from(byte & 0x7f);
        let shift = 7 * at as u32;
        if group.leading_zeros() < shift {
            return None;
        }
        value |= group << shift;
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return (byte != 0 || at == 0).then_some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Link = Link { crc: 7, sequence: 0 };

    /// Reads records as far as they are valid, as the journal does.
    fn read(mut bytes: &[u8], mut link: Link, blocks: u64) -> (Vec<BlockRange>, usize) {
        let (whole, mut all) = (bytes.len(), Vec::new());
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
            let Some(head) = Head::parse(*head) else { break };
            let Some(payload) = rest.get(..head.payload_bytes()) else { break };
            let Some((runs, next)) = head.accept(link, payload, blocks) else { break };
            all.extend(runs);
            link = next;
            bytes = &rest[payload.len()..];
        }
        (all, whole - bytes.len())
    }

    fn write(runs: &[BlockRange], link: Link) -> (Vec<u8>, Link) {
        let mut writer = Writer::new(link);
        runs.iter().for_each(|run| writer.push(*run));
        writer.finish()
    }

    fn any_run() -> impl Strategy<Value = BlockRange> {
        (0..1u64 << 34, 0..1u64 << 20).prop_map(|(start, length)| BlockRange::new(start, (start + length).min(1 << 34)))
    }

    #[test]
    fn varints_take_every_value_and_no_second_spelling() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::MAX >> 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = bytes.as_slice();
            assert_eq!((take_varint(&mut rest), rest), (Some(value), &[][..]));
            assert_eq!(take_varint(&mut &bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(take_varint(&mut &[0x80, 0x00][..]), None, "two bytes for 0");
        assert_eq!(take_varint(&mut &[0xff; 10][..]), None, "no end");
        let mut over = [0x80; 10];
        over[9] = 2;
        assert_eq!(take_varint(&mut &over[..]), None, "bit 64");
    }

    #[test]
    fn the_example_of_the_format_document_is_true() {
        let (bytes, link) = write(&[BlockRange::new(4, 8), BlockRange::new(20, 21)], START);
        let head = [4, 0, 0, 0].into_iter().chain(link.crc.to_le_bytes()).chain([1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes, head.chain([0x04, 0x04, 0x0c, 0x01]).collect::<Vec<_>>());
    }

    #[test]
    fn many_runs_become_several_records_none_too_long() {
        let runs: Vec<_> = (0..100_000).map(|n| BlockRange::new(n * 1000, n * 1000 + 500)).collect();
        let (bytes, link) = write(&runs, START);
        assert!(link.sequence > 1, "one record holds {} bytes", bytes.len());
        assert_eq!(read(&bytes, START, 1 << 34), (runs, bytes.len()));
    }

    #[test]
    fn runs_behind_the_end_of_the_image_are_not_believed() {
        let (bytes, _) = write(&[BlockRange::new(5, 9)], START);
        assert_eq!(read(&bytes, START, 9).0, [BlockRange::new(5, 9)]);
        assert_eq!(read(&bytes, START, 8), (vec![], 0));
    }

    #[test]
    fn a_record_is_accepted_only_behind_what_it_was_written_behind() {
        let (one, after_one) = write(&[BlockRange::new(0, 1)], START);
        let (other, _) = write(&[BlockRange::new(7, 8)], START);
        let (two, _) = write(&[BlockRange::new(1, 2)], after_one);
        assert_eq!(read(&[one.as_slice(), &two].concat(), START, 100).0.len(), 2);
        let grafted = [other.as_slice(), &two].concat();
        assert_eq!(read(&grafted, START, 100), (vec![BlockRange::new(7, 8)], other.len()));
        assert_eq!(read(&two, START, 100), (vec![], 0));
    }

    #[test]
    fn a_record_out_of_sequence_is_not_accepted() {
        let (bytes, _) = write(&[BlockRange::new(5, 9)], Link { sequence: 3, ..START });
        for sequence in [0, 2, 4, u64::MAX] {
            assert_eq!(read(&bytes, Link { sequence, ..START }, 100), (vec![], 0), "{sequence}");
        }
        assert_eq!(read(&bytes, Link { sequence: 3, ..START }, 100).1, bytes.len());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(runs in prop::collection::vec(any_run(), 0..50)) {
            let (bytes, _) = write(&runs, START);
            let wanted: Vec<_> = runs.into_iter().filter(|run| !run.is_empty()).collect();
            prop_assert_eq!(read(&bytes, START, 1 << 34), (wanted, bytes.len()));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), blocks in any::<u64>()) {
            let (runs, used) = read(&bytes, START, blocks);
            prop_assert!(used <= bytes.len());
            prop_assert!(runs.iter().all(|run| !run.is_empty() && run.end.0 <= blocks));
        }

        /// Random bytes hardly ever pass the checksum, so the payload is also tried without it. What is accepted
        /// must be the one spelling of its runs.
        #[test]
        fn any_payload_is_refused_or_is_the_one_spelling_of_its_runs(payload in prop::collection::vec(any::<u8>(), 1..60)) {
            if let Some(runs) = parse_runs(&payload, u64::MAX) {
                let mut again = Vec::new();
                let mut end = 0;
                for run in runs {
                    put_varint(&mut again, run.start.0 - end);
                    put_varint(&mut again, run.len());
                    end = run.end.0;
                }
                prop_assert_eq!(again, payload);
            }
        }

        #[test]
        fn damage_leaves_a_prefix(
            runs in prop::collection::vec(any_run(), 1..20), at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let (mut bytes, mut link) = (Vec::new(), START);
            let mut wanted = Vec::new();
            for run in runs.into_iter().filter(|run| !run.is_empty()) {
                let (more, next) = write(&[run], link);
                bytes.extend(more);
                link = next;
                wanted.push(run);
            }
            prop_assume!(!bytes.is_empty());
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let (got, used) = read(&bytes, START, 1 << 34);
            prop_assert!(used <= at);
            prop_assert!(wanted.starts_with(&got));
        }
    }
}
