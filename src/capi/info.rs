//! Statistics, forecast, marks, options at run time, logging, version.

use std::ffi::{CString, c_char, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::edge::{self, fail, guard, guard_result, handle, null, text};
use super::types::*;
use crate::error::{Error, Result, errno};

/// Largest struct that is filled, in bytes: a size beyond it is a word the caller forgot to set.
const STRUCT_BYTES_MAX: u64 = 4096;

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// Copies as much of `value` as the caller's struct holds. Both begin with `struct_size`, and hold 64-bit words only.
///
/// # Safety
/// `out` is NULL or points to a struct of as many bytes as its first word says.
unsafe fn hand_over<T: Copy>(value: T, out: *mut T) -> Result<i32> {
    if out.is_null() {
        return Err(null("the struct to fill"));
    }
    // SAFETY: the first word of the caller's struct is its size.
    let size = unsafe { out.cast::<u64>().read() };
    if !(16..=STRUCT_BYTES_MAX).contains(&size) || size % 8 != 0 {
        return Err(Error::new(errno::EINVAL, format!("struct_size {size}: set it to sizeof the struct")));
    }
    let known = usize::try_from(size).unwrap_or(usize::MAX).min(size_of::<T>());
    // SAFETY: `known` bytes are within both structs; the first word is left as the caller set it.
    unsafe {
        let from = (&raw const value).cast::<u8>();
        std::ptr::copy_nonoverlapping(from.add(8), out.cast::<u8>().add(8), known - 8);
        if let Some(rest) = usize::try_from(size).ok().and_then(|size| size.checked_sub(known)) {
            out.cast::<u8>().add(known).write_bytes(0, rest);
        }
    }
    Ok(0)
}

/// Fills stats. Set stats->struct_size first. Returns 0 or a negative errno. Takes a lock for microseconds: any thread
/// but not one with a tiny stack.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_get_stats(image: *const vms_image, stats: *mut vms_stats) -> i32 {
    guard_result(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let s = unsafe { handle(image) }.ok_or_else(|| null("image"))?.stats();
        let value = vms_stats {
            struct_size: 0,
            size: s.size,
            resident_bytes: s.resident_bytes,
            bytes_fetched: s.bytes_fetched,
            bytes_zero: s.bytes_zero,
            bytes_dropped: s.bytes_dropped,
            requests: s.requests,
            demand_fetches: s.demand_fetches,
            prefetch_fetches: s.prefetch_fetches,
            fetch_errors: s.fetch_errors,
            first_hits: s.first_hits,
            misses: s.misses,
            stalls: s.stalls,
            joined: s.joined,
            stalled_ns: nanos(s.stalled),
            waiting: s.waiting,
            flushes: s.flushes,
            checkpoints: s.checkpoints,
            rate: s.rate,
            round_trip_ns: nanos(s.round_trip),
            failed: s.failed.into(),
            failures_on_end: s.failures_on_end.into(),
        };
        // SAFETY: the header demands a struct of struct_size bytes.
        unsafe { hand_over(value, stats) }
    })
}

/// Fills forecast for the next horizon_ms milliseconds. Set forecast->struct_size first. Takes a few milliseconds with a
/// model, during which nobody waits for it, so ask a few times a second at most. Returns 0 or a negative errno.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_get_forecast(
    image: *const vms_image,
    horizon_ms: u32,
    forecast: *mut vms_forecast,
) -> i32 {
    guard_result(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let image = unsafe { handle(image) }.ok_or_else(|| null("image"))?;
        let f = image.forecast(Duration::from_millis(horizon_ms.into()));
        let value = vms_forecast {
            struct_size: 0,
            stall_risk_ppm: (f.stall_risk * 1e6).round() as u64,
            complete_in_ns: f.complete_in.map_or(u64::MAX, nanos),
            missing_bytes: f.missing_bytes,
            expected_stall_ns: nanos(f.expected_stall),
            calm_in_ns: f.calm_in.map_or(u64::MAX, nanos),
            foreseen: f.foreseen.into(),
        };
        // SAFETY: the header demands a struct of struct_size bytes.
        unsafe { hand_over(value, forecast) }
    })
}

/// Names this moment of the session, for people who read its record. Returns 0 or a negative errno.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_mark(image: *const vms_image, name: *const c_char) -> i32 {
    guard_result(|| {
        // SAFETY: a live handle or NULL and a C string or NULL, as the header demands.
        let (image, name) = unsafe { (handle(image).ok_or_else(|| null("image"))?, text("name", name)?) };
        image.mark(name);
        Ok(0)
    })
}

