//! Types and constants of the C ABI.
#![allow(non_camel_case_types, reason = "the names of the C header")]

use std::ffi::{c_char, c_void};

/// Version of this header, first part: programs built for another one may not work.
pub const VMS_VERSION_MAJOR: u32 = 0;
/// Version of this header, second part: while the first is 0, as strict as it.
pub const VMS_VERSION_MINOR: u32 = 1;
/// Version of this header, third part.
pub const VMS_VERSION_PATCH: u32 = 0;
/// Version of this header as one number for comparisons in #if: 1.2.3 is 10203.
pub const VMS_VERSION_NUMBER: u32 = VMS_VERSION_MAJOR * 10000 + VMS_VERSION_MINOR * 100 + VMS_VERSION_PATCH;

/// Answer of vms_block_needed: go ahead now.
pub const VMS_READY: i32 = 0;
/// Answer of vms_block_needed: wait; exactly one completion with the same tag will come.
pub const VMS_PENDING: i32 = 1;

/// Operation: the driver is about to read the range.
pub const VMS_READ: i32 = 0;
/// Operation: the driver is about to overwrite the range.
pub const VMS_WRITE: i32 = 1;
/// Operation: the driver is about to discard the range, or to zero it by other means than a write.
pub const VMS_DISCARD: i32 = 2;
/// Operation: all writes that are done shall become durable. Offset and length are ignored.
pub const VMS_FLUSH: i32 = 3;

/// Log level: something failed, and the guest may notice.
pub const VMS_LOG_ERROR: i32 = 1;
/// Log level: something is wrong, but the guest goes on.
pub const VMS_LOG_WARN: i32 = 2;
/// Log level: progress.
pub const VMS_LOG_INFO: i32 = 3;
/// Log level: details for developers.
pub const VMS_LOG_DEBUG: i32 = 4;

/// An open image. Opaque.
pub struct vms_image {
    _private: [u8; 0],
}

/// What to call when a pending request is done.
///
/// The three belong together: after the last call (or when vms_open fails) free is called once with user_data.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct vms_ready {
    /// Called once for each pending request, with the tag of the request and 0 or a negative errno, on a library
    /// thread with all signals blocked, several at once. It must not block for long and must not call vms_close; it may
    /// call vms_block_needed and vms_block_done.
    pub call: Option<unsafe extern "C" fn(user_data: *mut c_void, tag: u64, result: i32)>,
    /// Handed to both functions.
    pub user_data: *mut c_void,
    /// Called once when the library will not use user_data any more. May be NULL.
    pub free: Option<unsafe extern "C" fn(user_data: *mut c_void)>,
}

/// One completion, as taken by vms_reap.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct vms_completion {
    /// The tag of the request.
    pub tag: u64,
    /// 0 or a negative errno.
    pub result: i32,
    /// 0; keeps the size the same everywhere.
    pub reserved: u32,
}

/// Counters of an image since it was opened. Set struct_size to sizeof(struct vms_stats) before the call: a newer
/// library fills only what an older program knows, an older library leaves the rest 0.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct vms_stats {
    /// sizeof(struct vms_stats), set by the caller.
    pub struct_size: u64,
    /// Size of the image, in bytes.
    pub size: u64,
    /// Bytes that are resident now.
    pub resident_bytes: u64,
    /// Bytes that came from the source.
    pub bytes_fetched: u64,
    /// Bytes known to be zero, not transferred.
    pub bytes_zero: u64,
    /// Fetched bytes dropped because the guest had overwritten them first.
    pub bytes_dropped: u64,
    /// Requests sent to the source.
    pub requests: u64,
    /// Fetches begun for a waiting guest.
    pub demand_fetches: u64,
    /// Fetches begun ahead of the guest.
    pub prefetch_fetches: u64,
    /// Fetches that failed; those that may pass are tried again.
    pub fetch_errors: u64,
    /// Guest requests that found all blocks resident and touched some for the first time.
    pub first_hits: u64,
    /// Guest requests that were not ready at once, flushes included.
    pub misses: u64,
    /// Guest requests that waited for bytes.
    pub stalls: u64,
    /// Of those, the ones whose bytes were on their way already.
    pub joined: u64,
    /// Time during which at least one request waited for bytes, in nanoseconds.
    pub stalled_ns: u64,
    /// Guest requests that wait now.
    pub waiting: u64,
    /// Flushes asked for.
    pub flushes: u64,
    /// Times that new blocks were made durable.
    pub checkpoints: u64,
    /// Measured rate of the link, in bytes a second; 0 when unknown.
    pub rate: u64,
    /// Measured round-trip time, in nanoseconds; 0 when unknown.
    pub round_trip_ns: u64,
    /// 1 when the source can never answer again, else 0.
    pub failed: u64,
    /// Fetches that failed since one last succeeded; 0 when the link works.
    pub failures_on_end: u64,
}

/// The risk up to which vms_forecast calls a guest calm, in millionths.
pub const VMS_CALM_RISK_PPM: u64 = 50000;

/// What is to be expected. Set struct_size as for vms_stats.
///
/// A stall here is a time of more than 100 ms on end during which a request of the guest waits for bytes: what a person
/// notices. vms_stats counts shorter waits as well.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct vms_forecast {
    /// sizeof(struct vms_forecast), set by the caller.
    pub struct_size: u64,
    /// Probability of at least one stall in the time asked about, in millionths (0 to 1000000).
    pub stall_risk_ppm: u64,
    /// Time until the image is complete, in nanoseconds; UINT64_MAX when the link's rate is unknown or fetches fail on
    /// end.
    pub complete_in_ns: u64,
    /// Bytes not resident yet.
    pub missing_bytes: u64,
    /// Time in the time asked about that the guest is expected to wait for bytes, in nanoseconds; short waits count too.
    pub expected_stall_ns: u64,
    /// How long the guest would have to be held back from now on, in nanoseconds, until the risk of the time that then
    /// follows is at most VMS_CALM_RISK_PPM; 0 when it is so now, UINT64_MAX when it cannot be told how long, as while
    /// fetches fail on end.
    pub calm_in_ns: u64,
    /// 1 when all this follows from sessions of the past, 0 when only from how often the guest stalled so far.
    pub foreseen: u64,
}

/// Takes a log message: level is one of VMS_LOG_*, message lives for the call. Called on any library thread and on
/// threads inside vms_open and vms_close.
pub type vms_log_fn = Option<unsafe extern "C" fn(user_data: *mut c_void, level: i32, message: *const c_char)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calm_risk_is_the_same_in_both_languages() {
        assert_eq!(VMS_CALM_RISK_PPM as f64, crate::stats::CALM_RISK * 1e6);
    }

    #[test]
    fn the_version_macros_are_those_of_the_package() {
        let macros = format!("{VMS_VERSION_MAJOR}.{VMS_VERSION_MINOR}.{VMS_VERSION_PATCH}");
        assert_eq!(macros, env!("CARGO_PKG_VERSION"));
        let number = env!("CARGO_PKG_VERSION").split('.').fold(0, |n, part| n * 100 + part.parse::<u32>().unwrap());
        assert_eq!(VMS_VERSION_NUMBER, number);
    }
}
