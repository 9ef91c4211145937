//! The head of a journal: which image it belongs to.
//!
//! `magic 8 · version u32 · length u32 · body · crc u32`, little-endian; the body's layout stands in
//! `docs/format-journal.md`. The header is written once, made durable before the journal gets its name, and never
//! changed, so a damaged one is no trace of a crash: it is refused, never repaired.

use std::io;

use super::medium::Medium;
use super::record::Link;
use crate::block::Geometry;
use crate::error::{Error, Result, errno};
use crate::source::Identity;

/// First bytes of every journal. Not text, with both kinds of line end in it: a transfer that "helps" shows at once.
const MAGIC: [u8; 8] = *b"\x89VMJ\r\n\x1a\n";
/// The one version of the format that there is so far.
const VERSION: u32 = 1;
/// Magic, version and length of the body, in bytes.
const FIXED_BYTES: usize = 16;
/// Largest body, in bytes: what a corrupt length can make a reader allocate.
const BODY_BYTES_MAX: usize = 16 << 10;
/// Longest validator and longest name of a source, in bytes. Servers limit all their headers together to about 8 KiB.
const TEXT_BYTES_MAX: usize = 4 << 10;
/// Flag: the origin said when the image was published.
const FLAG_PUBLISHED: u8 = 1;
/// Flag: there is a validator.
const FLAG_VALIDATOR: u8 = 2;

/// The head of a file of ours, `magic · version · length of the body · body · crc`, and the checksum, which what follows
/// the head continues. Recorded sessions have it as well.
pub(crate) fn seal(magic: [u8; 8], version: u32, body: &[u8]) -> (Vec<u8>, u32) {
    let mut bytes = magic.to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    (bytes, crc)
}

/// What a cache is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The image's identity when the cache was made.
    pub identity: Identity,
    /// Size of the image and of the blocks the journal counts.
    pub geometry: Geometry,
    /// Name of the source it came from, for people; another source of the same identity is as good.
    pub source: String,
}

/// The head of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// What the journal is bound to.
    pub pinned: Pinned,
    /// The modification time that the image file shows, in seconds since 1970: the published one, or, where the
    /// origin does not tell, that of the cache's making. It has to be *some* constant: copy-on-write files remember it.
    pub mtime_s: i64,
    /// Random; tells the records of this cache from those of all others, because it begins their chain of checksums.
    /// A rewritten journal keeps it: should an older one's leftovers ever continue the chain, they are true.
    pub salt: u64,
}

impl Header {
    /// A header for a new journal. Refuses a validator that is too long; cuts the name of the source.
    pub fn new(identity: &Identity, geometry: Geometry, source: &str, now_s: i64, salt: u64) -> Result<Self> {
        if identity.size != geometry.size() {
            let text = format!("image of {} bytes, but a geometry of {} bytes", identity.size, geometry.size());
            return Err(Error::new(errno::EINVAL, text));
        }
        let validator_bytes = identity.validator.as_ref().map_or(0, String::len);
        if validator_bytes > TEXT_BYTES_MAX {
            let text = format!("{source}: the ETag has {validator_bytes} bytes; at most {TEXT_BYTES_MAX} can be kept");
            return Err(Error::new(errno::EPROTO, text));
        }
        let mut source = source.to_owned();
        source.truncate((0..=TEXT_BYTES_MAX).rev().find(|at| source.is_char_boundary(*at)).unwrap_or(0));
        let pinned = Pinned { identity: identity.clone(), geometry, source };
        Ok(Self { mtime_s: identity.mtime_s.unwrap_or(now_s), pinned, salt })
    }

    /// The header as bytes, and the link that the first record continues.
    pub fn encode(&self) -> (Vec<u8>, Link) {
        let Pinned { identity, geometry, source } = &self.pinned;
        let published = if identity.mtime_s.is_some() { FLAG_PUBLISHED } else { 0 };
        let validator = if identity.validator.is_some() { FLAG_VALIDATOR } else { 0 };
        let mut body = Vec::new();
        body.extend(self.salt.to_le_bytes());
        body.extend(geometry.size().to_le_bytes());
        body.extend(self.mtime_s.to_le_bytes());
        body.push(geometry.block_shift() as u8);
        body.push(published | validator);
        for text in [identity.validator.as_deref().unwrap_or(""), source] {
            body.extend((text.len() as u16).to_le_bytes());
            body.extend(text.as_bytes());
        }
        let (bytes, crc) = seal(MAGIC, VERSION, &body);
        (bytes, Link { crc, sequence: 0 })
    }

