/*
 * QEMU block driver for images that are streamed with libvmstream
 *
 * SPDX-License-Identifier: MIT
 *
 * The library keeps what has arrived of a remote image in a sparse local file,
 * and says when a byte range of that file may be touched.  It moves no guest
 * bytes itself.  So this driver is a gate in front of a "file" node over the
 * local file: every request asks the library first, sleeps in its coroutine
 * while blocks are missing, and then goes to the child as it is.
 *
 * Reading the descriptor of the library through the thread pool would have
 * been the other way.  The child costs one more call for a request, and in
 * exchange O_DIRECT, linux-aio, io_uring, zero writes, discard, SEEK_HOLE and
 * moving between AioContexts are those of file-posix.c, tested for many years.
 *
 * The driver is deliberately not a filter: the block layer looks through
 * filters, and the local file without the gate has holes where data is merely
 * missing.  For the same reason no one else may use the child.
 *
 * Threads: requests run in the AioContext of the node.  The library completes
 * them on threads of its own, which do nothing here but hand the coroutine
 * back to its AioContext.  Everything about a dead link happens in the main
 * loop.
 */

#include "qemu/osdep.h"

#include <vmstream.h>

#include "block/block.h"
#include "block/block_int.h"
#include "block/qdict.h"
#include "crypto/secret.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-misc.h"
#include "qapi/qapi-visit-block-core.h"
#include "qapi/qmp/qdict.h"
#include "qapi/qobject-input-visitor.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/notify.h"
#include "qemu/option.h"
#include "sysemu/runstate.h"

#define VMSTREAM_PREFIX "vmstream:"

/* How often the main loop looks at the link while requests wait for it */
#define VMSTREAM_WATCH_MS 1000

/*
 * Once a request was given up because the link is dead, the others shall not
 * hold up the stop of the machine, which drains; this is all they still get.
 */
#define VMSTREAM_GIVE_UP_MS 1000

/* The machine is shutting down: nobody will look at the answer */
#define VMSTREAM_SHUTDOWN_MS 1

/* Not the address of a request */
#define VMSTREAM_PROBE_TAG 0

typedef struct VMStreamRequest {
    AioContext *ctx;
    Coroutine *co;
    int32_t result;
} VMStreamRequest;

/* The question, asked again and again, whether a dead link is back */
typedef enum VMStreamProbeState {
    VMSTREAM_PROBE_IDLE,
    VMSTREAM_PROBE_ASKED,
    VMSTREAM_PROBE_ANSWERED,
} VMStreamProbeState;

typedef struct BDRVVMStreamState {
    BlockDriverState *bs;
    vms_image *image;
    int64_t size;

    /* Requests that got -EAGAIN wait for one that is pending to end */
    QemuMutex lock;
    CoQueue again;          /* protected by lock */
    unsigned pending;       /* protected by lock */

    /* How long a request may wait, in milliseconds; 0: without end */
    uint64_t patience_ms;
    /* Whether to stop the machine when that time is over, and to go on later */
    bool pause;

    /* Looks at the link from the main loop (never from a nested aio_poll()) */
    QEMUTimer *watch;
    bool watching;          /* atomic; the timer is armed */
    /* What the console was told; main loop only */
    bool told_down;
    bool told_gave_up;

    /* A request was given up for the dead link; accessed atomically */
    bool gave_up;
    /* The range it wanted: written before gave_up is */
    int64_t wanted_offset;
    int64_t wanted_bytes;
    int probe;              /* VMStreamProbeState, atomic */
    int32_t probe_result;   /* written before probe is */
    /* Main loop; the machine stands still because of what we gave up */
    bool stopped;

    VMChangeStateEntry *vm_state;
    Notifier shutdown;
} BDRVVMStreamState;

/*
 * Messages of the library come from its threads, and may be reported from the
 * main loop only.
 */
static struct {
    QemuMutex lock;
    GQueue messages;        /* of VMStreamMessage */
    QEMUBH *bh;
} vmstream_log;

typedef struct VMStreamMessage {
    int32_t level;
    char text[];
} VMStreamMessage;

static void vmstream_log_bh(void *opaque)
{
    VMStreamMessage *message;

    for (;;) {
        WITH_QEMU_LOCK_GUARD(&vmstream_log.lock) {
            message = g_queue_pop_head(&vmstream_log.messages);
        }
        if (!message) {
            return;
        }
        if (message->level == VMS_LOG_ERROR) {
            error_report("vmstream: %s", message->text);
        } else {
            warn_report("vmstream: %s", message->text);
        }
        g_free(message);
    }
}

