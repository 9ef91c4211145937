/* The functions of the I/O path leave errno alone, whatever they answer. */
#include "check.h"

#include <stdatomic.h>

static atomic_int told;

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    (void)tag;
    (void)result;
    told++;
}

int main(void)
{
    const vms_ready ready = { on_ready, NULL, NULL };
    vms_image *image = OPEN3(&ready, "source=pattern:64M", "pending_max=1", "fault=delay=100ms");
    const uint64_t far = 32 << 20;

    errno = 4711;
    CHECK(vms_block_needed(image, VMS_READ, 0, 4096, 0) == VMS_PENDING && errno == 4711);
    CHECK(vms_block_needed(image, VMS_READ, far, 4096, 0) == -EAGAIN && errno == 4711);
    CHECK(vms_block_needed(image, VMS_WRITE, far, 4096, 0) == VMS_READY && errno == 4711);
    CHECK(vms_block_done(image, VMS_WRITE, far, 4096, 4096) == 0 && errno == 4711);
    CHECK(vms_block_needed(image, VMS_READ, far, 4096, 0) == VMS_READY && errno == 4711);
    CHECK(vms_block_wait(image, VMS_READ, 0, 4096) == 0 && errno == 4711);
    CHECK(vms_block_wait(image, VMS_READ, 2 << 20, 4096) == 0 && errno == 4711);
    CHECK(vms_flush(image) == 0 && errno == 4711);
    CHECK(vms_block_needed(image, VMS_READ, far * 2, 1, 0) == -EINVAL && errno == 4711);
    CHECK(vms_block_needed(NULL, VMS_READ, 0, 1, 0) == -EINVAL && errno == 4711);
    CHECK(vms_block_done(image, VMS_WRITE, far * 2, 1, 0) == -EINVAL && errno == 4711);
    CHECK(vms_block_wait(image, 9, 0, 1) == -EINVAL && errno == 4711);
    CHECK(vms_fd(image) >= 0 && vms_size(image) == 64 << 20 && vms_block_size(image) == 4096 && errno == 4711);
    CHECK(vms_cancel(image) == 0);
    errno = 4711;
    CHECK(vms_block_wait(image, VMS_READ, 4 << 20, 4096) == -ECANCELED && errno == 4711);
    CHECK(vms_close(image) == 0);
    CHECK(told == 1);
    return 0;
}
