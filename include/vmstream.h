/* vmstream: virtual-machine streaming. SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef VMSTREAM_H
#define VMSTREAM_H

#include <stddef.h>
#include <stdint.h>

/*
 * Generated from src/capi by "make header"; do not edit. A page with more words is docs/c-api.md.
 *
 * A disk driver asks before it touches a byte range and reads or writes the local file itself:
 *
 *     switch (vms_block_needed(image, VMS_READ, offset, length, tag)) {
 *     case VMS_READY:   pread(vms_fd(image), buffer, length, offset); break;
 *     case VMS_PENDING: park the request; ready.call(user_data, tag, result) comes once; break;
 *     default:          a negative errno
 *     }
 *
 * Functions answer 0 or more, or a negative errno.
 *
 * Threads. "Any" is any number of threads at once, also threads made by clone(CLONE_VM) that share their parent's
 * thread-local storage and have a stack of 4 KiB; "full" is any number of ordinary threads at once; "one" is one
 * thread, while no other uses the image.
 *
 *   function                          | who   | blocks
 *   ----------------------------------+-------+----------------------------------------------------
 *   vms_block_needed, vms_block_done  | any   | never
 *   vms_block_wait, vms_flush         | any   | until ready; sleeps on a futex
 *   vms_fd, vms_size, vms_block_size, | any   | never
 *   vms_resident                      |       |
 *   vms_reap, vms_event_fd            | full  | never
 *   vms_get_stats, vms_set, vms_mark, | full  | for microseconds
 *   vms_link_error                    |       |
 *   vms_get_forecast                  | full  | for milliseconds
 *   vms_map                           | full  | for one mmap
 *   vms_cancel                        | full  | for microseconds
 *   vms_open                          | full  | until the origin has answered, or open_timeout
 *   vms_close                         | one   | until threads have ended and bytes are durable
 *   vms_set_logger                    | full  | for microseconds
 *   vms_version, vms_last_error       | full  | never
 *
 *   callback                          | runs on
 *   ----------------------------------+------------------------------------------------------------
 *   ready.call                        | library threads, all signals blocked, several at once; and on the
 *                                     | thread in vms_cancel or vms_close, with -ECANCELED
 *   ready.free                        | the thread in vms_close, or in a vms_open that fails
 *   logger                            | library threads, and threads inside any "full" function
 *
 * The library starts no thread before vms_open and leaves none after vms_close, installs no signal handler, and does
 * not survive fork: a child must not call it.
 */


/**
 * Version of this header, first part: programs built for another one may not work.
 */
#define VMS_VERSION_MAJOR 0

/**
 * Version of this header, second part: while the first is 0, as strict as it.
 */
#define VMS_VERSION_MINOR 1

/**
 * Version of this header, third part.
 */
#define VMS_VERSION_PATCH 0

/**
 * Version of this header as one number for comparisons in #if: 1.2.3 is 10203.
 */
#define VMS_VERSION_NUMBER (((VMS_VERSION_MAJOR * 10000) + (VMS_VERSION_MINOR * 100)) + VMS_VERSION_PATCH)

/**
 * Answer of vms_block_needed: go ahead now.
 */
#define VMS_READY 0

/**
 * Answer of vms_block_needed: wait; exactly one completion with the same tag will come.
 */
#define VMS_PENDING 1

/**
 * Operation: the driver is about to read the range.
 */
#define VMS_READ 0

/**
 * Operation: the driver is about to overwrite the range.
 */
#define VMS_WRITE 1

/**
 * Operation: the driver is about to discard the range, or to zero it by other means than a write.
 */
#define VMS_DISCARD 2

/**
 * Operation: all writes that are done shall become durable. Offset and length are ignored.
 */
#define VMS_FLUSH 3

/**
 * Log level: something failed, and the guest may notice.
 */
#define VMS_LOG_ERROR 1

/**
 * Log level: something is wrong, but the guest goes on.
 */
#define VMS_LOG_WARN 2

/**
 * Log level: progress.
 */
#define VMS_LOG_INFO 3

/**
 * Log level: details for developers.
 */
#define VMS_LOG_DEBUG 4

/**
 * The risk up to which vms_forecast calls a guest calm, in millionths.
 */
