/* Loading the library starts no thread, nor does anything before vms_open; vms_close and a vms_open that fails leave
 * none behind, and no descriptor either. */
#include "tasks.h"

static int descriptors(void)
{
    DIR *open = opendir("/proc/self/fd");
    int count = 0;
    CHECK(open);
    while (readdir(open))
        count++;
    closedir(open);
    return count;
}

int main(void)
{
    const char *bad[] = { "source=pattern:1M", "block_size=7", NULL };
    int before = descriptors(), round;
    vms_image *image;

    CHECK(threads() == 1);
    CHECK(vms_version());
    CHECK(vms_set_logger(NULL, NULL, VMS_LOG_ERROR) == 0);
    CHECK(threads() == 1);
    for (round = 0; round < 3; round++) {
        vms_image *second;
        image = OPEN1(NULL, "source=pattern:1M");
        second = OPEN1(NULL, "source=pattern:1M");
        CHECK(vms_map(image) != NULL);
        CHECK(vms_block_wait(image, VMS_READ, 0, 4096) == 0);
        /* A thread names itself when it begins to run. */
        CHECK_SOON(library_threads(NULL) == threads() - 1);
        CHECK(threads() > 1);
        CHECK(vms_close(image) == 0);
        CHECK(vms_close(second) == 0);
        /* A thread that was joined may be in the kernel's list for another moment. */
        CHECK_SOON(threads() == 1);
        CHECK(descriptors() == before);
        CHECK(vms_open(bad, NULL, &image) == -EINVAL);
        CHECK_SOON(threads() == 1);
        CHECK(descriptors() == before);
    }
    return 0;
}