/* Called on any thread of the library, and in vms_open() and vms_close() */
static void vmstream_log_cb(void *opaque, int32_t level, const char *text)
{
    size_t size = strlen(text) + 1;
    VMStreamMessage *message = g_malloc(sizeof(*message) + size);

    message->level = level;
    memcpy(message->text, text, size);
    WITH_QEMU_LOCK_GUARD(&vmstream_log.lock) {
        g_queue_push_tail(&vmstream_log.messages, message);
    }
    qemu_bh_schedule(vmstream_log.bh);
}

/* The log is one for the process, and stays when the last image is closed */
static void vmstream_log_init(void)
{
    if (!vmstream_log.bh) {
        qemu_mutex_init(&vmstream_log.lock);
        g_queue_init(&vmstream_log.messages);
        vmstream_log.bh = aio_bh_new(qemu_get_aio_context(), vmstream_log_bh,
                                     NULL);
        vms_set_logger(vmstream_log_cb, NULL, VMS_LOG_WARN);
    }
}

static void vmstream_set_patience(BDRVVMStreamState *s, uint64_t ms)
{
    char option[64];

    snprintf(option, sizeof(option), "error_after=%" PRIu64 "ms", ms);
    vms_set(s->image, option);
}

/* Called on a thread of the library, or in vms_close() */
static void vmstream_ready_cb(void *opaque, uint64_t tag, int32_t result)
{
    BDRVVMStreamState *s = opaque;
    VMStreamRequest *req = (VMStreamRequest *)(uintptr_t)tag;

    if (tag == VMSTREAM_PROBE_TAG) {
        s->probe_result = result;
        qatomic_store_release(&s->probe, VMSTREAM_PROBE_ANSWERED);
        return;
    }

    req->result = result;
    /*
     * The coroutine may still be on its way to its yield.  It is entered from
     * the event loop of the thread that it runs on, hence after the yield.
     * From here on req may be gone at any time.
     */
    aio_co_schedule(req->ctx, req->co);
}

/* A look at the link in a while, unless one is due anyway */
static void vmstream_watch(BDRVVMStreamState *s)
{
    if (!qatomic_read(&s->watching) && !qatomic_xchg(&s->watching, true)) {
        timer_mod(s->watch, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                            VMSTREAM_WATCH_MS);
    }
}

/* A request was refused that had waited too long; let the main loop know */
static void vmstream_note_give_up(BDRVVMStreamState *s, int64_t offset,
                                  int64_t bytes)
{
    struct vms_stats stats = { .struct_size = sizeof(stats) };

    if (!s->pause || qatomic_read(&s->gave_up)) {
        return;
    }
    if (vms_get_stats(s->image, &stats) < 0 || stats.failed) {
        /* The source will never answer again; there is nothing to wait for */
        return;
    }

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        if (s->gave_up) {
            return;
        }
        s->wanted_offset = offset;
        s->wanted_bytes = bytes;
        qatomic_store_release(&s->gave_up, true);
    }
    vmstream_set_patience(s, VMSTREAM_GIVE_UP_MS);
    vmstream_watch(s);
}

/*
 * Waits until [offset, offset + bytes) of the local file may be read, or
 * overwritten or discarded and then be reported by vmstream_done().
 */
static int coroutine_fn vmstream_gate(BlockDriverState *bs, int op,
                                      int64_t offset, int64_t bytes)
{
    BDRVVMStreamState *s = bs->opaque;
    VMStreamRequest req;
    int ret;

    for (;;) {
        req = (VMStreamRequest) {
            .ctx = qemu_get_current_aio_context(),
            .co = qemu_coroutine_self(),
        };
        ret = vms_block_needed(s->image, op, offset, bytes,
                               (uint64_t)(uintptr_t)&req);
        if (likely(ret == VMS_READY)) {
            return 0;
        }
        if (ret == VMS_PENDING) {
            WITH_QEMU_LOCK_GUARD(&s->lock) {
                s->pending++;
                vmstream_watch(s);
            }
            qemu_coroutine_yield();
            ret = req.result;
            WITH_QEMU_LOCK_GUARD(&s->lock) {
                s->pending--;
                qemu_co_queue_restart_all(&s->again);
            }
            break;
        }
        if (ret != -EAGAIN) {
            break;
        }

        /* The library has its hands full: next try when a request has ended */
        qemu_mutex_lock(&s->lock);
        if (s->pending) {
            qemu_co_queue_wait(&s->again, &s->lock);
            qemu_mutex_unlock(&s->lock);
        } else {
            /* ...which the last one has, just now */
            qemu_mutex_unlock(&s->lock);
            qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, SCALE_MS);
        }
    }

    if (ret == -EIO && op != VMS_FLUSH) {
        vmstream_note_give_up(s, offset, bytes);
    }
    return ret;
}

