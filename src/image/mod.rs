//! An open image: what a front end or a disk driver holds.

mod account;
mod opening;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::block::{Block, Geometry};
use crate::config::{Prefetch, parse_duration, parse_switch};
use crate::engine::Engine;
use crate::error::{Error, Result, errno};
use crate::gate::{Answer, Gate, Op};
use crate::learner::Learner;
use crate::notify::Completion;
use crate::predictor::Foresight;
use crate::source::Published;
use crate::sys::FileMap;
use crate::time::Moment;
use crate::uploader::Uploader;

/// A disk image that is being streamed.
///
/// All methods may be called from any thread at once. Dropping it stops its threads, makes durable what arrived and
/// answers what is pending with -ECANCELED.
///
/// ```
/// # use vmstream::{Answer, Image, Op};
/// # fn main() -> vmstream::Result<()> {
/// let image = Image::open(["source=pattern:1M", "fill=off"])?;
/// image.block_wait(Op::Read, 4096, 4096)?; // sleeps until the block is in the local file,
/// let mut block = [0; 4096];
/// image.read_local(4096, &mut block)?; // which anybody may read
/// assert_eq!(image.block_needed(Op::Read, 4096, 4096, 7)?, Answer::Ready);
/// # Ok(())
/// # }
/// ```
pub struct Image {
    /// Before the engine, which it uses.
    learner: Learner,
    engine: Engine,
    /// Behind the engine, whose end writes the last of a session.
    uploader: Uploader,
    map: OnceLock<FileMap>,
    opened: Moment,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({})", self.source_name())
    }
}

impl Image {
    /// From now on follows the guest with a foresight of the caller's own, which knows nothing of what was touched
    /// before, instead of the model that was found or is still to come.
    pub fn follow(&self, foresight: Option<Box<dyn Foresight>>) {
        self.learner.dismiss("none: the guest is followed by a foresight of the embedder's own");
        self.engine.change(|planner| planner.set_foresight(foresight, 0));
    }

    fn gate(&self) -> &Gate {
        &self.engine.shared.gate
    }

    fn geometry(&self) -> Geometry {
        self.gate().geometry()
    }

    fn fault(&self, code: i32, op: Op, offset: u64, length: u64) -> Error {
        let why = match code {
            errno::EINVAL => format!("outside the image of {} bytes", self.size()),
            errno::EROFS => "the image was opened read_only".to_owned(),
            errno::EAGAIN => "too many requests are pending; try again after a completion".to_owned(),
            errno::ECANCELED => "the image is closing".to_owned(),
            _ => self.last_error().unwrap_or_else(|| format!("errno {code}")),
        };
        Error::new(code, format!("{op:?} of {length} bytes at {offset}: {why}"))
    }

    /// Asks for a byte range before the driver reads or overwrites it in the local file.
    ///
    /// [`Answer::Ready`]: go ahead, and after a write or discard call [`Image::block_done`]. [`Answer::Pending`]: one
    /// completion with `tag` will come; with result 0 it means the same as ready. Never blocks, never allocates when the
    /// blocks are resident. Errors: EINVAL (outside the image), EROFS, EAGAIN (too many pending), ECANCELED.
    pub fn block_needed(&self, op: Op, offset: u64, length: u64, tag: u64) -> Result<Answer> {
        self.gate().needed(op, offset, length, tag).map_err(|code| self.fault(code, op, offset, length))
    }

    /// The same with plain error numbers: no allocation on any path.
    pub fn block_needed_raw(&self, op: Op, offset: u64, length: u64, tag: u64) -> std::result::Result<Answer, i32> {
        self.gate().needed(op, offset, length, tag)
    }

    /// True when [`Image::block_needed`] would answer [`Answer::Ready`] for blocks that were touched before. Never
    /// panics.
    #[inline]
    pub fn is_known(&self, op: Op, offset: u64, length: u64) -> bool {
        self.gate().is_known(op, offset, length)
    }

    /// Whether the byte at `offset` is resident, and how many bytes from there on, at most `length`, are of the same
    /// kind: what a driver needs to tell extents. Asks for nothing, and is no touch. Resident bytes stay resident; the
    /// others may come at any moment. Errors: EINVAL (outside the image).
    pub fn resident(&self, offset: u64, length: u64) -> Result<(bool, u64)> {
        self.gate().resident(offset, length).map_err(|code| self.fault(code, Op::Read, offset, length))
    }