    /// Reads the header at the start of `file`; answers it with its length in bytes and the first record's link.
    /// `path` is for messages.
    pub fn read(file: &impl Medium, path: &str) -> Result<(Self, u64, Link)> {
        let foreign = || {
            let text =
                format!("{path} is not a journal of vmstream: nothing was touched; move it away or give another cache");
            Error::new(errno::EINVAL, text)
        };
        let damaged = || {
            let text = format!(
                "the head of {path} is damaged, so it cannot be told what the image beside it holds: restore both \
                 from a backup, or remove both to start afresh"
            );
            Error::new(errno::EIO, text)
        };
        let unreadable = |e: io::Error| Error::io(format_args!("cannot read {path}"), e);
        let mut fixed = [0; FIXED_BYTES];
        let got = read_full(file, 0, &mut fixed).map_err(unreadable)?;
        let [magic @ .., v0, v1, v2, v3, l0, l1, l2, l3] = fixed;
        if got < FIXED_BYTES || magic != MAGIC {
            return Err(foreign());
        }
        let version = u32::from_le_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            let text = format!(
                "{path} has journal format {version}, but only format {VERSION} is known here: nothing was touched; \
                 use the version of vmstream that made it, or another cache"
            );
            return Err(Error::new(errno::EPROTO, text));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > BODY_BYTES_MAX {
            return Err(damaged());
        }
        let mut rest = vec![0; length + 4];
        if read_full(file, FIXED_BYTES as u64, &mut rest).map_err(unreadable)? < rest.len() {
            return Err(damaged());
        }
        let (body, stored) = rest.split_last_chunk::<4>().ok_or_else(damaged)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&fixed), body);
        if crc != u32::from_le_bytes(*stored) {
            return Err(damaged());
        }
        let header = Self::parse(body).ok_or_else(damaged)?;
        Ok((header, (FIXED_BYTES + rest.len()) as u64, Link { crc, sequence: 0 }))
    }

    fn parse(mut body: &[u8]) -> Option<Self> {
        let body = &mut body;
        let salt = u64::from_le_bytes(take(body)?);
        let size = u64::from_le_bytes(take(body)?);
        let mtime_s = i64::from_le_bytes(take(body)?);
        let [block_shift, flags] = take(body)?;
        let block_bytes = 1u64.checked_shl(block_shift.into())?;
        let geometry = Geometry::new(size, block_bytes).ok()?;
        let validator = take_text(body)?;
        let source = take_text(body)?;
        if !body.is_empty() || flags & !(FLAG_PUBLISHED | FLAG_VALIDATOR) != 0 {
            return None;
        }
        let identity = Identity {
            size,
            validator: (flags & FLAG_VALIDATOR != 0).then_some(validator),
            mtime_s: (flags & FLAG_PUBLISHED != 0).then_some(mtime_s),
        };
        Some(Self { pinned: Pinned { identity, geometry, source }, mtime_s, salt })
    }

    /// Refuses to use the journal for anything but the image it is bound to. `path` is the image's, for messages.
    pub fn check_same(&self, wanted: &Pinned, path: &str) -> Result<()> {
        let kept = &self.pinned;
        if same_bytes(&kept.identity, &wanted.identity) && kept.geometry == wanted.geometry {
            return Ok(());
        }
        let text = format!(
            "{path} is a cache of {}, but {} is {}: give another cache, or remove {path} and {path}{} to start afresh \
             (what a guest wrote there is then lost)",
            kept.describe(),
            wanted.source,
            wanted.describe(),
            super::medium::JOURNAL_SUFFIX,
        );
        Err(Error::new(errno::ESTALE, text))
    }
}

impl Pinned {
    /// The image in words, for messages.
    fn describe(&self) -> String {
        let of = match (&self.identity.validator, self.identity.mtime_s) {
            (Some(validator), _) => format!("version {validator}"),
            (None, Some(mtime_s)) => format!("version of {mtime_s} s since 1970"),
            (None, None) => "version unknown".to_owned(),
        };
        format!("{} ({of}, {} bytes in blocks of {})", self.source, self.geometry.size(), self.geometry.block_bytes())
    }
}