/// Changes an option of an open image, "key=value": prefetch, fill or error_after. Returns 0 or a negative errno.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_set(image: *const vms_image, option: *const c_char) -> i32 {
    guard_result(|| {
        // SAFETY: a live handle or NULL and a C string or NULL, as the header demands.
        let (image, option) = unsafe { (handle(image).ok_or_else(|| null("image"))?, text("option", option)?) };
        let (key, value) =
            option.split_once('=').ok_or_else(|| Error::option(option, "", "options have the form key=value"))?;
        image.set(key, value).map(|()| 0)
    })
}

/// Copies the last error of the link or the local disk into buffer, cut to capacity with its NUL. Returns the length of
/// the whole text without NUL (0: there was none), or a negative errno.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_link_error(image: *const vms_image, buffer: *mut c_char, capacity: usize) -> i32 {
    guard_result(|| {
        // SAFETY: a live handle or NULL, as the header demands.
        let image = unsafe { handle(image) }.ok_or_else(|| null("image"))?;
        let text = image.last_error().unwrap_or_default();
        if buffer.is_null() && capacity != 0 {
            return Err(null("buffer"));
        }
        if capacity != 0 {
            let count = text.len().min(capacity - 1);
            // SAFETY: the caller's buffer holds `capacity` bytes, and `count` is below that.
            unsafe {
                std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, count);
                buffer.add(count).write(0);
            }
        }
        Ok(i32::try_from(text.len()).unwrap_or(i32::MAX))
    })
}

struct Logger {
    sink: Mutex<Option<Sink>>,
}

#[derive(Clone, Copy)]
struct Sink {
    call: unsafe extern "C" fn(*mut c_void, i32, *const c_char),
    user_data: *mut c_void,
}

// SAFETY: the header says that the logger is called on any thread; `user_data` is the caller's to make fit for that.
unsafe impl Send for Sink {}

static LOGGER: Logger = Logger { sink: Mutex::new(None) };
static INSTALLED: AtomicBool = AtomicBool::new(false);

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Only our own words: the HTTP and TLS libraries have much to say that is no business of an embedder.
        if !record.target().starts_with("vmstream") || !log::Log::enabled(self, record.metadata()) {
            return;
        }
        let sink = *self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(sink) = sink
            && let Ok(message) = CString::new(record.args().to_string().replace('\0', "?"))
        {
            let level = match record.level() {
                log::Level::Error => VMS_LOG_ERROR,
                log::Level::Warn => VMS_LOG_WARN,
                log::Level::Info => VMS_LOG_INFO,
                _ => VMS_LOG_DEBUG,
            };
            // SAFETY: the caller of vms_set_logger promised that `call` may be called so until it is replaced.
            unsafe { (sink.call)(sink.user_data, level, message.as_ptr()) }
        }
    }

    fn flush(&self) {}
}

/// Sets who takes the log messages of all images of this process, up to max_level (VMS_LOG_*); NULL for nobody, as at
/// the start. A message that is being handed over when this is called may still reach the old function. Returns 0, or
/// -EBUSY when the program logs through Rust's own facade.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vms_set_logger(call: vms_log_fn, user_data: *mut c_void, max_level: i32) -> i32 {
    guard(|| {
        if !INSTALLED.swap(true, Ordering::AcqRel) && log::set_logger(&LOGGER).is_err() {
            INSTALLED.store(false, Ordering::Release);
            return fail(&Error::new(errno::EBUSY, "another logger is installed in this process"));
        }
        let sink = call.map(|call| Sink { call, user_data });
        let level = match (sink, max_level) {
            (None, _) | (_, ..=0) => log::LevelFilter::Off,
            (_, VMS_LOG_ERROR) => log::LevelFilter::Error,
            (_, VMS_LOG_WARN) => log::LevelFilter::Warn,
            (_, VMS_LOG_INFO) => log::LevelFilter::Info,
            _ => log::LevelFilter::Debug,
        };
        log::set_max_level(level);
        *LOGGER.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = sink;
        0
    })
}

/// Version of the library, "MAJOR.MINOR.PATCH".
#[unsafe(no_mangle)]
pub extern "C" fn vms_version() -> *const c_char {
    const VERSION: &std::ffi::CStr =
        match std::ffi::CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version holds no NUL"),
        };
    VERSION.as_ptr()
}

/// Why the last vms_* call that failed on this thread did, as one line; "" when none has. Valid until the next failure
/// on this thread. Not set by vms_block_needed, vms_block_wait, vms_block_done and vms_flush, whose negative errno says
/// all, nor by the other functions that say no more than -EINVAL for NULL: vms_fd, vms_event_fd, vms_reap.
#[unsafe(no_mangle)]
pub extern "C" fn vms_last_error() -> *const c_char {
    edge::last_error()
}
