/* A thread that sleeps in vms_block_wait is killed, as monitors do with their helpers: vms_close still ends. */
#define _GNU_SOURCE
#include "check.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static vms_image *image;

static int sleeper(void *unused)
{
    (void)unused;
    return vms_block_wait(image, VMS_READ, 0, 4096);
}

int main(void)
{
    const char *options[] = {"source=pattern:1M", "fault=delay=30s", "prefetch=none", NULL};
    size_t size = 256 << 10;
    char *stack = malloc(size);
    struct vms_stats stats;
    pid_t child;

    CHECK(stack != NULL);
    CHECK(vms_open(options, NULL, &image) == 0);
    child = clone(sleeper, stack + size, CLONE_VM | SIGCHLD, NULL);
    CHECK(child > 0);
    do {
        usleep(1000);
        stats.struct_size = sizeof stats;
        CHECK(vms_get_stats(image, &stats) == 0);
    } while (stats.waiting == 0);
    CHECK(kill(child, SIGKILL) == 0);
    CHECK(waitpid(child, NULL, 0) == child);
    CHECK(vms_close(image) == 0);
    free(stack);
    return 0;
}
