//! Opening, the I/O path, completions, closing.

use std::ffi::{c_char, c_void};
use std::os::fd::AsRawFd;
use std::ptr;

use super::edge::{guard, guard_result, handle, null, text};
use super::types::*;
use crate::error::{Error, errno};
use crate::gate::{Answer, Op};
use crate::image::Image;
use crate::notify::{Completion, CompletionQueue, Notifier};

/// The caller's callback, and its `free` when dropped.
struct Ready(vms_ready);

// SAFETY: the header says that `call` is called on library threads, several at once, and `free` on the thread that
// closes; `user_data` is the caller's to make fit for that.
unsafe impl Send for Ready {}
// SAFETY: as above.
unsafe impl Sync for Ready {}

impl Ready {
    fn call(&self, completion: Completion) {
        if let Some(call) = self.0.call {
            // SAFETY: the caller of vms_open promised that `call` may be called so until `free` was.
            unsafe { call(self.0.user_data, completion.tag, completion.result) }
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(free) = self.0.free {
            // SAFETY: dropped once, after the last call.
            unsafe { free(self.0.user_data) }
        }
    }
}

/// Opens an image.
///
/// options is a NULL-terminated array of "key=value" strings; "source=URL" is the one that must be there. With
/// ready, completions are told by its callback; with ready NULL they are taken by vms_reap, and vms_event_fd says when.
/// On success *image is the handle, else NULL.
///
/// Blocks until the origin has said what the image is, unless the cache knows it already. Starts threads, with all
/// signals blocked in them. Returns 0 or a negative errno; vms_last_error tells the reason. ready->free is called once
/// in every case: when the image is closed, or before this returns an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_open(
    options: *const *const c_char,
    ready: *const vms_ready,
    image: *mut *mut vms_image,
) -> i32 {
    guard_result(|| {
        // SAFETY: the caller's pointer, if not NULL, is to a vms_ready. Taken first, so that `free` happens in any case.
        let ready = unsafe { ready.as_ref() }.map(|ready| Ready(*ready));
        if image.is_null() {
            return Err(null("image"));
        }
        // SAFETY: not NULL, and the caller's to write to.
        unsafe { image.write(ptr::null_mut()) };
        if options.is_null() {
            return Err(null("options"));
        }
        let mut list = Vec::new();
        // SAFETY: the array ends with NULL and its strings with NUL, as the header demands.
        unsafe {
            let mut at = options;
            while !at.read().is_null() {
                list.push(text("an option", at.read())?);
                at = at.add(1);
            }
        }
        let notifier = match ready {
            Some(ready) if ready.0.call.is_none() => return Err(null("ready->call")),
            Some(ready) => Notifier::Callback(Box::new(move |completion| ready.call(completion))),
            None => Notifier::Queue(Box::new(CompletionQueue::new()?)),
        };
        let opened = Box::new(Image::open_notifying(list, notifier)?);
        // SAFETY: as above.
        unsafe { image.write(Box::into_raw(opened).cast()) };
        Ok(0)
    })
}

fn operation(op: i32) -> Option<Op> {
    match op {
        VMS_READ => Some(Op::Read),
        VMS_WRITE => Some(Op::Write),
        VMS_DISCARD => Some(Op::Discard),
        VMS_FLUSH => Some(Op::Flush),
        _ => None,
    }
}