    /// The same with a plain error number.
    pub fn resident_raw(&self, offset: u64, length: u64) -> std::result::Result<(bool, u64), i32> {
        self.gate().resident(offset, length)
    }

    /// Says that a write or discard that was ready has ended; `written` is false when it failed.
    pub fn block_done(&self, op: Op, offset: u64, length: u64, written: bool) -> Result<()> {
        self.gate().done(op, offset, length, written).map_err(|code| self.fault(code, op, offset, length))
    }

    /// The same with plain error numbers.
    pub fn block_done_raw(&self, op: Op, offset: u64, length: u64, written: bool) -> std::result::Result<(), i32> {
        self.gate().done(op, offset, length, written)
    }

    /// Sleeps until the range is ready.
    pub fn block_wait(&self, op: Op, offset: u64, length: u64) -> Result<()> {
        self.gate().wait(op, offset, length).map_err(|code| self.fault(code, op, offset, length))
    }

    /// The same with plain error numbers.
    pub fn block_wait_raw(&self, op: Op, offset: u64, length: u64) -> std::result::Result<(), i32> {
        self.gate().wait(op, offset, length)
    }

    /// Makes every write that was done before this call durable. Blocks.
    pub fn flush(&self) -> Result<()> {
        self.block_wait(Op::Flush, 0, 0)
    }

    /// Takes up to `out.len()` completions without blocking; 0 when there are none or a callback gets them.
    pub fn reap(&self, out: &mut [Completion]) -> usize {
        self.engine.queue().map_or(0, |queue| queue.reap(out))
    }

