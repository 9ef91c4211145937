//! The hash tree of a published image: how a reader knows that what it got is what was published.
//!
//! A link carries 32 bytes, the [`Root`]. It is the hash of a [`Head`], which holds the hash of the [`Holes`] and that of
//! the top *page*; a page holds the hashes of the pages, or of the blocks, below it. So each block can be checked alone,
//! with a few pages that anybody may deliver: no server has to be trusted, only the link.
//!
//! Hashes stand by rank, the place of a block among those that are not zero. Hence the tree is dense, the place of
//! every page in the file can be computed, and pages are fetched like blocks are: when they are needed, *beside* the
//! data they check. The file begins with head, hole map and the tree's top, so that one request brings all that
//! everything else hangs on. The layout is in `docs/format.md`.
//!
//! A [`Tree`] holds what has arrived of it, a [`TreeBuilder`] makes one. Nothing here reads a file or asks a server.

mod builder;
mod hash;
mod head;
mod holes;
mod pages;

pub use builder::TreeBuilder;
pub use hash::{HASH_BYTES, Hash, Root, hash_block};
pub use head::{FAN_OUT, FAN_OUT_SHIFT, HEAD_BYTES, Head, PageId, TABLE_BYTES_MAX};
pub use holes::Holes;
pub use pages::Tree;

/// What was delivered is not what was published, or cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Lie {
    what: String,
    missing: bool,
}

impl Lie {
    /// A lie, told in one line that says what is wrong with what.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), missing: false }
    }

    fn missing(page: PageId) -> Self {
        Self { what: format!("hash page {}/{} is not here yet", page.level, page.index), missing: true }
    }

    /// True when nobody lied: a page that is needed to judge is not here (any more).
    pub fn is_missing(&self) -> bool {
        self.missing
    }
}

/// True when all of `bytes` are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // By whole words: the compiler makes wide comparisons of them.
    // The ends of a slice that is not aligned are short.
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for length in [0, 1, 15, 16, 17, 512] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 0x10;
                assert!(!is_zero(&bytes), "byte {at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
