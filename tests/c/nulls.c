/* NULL to every function is an answer, not a crash; and so are other things no driver should pass. */
#include "check.h"

static void log_nothing(void *user_data, int32_t level, const char *message)
{
    (void)user_data;
    (void)level;
    (void)message;
}

int main(void)
{
    const char *options[] = { "source=pattern:1M", NULL };
    vms_image *image = (vms_image *)options;
    vms_completion completion;
    vms_stats stats = { .struct_size = sizeof stats };
    vms_forecast forecast = { .struct_size = sizeof forecast };
    char text[8];
    uint64_t run;

    CHECK(vms_open(NULL, NULL, &image) == -EINVAL && image == NULL);
    CHECK(strstr(vms_last_error(), "options"));
    CHECK(vms_open(options, NULL, NULL) == -EINVAL);
    CHECK(strstr(vms_last_error(), "image"));
    CHECK(vms_open(NULL, NULL, NULL) == -EINVAL);

    CHECK(vms_block_needed(NULL, VMS_READ, 0, 1, 0) == -EINVAL);
    CHECK(vms_block_wait(NULL, VMS_READ, 0, 1) == -EINVAL);
    CHECK(vms_block_done(NULL, VMS_WRITE, 0, 1, 0) == -EINVAL);
    CHECK(vms_flush(NULL) == -EINVAL);
    CHECK(vms_resident(NULL, 0, 1, &run) == -EINVAL);
    CHECK(vms_fd(NULL) == -EINVAL);
    CHECK(vms_map(NULL) == NULL);
    CHECK(vms_size(NULL) == 0);
    CHECK(vms_block_size(NULL) == 0);
    CHECK(vms_event_fd(NULL) == -EINVAL);
    CHECK(vms_reap(NULL, &completion, 1) == -EINVAL);
    CHECK(vms_get_stats(NULL, &stats) == -EINVAL);
    CHECK(vms_get_forecast(NULL, 1000, &forecast) == -EINVAL);
    CHECK(vms_mark(NULL, "name") == -EINVAL);
    CHECK(vms_set(NULL, "fill=off") == -EINVAL);
    CHECK(vms_link_error(NULL, text, sizeof text) == -EINVAL);
    CHECK(vms_cancel(NULL) == -EINVAL);
    CHECK(vms_set_logger(log_nothing, NULL, VMS_LOG_INFO) == 0);
    CHECK(vms_set_logger(NULL, NULL, VMS_LOG_INFO) == 0);
    CHECK(vms_close(NULL) == 0);

    image = OPEN2(NULL, "source=pattern:1M", "read_only=on");
    CHECK(vms_reap(image, NULL, 1) == -EINVAL);
    CHECK(vms_reap(image, NULL, 0) == 0);
    CHECK(vms_get_stats(image, NULL) == -EINVAL);
    CHECK(vms_get_forecast(image, 1000, NULL) == -EINVAL);
    CHECK(vms_mark(image, NULL) == -EINVAL);
    CHECK(vms_set(image, NULL) == -EINVAL);
    CHECK(vms_link_error(image, NULL, 1) == -EINVAL);
    CHECK(vms_link_error(image, NULL, 0) == 0);
    CHECK(vms_resident(image, 0, 1, NULL) == -EINVAL);
    CHECK(vms_resident(image, 1 << 20, 1, &run) == -EINVAL);
    CHECK(vms_resident(image, 1, UINT64_MAX, &run) == -EINVAL);
    CHECK(vms_block_needed(image, 4, 0, 1, 0) == -EINVAL);
    CHECK(vms_block_needed(image, -1, 0, 1, 0) == -EINVAL);
    CHECK(vms_block_needed(image, VMS_READ, 1 << 20, 1, 0) == -EINVAL);
    CHECK(vms_block_needed(image, VMS_READ, UINT64_MAX, UINT64_MAX, 0) == -EINVAL);
    CHECK(vms_block_wait(image, VMS_READ, 1, UINT64_MAX) == -EINVAL);
    CHECK(vms_block_done(image, VMS_WRITE, UINT64_MAX, 2, 0) == -EINVAL);
    CHECK(vms_block_needed(image, VMS_READ, 1 << 20, 0, 0) == VMS_READY);
    CHECK(vms_block_needed(image, VMS_WRITE, 0, 1, 0) == -EROFS);
    CHECK(vms_block_wait(image, VMS_DISCARD, 0, 1) == -EROFS);
    CHECK(vms_close(image) == 0);
    return 0;
}
