/* The header needs nothing before it, says nothing twice, and its constants work in #if. Also built as C++. */
#include <vmstream.h>
#include <vmstream.h>

#if VMS_VERSION_MAJOR < 0 || VMS_VERSION_MINOR < 0 || VMS_VERSION_PATCH < 0
#error "the parts of the version must be macros"
#endif
#if VMS_VERSION_NUMBER != VMS_VERSION_MAJOR * 10000 + VMS_VERSION_MINOR * 100 + VMS_VERSION_PATCH
#error "VMS_VERSION_NUMBER is not made of its parts"
#endif
#if VMS_READY != 0 || VMS_PENDING <= 0
#error "an answer must not look like an error"
#endif

static void call(void *user_data, uint64_t tag, int32_t result)
{
    (void)user_data;
    (void)tag;
    (void)result;
}

int main(void)
{
    int operation = VMS_READ;
    vms_ready ready = { call, 0, 0 };
    struct vms_stats stats;
    stats.struct_size = sizeof stats;
    switch (operation) {
    case VMS_READ:
    case VMS_WRITE:
    case VMS_DISCARD:
    case VMS_FLUSH:
        break;
    default:
        return 1;
    }
    return !(ready.call && stats.struct_size == sizeof(vms_stats) && vms_version());
}
