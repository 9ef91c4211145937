//! The head of a session file: which image the session is of, and when it began.
//!
//! `magic 8 · version u32 · length u32 · body · crc u32`, little-endian, as in the journal; the body's layout stands in
//! `docs/format-session.md`. It names the image by what pins it and not by where it lay, so that a session may be passed
//! on without telling from whom somebody had the image.

use super::clock::WallTime;
use crate::block::Geometry;
use crate::source::Identity;
use crate::store::seal;

/// First bytes of every session file. Not text, with both kinds of line end in it: a transfer that "helps" shows.
pub(super) const MAGIC: [u8; 8] = *b"\x89VMS\r\n\x1a\n";
/// The one version of the format that there is so far.
const VERSION: u32 = 1;
/// Magic, version and length of the body, in bytes.
const FIXED_BYTES: usize = 16;
/// Longest validator, in bytes; the journal has the same limit.
const VALIDATOR_BYTES_MAX: usize = 4 << 10;
/// Flag: the image's time of modification is known.
const FLAG_MTIME: u8 = 1;
/// Flag: there is a validator.
const FLAG_VALIDATOR: u8 = 2;
/// Flag: it is known when the session began.
const FLAG_STARTED: u8 = 4;

/// Which image a session is of, and when it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Size of the image and of its blocks.
    pub geometry: Geometry,
    /// What pins the image, as the journal of its cache has it; `None` where the record does not say.
    pub validator: Option<String>,
    /// Time of modification of the published image, in seconds since 1970, where it is known.
    pub mtime_s: Option<i64>,
    /// When the image was opened, where it is known.
    pub started: Option<WallTime>,
}

/// Why bytes are not the head of a session file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Something else.
    Foreign,
    /// Of a version that is not known here.
    Version(u32),
    /// Cut short or changed.
    Damaged,
}

impl Subject {
    /// A session of this image that begins now. A validator that is too long to be kept is left out.
    pub fn now(identity: &Identity, geometry: Geometry) -> Self {
        let validator = identity.validator.clone().filter(|text| text.len() <= VALIDATOR_BYTES_MAX);
        Self { geometry, validator, mtime_s: identity.mtime_s, started: Some(WallTime::now()) }
    }

    /// True unless it is known to be a session of another image than `other` is.
    pub fn is_of(&self, other: &Self) -> bool {
        let known = self.validator.as_ref().zip(other.validator.as_ref());
        self.geometry == other.geometry && known.is_none_or(|(ours, theirs)| ours == theirs)
    }

    /// An image of which nothing more is known.
    pub fn nameless(geometry: Geometry) -> Self {
        Self { geometry, validator: None, mtime_s: None, started: None }
    }

    /// The head as bytes, its checksum last.
    pub(super) fn encode(&self) -> Vec<u8> {
        let validator = self.validator.as_deref().filter(|text| text.len() <= VALIDATOR_BYTES_MAX);
        let flag = |flag, on| if on { flag } else { 0 };
        let mut body = Vec::new();
        body.extend(self.started.map_or(0, |at| at.0).to_le_bytes());
        body.extend(self.geometry.size().to_le_bytes());
        body.extend(self.mtime_s.unwrap_or(0).to_le_bytes());
        body.push(self.geometry.block_shift() as u8);
        body.push(
            flag(FLAG_MTIME, self.mtime_s.is_some())
                | flag(FLAG_VALIDATOR, validator.is_some())
                | flag(FLAG_STARTED, self.started.is_some()),
        );
        let text = validator.unwrap_or_default();
        body.extend((text.len() as u16).to_le_bytes());
        body.extend(text.as_bytes());
        seal(MAGIC, VERSION, &body).0
    }

    /// Takes the head off the start of `bytes`; answers the checksum as well, which the first chunk continues.
    pub(super) fn take(bytes: &mut &[u8]) -> Result<(Self, u32), Fault> {
        let whole = *bytes;
        let magic: [u8; 8] = take(bytes).ok_or(Fault::Foreign)?;
        if magic != MAGIC {
            return Err(Fault::Foreign);
        }
        let version = u32::from_le_bytes(take(bytes).ok_or(Fault::Damaged)?);
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let length = u32::from_le_bytes(take(bytes).ok_or(Fault::Damaged)?) as usize;
        let (body, rest) = bytes.split_at_checked(length).ok_or(Fault::Damaged)?;
        *bytes = rest;
        let stored = u32::from_le_bytes(take(bytes).ok_or(Fault::Damaged)?);
        let crc = crc32c::crc32c(&whole[..FIXED_BYTES + length]);
        if crc != stored {
            return Err(Fault::Damaged);
        }
        Ok((Self::parse(body).ok_or(Fault::Damaged)?, crc))
    }

