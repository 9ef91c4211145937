//! `vmstream serve` from outside: the built binary, driven over real sockets.
#![cfg(feature = "tool")]

mod collect;
mod crowd;
mod harness;
mod http;
mod link;
mod page;
mod process;
mod publication;
mod upload;