/* Ends what vmstream_gate() allowed; ret: how it went */
static int vmstream_done(BlockDriverState *bs, int op, int64_t offset,
                         int64_t bytes, int ret)
{
    BDRVVMStreamState *s = bs->opaque;

    vms_block_done(s->image, op, offset, bytes, ret);
    return ret;
}

static int coroutine_fn vmstream_co_preadv_part(BlockDriverState *bs,
                                                int64_t offset, int64_t bytes,
                                                QEMUIOVector *qiov,
                                                size_t qiov_offset,
                                                BdrvRequestFlags flags)
{
    BDRVVMStreamState *s = bs->opaque;
    /* The image may end in the middle of the last sector; the rest is zero */
    int64_t inside = MIN(bytes, s->size - offset);

    if (inside > 0) {
        int ret = vmstream_gate(bs, VMS_READ, offset, inside);

        if (ret < 0) {
            return ret;
        }
    }
    return bdrv_co_preadv_part(bs->file, offset, bytes, qiov, qiov_offset,
                               flags);
}

static int coroutine_fn vmstream_co_pwritev_part(BlockDriverState *bs,
                                                 int64_t offset, int64_t bytes,
                                                 QEMUIOVector *qiov,
                                                 size_t qiov_offset,
                                                 BdrvRequestFlags flags)
{
    int ret = vmstream_gate(bs, VMS_WRITE, offset, bytes);

    if (ret < 0) {
        return ret;
    }
    ret = bdrv_co_pwritev_part(bs->file, offset, bytes, qiov, qiov_offset,
                               flags);
    return vmstream_done(bs, VMS_WRITE, offset, bytes, ret);
}

static int coroutine_fn vmstream_co_pwrite_zeroes(BlockDriverState *bs,
                                                  int64_t offset,
                                                  int64_t bytes,
                                                  BdrvRequestFlags flags)
{
    int ret = vmstream_gate(bs, VMS_DISCARD, offset, bytes);

    if (ret < 0) {
        return ret;
    }
    ret = bdrv_co_pwrite_zeroes(bs->file, offset, bytes, flags);
    return vmstream_done(bs, VMS_DISCARD, offset, bytes, ret);
}

static int coroutine_fn vmstream_co_pdiscard(BlockDriverState *bs,
                                             int64_t offset, int64_t bytes)
{
    int ret;

    if (!QEMU_IS_ALIGNED(offset | bytes, bs->bl.pdiscard_alignment)) {
        /*
         * A part of a block, which would have to be fetched for it.  Discard
         * is advisory; that much work for nothing is not.
         */
        return -ENOTSUP;
    }
    ret = vmstream_gate(bs, VMS_DISCARD, offset, bytes);
    if (ret < 0) {
        return ret;
    }
    ret = bdrv_co_pdiscard(bs->file, offset, bytes);
    return vmstream_done(bs, VMS_DISCARD, offset, bytes, ret);
}

/*
 * Not .bdrv_co_flush_to_disk, after which the block layer would sync the child
 * as well: the library syncs the local file, and then its journal.
 */
static int coroutine_fn vmstream_co_flush(BlockDriverState *bs)
{
    if (bs->open_flags & BDRV_O_NO_FLUSH) {
        return 0;
    }
    return vmstream_gate(bs, VMS_FLUSH, 0, 0);
}

static int coroutine_fn vmstream_co_block_status(BlockDriverState *bs,
                                                 bool want_zero,
                                                 int64_t offset, int64_t bytes,
                                                 int64_t *pnum, int64_t *map,
                                                 BlockDriverState **file)
{
    BDRVVMStreamState *s = bs->opaque;
    int64_t inside = MIN(bytes, s->size - offset);
    uint64_t run;
    int ret;

    *map = offset;
    *file = bs;
    if (inside <= 0) {
        *pnum = bytes;
        return BDRV_BLOCK_ZERO | BDRV_BLOCK_OFFSET_VALID;
    }

    /* A hole means zeroes only where the block is here */
    ret = vms_resident(s->image, offset, inside, &run);
    if (ret < 0) {
        return ret;
    }
    *pnum = ROUND_UP(run, bs->bl.request_alignment);
    if (ret == 0 || !want_zero) {
        return BDRV_BLOCK_DATA | BDRV_BLOCK_OFFSET_VALID;
    }

    ret = bdrv_block_status(bs->file->bs, offset, *pnum, pnum, NULL, NULL);
    if (ret < 0) {
        return ret;
    }
    return (ret & BDRV_BLOCK_ZERO ? BDRV_BLOCK_ZERO : BDRV_BLOCK_DATA) |
           BDRV_BLOCK_OFFSET_VALID;
}

