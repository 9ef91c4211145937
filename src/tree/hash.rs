//! Hashes: what a block, a page and a whole image are known by.
//!
//! All are BLAKE3. A block has the plain hash, so that any tool can check one. Pages and heads are hashed in a mode of
//! their own (`derive_key`): bytes that a guest may write into a block can then never pass for a page, nor a page for
//! a head.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, errno};

/// Bytes of a hash in the tree. 160 bits: a forger has to meet one given hash, which nobody can at half the width
/// either; two blocks of the publisher's own that collide by chance are out of reach (2^80), and each byte less makes
/// the tree 5 % smaller.
pub const HASH_BYTES: usize = 20;

/// What page hashes are derived with. Part of the format, so it never changes.
const PAGE_CONTEXT: &str = "vmstream 2026-11 hash page";
/// What root hashes are derived with. Part of the format as well.
const ROOT_CONTEXT: &str = "vmstream 2026-11 image root";

/// The hash of a block or of a page of hashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; HASH_BYTES]);

impl Hash {
    /// Where there is nothing to hash.
    pub(super) const NONE: Self = Self([0; HASH_BYTES]);

    /// The hash's bytes, as they stand in a page.
    pub fn as_bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }

    /// The hash that `bytes` holds; `None` unless there are exactly [`HASH_BYTES`].
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    fn cut(full: &blake3::Hash) -> Self {
        let mut bytes = [0; HASH_BYTES];
        bytes.copy_from_slice(&full.as_bytes()[..HASH_BYTES]);
        Self(bytes)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

/// The hash of a block's bytes; those of a short last block are fewer.
pub fn hash_block(bytes: &[u8]) -> Hash {
    Hash::cut(&blake3::hash(bytes))
}

/// The hash of a page of hashes.
pub(super) fn hash_page(bytes: &[u8]) -> Hash {
    Hash::cut(&blake3::Hasher::new_derive_key(PAGE_CONTEXT).update(bytes).finalize())
}

/// The root hash of an image: all 256 bits, for it is what people pass around.
///
/// It is that of the tree's head, which holds the size, the hash of the hole map and the hash of the top page, so it
/// stands for every byte of the image. Its text is 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root([u8; 32]);

impl Root {
    /// The root that these bytes are.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The root's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The root of a tree with this head.
    pub(super) fn of(head: &[u8]) -> Self {
        Self(*blake3::Hasher::new_derive_key(ROOT_CONTEXT).update(head).finalize().as_bytes())
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl FromStr for Root {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        let good = digits.len() == 2 * bytes.len()
            && bytes.iter_mut().zip(digits.chunks(2)).all(|(byte, pair)| {
                let value = |digit: u8| char::from(digit).to_digit(16);
                match (value(pair[0]), value(pair[1])) {
                    (Some(high), Some(low)) => {
                        *byte = (high << 4 | low) as u8;
                        true
                    }
                    _ => false,
                }
            });
        if !good {
            return Err(Error::new(errno::EINVAL, "a root hash has 64 hexadecimal digits; copy the whole link"));
        }
        Ok(Self(bytes))
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_hash_that_other_tools_give_it() {
        // The first test vector of BLAKE3: the empty input.
        assert_eq!(format!("{:?}", hash_block(b"")), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9");
    }

    #[test]
    fn the_same_bytes_have_another_hash_in_each_part() {
        let bytes = [7; 112];
        assert_ne!(hash_block(&bytes), hash_page(&bytes));
        assert_ne!(hash_page(&bytes).as_bytes()[..], Root::of(&bytes).as_bytes()[..HASH_BYTES]);
        assert_ne!(hash_block(&bytes).as_bytes()[..], Root::of(&bytes).as_bytes()[..HASH_BYTES]);
    }

    #[test]
    fn a_root_is_read_back_from_its_text_and_from_no_other() {
        let root = Root::of(b"head");
        let text = root.to_string();
        assert_eq!(text.parse::<Root>().ok(), Some(root));
        assert_eq!(text.to_uppercase().parse::<Root>().ok(), Some(root));
        for bad in ["", &text[1..], &format!("{text}0"), &text.replace(&text[..1], "g"), &format!("+{}", &text[1..])] {
            assert!(bad.parse::<Root>().is_err(), "{bad}");
        }
        assert!("é".repeat(32).parse::<Root>().is_err());
    }
}
