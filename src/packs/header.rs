//! What a packs file begins with: of which image it is, and where its parts lie.

use std::ops::Range;

use super::{FRAME_WIRE_BYTES_MAX, FRAMES_MAX, START_BYTES_MAX};
use crate::error::{Error, Result, errno};
use crate::model::FILE_BYTES_MAX as MODEL_BYTES_MAX;
use crate::tree::Root;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 96;
/// First bytes of every packs file: a byte that is no text, and line ends that a careless transfer would change.
const MAGIC: [u8; 8] = *b"\x89VMK\r\n\x1a\n";
/// The one version of the format that there is so far.
const VERSION: u32 = 1;
/// Longest index, in bytes: a model has at most a few million sequences, each of a byte or two.
const INDEX_BYTES_MAX: u32 = 64 << 20;

/// The header of a packs file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The image whose blocks are packed.
    pub root: Root,
    /// Number of frames.
    pub frames: u32,
    pub(super) start_bytes: u32,
    pub(super) index_bytes: u32,
    pub(super) model_bytes: u64,
    pub(super) frames_bytes: u64,
    pub(super) start_crc: u32,
    pub(super) index_crc: u32,
}

/// The same error for all that is wrong with a file: which file, what about it, what to do.
pub(super) fn broken(name: &str, what: &str) -> Error {
    Error::new(errno::EPROTO, format!("{name} {what}; without its packs the image is streamed all the same"))
}

impl Header {
    /// Where the *start* lies in the file.
    pub fn start(&self) -> Range<u64> {
        let from = HEADER_BYTES as u64;
        from..from + u64::from(self.start_bytes)
    }

    /// Where the index lies in the file.
    pub fn index(&self) -> Range<u64> {
        let from = self.start().end;
        from..from + u64::from(self.index_bytes)
    }

    /// Where the model lies in the file.
    pub fn model(&self) -> Range<u64> {
        let from = self.index().end;
        from..from + self.model_bytes
    }

    /// Where the frames lie in the file, and so where it ends.
    pub fn packed(&self) -> Range<u64> {
        let from = self.model().end;
        from..from + self.frames_bytes
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..48].copy_from_slice(self.root.as_bytes());
        bytes[48..52].copy_from_slice(&self.frames.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.start_bytes.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.index_bytes.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.model_bytes.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.frames_bytes.to_le_bytes());
        bytes[80..84].copy_from_slice(&self.start_crc.to_le_bytes());
        bytes[84..88].copy_from_slice(&self.index_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..88]);
        bytes[88..92].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; bytes behind it do not matter. `name` is for errors.
    ///
    /// # Errors
    /// EPROTO for what is no packs file, is one of another version, is damaged, or contradicts itself.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Self> {
        let Some(bytes) = bytes.get(..HEADER_BYTES).filter(|bytes| bytes.starts_with(&MAGIC)) else {
            return Err(broken(name, "is no packs file of a published image (.vmk)"));
        };
        let u32_at = |at: usize| bytes[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        let u64_at = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        let version = u32_at(8);
        if version != VERSION {
            let what = format!(
                "is a packs file of version {version}, and this vmstream knows version {VERSION}: use a newer one"
            );
            return Err(broken(name, &what));
        }
        let mut root = [0; 32];
        root.copy_from_slice(&bytes[16..48]);
        let header = Self {
            root: Root::from_bytes(root),
            frames: u32_at(48),
            start_bytes: u32_at(52),
            index_bytes: u32_at(56),
            model_bytes: u64_at(64),
            frames_bytes: u64_at(72),
            start_crc: u32_at(80),
            index_crc: u32_at(84),
        };
        // What is left - flags, padding, the checksum - follows from what was read.
        if header.encode() != *bytes {
            return Err(broken(name, "has a damaged header"));
        }
        let sound = header.frames <= FRAMES_MAX
            && header.start_bytes <= START_BYTES_MAX
            && header.index_bytes <= INDEX_BYTES_MAX
            && header.model_bytes <= MODEL_BYTES_MAX
            && header.frames_bytes <= u64::from(header.frames) * FRAME_WIRE_BYTES_MAX;
        if sound { Ok(header) } else { Err(broken(name, "has a header of impossible numbers")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let root = "5".repeat(64).parse().unwrap();
        Header {
            root,
            frames: 7,
            start_bytes: 100,
            index_bytes: 1000,
            model_bytes: 10_000,
            frames_bytes: 900_000,
            start_crc: 1,
            index_crc: 2,
        }
    }

    #[test]
    fn a_header_is_read_back_and_every_bit_of_it_counts() {
        let header = header();
        let bytes = header.encode();
        assert_eq!(Header::decode("p", &bytes).ok(), Some(header));
        assert_eq!((header.packed().start, header.packed().end), (96 + 11_100, 96 + 911_100));
        assert!(Header::decode("p", &bytes[..HEADER_BYTES - 1]).is_err());
        for bit in 0..8 * HEADER_BYTES {
            let mut spoiled = bytes;
            spoiled[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode("p", &spoiled).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_called_one() {
        let mut bytes = header().encode();
        bytes[8] = 2;
        let text = Header::decode("p.vmk", &bytes).unwrap_err().to_string();
        assert!(text.contains("p.vmk is a packs file of version 2") && text.contains("newer"), "{text}");
    }

    #[test]
    fn numbers_that_no_file_has_are_refused_though_the_checksum_is_right() {
        let good = header();
        for wrong in [
            Header { frames: FRAMES_MAX + 1, ..good },
            Header { start_bytes: START_BYTES_MAX + 1, ..good },
            Header { index_bytes: INDEX_BYTES_MAX + 1, ..good },
            Header { model_bytes: MODEL_BYTES_MAX + 1, ..good },
            Header { frames_bytes: u64::MAX, ..good },
        ] {
            assert!(Header::decode("p", &wrong.encode()).is_err(), "{wrong:?}");
        }
    }
}