static int coroutine_fn vmstream_co_truncate(BlockDriverState *bs,
                                             int64_t offset, bool exact,
                                             PreallocMode prealloc,
                                             BdrvRequestFlags flags,
                                             Error **errp)
{
    BDRVVMStreamState *s = bs->opaque;

    if (offset == s->size || (!exact && offset < s->size)) {
        return 0;
    }
    error_setg(errp, "A streamed image cannot be resized");
    error_append_hint(errp, "Its size is that of the image at the source.  "
                      "Create a qcow2 image with this one as its backing "
                      "file, and resize that.\n");
    return -ENOTSUP;
}

static int64_t vmstream_getlength(BlockDriverState *bs)
{
    BDRVVMStreamState *s = bs->opaque;

    return s->size;
}

static int64_t vmstream_get_allocated_file_size(BlockDriverState *bs)
{
    return bdrv_get_allocated_file_size(bs->file->bs);
}

static int vmstream_get_info(BlockDriverState *bs, BlockDriverInfo *bdi)
{
    BDRVVMStreamState *s = bs->opaque;

    bdi->cluster_size = vms_block_size(s->image);
    return 0;
}

static BlockStatsSpecific *vmstream_get_specific_stats(BlockDriverState *bs)
{
    BDRVVMStreamState *s = bs->opaque;
    struct vms_stats from = { .struct_size = sizeof(from) };
    BlockStatsSpecific *stats;

    if (vms_get_stats(s->image, &from) < 0) {
        return NULL;
    }
    stats = g_new0(BlockStatsSpecific, 1);
    stats->driver = BLOCKDEV_DRIVER_VMSTREAM;
    stats->u.vmstream = (BlockStatsSpecificVmstream) {
        .resident_bytes = from.resident_bytes,
        .fetched_bytes = from.bytes_fetched,
        .requests = from.requests,
        .stalls = from.stalls,
        .stalled_ns = from.stalled_ns,
        .waiting = from.waiting,
        .fetch_errors = from.fetch_errors,
        .failures_on_end = from.failures_on_end,
        .failed = from.failed,
    };
    return stats;
}

static void vmstream_refresh_limits(BlockDriverState *bs, Error **errp)
{
    BDRVVMStreamState *s = bs->opaque;

    bs->bl.request_alignment = bs->file->bs->bl.request_alignment;
    bs->bl.pdiscard_alignment = MAX(vms_block_size(s->image),
                                    bs->file->bs->bl.pdiscard_alignment);
}

static void vmstream_child_perm(BlockDriverState *bs, BdrvChild *c,
                                BdrvChildRole role,
                                BlockReopenQueue *reopen_queue,
                                uint64_t perm, uint64_t shared,
                                uint64_t *nperm, uint64_t *nshared)
{
    *nperm = perm & (BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE |
                     BLK_PERM_WRITE_UNCHANGED);
    if (perm & BLK_PERM_WRITE_UNCHANGED) {
        /* For the file, what was absent changes */
        *nperm |= BLK_PERM_WRITE;
    }
    /* Nobody else may read, let alone write, what is not all here */
    *nshared = 0;
}

/* One line for the console: which disk it is about */
static const char *vmstream_name(BlockDriverState *bs)
{
    return bdrv_get_device_or_node_name(bs);
}

/*
 * Looks whether the link is dead or back.  In the main loop itself, so that it
 * may stop and start the machine.
 */
