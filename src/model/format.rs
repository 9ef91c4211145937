//! The model as a file (`docs/format-model.md`).
//!
//! A header with the image's geometry and the length and checksum of each section, then the sections: sequences, paths,
//! record, spares. The first two are what following a guest needs, and are all that [`Model::load`] reads; the record is
//! the evidence for further training, and the spares are what merging chooses from besides. Nothing is believed because a checksum is right: a file may also come from a stranger,
//! so every number is checked against the image and against the rest before it is used, and what is allocated is bounded by
//! the length of what was read.

use std::fs::File;
use std::io::Read;
use std::path::Path as FilePath;

use super::bytes::{Reader, put, put_step};
use super::header::{Header, START_BYTES, Section, broken, header_bytes};
use super::recording::Recording;
use super::{Learnt, Model, Path, Sequence, SequenceId, Visit};
use crate::block::{BlockRange, Geometry};
use crate::error::{Error, Result};

/// Longest sequence of a file, in blocks. Training makes shorter ones, but may come to want longer ones.
const SEQUENCE_BLOCKS_MAX: u32 = 4096;

/// A file being read from start to end.
struct Input<'a, R> {
    name: &'a str,
    from: R,
}

impl<R: Read> Input<'_, R> {
    fn header(&mut self) -> Result<Header> {
        let too_short = || broken(self.name, "is too short for a model");
        let mut bytes = self.bytes(START_BYTES)?;
        let sections = Header::sections(self.name, bytes.first_chunk().ok_or_else(too_short)?)?;
        bytes.extend(self.bytes(header_bytes(sections) - START_BYTES)?);
        if bytes.len() < header_bytes(sections) {
            return Err(too_short());
        }
        Header::decode(self.name, &bytes, sections)
    }

    /// The next section, whole and with the right checksum.
    fn section(&mut self, section: Section, what: &str) -> Result<Vec<u8>> {
        let bytes = self.bytes(section.bytes)?;
        if bytes.len() < section.bytes {
            return Err(broken(self.name, &format!("ends within its {what}")));
        }
        if crc32c::crc32c(&bytes) != section.crc {
            return Err(broken(self.name, &format!("has damaged {what}")));
        }
        Ok(bytes)
    }

    /// So many bytes, or fewer where the file ends. What a length promises is not reserved before it is there.
    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length.min(1 << 20));
        let read = self.from.by_ref().take(length as u64).read_to_end(&mut bytes);
        read.map_err(|e| Error::io(format_args!("cannot read {}", self.name), e))?;
        Ok(bytes)
    }

    fn model(&mut self, header: &Header) -> Result<Model> {
        let sequences = self.section(header.sections[0], "sequences")?;
        let sequences = decode_sequences(&mut Reader::new(&sequences), header.geometry)
            .ok_or_else(|| broken(self.name, "has impossible sequences"))?;
        let paths = self.section(header.sections[1], "paths")?;
        decode_paths(&mut Reader::new(&paths))
            .and_then(|paths| Model::new(header.geometry, header.learnt, sequences, paths))
            .ok_or_else(|| broken(self.name, "has impossible paths"))
    }
}

impl Model {
    /// The first bytes of a model file, of whatever version.
    pub const MAGIC: [u8; 8] = super::header::MAGIC;

    /// Reads the model in the file at `path`, as far as following a guest needs it.
    ///
    /// A file that is no model, is cut off or damaged, or contradicts itself is an error (`EINVAL`). Whether the model is
    /// one of the image at hand is for the caller to see from [`Model::geometry`].
    pub fn load(path: &FilePath) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(format_args!("cannot open {name}"), e))?;
        Self::read(&name, file)
    }

    /// The same from anywhere; `name` is for errors.
    pub fn read(name: &str, from: impl Read) -> Result<Self> {
        let mut input = Input { name, from };
        let header = input.header()?;
        input.model(&header)
    }
}

/// What a file says beyond what following a guest needs: all of a trainer's state.
pub(super) struct Evidence {
    pub geometry: Geometry,
    pub learnt: Learnt,
    /// What the model was made from.
    pub recordings: Vec<Recording>,
    /// What there was to choose from besides.
    pub spares: Vec<Recording>,
    /// Age and identity of the first recording that was not even that.
    pub left: Option<(u32, u64)>,
}

/// Reads what training goes on from. All of the file is checked: who trains a damaged model shall hear of it.
pub(super) fn read_evidence(name: &str, from: impl Read) -> Result<Evidence> {
    let mut input = Input { name, from };
    let header = input.header()?;
    input.model(&header)?;
    let Header { geometry, learnt, sections } = header;
    let record = input.section(sections[2], "record")?;
    let recordings = decode_recordings(&mut Reader::new(&record), geometry)
        .ok_or_else(|| broken(name, "has an impossible record"))?;
    let spares = input.section(sections[3], "spares")?;
    let mut reader = Reader::new(&spares);
    let (left, spares) = if reader.is_empty() {
        (None, Vec::new())
    } else {
        take_left(&mut reader)
            .and_then(|left| Some((left, decode_recordings(&mut reader, geometry)?)))
            .ok_or_else(|| broken(name, "has impossible spares"))?
    };
    Ok(Evidence { geometry, learnt, recordings, spares, left })
}

