//! Virtual-machine streaming: a guest starts at once from a disk image that still lies on a web server.

pub mod block;
#[doc(hidden)]
pub mod capi;
pub mod config;
mod counters;
mod engine;
pub mod error;
pub mod gate;
mod image;
pub mod link;
pub mod notify;
pub mod planner;
pub mod source;
pub mod stats;
pub mod store;
mod sync;
mod sys;
pub mod time;

pub use error::{Error, Result};
pub use gate::{Answer, Op};
pub use image::Image;
pub use notify::Completion;