static void vmstream_watch_cb(void *opaque)
{
    BlockDriverState *bs = opaque;
    BDRVVMStreamState *s = bs->opaque;
    struct vms_stats stats = { .struct_size = sizeof(stats) };
    unsigned pending;
    bool gave_up, back = false;
    int ret;

    /* A request either is counted here, or finds the timer not armed */
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        qatomic_set(&s->watching, false);
        pending = s->pending;
    }
    gave_up = qatomic_load_acquire(&s->gave_up);
    vms_get_stats(s->image, &stats);

    if (stats.failed) {
        /* The library has said so.  No use to wait any longer. */
        qatomic_set(&s->gave_up, false);
        return;
    }

    if (gave_up) {
        /* Nobody else may be asking, and without a demand there is no news */
        switch (qatomic_load_acquire(&s->probe)) {
        case VMSTREAM_PROBE_ANSWERED:
            back = s->probe_result == 0;
            if (back) {
                break;
            }
            /* fall through */
        case VMSTREAM_PROBE_IDLE:
            qatomic_set(&s->probe, VMSTREAM_PROBE_ASKED);
            ret = vms_block_needed(s->image, VMS_READ, s->wanted_offset,
                                   s->wanted_bytes, VMSTREAM_PROBE_TAG);
            if (ret != VMS_PENDING) {
                s->probe_result = ret;
                qatomic_set(&s->probe, VMSTREAM_PROBE_ANSWERED);
            }
            break;
        case VMSTREAM_PROBE_ASKED:
            break;
        }
    } else {
        back = s->told_down && !stats.failures_on_end;
    }

    if (gave_up && !s->told_gave_up) {
        s->told_down = s->told_gave_up = true;
        warn_report("vmstream: %s: the link is dead; requests fail, which "
                    "stops the machine if its device has rerror=stop and "
                    "werror=stop", vmstream_name(bs));
    } else if (pending && stats.failures_on_end && !s->told_down) {
        s->told_down = true;
        warn_report("vmstream: %s: the link is dead; requests wait",
                    vmstream_name(bs));
    }

    if (back) {
        s->told_down = s->told_gave_up = false;
        qatomic_set(&s->probe, VMSTREAM_PROBE_IDLE);
        qatomic_set(&s->gave_up, false);
        vmstream_set_patience(s, s->patience_ms);
        if (s->stopped && runstate_check(RUN_STATE_IO_ERROR)) {
            Error *local_err = NULL;

            warn_report("vmstream: %s: the link is back; the machine goes on",
                        vmstream_name(bs));
            qmp_cont(&local_err);
            if (local_err) {
                error_reportf_err(local_err, "vmstream: %s: cannot let the "
                                  "machine go on: ", vmstream_name(bs));
            }
        } else {
            warn_report("vmstream: %s: the link is back", vmstream_name(bs));
        }
    }

    if (pending || s->told_down || qatomic_read(&s->gave_up)) {
        vmstream_watch(s);
    }
}

static void vmstream_vm_state_cb(void *opaque, bool running, RunState state)
{
    BDRVVMStreamState *s = opaque;

    s->stopped = !running && state == RUN_STATE_IO_ERROR &&
                 qatomic_read(&s->gave_up);
}

/*
 * Quitting drains all disks.  With a dead link that would take until it is
 * back, and for an answer that no one waits for.
 */
static void vmstream_shutdown_cb(Notifier *notifier, void *data)
{
    BDRVVMStreamState *s = container_of(notifier, BDRVVMStreamState, shutdown);

    vmstream_set_patience(s, VMSTREAM_SHUTDOWN_MS);
}

static void G_GNUC_PRINTF(2, 3) vmstream_option(GPtrArray *array,
                                                const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    g_ptr_array_add(array, g_strdup_vprintf(format, ap));
    va_end(ap);
}

/* Those of the library's options that "options" may not set behind our back */
static bool vmstream_option_is_ours(const char *option)
{
    static const char *const keys[] = {
        "source=", "url=", "mirror=", "cache=", "file=", "block_size=",
        "read_only=", "prefetch=", "fill=", "connections=", "error_after=",
        "cacert=", "user=", NULL,
    };
    int i;

    for (i = 0; keys[i]; i++) {
        if (strstart(option, keys[i], NULL)) {
            return true;
        }
    }
    return false;
}

