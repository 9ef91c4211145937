/* vms_close from the callback is refused with -EDEADLK, and everything else goes on; also from a callback that runs
 * inside vms_close itself, where the handle may still be asked. vms_cancel from the callback works. */
#include "check.h"

#include <stdatomic.h>

static vms_image *_Atomic image;
static atomic_int refused, canceled, resident_while_closing;

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    while (!image) /* the answer may be faster than vms_open's return */
        ;
    CHECK(vms_close(image) == -EDEADLK);
    CHECK(strstr(vms_last_error(), "callback"));
    refused++;
    if (result == -ECANCELED) {
        canceled++;
        CHECK(vms_size(image) == 1 << 20);
        CHECK(vms_block_needed(image, VMS_READ, 512 << 10, 4096, tag) == -ECANCELED);
        resident_while_closing += vms_block_needed(image, VMS_READ, 0, 4096, tag) == VMS_READY;
    } else if (tag == 2) {
        CHECK(vms_cancel(image) == 0);
    }
}

int main(void)
{
    const vms_ready ready = { on_ready, NULL, NULL };

    /* On a library thread. */
    image = OPEN2(&ready, "source=pattern:1M", "prefetch=none");
    CHECK(vms_block_needed(image, VMS_READ, 0, 4096, 1) == VMS_PENDING);
    CHECK_SOON(refused == 1);
    CHECK(vms_close(image) == 0);

    /* On the thread inside vms_close. */
    image = NULL;
    refused = 0;
    image = OPEN3(&ready, "source=pattern:1M", "prefetch=none", "fault=delay=60m");
    CHECK(vms_block_needed(image, VMS_WRITE, 0, 4096, 0) == VMS_READY);
    CHECK(vms_block_done(image, VMS_WRITE, 0, 4096, 0) == 0);
    CHECK(vms_block_needed(image, VMS_READ, 512 << 10, 4096, 1) == VMS_PENDING);
    CHECK(vms_close(image) == 0);
    CHECK(refused == 1 && canceled == 1 && resident_while_closing == 1);

    /* On the thread inside vms_cancel. */
    image = NULL;
    refused = canceled = 0;
    image = OPEN3(&ready, "source=pattern:1M", "prefetch=none", "fault=delay=60m");
    CHECK(vms_block_needed(image, VMS_READ, 512 << 10, 4096, 1) == VMS_PENDING);
    CHECK(vms_cancel(image) == 0);
    CHECK_SOON(canceled == 1);
    CHECK(vms_close(image) == 0);
    CHECK(refused == 1);

    /* vms_cancel from the callback. */
    image = NULL;
    refused = canceled = 0;
    image = OPEN4(&ready, "source=pattern:1M", "prefetch=none", "connections=1", "fault=delay=20ms");
    CHECK(vms_block_needed(image, VMS_READ, 0, 4096, 2) == VMS_PENDING);
    CHECK(vms_block_needed(image, VMS_READ, 512 << 10, 4096, 3) == VMS_PENDING);
    CHECK_SOON(refused == 2);
    CHECK(vms_close(image) == 0);
    CHECK(refused == 2);
    return 0;
}
