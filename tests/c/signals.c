/* Every thread of the library has every signal blocked, also those made while a host name is looked up; the caller's
 * own mask and handlers stay as they were, and the caller can be interrupted while vms_open waits. */
#define _GNU_SOURCE
#include "tasks.h"

#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

static atomic_int looked_up, alarms;

static void all_blocked(const char *name, unsigned long long blocked)
{
    int number;
    for (number = 1; number <= SIGRTMAX; number++) {
        /* These cannot be blocked, or belong to the C library. */
        if (number == SIGKILL || number == SIGSTOP || (number > SIGSYS && number < SIGRTMIN))
            continue;
        if (!(blocked >> (number - 1) & 1))
            fprintf(stderr, "thread %s takes signal %d\n", name, number);
        CHECK(blocked >> (number - 1) & 1);
    }
}

/* Stands in for the C library's: the thread that looks up a name is one of ours. */
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    sigset_t mask;
    (void)service;
    (void)hints;
    (void)found;
    CHECK(strcmp(node, "disk.invalid") == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0);
    CHECK(sigismember(&mask, SIGALRM) && sigismember(&mask, SIGIO) && sigismember(&mask, SIGCHLD));
    looked_up++;
    return EAI_NONAME;
}

static void on_alarm(int number)
{
    (void)number;
    alarms++;
}

int main(void)
{
    const char *nowhere[] = { "source=http://disk.invalid/x", "open_timeout=200ms", "retry_min=50ms", NULL };
    struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART }, old;
    timer_t timer;
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
    struct itimerspec soon = { .it_value = { 0, 50000000 } };
    sigset_t before, after;
    vms_image *image = NULL;
    int number;

    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &before) == 0 && !sigismember(&before, SIGALRM));

    /* The alarm comes while vms_open waits, and finds a thread that takes it. */
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &soon, NULL) == 0);
    CHECK(vms_open(nowhere, NULL, &image) == -EHOSTUNREACH && !image);
    CHECK(looked_up > 0);
    CHECK(alarms == 1);

    image = OPEN2(NULL, "source=pattern:1M", "connections=5");
    CHECK(vms_block_wait(image, VMS_READ, 0, 1 << 20) == 0);
    CHECK_SOON(library_threads(all_blocked) == 7); /* five that fetch, one that plans, one that syncs */

    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &after) == 0);
    for (number = 1; number <= SIGRTMAX; number++)
        CHECK(sigismember(&before, number) == sigismember(&after, number));
    for (number = 1; number <= SIGSYS; number++) {
        CHECK(sigaction(number, NULL, &old) == 0);
        CHECK(number == SIGALRM ? old.sa_handler == on_alarm : old.sa_handler == SIG_DFL);
    }
    CHECK(vms_close(image) == 0);
    return 0;
}
