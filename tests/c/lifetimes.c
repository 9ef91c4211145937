/* ready.free is called exactly once: after vms_close, or before a vms_open that fails returns, whatever made it fail;
 * and never before the last ready.call. */
#include "check.h"

#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_int calls, frees, late_calls;

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    (void)tag;
    (void)result;
    CHECK(user_data == &calls);
    if (frees)
        late_calls++;
    calls++;
}

static void on_free(void *user_data)
{
    CHECK(user_data == &calls);
    frees++;
}

static const vms_ready READY = { on_ready, &calls, on_free };

static void open_fails(const vms_ready *ready, const char *const *options, int code)
{
    vms_image *image = NULL;
    frees = calls = 0;
    CHECK(vms_open(options, ready, &image) == -code);
    CHECK(image == NULL && frees == 1 && calls == 0);
}

#define FAILS(code, ...) open_fails(&READY, (const char *const[]){ __VA_ARGS__, NULL }, code)

int main(void)
{
    char directory[] = "/tmp/vms-lifetimes-XXXXXX", cache[64], command[96];
    const char *good[] = { "source=pattern:1M", NULL }, *none[] = { NULL };
    vms_ready no_call = { NULL, &calls, on_free };
    vms_ready no_free = { on_ready, &calls, NULL };
    vms_image *image, *other = NULL;
    uint64_t block;

    /* Every way to fail that can be had here. */
    frees = 0;
    CHECK(vms_open(good, &READY, NULL) == -EINVAL && frees == 1);
    open_fails(&READY, NULL, EINVAL);
    open_fails(&READY, none, EINVAL);
    open_fails(&no_call, good, EINVAL);
    FAILS(EINVAL, "source=pattern:1M", "\xff=1");
    FAILS(EINVAL, "source=pattern:1M", "no_such_option=1");
    FAILS(EINVAL, "source=pattern:1M", "block_size=3000");
    FAILS(EINVAL, "source=pattern:1M", "fault=nonsense");
    FAILS(EINVAL, "source=pattern:1M", "cache=/tmp", "file=/tmp/x");
    FAILS(ENOENT, "source=/no/such/image");
    FAILS(ENOENT, "source=pattern:1M", "cache=/proc/no/such/place");
    FAILS(EHOSTUNREACH, "source=http://127.0.0.1:1/x", "open_timeout=20ms", "retry_min=5ms");

    /* A cache in use. */
    CHECK(mkdtemp(directory));
    snprintf(cache, sizeof cache, "cache=%s", directory);
    frees = calls = 0;
    image = OPEN2(&no_free, "source=pattern:1M", cache);
    FAILS(EBUSY, "source=pattern:1M", cache);
    CHECK(vms_close(image) == 0);
    snprintf(command, sizeof command, "rm -r %s", directory);
    CHECK(system(command) == 0);

    /* A good life: all calls, then free. The library keeps its own copy of the struct. */
    {
        vms_ready mine = READY;
        frees = calls = 0;
        image = OPEN3(&mine, "source=pattern:4M", "fault=delay=100us", "prefetch=none");
        memset(&mine, 0xee, sizeof mine);
    }
    for (block = 0; block < 64; block++)
        CHECK(vms_block_needed(image, VMS_READ, block * 8192, 4096, block) == VMS_PENDING);
    CHECK_SOON(calls == 64);
    CHECK(frees == 0);
    CHECK(vms_close(image) == 0);
    CHECK(frees == 1 && calls == 64 && late_calls == 0);

    /* The same with requests pending, and two images at once with the same user_data. */
    frees = calls = 0;
    image = OPEN2(&READY, "source=pattern:4M", "fault=delay=50ms");
    other = OPEN2(&READY, "source=pattern:4M", "fault=delay=50ms");
    for (block = 0; block < 64; block++)
        CHECK(vms_block_needed(image, VMS_READ, block * 65536, 4096, block) == VMS_PENDING);
    CHECK(vms_close(image) == 0);
    CHECK(frees == 1 && calls == 64 && late_calls == 0);
    CHECK(vms_close(other) == 0);
    CHECK(frees == 2);
    return 0;
}
