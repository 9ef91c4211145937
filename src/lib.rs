//! Virtual-machine streaming: a guest starts at once from a disk image that still lies on a web server.
//!
//! # What it is
//!
//! A raw disk image of many gigabytes lies on an ordinary web server. This library lets a virtual machine use it now:
//! blocks that the guest touches are fetched on demand, blocks that it is about to touch are fetched ahead, and what has
//! arrived is kept in a sparse local file that survives crashes and in the end is an ordinary raw image. It is made for
//! those who write block drivers. Those who only want to use an image have the tool, `vmstream mount`; those who write
//! C have `include/vmstream.h`.
//!
//! # Overview
//!
//! [`Image`] is the handle. A driver asks it before it touches a byte range ([`Image::block_needed`]) and then reads or
//! writes the local file by its own means ([`Image::fd`], [`Image::map`], [`Image::read_local`]); the library never
//! moves the guest's bytes for it. The [`Answer`] is either [`Answer::Ready`] or [`Answer::Pending`], and after the
//! latter exactly one [`Completion`] comes, by callback ([`Image::open_with`]) or through a queue with an event
//! descriptor ([`Image::reap`]). [`Image::block_wait`] is the form that sleeps; [`Image::read_at`] and
//! [`Image::write_at`] are the two steps in one.
//!
//! A guest's write claims the blocks it covers without fetching them, and [`Image::block_done`] ends it. A flush of the
//! guest's is [`Image::flush`] or [`Op::Flush`], not an `fsync` of the local file: only with the journal's record a
//! block is safe.
//!
//! All options are `key=value` strings; [`config::Config`] lists them. The source is `source=URL`, see [`source`];
//! with `cache=DIR` what arrives is kept across sessions, see [`store`], and what the guest asks for is recorded, see
//! [`session`]. A link that is down is not an error: requests
//! wait, and [`Image::stats`] shows it.
//!
//! The modules below [`Image`] are public for those who bring a transport of their own ([`Image::open_source`]), for
//! tests and for measurements. How they work together is told in `docs/design.md`.
//!
//! # Example
//!
//! A driver that parks what is not ready:
//!
//! ```
//! use std::sync::mpsc::channel;
//! use vmstream::{Answer, Image, Op};
//!
//! # fn main() -> vmstream::Result<()> {
//! let (done, inbox) = channel();
//! // A made-up image needs no network; on a web server it would be "source=https://host/disk.raw".
//! let image = Image::open_with(["source=pattern:1G", "fill=off"], move |completion| drop(done.send(completion)))?;
//!
//! let (offset, tag) = (512 << 20, 7);
//! let mut sector = [0; 512];
//! if image.block_needed(Op::Read, offset, 512, tag)? == Answer::Pending {
//!     let completion = inbox.recv().expect("the image is open and holds the other end");
//!     assert_eq!((completion.tag, completion.result), (tag, 0));
//! }
//! image.read_local(offset, &mut sector)?;
//!
//! image.write_at(offset, &[1; 512])?;
//! image.flush()?; // with cache=DIR it is now as safe as on a raw disk
//! image.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Threads
//!
//! An image may be used from any number of threads at once. The I/O path ([`Image::block_needed_raw`],
//! [`Image::block_done_raw`], [`Image::block_wait_raw`]) allocates nothing, takes no lock and touches no thread-local
//! storage, so that even a thread made by a raw `clone` with one page of stack may call it; the forms without `_raw`
//! are the same until they fail, and then allocate their error. Callbacks run on the library's threads, several at
//! once; while one runs that thread fetches nothing, so it passes the news on and returns. An image cannot be closed
//! or dropped inside a callback.
//!
//! The library's threads have all signals blocked. None runs before an image is opened or after it is closed. An image
//! does not survive `fork`.
//!
//! # Features
//!
//! * `tool` (default): what only the command-line tool needs. A library user takes
//!   `default-features = false`, which leaves out the runtime, the server and the command line.

pub mod block;
#[doc(hidden)]
pub mod capi;
pub mod config;
mod counters;
mod engine;
pub mod error;
pub mod gate;
mod image;
pub mod learner;
pub mod link;
pub mod model;
pub mod notify;
pub mod packs;
pub mod planner;
pub mod predictor;
pub mod replay;
pub mod session;
pub mod source;
pub mod stats;
pub mod store;
mod sync;
mod sys;
pub mod time;
pub mod tree;

pub use error::{Error, Result};
pub use gate::{Answer, Op};
pub use image::Image;
pub use notify::Completion;