/// The file of a model, of the recordings it was made from, and of those it might have been made from.
pub(super) fn encode(
    model: &Model,
    recordings: &[Recording],
    spares: &[Recording],
    left: Option<(u32, u64)>,
) -> Vec<u8> {
    let mut record = Vec::new();
    recordings.iter().for_each(|recording| recording.encode(&mut record));
    let mut rest = Vec::new();
    if left.is_some() || !spares.is_empty() {
        put_left(&mut rest, left);
        spares.iter().for_each(|recording| recording.encode(&mut rest));
    }
    let parts = [encode_sequences(&model.sequences), encode_paths(&model.paths), record, rest];
    let sections = parts.each_ref().map(|part| Section { bytes: part.len(), crc: crc32c::crc32c(part) });
    let mut out = Header { geometry: model.geometry, learnt: model.learnt, sections }.encode();
    parts.iter().for_each(|part| out.extend(part));
    out
}

fn put_left(out: &mut Vec<u8>, left: Option<(u32, u64)>) {
    match left {
        None => put(out, 0),
        Some((age, identity)) => {
            put(out, u64::from(age) + 1);
            put(out, identity);
        }
    }
}

fn take_left(reader: &mut Reader<'_>) -> Option<Option<(u32, u64)>> {
    let Some(age) = reader.take()?.checked_sub(1) else { return Some(None) };
    Some(Some((u32::try_from(age).ok()?, reader.take()?)))
}

/// Recordings up to the end.
fn decode_recordings(reader: &mut Reader<'_>, geometry: Geometry) -> Option<Vec<Recording>> {
    let mut recordings = Vec::new();
    while !reader.is_empty() {
        recordings.push(Recording::decode(reader, geometry)?);
    }
    Some(recordings)
}

fn encode_sequences(sequences: &[Sequence]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, sequences.len() as u64);
    let mut end = 0;
    for sequence in sequences {
        put(&mut out, sequence.runs.len() as u64);
        for run in &sequence.runs {
            put_step(&mut out, end, run.start.0);
            put(&mut out, run.len() - 1);
            end = run.end.0;
        }
    }
    out
}

fn decode_sequences(reader: &mut Reader<'_>, geometry: Geometry) -> Option<Vec<Sequence>> {
    let count = reader.take_count()?;
    let mut sequences = Vec::with_capacity(count);
    let mut end = 0;
    for _ in 0..count {
        let pieces = reader.take_count()?;
        let mut runs = Vec::with_capacity(pieces.min(SEQUENCE_BLOCKS_MAX as usize));
        let mut blocks = 0u32;
        for _ in 0..pieces {
            let start = reader.take_step(end)?;
            let length = reader.take_small()?.checked_add(1)?;
            end = start.checked_add(length.into())?;
            blocks = blocks.checked_add(length)?;
            if end > geometry.blocks() || blocks > SEQUENCE_BLOCKS_MAX {
                return None;
            }
            runs.push(BlockRange::new(start, end));
        }
        if runs.is_empty() {
            return None;
        }
        sequences.push(Sequence { runs, blocks });
    }
    reader.is_empty().then_some(sequences)
}

fn encode_paths(paths: &[Path]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, paths.len() as u64);
    for path in paths {
        put(&mut out, path.age.into());
        put(&mut out, path.visits.len() as u64);
        let (mut at_ms, mut next) = (0, 0);
        for visit in &path.visits {
            // Whole milliseconds, as training made them.
            let ms = (f64::from(visit.at) * 1000.0).round() as u64;
            put(&mut out, ms.saturating_sub(at_ms));
            put_step(&mut out, next, visit.sequence.0.into());
            (at_ms, next) = (ms, u64::from(visit.sequence.0) + 1);
        }
    }
    out
}