/// Asks for a byte range before the driver touches it in the local file.
///
/// Returns VMS_READY: go ahead now, and after VMS_WRITE or VMS_DISCARD call vms_block_done. VMS_PENDING: one
/// completion with tag will come, perhaps before this returns; its result 0 means the same as VMS_READY.
/// Or a negative errno: -EINVAL (NULL, bad op, range outside the image), -EROFS (opened with read_only=on), -EAGAIN
/// (too many requests pending: try again after a completion), -ECANCELED (closing).
///
/// Never blocks, allocates, or touches errno or thread-local storage; needs less than 1 KiB of stack. Any thread may
/// call it, also one made by clone(CLONE_VM).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_block_needed(image: *const vms_image, op: i32, offset: u64, length: u64, tag: u64) -> i32 {
    // SAFETY: a live handle or NULL, as the header demands.
    if let (Some(image), Some(op)) = (unsafe { handle(image) }, operation(op))
        && image.is_known(op, offset, length)
    {
        return VMS_READY; // no guard on the way of nearly all calls: there is no panic in it
    }
    guard(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let (Some(image), Some(op)) = (unsafe { handle(image) }, operation(op)) else { return -errno::EINVAL };
        match image.block_needed_raw(op, offset, length, tag) {
            Ok(Answer::Ready) => VMS_READY,
            Ok(Answer::Pending) => VMS_PENDING,
            Err(code) => -code,
        }
    })
}

/// The blocking form of vms_block_needed: returns 0 when the range is ready, or a negative errno.
///
/// Sleeps on a futex; otherwise as frugal as vms_block_needed. Instead of -EAGAIN it waits for its turn.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_block_wait(image: *const vms_image, op: i32, offset: u64, length: u64) -> i32 {
    guard(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let (Some(image), Some(op)) = (unsafe { handle(image) }, operation(op)) else { return -errno::EINVAL };
        match image.block_wait_raw(op, offset, length) {
            Ok(()) => 0,
            Err(code) => -code,
        }
    })
}

/// Says that a VMS_WRITE or VMS_DISCARD that was ready has ended, with the same op, offset and length.
///
/// result is 0 or more when the local file now holds what the guest wrote, or a negative errno when it failed. Returns
/// 0 or -EINVAL. As frugal as vms_block_needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_block_done(
    image: *const vms_image,
    op: i32,
    offset: u64,
    length: u64,
    result: i32,
) -> i32 {
    guard(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let (Some(image), Some(op)) = (unsafe { handle(image) }, operation(op)) else { return -errno::EINVAL };
        match image.block_done_raw(op, offset, length, result >= 0) {
            Ok(()) => 0,
            Err(code) => -code,
        }
    })
}

/// Tells extents: 1 when the byte at offset is resident, 0 when it is not, and in *run how many bytes from there on,
/// at most length, are of the same kind.
///
/// Asks for nothing, and the guest's touch it is not. What is resident stays so; the rest may come at any moment. What
/// is not resident is data nobody has seen yet: do not call it a hole or zero. Returns -EINVAL for NULL and for a range
/// outside the image. As frugal as vms_block_needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_resident(image: *const vms_image, offset: u64, length: u64, run: *mut u64) -> i32 {
    guard(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let Some(image) = (unsafe { handle(image) }) else { return -errno::EINVAL };
        if run.is_null() {
            return -errno::EINVAL;
        }
        match image.resident_raw(offset, length) {
            Ok((resident, bytes)) => {
                // SAFETY: not NULL, and the caller's to write to.
                unsafe { run.write(bytes) };
                resident.into()
            }
            Err(code) => -code,
        }
    })
}

/// Makes every write that was done before this call durable. Blocks until it is.
///
/// The form that does not block is vms_block_needed with VMS_FLUSH. Returns 0 or a negative errno: -EIO or -ENOSPC mean
/// that it is not durable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_flush(image: *const vms_image) -> i32 {
    // SAFETY: handed on unchanged.
    unsafe { vms_block_wait(image, VMS_FLUSH, 0, 0) }
}

/// The descriptor of the local file, for reading ready blocks and writing claimed ones at the image's offsets.
///
/// Do not close it; closed by vms_close. Do not take POSIX record locks on it through another descriptor that you
/// close. Returns the descriptor or -EINVAL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_fd(image: *const vms_image) -> i32 {
    // SAFETY: a live handle or NULL, as the header demands.
    guard(|| unsafe { handle(image) }.map_or(-errno::EINVAL, |image| image.fd().as_raw_fd()))
}

