//! What a guest of a made-up image must find: what was published, and over it what the guest wrote or discarded.

use std::collections::BTreeMap;

use crate::error::{Error, Result, errno};
use crate::source::pattern::{self, PatternSource};

/// Seed of what the guest writes: other bytes than those of any image that is published here, whose seeds are small.
const GUEST_SEED: u64 = u64::MAX;

/// What the guest did to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Written,
    Zeroed,
}

/// The contents of an image as its guest knows them.
#[derive(Debug)]
pub(super) struct Contents {
    /// `None` when nobody can tell.
    published: Option<PatternSource>,
    /// By first byte: the end of a range that the guest changed, and how. Disjoint.
    changes: BTreeMap<u64, (u64, Change)>,
    /// What the guest reads or writes, and what it should read: kept, so that a step allocates nothing.
    bytes: Vec<u8>,
    expected: Vec<u8>,
}

impl Contents {
    /// What is published, untouched; without it nothing is compared.
    pub fn new(published: Option<PatternSource>) -> Self {
        Self { published, changes: BTreeMap::new(), bytes: Vec::new(), expected: Vec::new() }
    }

    /// Room for `length` bytes that the guest reads.
    pub fn buffer(&mut self, length: u64) -> &mut [u8] {
        self.bytes.resize(length as usize, 0);
        &mut self.bytes
    }

    /// Compares what was read into the buffer with what must be at `offset`. Fails with EIO: a block came wrong, or
    /// what the guest wrote was lost.
    pub fn check(&mut self, offset: u64) -> Result<()> {
        let Some(published) = &self.published else { return Ok(()) };
        self.expected.resize(self.bytes.len(), 0);
        published.fill(offset, &mut self.expected);
        let end = offset + self.bytes.len() as u64;
        for (&start, &(stop, change)) in self.changes.range(..end).rev().take_while(|(_, change)| change.0 > offset) {
            let (from, to) = (start.max(offset), stop.min(end));
            let part = &mut self.expected[(from - offset) as usize..(to - offset) as usize];
            match change {
                Change::Written => pattern::fill(GUEST_SEED, from, part),
                Change::Zeroed => part.fill(0),
            }
        }
        match self.bytes.iter().zip(&self.expected).position(|(read, expected)| read != expected) {
            None => Ok(()),
            Some(at) => {
                let at = offset + at as u64;
                Err(Error::new(errno::EIO, format!("the guest read a wrong byte at {at}: a defect of this program")))
            }
        }
    }

    /// What the guest writes at `offset`, which holds it from now on.
    pub fn write(&mut self, offset: u64, length: u64) -> &[u8] {
        self.change(offset, length, Change::Written);
        self.bytes.resize(length as usize, 0);
        pattern::fill(GUEST_SEED, offset, &mut self.bytes);
        &self.bytes
    }

    /// The guest discards a range, which holds zeroes from now on.
    pub fn discard(&mut self, offset: u64, length: u64) {
        self.change(offset, length, Change::Zeroed);
    }

    fn change(&mut self, offset: u64, length: u64, change: Change) {
        let end = offset + length;
        let overlapping = self.changes.range(..end).rev().take_while(|(_, old)| old.0 > offset);
        let overlapping: Vec<u64> = overlapping.map(|(&start, _)| start).collect();
        for start in overlapping {
            let Some((stop, old)) = self.changes.remove(&start) else { continue };
            if start < offset {
                self.changes.insert(start, (offset, old));
            }
            if stop > end {
                self.changes.insert(end, (stop, old));
            }
        }
        self.changes.insert(offset, (end, change));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE_BYTES: u64 = 4096;

    /// Each byte is asked for by itself and must be as a plain copy of the image has it; any other is refused.
    fn agree(contents: &mut Contents, image: &[u8]) {
        for (at, &byte) in image.iter().enumerate() {
            contents.buffer(1)[0] = byte;
            contents.check(at as u64).unwrap_or_else(|error| panic!("{at}: {error}"));
            contents.buffer(1)[0] = !byte;
            assert!(contents.check(at as u64).is_err(), "{at}");
        }
        contents.buffer(IMAGE_BYTES).copy_from_slice(image);
        contents.check(0).unwrap();
    }

    #[test]
    fn it_knows_every_byte_after_overlapping_changes() {
        let source = PatternSource::open("pattern:4K,seed=3", None).unwrap();
        let mut image = vec![0; IMAGE_BYTES as usize];
        source.fill(0, &mut image);
        let mut contents = Contents::new(Some(source));
        agree(&mut contents, &image);
        let changes =
            [(100, 200, true), (150, 50, false), (0, 120, false), (290, 20, true), (90, 300, true), (4000, 96, true)];
        for (offset, length, write) in changes {
            let part = &mut image[offset as usize..(offset + length) as usize];
            if write {
                part.copy_from_slice(contents.write(offset, length));
            } else {
                contents.discard(offset, length);
                part.fill(0);
            }
            agree(&mut contents, &image);
        }
    }
}
