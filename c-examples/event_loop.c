/* event_loop: reads a whole image with many requests under way, in a loop of epoll, on one thread.
 *
 *     cc -o event_loop event_loop.c $(pkg-config --cflags --libs vmstream)
 *     ./event_loop http://server/disk.raw
 *
 * Completions are taken with vms_reap when the event descriptor says so. The program prints a checksum in the order of
 * the offsets, whatever the order in which the pieces came.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include <vmstream.h>

enum {
    DEPTH = 32,       /* requests under way at most */
    PIECE = 64 << 10, /* bytes a request */
};

static uint64_t sum_bytes, sum;

static uint64_t piece_length(const vms_image *image, uint64_t piece)
{
    uint64_t left = vms_size(image) - piece * PIECE;
    return left < PIECE ? left : PIECE;
}

/* The range is in the local file: reads it there. The sum weighs each byte by its place, so order does not matter. */
static int consume(const vms_image *image, uint64_t piece)
{
    static unsigned char bytes[PIECE];
    uint64_t length = piece_length(image, piece), i;
    if (pread(vms_fd(image), bytes, length, (off_t)(piece * PIECE)) != (ssize_t)length) {
        perror("pread");
        return -1;
    }
    for (i = 0; i < length; i++)
        sum += bytes[i] * (piece * PIECE + i + 1);
    sum_bytes += length;
    return 0;
}

/* Asks for pieces until DEPTH are under way; those that are here already are consumed at once. */
static int submit(const vms_image *image, uint64_t pieces, uint64_t *next, int *under_way)
{
    while (*next < pieces && *under_way < DEPTH) {
        int answer = vms_block_needed(image, VMS_READ, *next * PIECE, piece_length(image, *next), *next);
        if (answer == VMS_PENDING) {
            ++*under_way;
        } else if (answer == VMS_READY) {
            if (consume(image, *next) < 0)
                return -1;
        } else {
            fprintf(stderr, "piece %" PRIu64 ": %s\n", *next, strerror(-answer));
            return -1;
        }
        ++*next;
    }
    return 0;
}

/* One turn of the loop: sleeps until something has come, takes it. */
static int turn(const vms_image *image, int epoll, int *under_way)
{
    struct epoll_event event;
    vms_completion done[DEPTH];
    int taken, i;

    if (epoll_wait(epoll, &event, 1, -1) < 0) {
        perror("epoll_wait");
        return -1;
    }
    taken = vms_reap(image, done, DEPTH);
    for (i = 0; i < taken; i++) {
        --*under_way;
        if (done[i].result < 0) {
            fprintf(stderr, "piece %" PRIu64 ": %s\n", done[i].tag, strerror(-done[i].result));
            return -1;
        }
        if (consume(image, done[i].tag) < 0)
            return -1;
    }
    return taken < 0 ? taken : 0;
}

int main(int count, char **arguments)
{
    struct epoll_event event = { .events = EPOLLIN };
    uint64_t next = 0, pieces;
    int epoll = epoll_create1(EPOLL_CLOEXEC), under_way = 0, failed = 0;
    vms_image *image;
    char source[4096];

    if (count != 2 || snprintf(source, sizeof source, "source=%s", arguments[1]) >= (int)sizeof source) {
        fprintf(stderr, "usage: %s URL|FILE|pattern:SIZE\n", arguments[0]);
        return 2;
    }
    const char *options[] = { source, NULL };
    if (vms_open(options, NULL, &image) < 0) { /* no callback: completions are queued */
        fprintf(stderr, "%s: %s\n", arguments[0], vms_last_error());
        return 1;
    }
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, vms_event_fd(image), &event) < 0) {
        perror("epoll");
        failed = 1;
    }
    pieces = (vms_size(image) + PIECE - 1) / PIECE;
    while (!failed && sum_bytes < vms_size(image)) {
        failed = submit(image, pieces, &next, &under_way) < 0;
        if (!failed && under_way > 0)
            failed = turn(image, epoll, &under_way) < 0;
    }
    if (!failed)
        printf("%s: %" PRIu64 " bytes, sum %016" PRIx64 "\n", arguments[1], sum_bytes, sum);
    close(epoll);
    return vms_close(image) < 0 || failed;
}
