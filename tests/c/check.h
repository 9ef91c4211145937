/* What the test programs share: a check that says where it failed, waiting with an end, and opening. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vmstream.h>

#define CHECK(truth)                                                                                   \
    do {                                                                                               \
        if (!(truth)) {                                                                                \
            fprintf(stderr, "%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #truth,      \
                    vms_last_error());                                                                 \
            exit(1);                                                                                   \
        }                                                                                              \
    } while (0)

/* Waits until truth holds; gives up after 20 s, so that a lost answer is a failure and not a hang. */
#define CHECK_SOON(truth)                                                                              \
    do {                                                                                               \
        struct timespec pause_ = { 0, 1000000 };                                                       \
        int left_ = 20000;                                                                             \
        while (!(truth) && left_-- > 0)                                                                \
            nanosleep(&pause_, NULL);                                                                  \
        CHECK(truth);                                                                                  \
    } while (0)

/* Opens an image with up to six options; the rest are NULL. */
static inline vms_image *open_with(const vms_ready *ready, const char *a, const char *b, const char *c,
                                   const char *d, const char *e, const char *f)
{
    const char *options[7] = { a, b, c, d, e, f, NULL };
    vms_image *image = NULL;
    CHECK(vms_open(options, ready, &image) == 0);
    CHECK(image != NULL);
    return image;
}

#define OPEN1(ready, a)          open_with(ready, a, NULL, NULL, NULL, NULL, NULL)
#define OPEN2(ready, a, b)       open_with(ready, a, b, NULL, NULL, NULL, NULL)
#define OPEN3(ready, a, b, c)    open_with(ready, a, b, c, NULL, NULL, NULL)
#define OPEN4(ready, a, b, c, d) open_with(ready, a, b, c, d, NULL, NULL)

static inline double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

#endif