    /// Readable while [`Image::reap`] has completions; `None` when a callback gets them.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.engine.queue().map(|queue| queue.event_fd())
    }

    /// Reads the local file. Only what is resident means anything.
    pub fn read_local(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.engine.shared.store.read(offset, bytes)
    }

    /// Overwrites the local file, between a write's "ready" and its [`Image::block_done`], and keeps its modification
    /// time.
    pub fn write_local(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.engine.shared.store.write(offset, bytes)
    }

    /// Puts right what writes past [`Image::write_local`], through [`Image::fd`] or a kernel's pass-through, may have
    /// changed: a length beyond the image's, and the modification time.
    pub fn tidy_local(&self) -> Result<()> {
        self.engine.shared.store.tidy()
    }

    /// Zeroes a range of the local file and gives its space back, between a discard's "ready" and its
    /// [`Image::block_done`].
    pub fn zero_local(&self, offset: u64, length: u64) -> Result<()> {
        self.engine.shared.store.zero(offset, length)
    }

    /// Reads bytes of the image, waiting for them if need be.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.block_wait(Op::Read, offset, bytes.len() as u64)?;
        self.read_local(offset, bytes)
    }

    /// Overwrites bytes of the image.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        self.block_wait(Op::Write, offset, length)?;
        let result = self.write_local(offset, bytes);
        self.block_done(Op::Write, offset, length, result.is_ok())?;
        result
    }

    /// Makes a range read as zeroes and gives its space back.
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.block_wait(Op::Discard, offset, length)?;
        let result = self.zero_local(offset, length);
        self.block_done(Op::Discard, offset, length, result.is_ok())?;
        result
    }

    /// The local file, for reading and writing by the driver's own means. Closed with the image, not before.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.engine.shared.store.fd()
    }

    /// Path of the local file; `None` for a nameless temporary one.
    pub fn path(&self) -> Option<&Path> {
        self.engine.shared.store.path()
    }

    /// Address of a read-only map of the whole local file, made at the first call. Only resident blocks mean anything.
    pub fn map(&self) -> Result<*const u8> {
        if let Some(map) = self.map.get() {
            return Ok(map.address());
        }
        let map = FileMap::new(self.fd(), self.size())?;
        Ok(self.map.get_or_init(|| map).address())
    }

    /// Modification time of the image, in seconds since 1970: that of the published one where the origin has said it, else when the
    /// cache was made, or the image opened that has none. It does not change, whatever arrives or is written.
    pub fn mtime_s(&self) -> i64 {
        self.engine.shared.store.mtime_s()
    }

    /// Size of the image, in bytes.
    pub fn size(&self) -> u64 {
        self.geometry().size()
    }

    /// Size of a block, in bytes.
    pub fn block_size(&self) -> u64 {
        self.geometry().block_bytes()
    }

    /// True when every block is resident.
    pub fn is_complete(&self) -> bool {
        self.gate().states.resident_count() == self.geometry().blocks()
    }

    /// The source's name, without credentials.
    pub fn source_name(&self) -> String {
        self.engine.shared.source.name()
    }

    /// What is known of the image beyond its bytes when its source is a link to a published one.
    pub fn published(&self) -> Option<Arc<Published>> {
        self.engine.shared.source.published()
    }

    /// The last error of the link or the local disk, as text for a person.
    pub fn last_error(&self) -> Option<String> {
        self.engine.last_error()
    }

    /// Names this moment of the session, for people who read its record. A name longer than 256 bytes is cut.
    pub fn mark(&self, name: &str) {
        self.engine.mark(name);
        log::info!("mark after {:.3} s: {name}", Moment::now().since(self.opened).as_secs_f64());
    }

    /// Has nothing of this session written to its record until [`Image::keep_session`]; an image that is closed before leaves none.
    /// For whoever reads the image before it is clear that a guest will: call it before the first request. Some ten
    /// thousand accesses are kept so long, in memory, and of more the number.
    pub fn hold_session(&self) {
        self.engine.hold_record(true);
    }

    /// Has this session recorded from its beginning: there is a guest.
    pub fn keep_session(&self) {
        self.engine.hold_record(false);
    }

    /// Changes an option while the image is open: `prefetch`, `fill` or `error_after`.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        match key {
            "prefetch" => {
                let prefetch = Prefetch::parse(key, value)?;
                self.engine.change(|p| p.set_prefetch(prefetch));
            }
            "fill" => {
                let on = parse_switch(key, value)?;
                self.engine.change(|p| p.set_fill(on));
            }
            "error_after" => {
                let limit = Some(parse_duration(key, value)?).filter(|d| !d.is_zero());
                self.engine.change(|p| p.set_error_after(limit));
            }
            _ => {
                return Err(Error::option(
                    key,
                    value,
                    "cannot be changed while the image is open (prefetch, fill and error_after can)",
                ));
            }
        }
        Ok(())
    }

    /// Has the fill go on at this byte, and with the image's beginning behind its end: for an image of several parts, of which
    /// one is wanted before the others.
    ///
    /// Errors: `EINVAL` at the image's end or beyond.
    pub fn fill_from(&self, offset: u64) -> Result<()> {
        let geometry = self.geometry();
        if offset >= geometry.size() {
            let text = format!("cannot fill from {offset}: the image has {} bytes", geometry.size());
            return Err(Error::new(errno::EINVAL, text));
        }
        let block = Block(offset / geometry.block_bytes());
        self.engine.change(|p| p.fill_from(block));
        Ok(())
    }

    /// Answers everything that is pending with -ECANCELED, sleepers of the blocking form included, and refuses what is
    /// not resident from now on. So the threads that use the image can be brought to an end before it is closed.
    pub fn cancel(&self) {
        self.engine.cancel();
    }

    /// True inside a completion callback: there the image cannot be closed.
    pub fn is_own_thread(&self) -> bool {
        self.engine.is_own_thread()
    }

    /// Closes the image and says what went wrong in making it durable, if anything did.
    pub fn close(self) -> Result<()> {
        self.stop()
    }

    /// Closes the image where it lies: completion callbacks that run meanwhile may still use it.
    pub(crate) fn stop(&self) -> Result<()> {
        // First, so that nothing that the learner fetches from the image's source holds up the end.
        self.engine.cancel();
        self.learner.stop();
        self.uploader.finish_after(|| self.engine.stop())
    }

    /// Closes a complete image and removes its journal: what is left is an ordinary raw file.
    pub fn finish(self) -> Result<()> {
        if !self.is_complete() {
            let missing = self.size() - self.stats().resident_bytes;
            return Err(Error::new(errno::EBUSY, format!("{}: {missing} bytes are still missing", self.source_name())));
        }
        self.engine.cancel();
        self.learner.stop();
        if let Some(published) = self.published() {
            published.forget_pointer();
        }
        self.uploader.finish_after(|| self.engine.finish())
    }
}
