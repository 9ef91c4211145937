/* A web server of one small image, for tests: answers ranges of zeroes, and falls silent when told to. */
#ifndef SERVER_H
#define SERVER_H

#include "check.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SERVER_IMAGE_BYTES = 1 << 20 };
static atomic_int server_silent, server_unanswered;

static void *server_connection(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char head[8192], answer[512];
    static const char body[65536];
    size_t have = 0;

    for (;;) {
        ssize_t got = read(fd, head + have, sizeof head - 1 - have);
        unsigned long first, last, left;
        char *range;
        if (got <= 0)
            break;
        have += (size_t)got;
        head[have] = 0;
        if (!strstr(head, "\r\n\r\n"))
            continue;
        if (server_silent) {
            server_unanswered++;
            continue; /* reads on, so that it notices when the client has gone */
        }
        range = strstr(head, "bytes=");
        CHECK(range && sscanf(range, "bytes=%lu-%lu", &first, &last) == 2);
        left = last - first + 1;
        snprintf(answer, sizeof answer,
                 "HTTP/1.1 206 Partial Content\r\nETag: \"one\"\r\nContent-Range: bytes %lu-%lu/%d\r\n"
                 "Content-Length: %lu\r\n\r\n", first, last, SERVER_IMAGE_BYTES, left);
        if (write(fd, answer, strlen(answer)) < 0)
            break;
        while (left > 0) {
            ssize_t put = write(fd, body, left < sizeof body ? left : sizeof body);
            if (put <= 0)
                break;
            left -= (unsigned long)put;
        }
        have = 0;
    }
    close(fd);
    return NULL;
}

static void *server_listener(void *argument)
{
    for (;;) {
        pthread_t thread;
        int fd = accept((int)(intptr_t)argument, NULL, NULL);
        if (fd < 0)
            return NULL;
        CHECK(pthread_create(&thread, NULL, server_connection, (void *)(intptr_t)fd) == 0);
        CHECK(pthread_detach(thread) == 0);
    }
}

/* Starts it; answers its port on the loopback interface. It ends with the process. */
static int server_start(void)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t length = sizeof at;
    pthread_t thread;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && listen(fd, 16) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&at, &length) == 0);
    CHECK(pthread_create(&thread, NULL, server_listener, (void *)(intptr_t)fd) == 0);
    CHECK(pthread_detach(thread) == 0);
    return ntohs(at.sin_port);
}

#endif
