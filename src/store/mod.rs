//! The cache: a sparse image, a journal of what in it can be trusted, and a lock.
//!
//! # What it is for
//! Whatever ends a session - a clean stop, `kill -9`, a power failure - the next one must not fetch again what was
//! durable, must not believe what was not, and must never lose a block that the guest wrote and flushed. The image is
//! an ordinary raw disk image with holes, so holes cannot tell what is present: zeroes may have been fetched. Hence the
//! journal beside it. When the image is complete the journal can go, and a plain file is left.
//!
//! # Use
//! ```no_run
//! # use vmstream::{block::{BlockRange, Geometry}, source::Identity, store::{Cache, Place}};
//! # fn main() -> vmstream::error::Result<()> {
//! let cache = Cache::lock(&Place::Directory("cache".into()))?;
//! let identity = Identity { size: 1 << 30, validator: Some("\"v1\"".into()), mtime_s: None };
//! let (store, mut journal, present) = cache.begin(&identity, Geometry::new(1 << 30, 4096)?, "http://host/disk")?;
//! store.write(0, &[1; 8192])?; // the data,
//! store.sync()?; // durably,
//! journal.record(&[BlockRange::new(0, 2)])?; // and then the fact
//! # drop(present);
//! # Ok(())
//! # }
//! ```
//!
//! # What is assumed of the disk
//! 1. After a successful `fdatasync` of a file its content and length, and after a successful `fsync` of a directory its
//!    names, survive a power failure.
//! 2. Of what was not synced anything may survive: all, nothing, parts, in any order; and a file that grew may show
//!    anything in the part that is new.
//! 3. Overwriting bytes with the same bytes does not harm them: the last sector of the journal is written again with
//!    every record.
//! 4. `rename` leaves, after a power failure, the old file or the new one under the name.
//! 5. A failed sync means that what was to be synced may be lost, and a later success says nothing about it.
//!
//! # Why it holds
//! *No claim without data.* A block is recorded after its data was synced, and no claim is ever made durable earlier than
//! by that record. After a failed sync of the image nothing is recorded any more in the session (5). A damaged or
//! foreign byte in the journal ends the part that is believed, because each record's checksum continues that
//! of all before it, back to a random number in the header: no leftover can pass for a record (2).
//!
//! *No claim is lost.* A record that was synced stays (1), and its predecessors with it; only the last append can be
//! torn, because each one is synced before the next (2, 3). If that sync fails, nothing follows (5). A compaction
//! writes and syncs a whole new journal before it takes the old one's name, and syncs the name before anything is
//! appended (4). Opening syncs the journal before calling its claims durable: the session before may have been killed
//! between a write and its sync.
//!
//! *Opening always succeeds after a crash.* The journal gets its name only when its header is durable, so there is never
//! half a header; the image is made after the journal and claims begin after both are durable, so an image that is
//! missing or short is one in which nothing was claimed. The module `crash` tests all this by stopping a model of the
//! disk before and after every step of random sessions.
//!
//! # What it does not promise
//! A journal that is damaged where it *was* durable (a failing disk, an editor) is believed up to the damage. What was
//! recorded later is fetched again, so what a guest wrote there is lost; a warning is logged with path and offset.
//! Blocks are not checksummed: what a disk returns is what a guest reads, as with any raw image. A write that was not
//! followed by [`Store::sync`] and [`Journal::record`] may be gone after any end of the session, even one that leaves
//! the page cache alive, because its block is then fetched anew.
//!
//! # Parts
//! `cache` opens; `sparse` is the image; `journal` is the journal's owner's view of `chain`, the file of a `header` and
//! `record`s; `lock` keeps others out; `medium` is the seam to the filesystem and `directory` its real side.

mod cache;
mod chain;
#[cfg(test)]
mod crash;
mod directory;
mod header;
mod inspect;
mod journal;
mod lock;
mod medium;
#[cfg(test)]
mod memory;
mod place;
mod record;
mod runs;
mod sparse;

pub use cache::Cache;
pub use header::Pinned;
pub(crate) use header::seal;
pub use inspect::{Summary, inspect};
pub use journal::Journal;
pub use lock::Holder;
pub use place::Place;
pub(crate) use record::{put_varint, take_varint};
pub use sparse::Store;
