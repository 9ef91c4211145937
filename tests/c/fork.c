/* A fork in the middle: the child leaves by exit() or replaces itself without touching the image, and the parent goes
 * on as if nothing had happened. The child inherits no descriptor of the library over exec. */
#include "check.h"

#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_int told;

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    (void)tag;
    CHECK(result == 0);
    told++;
}

static void child(int how, int fd)
{
    int status = -1;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        char command[64];
        if (how == 0)
            exit(7); /* with the handlers of atexit and the destructors */
        snprintf(command, sizeof command, "test ! -e /proc/self/fd/%d && exit 7", fd);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(8);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

int main(void)
{
    const vms_ready ready = { on_ready, NULL, NULL };
    vms_image *image = OPEN3(&ready, "source=pattern:64M", "prefetch=none", "fault=delay=2ms");
    int asked = 0, i;

    for (i = 0; i < 200; i++) {
        CHECK(vms_block_needed(image, VMS_READ, (uint64_t)i * 65536, 4096, 0) == VMS_PENDING);
        asked++;
        if (i % 50 == 25)
            child(i % 100 == 25, vms_fd(image));
    }
    CHECK_SOON(told == asked);
    CHECK(vms_block_wait(image, VMS_READ, 40 << 20, 4096) == 0);
    CHECK(vms_flush(image) == 0);
    CHECK(vms_close(image) == 0);
    CHECK(told == asked);
    return 0;
}
