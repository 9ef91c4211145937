/* Eight threads read, write and discard at once, through a source that fails now and then; every byte is compared.
 * Each thread owns every eighth block and nobody else writes it, but its neighbours are others', so that partial
 * writes and fetches meet in one request. With a number as argument: so many operations a thread. */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <unistd.h>

enum { THREADS = 8, BLOCK = 4096, BLOCKS = 2048 };

static unsigned char model[BLOCKS * BLOCK];
static vms_image *image;
static int operations = 1500;

struct waiter {
    sem_t come;
    int32_t result;
};

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    struct waiter *waiter = (struct waiter *)(uintptr_t)tag;
    CHECK(user_data == model);
    waiter->result = result;
    sem_post(&waiter->come);
}

static uint32_t dice(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* Both ways of waiting for a range. */
static void need(struct waiter *waiter, int blocking, int operation, uint64_t offset, uint64_t length)
{
    int answer;
    if (blocking) {
        CHECK(vms_block_wait(image, operation, offset, length) == 0);
        return;
    }
    answer = vms_block_needed(image, operation, offset, length, (uint64_t)(uintptr_t)waiter);
    CHECK(answer == VMS_READY || answer == VMS_PENDING);
    if (answer == VMS_PENDING) {
        while (sem_wait(&waiter->come) != 0)
            CHECK(errno == EINTR);
        CHECK(waiter->result == 0);
    }
}

static void *worker(void *argument)
{
    uint32_t me = (uint32_t)(uintptr_t)argument, state = 0x9e3779b9u * (me + 1);
    const unsigned char *map = vms_map(image);
    int fd = vms_fd(image);
    unsigned char bytes[BLOCK];
    struct waiter waiter;
    int i;

    CHECK(map && sem_init(&waiter.come, 0, 0) == 0);
    for (i = 0; i < operations; i++) {
        uint64_t block = (uint64_t)(dice(&state) % (BLOCKS / THREADS)) * THREADS + me;
        uint64_t offset = block * BLOCK, length = BLOCK;
        int blocking = dice(&state) % 2, kind = dice(&state) % 8;
        if (kind % 2) { /* a part of the block */
            uint64_t skip = dice(&state) % (BLOCK - 1);
            offset += skip;
            length = 1 + dice(&state) % (BLOCK - skip);
        }
        if (kind < 4) {
            need(&waiter, blocking, VMS_READ, offset, length);
            CHECK(pread(fd, bytes, length, (off_t)offset) == (ssize_t)length);
            CHECK(memcmp(bytes, model + offset, length) == 0);
            CHECK(memcmp(map + offset, model + offset, length) == 0);
        } else if (kind < 7) {
            memset(bytes, (int)dice(&state), length);
            need(&waiter, blocking, VMS_WRITE, offset, length);
            CHECK(pwrite(fd, bytes, length, (off_t)offset) == (ssize_t)length);
            CHECK(vms_block_done(image, VMS_WRITE, offset, length, (int32_t)length) == 0);
            memcpy(model + offset, bytes, length);
        } else {
            need(&waiter, blocking, VMS_DISCARD, offset, length);
            CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) == 0);
            CHECK(vms_block_done(image, VMS_DISCARD, offset, length, 0) == 0);
            memset(model + offset, 0, length);
        }
        if (i % 512 == 511)
            CHECK(vms_flush(image) == 0);
    }
    sem_destroy(&waiter.come);
    return NULL;
}

int main(int count, char **arguments)
{
    const vms_ready ready = { on_ready, model, NULL };
    char path[] = "/tmp/vms-threads-XXXXXX", source[64];
    pthread_t threads[THREADS];
    uint32_t state = 1;
    size_t i;
    int fd = mkstemp(path);

    if (count > 1)
        operations = atoi(arguments[1]);
    for (i = 0; i < sizeof model; i += 4) {
        uint32_t word = dice(&state);
        memcpy(model + i, &word, 4);
    }
    CHECK(fd >= 0 && write(fd, model, sizeof model) == (ssize_t)sizeof model && close(fd) == 0);
    snprintf(source, sizeof source, "source=%s", path);
    image = OPEN4(&ready, source, "fault=delay=100us,error=3%,cut=3%", "retry_min=1ms", "retry_max=2ms");

    for (i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, worker, (void *)(uintptr_t)i) == 0);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);

    CHECK(vms_block_wait(image, VMS_READ, 0, sizeof model) == 0);
    CHECK(memcmp(vms_map(image), model, sizeof model) == 0);
    CHECK(vms_close(image) == 0);
    CHECK(unlink(path) == 0);
    return 0;
}
