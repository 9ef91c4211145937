/* vms_close with requests pending: each is completed exactly once, the unanswered ones with -ECANCELED; sleepers in
 * vms_block_wait are woken with the same; and it takes less than 2 s although a fetch hangs. */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>

enum { REQUESTS = 500, SLEEPERS = 6 };
static atomic_int told[REQUESTS], results[REQUESTS], entered, woken;
static vms_image *image;

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    results[tag] = result;
    told[tag]++;
}

static void *sleeper(void *argument)
{
    uint64_t number = (uint64_t)(uintptr_t)argument;
    entered++;
    CHECK(vms_block_wait(image, VMS_READ, (REQUESTS + number) * 65536, 4096) == -ECANCELED);
    woken++;
    return NULL;
}

static uint64_t waiting(void)
{
    vms_stats stats = { .struct_size = sizeof stats };
    CHECK(vms_get_stats(image, &stats) == 0);
    return stats.waiting;
}

/* Once with nothing but vms_close, once with vms_cancel before it. */
static void round_with(const char *fault, int cancel)
{
    const vms_ready ready = { on_ready, NULL, NULL };
    pthread_t threads[SLEEPERS];
    double began;
    int i;

    entered = woken = 0;
    for (i = 0; i < REQUESTS; i++)
        told[i] = 0;
    image = OPEN3(&ready, "source=pattern:1G", fault, "prefetch=none");
    for (i = 0; i < REQUESTS; i++)
        CHECK(vms_block_needed(image, VMS_READ, (uint64_t)i * 65536, 4096, (uint64_t)i) == VMS_PENDING);
    for (i = 0; i < SLEEPERS; i++)
        CHECK(pthread_create(&threads[i], NULL, sleeper, (void *)(uintptr_t)i) == 0);
    /* All are in: whoever only is about to call must not meet a closing image. */
    CHECK_SOON(waiting() == REQUESTS + SLEEPERS);

    began = seconds();
    if (cancel) {
        CHECK(vms_cancel(image) == 0);
        CHECK_SOON(woken == SLEEPERS);
        for (i = 0; i < REQUESTS; i++)
            CHECK_SOON(told[i] == 1);
        CHECK(vms_block_needed(image, VMS_READ, 0, 4096, 0) == -ECANCELED);
        CHECK(vms_block_wait(image, VMS_READ, 0, 4096) == -ECANCELED);
        CHECK(vms_flush(image) == -ECANCELED);
        CHECK(vms_cancel(image) == 0);
    }
    CHECK(vms_close(image) == 0);
    CHECK(seconds() - began < 2.0);
    for (i = 0; i < SLEEPERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(woken == SLEEPERS);
    for (i = 0; i < REQUESTS; i++)
        CHECK(told[i] == 1 && results[i] == -ECANCELED);
}

int main(void)
{
    /* An hour a request: whoever waits for one of them has lost. */
    round_with("fault=delay=60m", 0);
    round_with("fault=delay=60m", 1);
    /* A link that never comes back, with retries all the time. */
    round_with("fault=dead=0s..60m", 0);
    round_with("fault=dead=0s..60m", 1);
    return 0;
}