#define VMS_CALM_RISK_PPM 50000

/**
 * An open image. Opaque.
 */
typedef struct vms_image vms_image;

/**
 * What to call when a pending request is done.
 *
 * The three belong together: after the last call (or when vms_open fails) free is called once with user_data.
 */
typedef struct vms_ready {
    /**
     * Called once for each pending request, with the tag of the request and 0 or a negative errno, on a library
     * thread with all signals blocked, several at once. It must not block for long and must not call vms_close; it may
     * call vms_block_needed and vms_block_done.
     */
    void (*call)(void *user_data, uint64_t tag, int32_t result);
    /**
     * Handed to both functions.
     */
    void *user_data;
    /**
     * Called once when the library will not use user_data any more. May be NULL.
     */
    void (*free)(void *user_data);
} vms_ready;

/**
 * One completion, as taken by vms_reap.
 */
typedef struct vms_completion {
    /**
     * The tag of the request.
     */
    uint64_t tag;
    /**
     * 0 or a negative errno.
     */
    int32_t result;
    /**
     * 0; keeps the size the same everywhere.
     */
    uint32_t reserved;
} vms_completion;

/**
 * Counters of an image since it was opened. Set struct_size to sizeof(struct vms_stats) before the call: a newer
 * library fills only what an older program knows, an older library leaves the rest 0.
 */
typedef struct vms_stats {
    /**
     * sizeof(struct vms_stats), set by the caller.
     */
    uint64_t struct_size;
    /**
     * Size of the image, in bytes.
     */
    uint64_t size;
    /**
     * Bytes that are resident now.
     */
    uint64_t resident_bytes;
    /**
     * Bytes that came from the source.
     */
    uint64_t bytes_fetched;
    /**
     * Bytes known to be zero, not transferred.
     */
    uint64_t bytes_zero;
    /**
     * Fetched bytes dropped because the guest had overwritten them first.
     */
    uint64_t bytes_dropped;
    /**
     * Requests sent to the source.
     */
    uint64_t requests;
    /**
     * Fetches begun for a waiting guest.
     */
    uint64_t demand_fetches;
    /**
     * Fetches begun ahead of the guest.
     */
    uint64_t prefetch_fetches;
    /**
     * Fetches that failed; those that may pass are tried again.
     */
    uint64_t fetch_errors;
    /**
     * Guest requests that found all blocks resident and touched some for the first time.
     */
    uint64_t first_hits;
    /**
     * Guest requests that were not ready at once, flushes included.
     */
    uint64_t misses;
    /**
     * Guest requests that waited for bytes.
     */
    uint64_t stalls;
    /**
     * Of those, the ones whose bytes were on their way already.
     */
    uint64_t joined;
    /**
     * Time during which at least one request waited for bytes, in nanoseconds.
     */
    uint64_t stalled_ns;
    /**
     * Guest requests that wait now.
     */
    uint64_t waiting;
    /**
     * Flushes asked for.
     */
    uint64_t flushes;
    /**
     * Times that new blocks were made durable.
     */
    uint64_t checkpoints;
    /**
     * Measured rate of the link, in bytes a second; 0 when unknown.
     */
    uint64_t rate;
    /**
     * Measured round-trip time, in nanoseconds; 0 when unknown.
     */
    uint64_t round_trip_ns;
    /**
     * 1 when the source can never answer again, else 0.
     */
    uint64_t failed;
    /**
     * Fetches that failed since one last succeeded; 0 when the link works.
     */
    uint64_t failures_on_end;
} vms_stats;

/**
 * What is to be expected. Set struct_size as for vms_stats.
 *
 * A stall here is a time of more than 100 ms on end during which a request of the guest waits for bytes: what a person
 * notices. vms_stats counts shorter waits as well.
 */
