//! Plumbing of the boundary: panics, pointers, strings, the error text of a thread.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::types::vms_image;
use crate::error::{Error, Result, errno};
use crate::image::Image;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Keeps an error's text for this thread and answers its negative errno.
pub(super) fn fail(error: &Error) -> i32 {
    let text = CString::new(error.to_string().replace('\0', "?")).unwrap_or_default();
    LAST_ERROR.with(|last| *last.borrow_mut() = text);
    -error.errno()
}

/// The text kept last for this thread; valid until the next failure here.
pub(super) fn last_error() -> *const c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}

/// Runs the body of an exported function. A panic must not unwind into C.
pub(super) fn guard(body: impl FnOnce() -> i32) -> i32 {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(-errno::ENOTRECOVERABLE)
}

/// The same for bodies with an error text.
pub(super) fn guard_result(body: impl FnOnce() -> Result<i32>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(body));
    let result = result.unwrap_or_else(|_| {
        Err(Error::new(errno::ENOTRECOVERABLE, "internal error, a defect of libvmstream; its message went to stderr"))
    });
    // A second guard, as keeping the text allocates.
    guard(|| result.unwrap_or_else(|error| fail(&error)))
}

/// The error for a NULL argument.
pub(super) fn null(what: &str) -> Error {
    Error::new(errno::EINVAL, format!("{what} is NULL"))
}

/// The image behind a handle.
///
/// # Safety
/// `image` is NULL or came from `vms_open` and is not closed yet.
#[inline]
pub(super) unsafe fn handle<'a>(image: *const vms_image) -> Option<&'a Image> {
    // SAFETY: the caller's promise; a handle is a leaked `Box<Image>`, shared references only until `vms_close`.
    unsafe { image.cast::<Image>().as_ref() }
}

/// The text behind a C string.
///
/// # Safety
/// `text` is NULL or a NUL-terminated string that lives for the call.
pub(super) unsafe fn text<'a>(what: &str, text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, and the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) };
    bytes.to_str().map_err(|_| Error::new(errno::EINVAL, format!("{what} is not UTF-8")))
}
