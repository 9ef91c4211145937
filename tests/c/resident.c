/* vms_resident tells extents, and neither fetches what it is asked about nor counts as the guest's touch. */
#include "check.h"

int main(void)
{
    vms_stats stats = { .struct_size = sizeof stats };
    uint64_t run = 0;
    /* An odd size, so that the last block is a short one. */
    vms_image *image = OPEN2(NULL, "source=pattern:1000001", "prefetch=none");

    CHECK(vms_resident(image, 0, 1000001, &run) == 0 && run == 1000001);
    CHECK(vms_resident(image, 5, 10, &run) == 0 && run == 10);
    CHECK(vms_resident(image, 7, 0, &run) >= 0 && run == 0);
    CHECK(vms_get_stats(image, &stats) == 0 && stats.requests == 0 && stats.first_hits == 0);

    /* Blocks 2 and 3 come, and the very last one. */
    CHECK(vms_block_wait(image, VMS_READ, 2 * 4096 + 100, 4096) == 0);
    CHECK(vms_block_wait(image, VMS_READ, 1000000, 1) == 0);
    CHECK(vms_resident(image, 100, 900000, &run) == 0 && run == 2 * 4096 - 100);
    CHECK(vms_resident(image, 2 * 4096, 900000, &run) == 1 && run == 2 * 4096);
    CHECK(vms_resident(image, 3 * 4096 + 1, 10, &run) == 1 && run == 10);
    CHECK(vms_resident(image, 4 * 4096, 1000001 - 4 * 4096, &run) == 0 && run == 244 * 4096 - 4 * 4096);
    CHECK(vms_resident(image, 244 * 4096, 1000001 - 244 * 4096, &run) == 1 && run == 1000001 - 244 * 4096);

    /* What the guest is writing is not there before it is done. */
    CHECK(vms_block_needed(image, VMS_WRITE, 0, 4096, 1) == VMS_READY);
    CHECK(vms_resident(image, 0, 4096, &run) == 0 && run == 4096);
    CHECK(vms_block_done(image, VMS_WRITE, 0, 4096, 0) == 0);
    CHECK(vms_resident(image, 0, 4 * 4096, &run) == 1 && run == 4096);
    CHECK(vms_close(image) == 0);
    return 0;
}