typedef struct vms_forecast {
    /**
     * sizeof(struct vms_forecast), set by the caller.
     */
    uint64_t struct_size;
    /**
     * Probability of at least one stall in the time asked about, in millionths (0 to 1000000).
     */
    uint64_t stall_risk_ppm;
    /**
     * Time until the image is complete, in nanoseconds; UINT64_MAX when the link's rate is unknown or fetches fail on
     * end.
     */
    uint64_t complete_in_ns;
    /**
     * Bytes not resident yet.
     */
    uint64_t missing_bytes;
    /**
     * Time in the time asked about that the guest is expected to wait for bytes, in nanoseconds; short waits count too.
     */
    uint64_t expected_stall_ns;
    /**
     * How long the guest would have to be held back from now on, in nanoseconds, until the risk of the time that then
     * follows is at most VMS_CALM_RISK_PPM; 0 when it is so now, UINT64_MAX when it cannot be told how long, as while
     * fetches fail on end.
     */
    uint64_t calm_in_ns;
    /**
     * 1 when all this follows from sessions of the past, 0 when only from how often the guest stalled so far.
     */
    uint64_t foreseen;
} vms_forecast;

/**
 * Takes a log message: level is one of VMS_LOG_*, message lives for the call. Called on any library thread and on
 * threads inside vms_open and vms_close.
 */
typedef void (*vms_log_fn)(void *user_data, int32_t level, const char *message);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Opens an image.
 *
 * options is a NULL-terminated array of "key=value" strings; "source=URL" is the one that must be there. With
 * ready, completions are told by its callback; with ready NULL they are taken by vms_reap, and vms_event_fd says when.
 * On success *image is the handle, else NULL.
 *
 * Blocks until the origin has said what the image is, unless the cache knows it already. Starts threads, with all
 * signals blocked in them. Returns 0 or a negative errno; vms_last_error tells the reason. ready->free is called once
 * in every case: when the image is closed, or before this returns an error.
 */
int32_t vms_open(const char *const *options, const struct vms_ready *ready, struct vms_image **image);

/**
 * Asks for a byte range before the driver touches it in the local file.
 *
 * Returns VMS_READY: go ahead now, and after VMS_WRITE or VMS_DISCARD call vms_block_done. VMS_PENDING: one
 * completion with tag will come, perhaps before this returns; its result 0 means the same as VMS_READY.
 * Or a negative errno: -EINVAL (NULL, bad op, range outside the image), -EROFS (opened with read_only=on), -EAGAIN
 * (too many requests pending: try again after a completion), -ECANCELED (closing).
 *
 * Never blocks, allocates, or touches errno or thread-local storage; needs less than 1 KiB of stack. Any thread may
 * call it, also one made by clone(CLONE_VM).
 */
int32_t vms_block_needed(const struct vms_image *image, int32_t op, uint64_t offset, uint64_t length, uint64_t tag);

/**
 * The blocking form of vms_block_needed: returns 0 when the range is ready, or a negative errno.
 *
 * Sleeps on a futex; otherwise as frugal as vms_block_needed. Instead of -EAGAIN it waits for its turn.
 */
int32_t vms_block_wait(const struct vms_image *image, int32_t op, uint64_t offset, uint64_t length);

/**
 * Says that a VMS_WRITE or VMS_DISCARD that was ready has ended, with the same op, offset and length.
 *
 * result is 0 or more when the local file now holds what the guest wrote, or a negative errno when it failed. Returns
 * 0 or -EINVAL. As frugal as vms_block_needed.
 */
int32_t vms_block_done(const struct vms_image *image, int32_t op, uint64_t offset, uint64_t length, int32_t result);

/**
 * Tells extents: 1 when the byte at offset is resident, 0 when it is not, and in *run how many bytes from there on,
 * at most length, are of the same kind.
 *
 * Asks for nothing, and the guest's touch it is not. What is resident stays so; the rest may come at any moment. What
 * is not resident is data nobody has seen yet: do not call it a hole or zero. Returns -EINVAL for NULL and for a range
 * outside the image. As frugal as vms_block_needed.
 */
int32_t vms_resident(const struct vms_image *image, uint64_t offset, uint64_t length, uint64_t *run);

/**
 * Makes every write that was done before this call durable. Blocks until it is.
 *
 * The form that does not block is vms_block_needed with VMS_FLUSH. Returns 0 or a negative errno: -EIO or -ENOSPC mean
 * that it is not durable.
 */
int32_t vms_flush(const struct vms_image *image);

/**
 * The descriptor of the local file, for reading ready blocks and writing claimed ones at the image's offsets.
 *
 * Do not close it; closed by vms_close. Do not take POSIX record locks on it through another descriptor that you
 * close. Returns the descriptor or -EINVAL.
 */