/// A read-only map of the whole local file, made at the first call; valid until vms_close. Only ready blocks mean
/// anything in it. NULL on failure; vms_last_error tells the reason.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_map(image: *const vms_image) -> *const c_void {
    let mut address = ptr::null();
    guard_result(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let image = unsafe { handle(image) }.ok_or_else(|| null("image"))?;
        address = image.map()?.cast();
        Ok(0)
    });
    address
}

/// Size of the image, in bytes; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_size(image: *const vms_image) -> u64 {
    // SAFETY: a live handle or NULL, as the header demands.
    unsafe { handle(image) }.map_or(0, Image::size)
}

/// Size of a block, in bytes; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_block_size(image: *const vms_image) -> u64 {
    // SAFETY: a live handle or NULL, as the header demands.
    unsafe { handle(image) }.map_or(0, Image::block_size)
}

/// A descriptor that is readable while vms_reap has completions, and sometimes until the next vms_reap when it has none
/// any more: what is taken while it is being announced is announced afterwards. For poll and epoll; do not read or
/// close it.
/// Returns the descriptor, or -EINVAL when the image was opened with a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_event_fd(image: *const vms_image) -> i32 {
    guard(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let fd = unsafe { handle(image) }.and_then(Image::event_fd);
        fd.map_or(-errno::EINVAL, |fd| fd.as_raw_fd())
    })
}

/// Takes up to capacity completions without blocking. Returns their number, 0 when there are none, or -EINVAL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_reap(image: *const vms_image, completions: *mut vms_completion, capacity: u32) -> i32 {
    guard(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let Some(image) = (unsafe { handle(image) }) else { return -errno::EINVAL };
        if completions.is_null() && capacity != 0 {
            return -errno::EINVAL;
        }
        let mut taken = 0;
        while taken < capacity {
            let mut one = [Completion { tag: 0, result: 0 }];
            if image.reap(&mut one) == 0 {
                break;
            }
            let [Completion { tag, result }] = one;
            // SAFETY: the caller's array holds `capacity` elements, and `taken` is below that.
            unsafe { completions.add(taken as usize).write(vms_completion { tag, result, reserved: 0 }) };
            taken += 1;
        }
        i32::try_from(taken).unwrap_or(i32::MAX)
    })
}

/// Ends all waiting: completes everything pending with -ECANCELED, wakes vms_block_wait with the same, and from now on
/// answers so to every request that is not ready at once.
///
/// With it the threads of a driver can be brought to an end before vms_close, which none of them may be near. Returns 0
/// or -EINVAL. May be called more than once, and from the callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_cancel(image: *const vms_image) -> i32 {
    guard_result(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        unsafe { handle(image) }.ok_or_else(|| null("image"))?.cancel();
        Ok(0)
    })
}

/// Closes an image: does what vms_cancel does, stops its threads, makes durable what arrived, calls ready->free, and
/// gives the handle back. Blocks for a moment. NULL is allowed.
///
/// No other call on the handle may be under way or follow, except the callback's own, and except that threads asleep in
/// vms_block_wait are woken with -ECANCELED. A thread that might just be about to call is stopped with vms_cancel first.
///
/// Returns 0, or a negative errno when something could not be made durable (the handle is gone all the same), or
/// -EDEADLK when called from the callback (and then nothing happened).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_close(image: *mut vms_image) -> i32 {
    const EDEADLK: i32 = 35;
    guard_result(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let Some(open) = (unsafe { handle(image) }) else { return Ok(0) };
        if open.is_own_thread() {
            return Err(Error::new(EDEADLK, "vms_close was called from a completion callback"));
        }
        // Stopped where it lies, as the callback may still use the handle; freed when no callback can run any more.
        let closed = open.stop();
        // SAFETY: a handle is a leaked box, `open` is not used any more, and this is the last use of the handle.
        drop(unsafe { Box::from_raw(image.cast::<Image>()) });
        closed.map(|()| 0)
    })
}
