/* What a thread made by a raw clone does at the gate. */
#ifndef RAW_GATE_H
#define RAW_GATE_H

#include <vmstream.h>

enum kind {
    NEEDED,    /* vms_block_needed */
    WAIT,      /* vms_block_wait */
    DONE,      /* vms_block_done */
    /* Controls: what the traps must notice. */
    USE_TLS,   /* read the word at the thread pointer */
    USE_STACK, /* 600 bytes of stack */
    OVERFLOW,  /* more stack than there is */
    ALLOCATE,  /* one malloc */
};

struct job {
    enum kind kind;
    const vms_image *image;
    int32_t op;
    uint64_t offset, length, tag;
    /* Out: the answer, and where the stack stood before the call. */
    volatile int32_t answer;
    const char *volatile before;
};

/* Body of the thread; argument is a struct job. Uses no thread-local storage and next to no stack itself. */
int raw_gate(void *argument);

#endif