int32_t vms_fd(const struct vms_image *image);

/**
 * A read-only map of the whole local file, made at the first call; valid until vms_close. Only ready blocks mean
 * anything in it. NULL on failure; vms_last_error tells the reason.
 */
const void *vms_map(const struct vms_image *image);

/**
 * Size of the image, in bytes; 0 for NULL.
 */
uint64_t vms_size(const struct vms_image *image);

/**
 * Size of a block, in bytes; 0 for NULL.
 */
uint64_t vms_block_size(const struct vms_image *image);

/**
 * A descriptor that is readable while vms_reap has completions, and sometimes until the next vms_reap when it has none
 * any more: what is taken while it is being announced is announced afterwards. For poll and epoll; do not read or
 * close it.
 * Returns the descriptor, or -EINVAL when the image was opened with a callback.
 */
int32_t vms_event_fd(const struct vms_image *image);

/**
 * Takes up to capacity completions without blocking. Returns their number, 0 when there are none, or -EINVAL.
 */
int32_t vms_reap(const struct vms_image *image, struct vms_completion *completions, uint32_t capacity);

/**
 * Ends all waiting: completes everything pending with -ECANCELED, wakes vms_block_wait with the same, and from now on
 * answers so to every request that is not ready at once.
 *
 * With it the threads of a driver can be brought to an end before vms_close, which none of them may be near. Returns 0
 * or -EINVAL. May be called more than once, and from the callback.
 */
int32_t vms_cancel(const struct vms_image *image);

/**
 * Closes an image: does what vms_cancel does, stops its threads, makes durable what arrived, calls ready->free, and
 * gives the handle back. Blocks for a moment. NULL is allowed.
 *
 * No other call on the handle may be under way or follow, except the callback's own, and except that threads asleep in
 * vms_block_wait are woken with -ECANCELED. A thread that might just be about to call is stopped with vms_cancel first.
 *
 * Returns 0, or a negative errno when something could not be made durable (the handle is gone all the same), or
 * -EDEADLK when called from the callback (and then nothing happened).
 */
int32_t vms_close(struct vms_image *image);

/**
 * Fills stats. Set stats->struct_size first. Returns 0 or a negative errno. Takes a lock for microseconds: any thread
 * but not one with a tiny stack.
 */
int32_t vms_get_stats(const struct vms_image *image, struct vms_stats *stats);

/**
 * Fills forecast for the next horizon_ms milliseconds. Set forecast->struct_size first. Takes a few milliseconds with a
 * model, during which nobody waits for it, so ask a few times a second at most. Returns 0 or a negative errno.
 */
int32_t vms_get_forecast(const struct vms_image *image, uint32_t horizon_ms, struct vms_forecast *forecast);

/**
 * Names this moment of the session, for people who read its record. Returns 0 or a negative errno.
 */
int32_t vms_mark(const struct vms_image *image, const char *name);

/**
 * Changes an option of an open image, "key=value": prefetch, fill or error_after. Returns 0 or a negative errno.
 */
int32_t vms_set(const struct vms_image *image, const char *option);

/**
 * Copies the last error of the link or the local disk into buffer, cut to capacity with its NUL. Returns the length of
 * the whole text without NUL (0: there was none), or a negative errno.
 */
int32_t vms_link_error(const struct vms_image *image, char *buffer, size_t capacity);

/**
 * Sets who takes the log messages of all images of this process, up to max_level (VMS_LOG_*); NULL for nobody, as at
 * the start. A message that is being handed over when this is called may still reach the old function. Returns 0, or
 * -EBUSY when the program logs through Rust's own facade.
 */
int32_t vms_set_logger(vms_log_fn call, void *user_data, int32_t max_level);

/**
 * Version of the library, "MAJOR.MINOR.PATCH".
 */
const char *vms_version(void);

/**
 * Why the last vms_* call that failed on this thread did, as one line; "" when none has. Valid until the next failure
 * on this thread. Not set by vms_block_needed, vms_block_wait, vms_block_done and vms_flush, whose negative errno says
 * all, nor by the other functions that say no more than -EINVAL for NULL: vms_fd, vms_event_fd, vms_reap.
 */
const char *vms_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VMSTREAM_H */