/* Translates options into those of the library; a NULL-terminated array */
static char **vmstream_library_options(BlockdevOptionsVmstream *opts,
                                       Error **errp)
{
    g_autoptr(GPtrArray) array = g_ptr_array_new_with_free_func(g_free);
    strList *entry;

    vmstream_option(array, "source=%s", opts->url);
    for (entry = opts->mirrors; entry; entry = entry->next) {
        vmstream_option(array, "mirror=%s", entry->value);
    }
    if (opts->cache_dir && opts->cache_file) {
        error_setg(errp, "'cache-dir' and 'cache-file' exclude each other");
        return NULL;
    }
    if (opts->cache_dir) {
        vmstream_option(array, "cache=%s", opts->cache_dir);
    }
    if (opts->cache_file) {
        vmstream_option(array, "file=%s", opts->cache_file);
    }
    if (opts->has_block_size) {
        vmstream_option(array, "block_size=%" PRIu64, opts->block_size);
    }
    if (opts->has_prefetch) {
        vmstream_option(array, "prefetch=%s",
                        VmstreamPrefetch_str(opts->prefetch));
    }
    if (opts->has_fill) {
        vmstream_option(array, "fill=%s", opts->fill ? "on" : "off");
    }
    if (opts->has_connections) {
        vmstream_option(array, "connections=%" PRIu32, opts->connections);
    }
    if (opts->has_error_after && opts->has_pause_after) {
        error_setg(errp, "'error-after' and 'pause-after' exclude each other");
        return NULL;
    }
    if (opts->has_error_after) {
        vmstream_option(array, "error_after=%" PRIu32 "s", opts->error_after);
    }
    if (opts->has_pause_after) {
        vmstream_option(array, "error_after=%" PRIu32 "s", opts->pause_after);
    }
    if (opts->cacert) {
        vmstream_option(array, "cacert=%s", opts->cacert);
    }
    if (!opts->username != !opts->password_secret) {
        error_setg(errp, "'username' and 'password-secret' belong together");
        return NULL;
    }
    if (opts->username) {
        g_autofree char *password =
            qcrypto_secret_lookup_as_utf8(opts->password_secret, errp);

        if (!password) {
            return NULL;
        }
        vmstream_option(array, "user=%s:%s", opts->username, password);
    }
    if (opts->header_secret) {
        g_autofree char *header =
            qcrypto_secret_lookup_as_utf8(opts->header_secret, errp);

        if (!header) {
            return NULL;
        }
        vmstream_option(array, "header=%s", header);
    }
    for (entry = opts->options; entry; entry = entry->next) {
        if (vmstream_option_is_ours(entry->value)) {
            error_setg(errp, "'options' cannot set '%s'", entry->value);
            error_append_hint(errp, "There is an option of the block driver "
                              "for it.\n");
            return NULL;
        }
        vmstream_option(array, "%s", entry->value);
    }
    g_ptr_array_add(array, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&array), false);
}

static BlockdevOptionsVmstream *vmstream_parse_options(QDict *options,
                                                       Error **errp)
{
    BlockdevOptionsVmstream *opts = NULL;
    const QDictEntry *e;
    Visitor *v;

    v = qobject_input_visitor_new_flat_confused(options, errp);
    if (!v) {
        return NULL;
    }
    visit_type_BlockdevOptionsVmstream(v, NULL, &opts, errp);
    visit_free(v);
    if (!opts) {
        return NULL;
    }

    /* The visitor has looked at all of them, and complained about others */
    while ((e = qdict_first(options))) {
        qdict_del(options, e->key);
    }
    return opts;
}

static void vmstream_open_hint(int ret, Error **errp)
{
    switch (ret) {
    case -EBUSY:
        error_append_hint(errp, "A cache has one user at a time; use another "
                          "'cache-dir', or read it over NBD.\n");
        break;
    case -EHOSTUNREACH:
        error_append_hint(errp, "Is the server running, and the address "
                          "right?  A cache that knows its image opens without "
                          "the server.\n");
        break;
    case -EPROTO:
        error_append_hint(errp, "The server must honour byte ranges and send "
                          "a strong ETag or a Last-Modified date.\n");
        break;
    case -ESTALE:
        error_append_hint(errp, "The image at the source has changed; begin "
                          "with an empty 'cache-dir'.\n");
        break;
    }
}

/*
 * The child over the local file.  It takes no part in options of this node but
 * those below, nor in its reopening: its own would have to be repeated then,
 * and they are not the user's.
 */
static int vmstream_open_child(BlockDriverState *bs, int flags,
                               BlockdevOptionsVmstream *opts, Error **errp)
{
    BDRVVMStreamState *s = bs->opaque;
    QDict *options = qdict_new();
    g_autofree char *filename = NULL;
    BlockDriverState *file;
    int64_t size;

    /*
     * A second open file description of the very same file: the local file
     * may have no name, and O_DIRECT or not is up to us.
     */
    filename = g_strdup_printf("/proc/self/fd/%d", vms_fd(s->image));
    qdict_put_str(options, "driver", "file");
    qdict_put_str(options, "filename", filename);
    qdict_put_bool(options, BDRV_OPT_CACHE_DIRECT, flags & BDRV_O_NOCACHE);
    qdict_put_str(options, BDRV_OPT_DISCARD, "unmap");
    if (opts->has_aio) {
        qdict_put_str(options, "aio", BlockdevAioOptions_str(opts->aio));
    }
    /* Always for writing, like the image; permissions say who may write */
    file = bdrv_open(NULL, NULL, options, BDRV_O_RDWR, errp);
    if (!file) {
        error_prepend(errp, "Could not open the local file of the image: ");
        return -EINVAL;
    }
    /* Takes the reference, also when it fails */
    if (!bdrv_attach_child(bs, file, "file", &child_of_bds, BDRV_CHILD_IMAGE,
                           errp)) {
        return -EINVAL;
    }

    size = bdrv_getlength(file);
    if (size < s->size) {
        error_setg(errp, "The local file of the image has %" PRId64 " bytes "
                   "instead of %" PRId64, size, s->size);
        return -EIO;
    }
    return 0;
}

