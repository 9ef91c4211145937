//! The two sections of a packs file that say what its frames hold: the *start* and the *index*.
//!
//! The index names the sequences of each frame, so it is small, and is of use only with the model. The start spells out
//! the blocks of the first frames, so that streaming begins before the model is here: it comes with the header, in the
//! first request of all.

use super::header::{Header, broken};
use super::index::{Index, Listed};
use super::{FRAME_BYTES_MAX, FRAME_WIRE_BYTES_MAX, START_BYTES_MAX};
use crate::block::{BlockRange, Geometry};
use crate::error::Result;
use crate::model::bytes::{Reader, put, put_step};
use crate::model::{Model, SequenceId};
use crate::tree::Holes;

/// The used blocks of some runs, in their order.
pub(super) fn used(runs: impl IntoIterator<Item = BlockRange>, holes: &Holes) -> Vec<BlockRange> {
    let mut used: Vec<BlockRange> = Vec::new();
    for part in runs.into_iter().flat_map(|run| holes.used_in(run)) {
        match used.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => used.push(part),
        }
    }
    used
}

/// The start section: as many of the first frames as there is room for.
pub(super) fn encode_start(frames: &[Listed]) -> Vec<u8> {
    let mut listed: Vec<u8> = Vec::new();
    let (mut count, mut end) = (0, 0);
    for frame in frames {
        let mut one = Vec::new();
        let mut next = end;
        put(&mut one, frame.runs.len() as u64);
        for run in &frame.runs {
            put_step(&mut one, next, run.start.0);
            put(&mut one, run.len() - 1);
            next = run.end.0;
        }
        put(&mut one, frame.proof.into());
        put(&mut one, frame.packed.into());
        // The count before them takes two bytes at most: a frame takes four at least.
        if 2 + listed.len() + one.len() > START_BYTES_MAX as usize {
            break;
        }
        listed.extend(one);
        (count, end) = (count + 1, next);
    }
    let mut out = Vec::new();
    put(&mut out, count);
    out.extend(listed);
    out
}

/// The index section.
pub(super) fn encode_index(frames: &[(Vec<SequenceId>, Listed)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut next = 0;
    for (sequences, listed) in frames {
        put(&mut out, sequences.len() as u64);
        for id in sequences {
            put_step(&mut out, next, id.0.into());
            next = u64::from(id.0) + 1;
        }
        put(&mut out, listed.proof.into());
        put(&mut out, listed.packed.into());
    }
    out
}

impl Index {
    /// The first frames, as the start section lists them. `name` is for errors.
    ///
    /// # Errors
    /// EPROTO for a section that is cut off, damaged, or impossible for an image of this geometry and these holes.
    pub fn of_start(name: &str, header: &Header, start: &[u8], geometry: Geometry, holes: &Holes) -> Result<Self> {
        check(name, "start", start, header.start_bytes, header.start_crc)?;
        decode_start(start, header.frames, geometry, holes)
            .and_then(|listed| Self::new(geometry, header.packed().start, &listed))
            .ok_or_else(|| broken(name, "has an impossible start"))
    }

    /// All frames, as the index section lists them for the model of the same file. `name` is for errors.
    ///
    /// # Errors
    /// EPROTO for a section that is cut off, damaged, or impossible for this model and these holes.
    pub fn of_file(name: &str, header: &Header, index: &[u8], model: &Model, holes: &Holes) -> Result<Self> {
        check(name, "index", index, header.index_bytes, header.index_crc)?;
        decode_index(index, header.frames, model, holes)
            .and_then(|listed| Self::new(model.geometry(), header.packed().start, &listed))
            .filter(|index| index.wire_bytes(0..index.count()) == header.frames_bytes)
            .ok_or_else(|| broken(name, "has an impossible index"))
    }
}

fn check(name: &str, what: &str, bytes: &[u8], length: u32, crc: u32) -> Result<()> {
    if bytes.len() != length as usize {
        return Err(broken(name, &format!("ends within its {what}")));
    }
    if crc32c::crc32c(bytes) != crc {
        return Err(broken(name, &format!("has a damaged {what}")));
    }
    Ok(())
}

fn decode_start(bytes: &[u8], frames: u32, geometry: Geometry, holes: &Holes) -> Option<Vec<Listed>> {
    let mut reader = Reader::new(bytes);
    let count = reader.take_count()?;
    if count > frames as usize {
        return None;
    }
    let mut listed = Vec::with_capacity(count);
    let mut end = 0;
    for _ in 0..count {
        let pieces = reader.take_count()?;
        let mut runs = Vec::with_capacity(pieces);
        for _ in 0..pieces {
            let start = reader.take_step(end)?;
            end = start.checked_add(reader.take()?)?.checked_add(1)?;
            if end > geometry.blocks() {
                return None;
            }
            runs.push(BlockRange::new(start, end));
        }
        // Only used blocks are packed, and there is one way to say so.
        if used(runs.iter().copied(), holes) != runs {
            return None;
        }
        listed.push(frame(&mut reader, runs, geometry)?);
    }
    reader.is_empty().then_some(listed)
}

fn decode_index(bytes: &[u8], frames: u32, model: &Model, holes: &Holes) -> Option<Vec<Listed>> {
    let mut reader = Reader::new(bytes);
    // A frame takes three bytes at least.
    if u64::from(frames) * 3 > bytes.len() as u64 {
        return None;
    }
    let mut listed = Vec::with_capacity(frames as usize);
    let mut packed = vec![false; model.sequences().len()];
    let mut next = 0;
    for _ in 0..frames {
        let count = reader.take_count()?;
        let mut runs = Vec::new();
        for _ in 0..count {
            let id = u32::try_from(reader.take_step(next)?).ok()?;
            next = u64::from(id) + 1;
            if std::mem::replace(packed.get_mut(id as usize)?, true) {
                return None;
            }
            runs.extend(&model.sequence(SequenceId(id)).runs);
        }
        listed.push(frame(&mut reader, used(runs, holes), model.geometry())?);
    }
    reader.is_empty().then_some(listed)
}

/// The frame of these blocks; the reader is at its lengths.
fn frame(reader: &mut Reader<'_>, runs: Vec<BlockRange>, geometry: Geometry) -> Option<Listed> {
    let (proof, packed) = (reader.take_small()?, reader.take_small()?);
    let raw: u64 = runs.iter().map(|&run| geometry.length(run)).sum();
    let wire = u64::from(proof) + u64::from(packed);
    (1..=FRAME_BYTES_MAX).contains(&raw).then_some(())?;
    (wire <= FRAME_WIRE_BYTES_MAX).then_some(Listed { runs, proof, packed })
}