fn decode_paths(reader: &mut Reader<'_>) -> Option<Vec<Path>> {
    let count = reader.take_count()?;
    let mut paths = Vec::with_capacity(count);
    for _ in 0..count {
        let age = reader.take_small()?;
        let visited = reader.take_count()?;
        let mut visits = Vec::with_capacity(visited);
        let (mut at_ms, mut next) = (0u32, 0);
        for _ in 0..visited {
            at_ms = at_ms.checked_add(reader.take_small()?)?;
            let sequence = u32::try_from(reader.take_step(next)?).ok()?;
            next = u64::from(sequence) + 1;
            visits.push(Visit { at: (f64::from(at_ms) / 1000.0) as f32, sequence: SequenceId(sequence) });
        }
        paths.push(Path { age, visits });
    }
    reader.is_empty().then_some(paths)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::header::sealing::{bounds, seal};
    use crate::model::header::{HEADER_BYTES, SECTIONS};
    use crate::model::testing::session;
    use crate::model::{Limits, Trainer};

    fn file() -> Vec<u8> {
        let sessions: Vec<_> =
            (1..).zip([[0, 1], [1, 2], [0, 2], [1, 3], [2, 3]]).map(|(n, t)| session(n, &t)).collect();
        // Room for two and for two spares: one leaves.
        let limits = Limits { paths_max: 2, ..Limits::default() };
        let mut trainer = Trainer::new(sessions[0].geometry, limits);
        sessions.iter().for_each(|s| trainer.add(s).unwrap());
        trainer.finish_file().1
    }

    fn refused(file: &[u8], says: &str) {
        let error = read_evidence("m", file).err().expect("it is refused").to_string();
        assert!(error.contains(says), "{says:?} is not in {error:?}");
    }

    #[test]
    fn a_model_alone_needs_no_record() {
        let file = file();
        let [_, _, record, _, end] = bounds(&file);
        assert_eq!(end, file.len());
        let model = Model::read("m", &file[..record]).unwrap();
        assert_eq!(model.paths().len(), 2);
        refused(&file[..record], "ends within its record");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let file = file();
        let [sequences, paths, record, spares, _] = bounds(&file);
        let changed = |at: usize| {
            let mut file = file.clone();
            file[at] ^= 0x10;
            file
        };
        refused(b"", "m is too short for a model");
        refused(b"<html>", "too short");
        refused(&changed(0), "m is not a model");
        refused(&changed(8), "of version 18");
        refused(&changed(20), "damaged header");
        refused(&changed(sequences), "damaged sequences");
        refused(&changed(paths), "damaged paths");
        refused(&changed(record), "damaged record");
        refused(&changed(spares), "damaged spares");
        refused(&file[..spares], "ends within its spares");
        refused(&file[..record - 1], "ends within its paths");
        let missing = Model::load(FilePath::new("/nowhere/m.vmm")).unwrap_err();
        assert!(missing.to_string().starts_with("cannot open /nowhere/m.vmm"), "{missing}");
    }

    #[test]
    fn a_size_that_no_image_has_is_refused_whatever_the_checksum() {
        let file = file();
        let mut absurd = file.clone();
        absurd[12] = 63; // log2 of the block size
        refused(&seal(absurd, bounds(&file)), "block size");
        let mut absurd = file.clone();
        absurd[HEADER_BYTES - 4 - 12 + 7] = 1; // length of the spares
        refused(&seal(absurd, bounds(&file)), "more than any model needs");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        /// With right checksums, so that the decoders see it. Some changes give another valid model: then training goes
        /// on from that as well.
        #[test]
        fn no_file_panics(changes in prop::collection::vec((0usize..1 << 20, 0u8..8, any::<u8>()), 1..6)) {
            thread_local!(static FILE: Vec<u8> = file());
            let file = FILE.with(Clone::clone);
            let sections = bounds(&file);
            let mut strange = file.clone();
            for &(at, kind, byte) in &changes {
                let at = HEADER_BYTES + at % (file.len() - HEADER_BYTES);
                strange[at] = if kind == 0 { byte } else { strange[at] ^ 1 << kind };
            }
            let sealed = seal(strange.clone(), sections);
            if let Ok(model) = Model::read("m", &sealed[..]) {
                let blocks: u64 = model.sequences().iter().map(|s| u64::from(s.blocks)).sum();
                prop_assert!(blocks <= model.geometry().blocks());
                if let Ok(trainer) = Trainer::resume("m", &sealed[..], Limits::default()) {
                    trainer.finish();
                }
            }
            if strange != file {
                prop_assert!(read_evidence("m", &strange[..]).is_err(), "the checksums did not notice");
            }
        }

        /// Numbers that are missing, come twice, or are much larger: what stands behind them is read as something else.
        #[test]
        fn no_shift_panics(at in 0usize..1 << 20, taken in 0usize..4, given in prop::collection::vec(any::<u8>(), 0..11)) {
            thread_local!(static FILE: Vec<u8> = file());
            let mut file = FILE.with(Clone::clone);
            let mut sections = bounds(&file);
            let at = HEADER_BYTES + at % (file.len() - HEADER_BYTES - taken);
            let section = (0..SECTIONS).find(|&s| at < sections[s + 1]).unwrap();
            let taken = taken.min(sections[section + 1] - at);
            let length = sections[section + 1] - sections[section] - taken + given.len();
            sections[section + 1..].iter_mut().for_each(|end| *end = *end - taken + given.len());
            file.splice(at..at + taken, given);
            let field = HEADER_BYTES - 4 - (SECTIONS - section) * 12;
            file[field..field + 8].copy_from_slice(&(length as u64).to_le_bytes());
            let sealed = seal(file, sections);
            if let Ok(trainer) = Trainer::resume("m", &sealed[..], Limits::default()) {
                let (model, file) = trainer.finish_file();
                let again = Model::read("m", &file[..]).unwrap();
                prop_assert_eq!(again.paths(), model.paths());
            }
        }

        #[test]
        fn no_end_panics(keep in 0usize..1 << 20) {
            thread_local!(static FILE: Vec<u8> = file());
            let file = FILE.with(Clone::clone);
            prop_assert!(read_evidence("m", &file[..keep % file.len()]).is_err());
        }
    }
}
