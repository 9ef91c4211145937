//! The edge to the operating system: maps and signal masks. One of the two homes of `unsafe`.
#![allow(unsafe_code)]

mod arena;
mod map;
mod signals;

pub use arena::Arena;
pub use map::FileMap;
pub use signals::with_signals_blocked;
