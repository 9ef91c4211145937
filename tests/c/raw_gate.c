/* Built without stack protector, whose canary lies in thread-local storage. */
#include "raw_gate.h"

#include <stdlib.h>

static void touch(size_t size)
{
    volatile char *bytes = __builtin_alloca(size);
    bytes[0] = 1;
    bytes[size - 1] = 1;
}

static void allocate(void)
{
    void *volatile kept = malloc(1); /* volatile, or the compiler leaves both calls out */
    free(kept);
}

int raw_gate(void *argument)
{
    struct job *job = argument;
    job->before = __builtin_frame_address(0);
    switch (job->kind) {
    case NEEDED:
        job->answer = vms_block_needed(job->image, job->op, job->offset, job->length, job->tag);
        break;
    case WAIT:
        job->answer = vms_block_wait(job->image, job->op, job->offset, job->length);
        break;
    case DONE:
        job->answer = vms_block_done(job->image, job->op, job->offset, job->length, 0);
        break;
    case USE_TLS:
        job->answer = *(volatile int32_t *)__builtin_thread_pointer();
        break;
    case USE_STACK:
        touch(600);
        break;
    case OVERFLOW:
        touch(6000);
        break;
    case ALLOCATE:
        allocate();
        break;
    }
    return 0;
}
