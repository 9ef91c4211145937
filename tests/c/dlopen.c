/* The library can be loaded, used and unloaded, twice. Its path is the argument. */
#include "check.h"

#include <dlfcn.h>

static void once(const char *path)
{
    const char *options[] = { "source=pattern:1M", NULL };
    vms_image *image = NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    int32_t (*open)(const char *const *, const vms_ready *, vms_image **);
    int32_t (*wait)(const vms_image *, int32_t, uint64_t, uint64_t);
    int32_t (*close)(vms_image *);
    const char *(*version)(void);

    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    *(void **)&open = dlsym(library, "vms_open");
    *(void **)&wait = dlsym(library, "vms_block_wait");
    *(void **)&close = dlsym(library, "vms_close");
    *(void **)&version = dlsym(library, "vms_version");
    if (!open || !wait || !close || !version || strlen(version()) < 5)
        exit(2);
    if (open(options, NULL, &image) != 0 || wait(image, VMS_READ, 0, 1 << 20) != 0 || close(image) != 0)
        exit(3);
    /* A failure keeps a text for this thread, which must not outlive the library. */
    if (open(NULL, NULL, &image) != -EINVAL || dlclose(library) != 0)
        exit(4);
}

int main(int count, char **arguments)
{
    if (count < 2)
        return 5;
    once(arguments[1]);
    once(arguments[1]);
    return 0;
}
