/* The event descriptor is readable while vms_reap has completions and soon quiet when it has none, for poll and for
 * epoll, level- and edge-triggered; and it is not there when a callback is told. */
#include "check.h"

#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { REQUESTS = 300 };

static int readable(int fd)
{
    struct pollfd one = { .fd = fd, .events = POLLIN };
    return poll(&one, 1, 0) == 1 && (one.revents & POLLIN);
}

/* Nothing is there. A late signal of what was taken already goes away with the vms_reap that finds nothing. */
static int quiet(vms_image *image, int fd)
{
    vms_completion none;
    return vms_reap(image, &none, 1) == 0 && !readable(fd);
}

/* Takes completions of one round as epoll reports them. */
static void round_with(vms_image *image, uint32_t events, uint64_t base)
{
    struct epoll_event event = { .events = events };
    int told[REQUESTS] = { 0 }, total = 0, pending = 0, epoll = epoll_create1(EPOLL_CLOEXEC), i;

    CHECK(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, vms_event_fd(image), &event) == 0);
    for (i = 0; i < REQUESTS; i++) {
        int answer = vms_block_needed(image, VMS_READ, base + (uint64_t)i * 16384, 4096, (uint64_t)i);
        CHECK(answer == VMS_PENDING || answer == VMS_READY);
        pending += answer == VMS_PENDING;
        told[i] = answer == VMS_READY;
    }
    CHECK(pending > 0);
    while (total < pending) {
        vms_completion completions[7];
        int taken;
        CHECK(epoll_wait(epoll, &event, 1, 20000) == 1);
        do {
            taken = vms_reap(image, completions, 7);
            CHECK(taken >= 0 && taken <= 7);
            for (i = 0; i < taken; i++) {
                CHECK(completions[i].tag < REQUESTS && completions[i].result == 0 && completions[i].reserved == 0);
                CHECK(told[completions[i].tag]++ == 0);
            }
            total += taken;
        } while (taken > 0);
    }
    CHECK(total == pending);
    close(epoll);
}

static void nothing(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    (void)tag;
    (void)result;
}

int main(void)
{
    const vms_ready ready = { nothing, NULL, NULL };
    vms_image *image = OPEN3(NULL, "source=pattern:64M", "prefetch=none", "fault=delay=200us");
    vms_completion completions[4];
    int fd = vms_event_fd(image), i;

    CHECK(fd >= 0 && !readable(fd));
    CHECK(vms_reap(image, completions, 4) == 0);

    /* Some are left behind: still readable. All are taken: not any more. */
    for (i = 0; i < 3; i++)
        CHECK(vms_block_needed(image, VMS_READ, (uint64_t)(40 + i) << 20, 4096, 5) == VMS_PENDING);
    for (i = 0; i < 3; i++) {
        struct pollfd one = { .fd = fd, .events = POLLIN };
        CHECK(poll(&one, 1, 20000) == 1);
        CHECK(vms_reap(image, completions, 1) == 1 && completions[0].tag == 5 && completions[0].result == 0);
    }
    CHECK_SOON(quiet(image, fd));

    round_with(image, EPOLLIN, 0);
    round_with(image, EPOLLIN | EPOLLET, 16 << 20);
    CHECK_SOON(quiet(image, fd));

    /* What is canceled can still be reaped before the image is closed. */
    CHECK(vms_block_needed(image, VMS_READ, 50 << 20, 1 << 20, 6) == VMS_PENDING);
    CHECK(vms_cancel(image) == 0);
    CHECK_SOON(readable(fd));
    CHECK(vms_reap(image, completions, 4) == 1 && completions[0].tag == 6);
    CHECK(vms_close(image) == 0);

    image = OPEN1(&ready, "source=pattern:1M");
    CHECK(vms_event_fd(image) == -EINVAL);
    CHECK(vms_reap(image, completions, 4) == 0);
    CHECK(vms_close(image) == 0);
    return 0;
}
