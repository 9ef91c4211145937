/* vms_close and vms_cancel are quick although a web server has taken a request and never answers it. */
#include "server.h"

static atomic_int told;

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    CHECK(tag == 77 && result == -ECANCELED);
    told++;
}

int main(void)
{
    const vms_ready ready = { on_ready, NULL, NULL };
    vms_image *image;
    char source[64];
    double began;

    snprintf(source, sizeof source, "source=http://127.0.0.1:%d/disk", server_start());
    image = OPEN4(&ready, source, "prefetch=none", "fill=off", "stall_timeout=60s");
    CHECK(vms_size(image) == SERVER_IMAGE_BYTES);
    CHECK(vms_block_wait(image, VMS_READ, 0, 4096) == 0);
    server_silent = 1;
    CHECK(vms_block_needed(image, VMS_READ, 65536, 4096, 77) == VMS_PENDING);
    CHECK_SOON(server_unanswered > 0);
    CHECK(told == 0);

    began = seconds();
    CHECK(vms_close(image) == 0);
    CHECK(seconds() - began < 2.0);
    CHECK(told == 1);
    return 0;
}
