/* The I/O path works on a thread that is none of the C library's: made by a raw clone(CLONE_VM), in a thread group of
 * its own, with one page of stack above a guard page; once with a thread pointer that leads to inaccessible memory, so
 * that any access to thread-local storage ends it, and once sharing its parent's thread-local storage, as the disk
 * thread of User-Mode Linux does. It allocates nothing, and uses at most so much stack as the argument says (bytes).
 *
 * A program for such threads is linked with -z now: a first call through a lazily bound table resolves the function
 * on the caller's stack. Controls show that each trap works. */
#define _GNU_SOURCE
#include "check.h"
#include "raw_gate.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, TRAP_BYTES = 1 << 20, PAINT = 0xa5 };

static char *stack;      /* guard page, then one page */
static char *trap;       /* inaccessible on both sides of its middle */
static atomic_int told, told_result;
static atomic_ulong allocations, allocations_on_stack;
static long deepest;

/* --- the malloc family, counted; the callers on the small stack apart --- */

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void count(void)
{
    char here;
    const char *at = &here;
    allocations++;
    if (stack && at >= stack && at < stack + 2 * PAGE)
        allocations_on_stack++;
}

void *malloc(size_t size)
{
    count();
    return __libc_malloc(size);
}

void *calloc(size_t number, size_t size)
{
    count();
    return __libc_calloc(number, size);
}

void *realloc(void *old, size_t size)
{
    count();
    return __libc_realloc(old, size);
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    count();
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    count();
    return __libc_memalign(alignment, size);
}

void free(void *old)
{
    if (old)
        count();
    __libc_free(old);
}

/* --- running a job --- */

static void on_ready(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    (void)tag;
    told_result = result;
    told++;
}

/* Runs a job; answers the thread's wait status and, in *used, how much stack it took below its own frame. */
static int run(struct job *job, int share_tls, long *used)
{
    int status, flags = CLONE_VM | CLONE_FS | CLONE_FILES | SIGCHLD;
    const char *lowest = stack + PAGE;
    pid_t pid;

    memset(stack + PAGE, PAINT, PAGE);
    job->before = NULL;
    job->answer = 12345;
    if (share_tls)
        pid = clone(raw_gate, stack + 2 * PAGE, flags, job);
    else
        pid = clone(raw_gate, stack + 2 * PAGE, flags | CLONE_SETTLS, job, NULL, trap + TRAP_BYTES / 2, NULL);
    CHECK(pid > 0);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(job->before);
    while (lowest < stack + 2 * PAGE && *(const unsigned char *)lowest == PAINT)
        lowest++;
    *used = job->before - lowest;
    return status;
}

static void gate(const char *what, int share_tls, struct job job, int32_t expected)
{
    unsigned long before = allocations_on_stack;
    long used;
    int status = run(&job, share_tls, &used);
    if (!WIFEXITED(status)) {
        fprintf(stderr, "%s: ended by signal %d%s\n", what, WTERMSIG(status),
                share_tls ? "" : ": thread-local storage or too much stack was used");
        exit(1);
    }
    if (job.answer != expected)
        fprintf(stderr, "%s: answer %d instead of %d\n", what, job.answer, expected);
    CHECK(job.answer == expected);
    CHECK(allocations_on_stack == before);
    if (used > deepest)
        deepest = used;
    printf("  %-28s %s %5ld bytes of stack\n", what, share_tls ? "shared TLS" : "no TLS    ", used);
}

static void needed(const char *what, int share_tls, const vms_image *image, int op, uint64_t offset, uint64_t length,
                   int expected)
{
    struct job job = { .kind = NEEDED, .image = image, .op = op, .offset = offset, .length = length };
    int before = told;
    gate(what, share_tls, job, expected);
    if (expected == VMS_PENDING) {
        CHECK_SOON(told == before + 1);
        CHECK(told_result == 0);
    }
}

static void controls(void)
{
    struct job job = { .kind = USE_TLS };
    unsigned long before;
    long used;
    int status;

    status = run(&job, 0, &used);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    CHECK(WIFEXITED(run(&job, 1, &used)));
    job.kind = USE_STACK;
    CHECK(WIFEXITED(run(&job, 0, &used)));
    CHECK(used >= 600 && used < 800);
    job.kind = OVERFLOW;
    status = run(&job, 0, &used);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    job.kind = ALLOCATE;
    before = allocations_on_stack;
    CHECK(WIFEXITED(run(&job, 1, &used)));
    CHECK(allocations_on_stack == before + 2); /* malloc and free */
}

