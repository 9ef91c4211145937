/* When too many requests are pending the answer is -EAGAIN, at once; what was accepted is answered exactly once, what
 * was not is never; and the same requests succeed when they are tried again. */
#include "check.h"

#include <stdatomic.h>

enum { REQUESTS = 2000 };
static atomic_int told[REQUESTS];

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    CHECK(tag < REQUESTS && result == 0);
    told[tag]++;
}

static void round_with(const char *limit, const char *fault)
{
    const vms_ready ready = { on_ready, NULL, NULL };
    vms_image *image = OPEN4(&ready, "source=pattern:64M", limit, fault, "prefetch=none");
    int accepted[REQUESTS] = { 0 }, refused = 0, left, i;

    memset(told, 0, sizeof told);
    do {
        left = 0;
        for (i = 0; i < REQUESTS; i++) {
            int answer;
            if (accepted[i])
                continue;
            answer = vms_block_needed(image, VMS_READ, (uint64_t)i * 16384, 4096, (uint64_t)i);
            CHECK(answer == VMS_PENDING || answer == -EAGAIN);
            accepted[i] = answer == VMS_PENDING;
            refused += answer == -EAGAIN;
            left += answer == -EAGAIN;
        }
    } while (left > 0);
    CHECK(refused > 0);
    for (i = 0; i < REQUESTS; i++)
        CHECK_SOON(told[i] == 1);
    CHECK(vms_close(image) == 0);
    for (i = 0; i < REQUESTS; i++)
        CHECK(told[i] == 1);
}

int main(void)
{
    round_with("ring=2", "fault=");
    round_with("pending_max=3", "fault=delay=100us");
    return 0;
}