    /// Reads a body; `None` unless every byte of it makes sense.
    fn parse(mut body: &[u8]) -> Option<Self> {
        let body = &mut body;
        let started = u64::from_le_bytes(take(body)?);
        let size = u64::from_le_bytes(take(body)?);
        let mtime_s = i64::from_le_bytes(take(body)?);
        let [block_shift, flags] = take(body)?;
        let geometry = Geometry::new(size, 1u64.checked_shl(block_shift.into())?).ok()?;
        let length: usize = u16::from_le_bytes(take(body)?).into();
        if length > VALIDATOR_BYTES_MAX || body.len() != length {
            return None;
        }
        let validator = String::from_utf8(body.to_vec()).ok()?;
        // What a flag denies has nothing to say either, so that equal heads are equal bytes.
        let given = |flag, empty: bool| if flags & flag != 0 { Some(true) } else { empty.then_some(false) };
        let known = flags & !(FLAG_MTIME | FLAG_VALIDATOR | FLAG_STARTED) == 0;
        let (dated, named) = (given(FLAG_MTIME, mtime_s == 0)?, given(FLAG_VALIDATOR, validator.is_empty())?);
        let timed = given(FLAG_STARTED, started == 0)? && WallTime(started).is_sound();
        (known && timed == (flags & FLAG_STARTED != 0)).then_some(Self {
            geometry,
            validator: named.then_some(validator),
            mtime_s: dated.then_some(mtime_s),
            started: timed.then_some(WallTime(started)),
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subject(validator: Option<&str>, mtime_s: Option<i64>, started: Option<u64>) -> Subject {
        let geometry = Geometry::new(10_000, 512).unwrap();
        Subject { geometry, validator: validator.map(str::to_owned), mtime_s, started: started.map(WallTime) }
    }

    #[test]
    fn a_head_is_read_as_it_was_written() {
        for subject in
            [subject(None, None, None), subject(Some(""), Some(0), Some(0)), subject(Some("\"ä\""), Some(-5), Some(7))]
        {
            let bytes = [subject.encode(), vec![1, 2, 3]].concat();
            let mut rest = bytes.as_slice();
            assert_eq!(Subject::take(&mut rest).unwrap().0, subject);
            assert_eq!(rest, [1, 2, 3]);
        }
    }

    #[test]
    fn only_what_both_know_tells_two_images_apart() {
        let (first, second) = (subject(Some("1"), None, None), subject(Some("2"), None, Some(7)));
        let unknown = subject(None, Some(3), None);
        assert!(first.is_of(&first) && first.is_of(&unknown) && unknown.is_of(&second));
        assert!(!first.is_of(&second));
        assert!(!first.is_of(&Subject { geometry: Geometry::new(10_001, 512).unwrap(), ..first.clone() }));
    }

    #[test]
    fn a_validator_that_is_too_long_is_left_out() {
        let identity = Identity { size: 10_000, validator: Some("x".repeat(4097)), mtime_s: None };
        assert_eq!(Subject::now(&identity, Geometry::new(10_000, 512).unwrap()).validator, None);
    }

    #[test]
    fn what_is_no_head_is_told_apart() {
        let good = subject(Some("v"), None, Some(1)).encode();
        let fault = |bytes: &[u8]| Subject::take(&mut &*bytes).unwrap_err();
        assert_eq!(fault(b"# vmtrace 1"), Fault::Foreign);
        assert_eq!(fault(&good[..7]), Fault::Foreign);
        let mut other = good.clone();
        other[8] = 2;
        assert_eq!(fault(&other), Fault::Version(2));
        for cut in 8..good.len() {
            assert_eq!(fault(&good[..cut]), Fault::Damaged, "cut at {cut}");
        }
    }

    proptest! {
        /// Damage that the checksum was made to fit is refused, or means what it says.
        #[test]
        fn any_body_is_refused_or_is_the_one_spelling_of_its_head(
            at in any::<prop::sample::Index>(),
            patch in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            let good = subject(Some("tag"), Some(9), Some(8)).encode();
            let mut body = good[FIXED_BYTES..good.len() - 4].to_vec();
            let at = at.index(body.len());
            let end = (at + patch.len()).min(body.len());
            body[at..end].copy_from_slice(&patch[..end - at]);
            if let Some(parsed) = Subject::parse(&body) {
                let again = parsed.encode();
                prop_assert_eq!(&again[FIXED_BYTES..again.len() - 4], body);
            }
        }
    }
}