static void operations(int share_tls)
{
    const vms_ready ready = { on_ready, NULL, NULL };
    const uint64_t far = 32 << 20;
    struct job wait = { .kind = WAIT, .op = VMS_READ, .length = 65536 };
    struct job done = { .kind = DONE, .op = VMS_WRITE, .offset = far, .length = 8192 };
    unsigned long before = allocations;
    vms_image *image = OPEN3(&ready, "source=pattern:64M", "prefetch=none", "fault=delay=2ms");

    CHECK(allocations > before); /* the library's are seen */
    wait.image = done.image = image;
    needed("read, missing", share_tls, image, VMS_READ, 0, 4096, VMS_PENDING);
    needed("read, resident", share_tls, image, VMS_READ, 0, 4096, VMS_READY);
    CHECK(vms_block_wait(image, VMS_READ, 1 << 20, 1 << 20) == 0);
    needed("read of 256 blocks", share_tls, image, VMS_READ, 1 << 20, 1 << 20, VMS_READY);
    wait.offset = 8 << 20;
    gate("blocking read, missing", share_tls, wait, 0);
    gate("blocking read, resident", share_tls, wait, 0);
    needed("write of whole blocks", share_tls, image, VMS_WRITE, far, 8192, VMS_READY);
    gate("end of the write", share_tls, done, 0);
    needed("read of what was written", share_tls, image, VMS_READ, far, 8192, VMS_READY);
    needed("write of parts of blocks", share_tls, image, VMS_WRITE, far + 65536 + 100, 9000, VMS_PENDING);
    done.offset = far + 65536 + 100;
    done.length = 9000;
    gate("end of that write", share_tls, done, 0);
    needed("discard", share_tls, image, VMS_DISCARD, far + (1 << 20), 1 << 20, VMS_READY);
    done.op = VMS_DISCARD;
    done.offset = far + (1 << 20);
    done.length = 1 << 20;
    gate("end of the discard", share_tls, done, 0);
    /* A write in progress that the engine waits for: its end rings. */
    CHECK(vms_block_needed(image, VMS_WRITE, far + (4 << 20), 4096, 0) == VMS_READY);
    CHECK(vms_block_needed(image, VMS_READ, far + (4 << 20), 4096, 0) == VMS_PENDING);
    {
        int already = told;
        done.op = VMS_WRITE;
        done.offset = far + (4 << 20);
        done.length = 4096;
        gate("end of a write waited for", share_tls, done, 0);
        CHECK_SOON(told == already + 1);
    }
    needed("flush", share_tls, image, VMS_FLUSH, 0, 0, VMS_PENDING);
    wait.op = VMS_FLUSH;
    gate("blocking flush", share_tls, wait, 0);
    needed("outside the image", share_tls, image, VMS_READ, 64 << 20, 1, -EINVAL);
    CHECK(vms_cancel(image) == 0);
    needed("canceled", share_tls, image, VMS_READ, 20 << 20, 1, -ECANCELED);
    CHECK(vms_close(image) == 0);

    image = OPEN4(&ready, "source=pattern:64M", "prefetch=none", "pending_max=1", "fault=delay=60m");
    CHECK(vms_block_needed(image, VMS_READ, 0, 4096, 0) == VMS_PENDING);
    needed("too many pending", share_tls, image, VMS_READ, far, 4096, -EAGAIN);
    CHECK(vms_close(image) == 0);
}

int main(int arguments, char **argument)
{
#if !defined(__x86_64__)
    (void)arguments;
    (void)argument;
    (void)controls;
    (void)operations;
    puts("SKIPPED: raw_clone knows the thread pointer of x86-64 only");
    return 77;
#else
    long limit = arguments > 1 ? atol(argument[1]) : 1024;

    trap = mmap(NULL, TRAP_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    stack = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(trap != MAP_FAILED && stack != MAP_FAILED);
    CHECK(mprotect(stack, PAGE, PROT_NONE) == 0);
    controls();
    operations(0);
    operations(1);
    printf("at most %ld bytes of stack, %ld allowed\n", deepest, limit);
    CHECK(deepest > 0 && deepest <= limit);
    return 0;
#endif
}
