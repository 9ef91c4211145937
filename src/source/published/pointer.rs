//! The pointer: the small text beside a published image that says what lies there now.
//!
//! It is the only file of a publication that is ever replaced, so a reader sees the old version or the new one and
//! never a mixture. Nothing in it is trusted: what is wrong in it leads to files that do not fit the root. The format is
//! in `docs/format.md`.

use std::fmt;

use crate::block::Geometry;
use crate::error::{Error, Result, errno};
use crate::source::percent_decoded;
use crate::tree::{HEAD_BYTES, Root};

/// Largest pointer, in bytes: what is asked for before anything is known.
pub const POINTER_BYTES_MAX: usize = 4096;

/// First line of every pointer.
const FIRST_LINE: &str = "vmstream 1";

/// What the last line begins with, before the CRC-32C of all the others.
const CHECK: &str = "check ";

/// A file of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// Relative reference from the pointer.
    pub name: String,
    /// Its length, in bytes.
    pub bytes: u64,
}

/// What a pointer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Size of the image and of its blocks.
    pub geometry: Geometry,
    /// When the image was last modified, in seconds since 1970.
    pub mtime_s: Option<i64>,
    /// The raw image: a relative reference, as the names of all files are.
    pub image: String,
    /// The tree.
    pub tree: NamedFile,
    /// The root hash.
    pub root: Root,
    /// The packs, if there are any.
    pub packs: Option<NamedFile>,
    /// Where sessions may be sent to: a relative reference or an absolute `http` or `https` URL.
    pub sessions: Option<String>,
}

impl Pointer {
    /// Reads a pointer.
    ///
    /// # Errors
    /// EPROTO for what is no pointer, or one of another version; EFBIG for one that is too long. The text says what is
    /// wrong and continues "NAME: ".
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: String| Error::new(errno::EPROTO, what);
        if bytes.len() > POINTER_BYTES_MAX {
            let text = format!("is no pointer to a published image: longer than {POINTER_BYTES_MAX} bytes");
            return Err(Error::new(errno::EFBIG, text));
        }
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.starts_with("vmstream "));
        let text = text.ok_or_else(|| wrong("is no pointer to a published image (.vmp)".to_owned()))?;
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        if first != FIRST_LINE {
            let version = first.trim_start_matches("vmstream ").escape_default();
            return Err(wrong(format!(
                "is a pointer of version {version}, and this vmstream knows version 1; use a newer one"
            )));
        }
        // The last line has an end as well, so that a pointer that was cut off is seen to be.
        if !text.ends_with('\n') {
            return Err(wrong("the pointer is cut off".to_owned()));
        }
        if !checks(text) {
            return Err(wrong("the pointer is damaged: it does not fit its own check line".to_owned()));
        }
        Fields::read(rest).and_then(Fields::pointer).map_err(|what| wrong(format!("the pointer {what}")))
    }

    fn say(&self, f: &mut impl fmt::Write) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}\nsize {}\nblock {}", self.geometry.size(), self.geometry.block_bytes())?;
        if let Some(mtime_s) = self.mtime_s {
            writeln!(f, "mtime {mtime_s}")?;
        }
        writeln!(f, "image {}\ntree {} {}\nroot {}", self.image, self.tree.name, self.tree.bytes, self.root)?;
        if let Some(packs) = &self.packs {
            writeln!(f, "packs {} {}", packs.name, packs.bytes)?;
        }
        self.sessions.iter().try_for_each(|sessions| writeln!(f, "sessions {sessions}"))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        self.say(&mut said)?;
        writeln!(f, "{said}{CHECK}{:08x}", crc32c::crc32c(said.as_bytes()))
    }
}

/// False when the last line says what the CRC-32C of those before it is, and it is another. A bit that flipped on the way
/// would make another name or root of the one that is meant, and look like a version that nobody has.
fn checks(text: &str) -> bool {
    let before = text.trim_end_matches('\n').rfind('\n').map_or(0, |at| at + 1);
    let (said, last) = text.split_at(before);
    let sum = last.trim_end_matches('\n').strip_prefix(CHECK);
    sum.is_none_or(|sum| sum == format!("{:08x}", crc32c::crc32c(said.as_bytes())))
}

/// The values of the keys that are known, each at most once.
#[derive(Default)]
struct Fields<'a>([Option<&'a str>; KEYS.len()]);

const KEYS: [&str; 8] = ["size", "block", "mtime", "image", "tree", "root", "packs", "sessions"];

impl<'a> Fields<'a> {
    fn read(lines: &'a str) -> std::result::Result<Self, String> {
        let mut fields = Self::default();
        for line in lines.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            // What a later version adds is not for us.
            let Some(at) = KEYS.iter().position(|known| *known == key) else { continue };
            if fields.0[at].replace(value).is_some() {
                return Err(format!("says twice what {key} is"));
            }
        }
        Ok(fields)
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        KEYS.iter().position(|known| *known == key).and_then(|at| self.0[at])
    }

    fn pointer(self) -> std::result::Result<Pointer, String> {
        let given = |key: &str| self.get(key).ok_or_else(|| format!("does not say what {key} is"));
        let number = |key: &str, text: &str| {
            let good = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| good).ok_or_else(|| format!("has no number at {key}"))
        };
        let name = |key: &str, text: &str| {
            if is_name(text) { Ok(text.to_owned()) } else { Err(format!("has no good file name at {key}")) }
        };
        let file = |key: &str, text: &str| {
            let (file, bytes) = text.split_once(' ').unwrap_or((text, ""));
            Ok::<_, String>(NamedFile { name: name(key, file)?, bytes: number(key, bytes)? })
        };
        let size = number("size", given("size")?)?;
        let geometry = Geometry::new(size, number("block", given("block")?)?);
        let mtime_s = self.get("mtime").map(|text| text.parse().map_err(|_| "has no number at mtime".to_owned()));
        let pointer = Pointer {
            geometry: geometry.map_err(|error| format!("speaks of an impossible image: {error}"))?,
            mtime_s: mtime_s.transpose()?,
            image: name("image", given("image")?)?,
            tree: file("tree", given("tree")?)?,
            root: given("root")?.parse().map_err(|_| "has no root hash at root".to_owned())?,
            packs: self.get("packs").map(|text| file("packs", text)).transpose()?,
            sessions: self.get("sessions").map(str::to_owned),
        };
        if pointer.sessions.as_deref().is_some_and(|sessions| !is_name(sessions) && !is_url(sessions)) {
            return Err("has neither a file name nor a URL at sessions".to_owned());
        }
        if pointer.tree.bytes < HEAD_BYTES as u64 {
            return Err("speaks of a tree that is too short".to_owned());
        }
        Ok(pointer)
    }
}