/// True when both say the same bytes. A validator decides alone: mirrors and new uploads of the same bytes differ
/// in their times. Without one, size and time are all there is.
fn same_bytes(a: &Identity, b: &Identity) -> bool {
    let dated = a.validator.is_some() || a.mtime_s == b.mtime_s;
    a.size == b.size && a.validator == b.validator && dated
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let length = u16::from_le_bytes(take(bytes)?).into();
    if length > TEXT_BYTES_MAX {
        return None;
    }
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// Reads until `bytes` is full or the file ends; answers how much was read.
fn read_full(file: &impl Medium, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(offset + done as u64, &mut bytes[done..])? {
            0 => break,
            got => done += got,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(validator: Option<String>, mtime_s: Option<i64>) -> Identity {
        Identity { size: 10_000, validator, mtime_s }
    }

    fn header(validator: Option<String>, mtime_s: Option<i64>, source: &str) -> Result<Header> {
        Header::new(&identity(validator, mtime_s), Geometry::new(10_000, 512).unwrap(), source, 77, 88)
    }

    fn body(header: &Header) -> Vec<u8> {
        let (bytes, _) = header.encode();
        bytes[FIXED_BYTES..bytes.len() - 4].to_vec()
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for (validator, mtime_s, shown) in [(None, None, 77), (Some(""), Some(0), 0), (Some("\"a\""), Some(-5), -5)] {
            let header = header(validator.map(str::to_owned), mtime_s, "http://host/ä").unwrap();
            assert_eq!(header.mtime_s, shown);
            assert_eq!(Header::parse(&body(&header)), Some(header));
        }
    }

    #[test]
    fn long_texts_are_refused_or_cut_and_still_read() {
        let error = header(Some("x".repeat(TEXT_BYTES_MAX + 1)), None, "s").unwrap_err();
        assert!(error.to_string().contains("4097 bytes"), "{error}");
        let header = header(Some("x".repeat(TEXT_BYTES_MAX)), None, &"\u{20ac}".repeat(TEXT_BYTES_MAX)).unwrap();
        assert_eq!(header.pinned.source.len(), TEXT_BYTES_MAX / 3 * 3);
        assert!(body(&header).len() <= BODY_BYTES_MAX);
        assert_eq!(Header::parse(&body(&header)), Some(header));
    }

    #[test]
    fn a_size_that_is_not_the_images_is_refused() {
        let geometry = Geometry::new(10_001, 512).unwrap();
        assert!(Header::new(&identity(None, None), geometry, "s", 0, 0).is_err());
    }

    #[test]
    fn a_validator_decides_alone_and_without_one_the_time_does() {
        let same = |a: (&str, i64), b: (&str, i64)| {
            let of =
                |(tag, mtime_s): (&str, i64)| identity(Some(tag.to_owned()).filter(|tag| tag != "-"), Some(mtime_s));
            same_bytes(&of(a), &of(b))
        };
        assert!(same(("a", 1), ("a", 2)) && same(("-", 1), ("-", 1)));
        assert!(!same(("a", 1), ("b", 1)) && !same(("-", 1), ("-", 2)) && !same(("a", 1), ("-", 1)));
        assert!(!same_bytes(&identity(None, None), &Identity { size: 1, ..identity(None, None) }));
    }

    proptest! {
        #[test]
        fn any_body_is_refused_or_means_what_it_says(
            at in any::<prop::sample::Index>(),
            patch in prop::collection::vec(any::<u8>(), 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = body(&header(Some("tag".into()), Some(9), "name").unwrap());
            let at = at.index(bytes.len());
            let end = (at + patch.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&patch[..end - at]);
            // Cut in one half of all cases.
            bytes.truncate(cut.index(2 * bytes.len()));
            if let Some(parsed) = Header::parse(&bytes) {
                // Without a validator its text is not kept; all else is.
                prop_assume!(parsed.pinned.identity.validator.is_some());
                prop_assert_eq!(body(&parsed), bytes);
            }
        }
    }
}
