//! Packs: the blocks that earlier guests used, compressed, in the order in which the next guest will want them.
//!
//! A model says which blocks are used together and what follows what. So its sequences can be packed at the origin before
//! anybody asks: laid out along the paths that guests take ([`order()`]), cut into *frames* of some 128 KiB, and each frame
//! compressed as one. A predicted path then streams as a few long requests of a third of the bytes.
//!
//! A packs file (`docs/format.md`) is of one image and one model, and holds both what it says and what it packs: the
//! *start* tells of the first frames, so that streaming begins with the very first answer; the *index* tells of all frames
//! in terms of the model, which follows; then come the frames, each with the hashes that its blocks are checked by
//! and that no frame before it had.
//!
//! [`Index`] is what a reader keeps of it: which frame has a block, where it lies, and how it is unpacked and checked. A
//! [`Builder`] makes the file. Nothing here reads a file or asks a server.

mod builder;
mod frame;
mod header;
mod index;
mod listing;
mod opener;
mod order;
#[cfg(test)]
mod tests;

pub use builder::{Builder, Compress, ReadBlocks, Unpacked};
pub use header::{HEADER_BYTES, Header};
pub use index::Index;
pub use opener::Opener;
pub use order::{FRAME_BYTES, order};

/// Largest frame that a reader takes, in bytes of blocks: the longest sequence of training in the largest blocks.
pub const FRAME_BYTES_MAX: u64 = 16 << 20;
/// The same as it lies in the file, packed and with its proof.
pub const FRAME_WIRE_BYTES_MAX: u64 = crate::source::published::FRAME_BYTES_MAX;
/// Most frames of a file: 128 GiB of blocks in frames of the usual size.
pub const FRAMES_MAX: u32 = 1 << 20;
/// Longest start section, in bytes: with the header it fits into the first request beside other things.
pub const START_BYTES_MAX: u32 = 12 << 10;
