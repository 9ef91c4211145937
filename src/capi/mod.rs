//! The C ABI: one thin function for each symbol, over the safe API. The other home of `unsafe`.
//!
//! Every body checks its pointers, catches panics and makes one call into safe Rust. The functions that a driver calls
//! on its I/O path (`vms_block_needed`, `vms_block_done`, `vms_block_wait`) touch neither thread-local storage nor
//! the heap; the others keep an error text for the calling thread.
//!
//! The documentation here becomes the C header, so it speaks C.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, reason = "the contract is stated in the words of the C header")]

mod edge;
mod image;
mod info;
mod types;

pub use image::*;
pub use info::*;
pub use types::*;