static int vmstream_check_writable(BlockDriverState *bs, Error **errp)
{
    BDRVVMStreamState *s = bs->opaque;

    if (!QEMU_IS_ALIGNED(s->size, BDRV_SECTOR_SIZE)) {
        error_setg(errp, "An image of %" PRId64 " bytes cannot be written to",
                   s->size);
        error_append_hint(errp, "It ends inside a sector of %llu bytes.  Use "
                          "read-only=on.\n", BDRV_SECTOR_SIZE);
        return -EINVAL;
    }
    return 0;
}

static int vmstream_open(BlockDriverState *bs, QDict *options, int flags,
                         Error **errp)
{
    BDRVVMStreamState *s = bs->opaque;
    g_autoptr(BlockdevOptionsVmstream) opts = NULL;
    g_auto(GStrv) library_options = NULL;
    vms_ready ready = {
        .call = vmstream_ready_cb,
        .user_data = s,
    };
    int ret;

    opts = vmstream_parse_options(options, errp);
    if (!opts) {
        return -EINVAL;
    }
    library_options = vmstream_library_options(opts, errp);
    if (!library_options) {
        return -EINVAL;
    }

    s->bs = bs;
    if (opts->has_pause_after && opts->pause_after) {
        s->pause = true;
        s->patience_ms = opts->pause_after * 1000ULL;
    } else if (opts->has_error_after) {
        s->patience_ms = opts->error_after * 1000ULL;
    }

    vmstream_log_init();
    ret = vms_open((const char *const *)library_options, &ready, &s->image);
    if (ret < 0) {
        error_setg(errp, "Could not open '%s': %s", opts->url,
                   vms_last_error());
        vmstream_open_hint(ret, errp);
        return ret;
    }
    s->size = vms_size(s->image);

    if ((flags & BDRV_O_NOCACHE) &&
        vms_block_size(s->image) < qemu_real_host_page_size()) {
        error_setg(errp, "Blocks of %" PRIu64 " bytes do not go together with "
                   "cache.direct=on", vms_block_size(s->image));
        error_append_hint(errp, "The library stores blocks through the page "
                          "cache, whose pages of %zu bytes would then be "
                          "shared with direct writes of the guest.\n",
                          (size_t)qemu_real_host_page_size());
        ret = -EINVAL;
        goto fail;
    }

    ret = vmstream_open_child(bs, flags, opts, errp);
    if (ret < 0) {
        goto fail;
    }
    if (!QEMU_IS_ALIGNED(s->size, BDRV_SECTOR_SIZE) &&
        bdrv_apply_auto_read_only(bs, NULL, NULL) < 0) {
        ret = vmstream_check_writable(bs, errp);
        goto fail;
    }

    /* FUA is not among them: the block layer makes it a flush, which knows */
    bs->supported_read_flags = bs->file->bs->supported_read_flags;
    bs->supported_write_flags = BDRV_REQ_WRITE_UNCHANGED |
        (BDRV_REQ_REGISTERED_BUF & bs->file->bs->supported_write_flags);
    bs->supported_zero_flags = BDRV_REQ_WRITE_UNCHANGED |
        ((BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK) &
         bs->file->bs->supported_zero_flags);

    qemu_mutex_init(&s->lock);
    qemu_co_queue_init(&s->again);
    s->watch = timer_new_ms(QEMU_CLOCK_REALTIME, vmstream_watch_cb, bs);
    s->vm_state = qemu_add_vm_change_state_handler(vmstream_vm_state_cb, s);
    s->shutdown.notify = vmstream_shutdown_cb;
    qemu_register_shutdown_notifier(&s->shutdown);
    return 0;

fail:
    vms_close(s->image);
    s->image = NULL;
    return ret;
}

static void vmstream_close(BlockDriverState *bs)
{
    BDRVVMStreamState *s = bs->opaque;

    notifier_remove(&s->shutdown);
    qemu_del_vm_change_state_handler(s->vm_state);
    timer_free(s->watch);

    /* All requests have ended; the question about the link gets -ECANCELED */
    if (vms_close(s->image) < 0) {
        error_report("vmstream: %s: closing the local file: %s",
                     vmstream_name(bs), vms_last_error());
    }
    qemu_mutex_destroy(&s->lock);
    /* There may be no main loop any more that would do it */
    vmstream_log_bh(NULL);
}