/// True for a relative reference that stays below the pointer's folder: plain segments, none of which means "here" or
/// "up" in any spelling.
pub fn is_name(text: &str) -> bool {
    let good = |segment: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~%+-".contains(&byte);
        let decoded = percent_decoded(segment);
        !segment.is_empty()
            && segment.bytes().all(plain)
            && !matches!(&decoded[..], b"." | b"..")
            && !decoded.iter().any(|byte| matches!(byte, b'/' | b'\\' | 0))
    };
    text.split('/').all(good)
}

fn is_url(text: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme))
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn text() -> String {
        let said = said();
        format!("{said}check {:08x}\n", crc32c::crc32c(said.as_bytes()))
    }

    fn said() -> String {
        format!(
            "vmstream 1\nsize 6442450944\nblock 4096\nmtime 1700000000\nimage disk-3fa9c0d1e2b4.raw\n\
             tree disk-3fa9c0d1e2b4.vmt 17000112\nroot {ROOT}\npacks packs/disk-0011aabbccdd.vmk 123456789\n\
             sessions sessions/disk\n"
        )
    }

    #[test]
    fn no_flipped_bit_makes_another_pointer() {
        let (right, text) = (Pointer::parse(text().as_bytes()).unwrap(), text());
        for bit in 0..8 * text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // Within the word "check" it takes the check away and no more.
            let may = (text.len() - 15..text.len() - 9).contains(&(bit / 8));
            assert!(Pointer::parse(&bytes).map_or(true, |pointer| may && pointer == right), "bit {bit}");
        }
        assert_eq!(Pointer::parse(said().as_bytes()).unwrap(), right, "older ones have none");
    }

    #[test]
    fn a_pointer_is_read_and_written_the_same() {
        let pointer = Pointer::parse(text().as_bytes()).unwrap();
        assert_eq!(pointer.to_string(), text());
        assert_eq!(pointer.packs.as_ref().map(|packs| packs.bytes), Some(123_456_789));
        assert_eq!((pointer.root.to_string().as_str(), pointer.mtime_s), (ROOT, Some(1_700_000_000)));
    }

    #[test]
    fn what_may_be_missing_may_and_unknown_keys_do_not_matter_nor_does_the_order() {
        let kept = |line: &&str| !["mtime", "packs", "sessions"].iter().any(|key| line.starts_with(key));
        let mut lines: Vec<_> = said().lines().skip(1).map(str::to_owned).collect();
        lines.retain(|line| kept(&line.as_str()));
        lines.reverse();
        let text = format!("vmstream 1\nmood good\n{}\n\nnew\n", lines.join("\n"));
        let pointer = Pointer::parse(text.as_bytes()).unwrap();
        assert_eq!((pointer.mtime_s, pointer.packs, pointer.sessions), (None, None, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| Pointer::parse(text.as_bytes()).unwrap_err().to_string();
        let with = |old: &str, new: &str| refused(&said().replace(old, new));
        assert!(with("vmstream 1", "vmstream 2").contains("version 2"));
        assert!(refused("<html>").contains("is no pointer"));
        assert!(refused(&text()[..100]).contains("cut off"));
        assert!(refused(&format!("{}size 5\n", said())).contains("says twice what size is"));
        assert!(refused(&text().replace("4096", "8192")).contains("does not fit its own check line"));
        for key in ["size", "block", "image", "tree", "root"] {
            assert!(with(&format!("\n{key} "), "\nother ").contains(&format!("does not say what {key} is")));
        }
        assert!(with("size 6", "size +6").contains("no number at size"));
        assert!(with("block 4096", "block 4095").contains("impossible image"));
        assert!(with(".vmt 17000112", ".vmt").contains("no number at tree"));
        assert!(with(ROOT, &ROOT[1..]).contains("no root hash"));
        assert!(with("sessions sessions", "sessions ftp://h/").contains("sessions"));
        assert!(refused(&"vmstream 1\n".repeat(400)).contains("longer than"));
    }

    #[test]
    fn a_name_stays_below_the_folder_of_the_pointer() {
        for good in ["a", "a/b-1.raw", "a%20b", "..a", "a+~"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "", "/a", "a//b", "a/", ".", "..", "a/../b", "%2e%2e/a", "a/%2E", "a%2fb", "a%00", "a b", "a?b", "x:y", "ä",
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fail_otherwise_than_by_an_error(text in "(vmstream 1\n)?(\\PC{0,20}[\n ]){0,20}") {
            let _ = Pointer::parse(text.as_bytes());
        }
    }
}
