//! What stands before the sections of a model file: the image's geometry, and the length and checksum of each section.

use super::Learnt;
use crate::block::Geometry;
use crate::error::{Error, Result, errno};

/// First bytes of a model: as in PNG, a byte that is no text, and line ends that a careless transfer would change.
pub(super) const MAGIC: [u8; 8] = *b"\x89VMM\r\n\x1a\n";
const VERSION: u32 = 2;
/// Sections of a file of version 1, which has no spares, and of this one.
const SECTIONS_1: usize = 3;
pub(super) const SECTIONS: usize = 4;
/// Magic and version: what stands at the same place in every version.
pub(super) const START_BYTES: usize = 8 + 4;
/// Magic, version, shift, size, sessions, set aside, sections of length and checksum, checksum.
pub(super) const HEADER_BYTES: usize = header_bytes(SECTIONS);

pub(super) const fn header_bytes(sections: usize) -> usize {
    START_BYTES + 4 + 8 + 8 + 4 + sections * 12 + 4
}

/// Largest section, in bytes: ten times what the limits of training make of the worst sessions.
const SECTION_BYTES_MAX: u64 = 1 << 28;
/// Extent and checksum of a section.
#[derive(Clone, Copy)]
pub(super) struct Section {
    pub bytes: usize,
    pub crc: u32,
}

/// What stands before the sections.
pub(super) struct Header {
    pub geometry: Geometry,
    pub learnt: Learnt,
    pub sections: [Section; SECTIONS],
}

/// The same error for all that is wrong with a file: which file, what about it, what to do.
pub(super) fn broken(name: &str, what: &str) -> Error {
    Error::new(errno::EINVAL, format!("{name} {what}: train a new model from the sessions"))
}

impl Header {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(self.geometry.block_shift().to_le_bytes());
        out.extend(self.geometry.size().to_le_bytes());
        out.extend(self.learnt.sessions.to_le_bytes());
        out.extend(self.learnt.set_aside.to_le_bytes());
        for section in self.sections {
            out.extend((section.bytes as u64).to_le_bytes());
            out.extend(section.crc.to_le_bytes());
        }
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// How many sections a file has that begins so.
    pub fn sections(name: &str, start: &[u8; START_BYTES]) -> Result<usize> {
        if start[..MAGIC.len()] != MAGIC {
            return Err(broken(name, "is not a model"));
        }
        match number(start, &mut MAGIC.len(), 4) {
            1 => Ok(SECTIONS_1),
            version if version == u64::from(VERSION) => Ok(SECTIONS),
            version => {
                let text = format!("is a model of version {version}, and this program reads 1 to {VERSION}");
                Err(broken(name, &text))
            }
        }
    }

    /// From a whole header with so many sections.
    pub fn decode(name: &str, bytes: &[u8], sections: usize) -> Result<Self> {
        let mut at = START_BYTES;
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if number(crc, &mut 0, 4) != u64::from(crc32c::crc32c(body)) {
            return Err(broken(name, "has a damaged header"));
        }
        let shift = number(bytes, &mut at, 4);
        let size = number(bytes, &mut at, 8);
        let block_bytes = u32::try_from(shift).ok().and_then(|shift| 1u64.checked_shl(shift)).unwrap_or(0);
        let geometry = Geometry::new(size, block_bytes).map_err(|e| broken(name, &format!("is of an {e}")))?;
        let learnt = Learnt { sessions: number(bytes, &mut at, 8), set_aside: number(bytes, &mut at, 4) as u32 };
        // What a version does not have is empty.
        let mut all = [Section { bytes: 0, crc: 0 }; SECTIONS];
        for section in &mut all[..sections] {
            let length = number(bytes, &mut at, 8);
            if length > SECTION_BYTES_MAX {
                return Err(broken(name, &format!("has a section of {length} bytes, more than any model needs")));
            }
            *section = Section { bytes: length as usize, crc: number(bytes, &mut at, 4) as u32 };
        }
        Ok(Self { geometry, learnt, sections: all })
    }
}

/// The little-endian number of so many bytes that begins at `at`, which goes on behind it.
fn number(bytes: &[u8], at: &mut usize, length: usize) -> u64 {
    let number = bytes[*at..*at + length].iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
    *at += length;
    number
}

/// What makes a changed file pass its checksums, so that the tests reach what lies behind them.
#[cfg(test)]
pub(super) mod sealing {
    use super::*;

    /// Where the sections of a file begin, and its end.
    pub(in crate::model) fn bounds(file: &[u8]) -> [usize; SECTIONS + 1] {
        let header = Header::decode("m", &file[..HEADER_BYTES], SECTIONS).unwrap();
        let mut bounds = [HEADER_BYTES; SECTIONS + 1];
        for (at, section) in header.sections.iter().enumerate() {
            bounds[at + 1] = bounds[at] + section.bytes;
        }
        bounds
    }

    /// The file with all checksums made right again.
    pub(in crate::model) fn seal(mut file: Vec<u8>, sections: [usize; SECTIONS + 1]) -> Vec<u8> {
        for number in 0..SECTIONS {
            let crc = crc32c::crc32c(&file[sections[number]..sections[number + 1]]);
            let at = HEADER_BYTES - 4 - (SECTIONS - number) * 12 + 8;
            file[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c::crc32c(&file[..HEADER_BYTES - 4]);
        file[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        file
    }
}