static void vmstream_parse_filename(const char *filename, QDict *options,
                                    Error **errp)
{
    const char *url;

    if (!strstart(filename, VMSTREAM_PREFIX, &url) || !*url) {
        error_setg(errp, "Expected 'vmstream:' and the URL of an image, got "
                   "'%s'", filename);
        return;
    }
    if (qdict_haskey(options, "url")) {
        error_setg(errp, "'url' and a file name exclude each other");
        return;
    }
    qdict_put_str(options, "url", url);
}

/*
 * Nothing of the library's options can change.  Whether the guest may write is
 * not one of them: the image is always opened for writing, as what arrives has
 * to be written anyway.
 */
static int vmstream_reopen_prepare(BDRVReopenState *state,
                                   BlockReopenQueue *queue, Error **errp)
{
    if ((state->flags ^ state->bs->open_flags) & BDRV_O_NOCACHE) {
        error_setg(errp, "cache.direct of a streamed image cannot be changed");
        return -EINVAL;
    }
    if (!(state->flags & BDRV_O_RDWR)) {
        return 0;
    }
    return vmstream_check_writable(state->bs, errp);
}

static void vmstream_refresh_filename(BlockDriverState *bs)
{
    const QDictEntry *e;
    const char *url = qdict_get_try_str(bs->full_open_options, "url");
    int len;

    /* Only what parse_filename() would make of it again */
    for (e = qdict_first(bs->full_open_options); e;
         e = qdict_next(bs->full_open_options, e)) {
        if (strcmp(e->key, "driver") && strcmp(e->key, "url")) {
            return;
        }
    }
    if (!url) {
        return;
    }
    len = snprintf(bs->exact_filename, sizeof(bs->exact_filename),
                   VMSTREAM_PREFIX "%s", url);
    if (len >= sizeof(bs->exact_filename)) {
        /* Cut off, hence useless */
        bs->exact_filename[0] = '\0';
    }
}

/* The child is ours, and opened with what the library says */
static void vmstream_gather_child_options(BlockDriverState *bs, QDict *target,
                                          bool backing_overridden)
{
}

static char *vmstream_dirname(BlockDriverState *bs, Error **errp)
{
    const char *url = qdict_get_try_str(bs->full_open_options, "url");
    g_autofree char *filename = NULL;

    if (!url) {
        error_setg(errp, "Cannot generate a base directory for '%s'",
                   vmstream_name(bs));
        return NULL;
    }
    filename = g_strconcat(VMSTREAM_PREFIX, url, NULL);
    return path_combine(filename, "");
}

static const char *const vmstream_strong_runtime_opts[] = {
    "url",
    "mirrors.",
    "cache-dir",
    "cache-file",
    NULL
};

static BlockDriver bdrv_vmstream = {
    .format_name                    = "vmstream",
    .protocol_name                  = "vmstream",
    .instance_size                  = sizeof(BDRVVMStreamState),

    .bdrv_parse_filename            = vmstream_parse_filename,
    .bdrv_file_open                 = vmstream_open,
    .bdrv_close                     = vmstream_close,
    .bdrv_reopen_prepare            = vmstream_reopen_prepare,
    .bdrv_child_perm                = vmstream_child_perm,
    .bdrv_refresh_limits            = vmstream_refresh_limits,
    .bdrv_refresh_filename          = vmstream_refresh_filename,
    .bdrv_gather_child_options      = vmstream_gather_child_options,
    .bdrv_dirname                   = vmstream_dirname,

    .bdrv_co_preadv_part            = vmstream_co_preadv_part,
    .bdrv_co_pwritev_part           = vmstream_co_pwritev_part,
    .bdrv_co_pwrite_zeroes          = vmstream_co_pwrite_zeroes,
    .bdrv_co_pdiscard               = vmstream_co_pdiscard,
    .bdrv_co_flush                  = vmstream_co_flush,
    .bdrv_co_block_status           = vmstream_co_block_status,
    .bdrv_co_truncate               = vmstream_co_truncate,

    .bdrv_getlength                 = vmstream_getlength,
    .bdrv_get_allocated_file_size   = vmstream_get_allocated_file_size,
    .bdrv_get_info                  = vmstream_get_info,
    .bdrv_get_specific_stats        = vmstream_get_specific_stats,

    .strong_runtime_opts            = vmstream_strong_runtime_opts,
};

static void bdrv_vmstream_init(void)
{
    bdrv_register(&bdrv_vmstream);
}

block_init(bdrv_vmstream_init);
