//! Virtual-machine streaming: a guest starts at once from a disk image that still lies on a web server.

pub mod block;
pub mod config;
pub mod error;
pub mod source;
pub mod store;
