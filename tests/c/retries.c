/* A single thread reads one block after the other from a source that fails half of the time: each failure ends with a
 * retry by the library's clock, and nothing else happens that could wake it. Every read has to come back. */
#include "check.h"

int main(void)
{
    const uint64_t blocks = 6000;
    vms_image *image = open_with(NULL, "source=pattern:1G", "fault=error=50%", "prefetch=none", "retry_min=10us",
                                 "retry_max=50us", "checkpoint=60m");
    vms_stats stats = { .struct_size = sizeof stats };
    uint64_t block;

    for (block = 0; block < blocks; block++)
        CHECK(vms_block_wait(image, VMS_READ, block * 65536, 4096) == 0);
    CHECK(vms_get_stats(image, &stats) == 0);
    CHECK(stats.fetch_errors > blocks / 2 && stats.waiting == 0);
    CHECK(vms_close(image) == 0);
    return 0;
}
