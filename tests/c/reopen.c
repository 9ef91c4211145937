/* What was fetched, written and flushed is there after the image is opened again, without the source; a logger hears
 * of it; and the local file is the image, to be read by any means. */
#include "check.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_int messages;

static void on_log(void *user_data, int32_t level, const char *message)
{
    CHECK(user_data == &messages);
    CHECK(level >= VMS_LOG_ERROR && level <= VMS_LOG_INFO);
    CHECK(strlen(message) > 5);
    messages++;
}

int main(void)
{
    char directory[] = "/tmp/vms-reopen-XXXXXX", cache[64], command[96], bytes[4096], again[4096];
    vms_stats stats = { .struct_size = sizeof stats };
    vms_image *image;

    CHECK(mkdtemp(directory));
    snprintf(cache, sizeof cache, "cache=%s", directory);
    CHECK(vms_set_logger(on_log, &messages, VMS_LOG_INFO) == 0);

    image = OPEN4(NULL, "source=pattern:1M", cache, "fill=off", "prefetch=none");
    CHECK(vms_block_wait(image, VMS_READ, 0, 4096) == 0);
    CHECK(pread(vms_fd(image), bytes, sizeof bytes, 0) == sizeof bytes);
    CHECK(vms_block_wait(image, VMS_WRITE, 4096, 4096) == 0);
    CHECK(pwrite(vms_fd(image), bytes, sizeof bytes, 4096) == sizeof bytes);
    CHECK(vms_block_done(image, VMS_WRITE, 4096, 4096, 4096) == 0);
    /* A write that failed: the block is as before, to be fetched. */
    CHECK(vms_block_needed(image, VMS_WRITE, 8192, 4096, 0) == VMS_READY);
    CHECK(vms_block_done(image, VMS_WRITE, 8192, 4096, -EIO) == 0);
    CHECK(vms_flush(image) == 0);
    CHECK(vms_mark(image, "written") == 0);
    CHECK(vms_close(image) == 0);
    CHECK(messages > 1);
    CHECK(vms_set_logger(NULL, NULL, VMS_LOG_INFO) == 0);
    messages = 0;

    /* Now every fetch fails: what is asked for has to be here. */
    image = open_with(NULL, "source=pattern:1M", cache, "fill=off", "prefetch=none", "fault=fatal-after=0", NULL);
    CHECK(vms_get_stats(image, &stats) == 0);
    CHECK(stats.resident_bytes == 8192);
    CHECK(vms_block_needed(image, VMS_READ, 0, 8192, 0) == VMS_READY);
    CHECK(pread(vms_fd(image), again, sizeof again, 4096) == sizeof again);
    CHECK(memcmp(bytes, again, sizeof bytes) == 0);
    CHECK(vms_block_wait(image, VMS_READ, 8192, 4096) == -EIO);
    {
        char text[256];
        int length = vms_link_error(image, text, sizeof text);
        CHECK(length > 0 && strstr(text, "injected final failure"));
        CHECK(vms_link_error(image, text, 4) == length && strlen(text) == 3);
    }
    CHECK(vms_close(image) == 0);
    CHECK(messages == 0);

    snprintf(command, sizeof command, "rm -r %s", directory);
    CHECK(system(command) == 0);
    return 0;
}
