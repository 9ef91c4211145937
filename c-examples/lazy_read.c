/* lazy_read: reads a few places of a disk image that lies elsewhere, and only those travel.
 *
 *     cc -o lazy_read lazy_read.c $(pkg-config --cflags --libs vmstream)
 *     ./lazy_read http://server/disk.raw 0 1G 510
 *
 * Completions are told by a callback, on a thread of the library. So this is the shape of a driver whose requests wait
 * on a condition variable, or are handed to another thread; event_loop.c is the shape of one with a loop.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vmstream.h>

enum { PIECE = 512 }; /* bytes to read at each place: a sector */

/* One request: the tag that goes through the library is its address. */
struct request {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int done;
    int32_t result;
};

/* Called once for each pending request. It only passes the news on: the library's thread is not ours to keep. */
static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    struct request *request = (struct request *)(uintptr_t)tag;
    (void)user_data;
    pthread_mutex_lock(&request->lock);
    request->done = 1;
    request->result = result;
    pthread_cond_signal(&request->changed);
    pthread_mutex_unlock(&request->lock);
}

/* Sleeps until the range may be read from the local file. Returns 0 or a negative errno. */
static int wait_for(const vms_image *image, uint64_t offset, uint64_t length)
{
    struct request request = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0 };
    int answer = vms_block_needed(image, VMS_READ, offset, length, (uint64_t)(uintptr_t)&request);

    if (answer != VMS_PENDING)
        return answer; /* VMS_READY is 0 */
    pthread_mutex_lock(&request.lock);
    while (!request.done)
        pthread_cond_wait(&request.changed, &request.lock);
    pthread_mutex_unlock(&request.lock);
    return request.result;
}

static uint64_t parse_offset(const char *text)
{
    char *unit;
    uint64_t number = strtoull(text, &unit, 0);
    return number << (*unit == 'G' ? 30 : *unit == 'M' ? 20 : *unit == 'K' ? 10 : 0);
}

int main(int count, char **arguments)
{
    const vms_ready ready = { on_ready, NULL, NULL };
    vms_stats stats = { .struct_size = sizeof stats };
    vms_image *image;
    char source[4096];
    int i, failures = 0;

    if (count < 2) {
        fprintf(stderr, "usage: %s URL|FILE|pattern:SIZE [OFFSET[K|M|G]...]\n", arguments[0]);
        return 2;
    }
    if (snprintf(source, sizeof source, "source=%s", arguments[1]) >= (int)sizeof source) {
        fprintf(stderr, "%s: the source is too long\n", arguments[0]);
        return 2;
    }
    /* Without cache=DIR what arrives is kept in a nameless temporary file and forgotten at the end. */
    const char *options[] = { source, "prefetch=none", NULL };
    if (vms_open(options, &ready, &image) < 0) {
        fprintf(stderr, "%s: %s\n", arguments[0], vms_last_error());
        return 1;
    }
    printf("%s: %" PRIu64 " bytes\n", arguments[1], vms_size(image));

    for (i = 2; i < count; i++) {
        unsigned char bytes[PIECE];
        uint64_t offset = parse_offset(arguments[i]);
        int error = wait_for(image, offset, PIECE);
        if (error < 0) {
            fprintf(stderr, "%s: %d bytes at %" PRIu64 ": %s\n", arguments[0], PIECE, offset, strerror(-error));
            failures++;
        } else if (pread(vms_fd(image), bytes, PIECE, (off_t)offset) != PIECE) {
            perror("pread");
            failures++;
        } else {
            printf("%12" PRIu64 ": %02x %02x %02x %02x %02x %02x %02x %02x ...\n", offset, bytes[0], bytes[1],
                   bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]);
        }
    }

    vms_get_stats(image, &stats);
    printf("fetched %" PRIu64 " bytes in %" PRIu64 " pieces\n", stats.bytes_fetched, stats.demand_fetches);
    if (vms_close(image) < 0) {
        fprintf(stderr, "%s: %s\n", arguments[0], vms_last_error());
        return 1;
    }
    return failures != 0;
}
