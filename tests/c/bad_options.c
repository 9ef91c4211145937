/* A bad option is refused with -EINVAL, *image is NULL, and the text names the option, its value and the remedy. */
#include "check.h"

static void refused(const char *option, const char *part, int code)
{
    const char *options[] = { "source=pattern:1M", option, NULL };
    vms_image *image = (vms_image *)options;
    CHECK(vms_open(options, NULL, &image) == -code);
    CHECK(image == NULL);
    if (!strstr(vms_last_error(), part))
        fprintf(stderr, "\"%s\" should contain \"%s\"\n", vms_last_error(), part);
    CHECK(strstr(vms_last_error(), part));
}

int main(void)
{
    const char *none[] = { NULL };
    vms_image *image = NULL;

    refused("conections=3", "conections=3", EINVAL);
    refused("connections=0", "connections=0", EINVAL);
    refused("connections=many", "from 1 to 63", EINVAL);
    refused("block_size=1000", "1000", EINVAL);
    refused("ring=3", "power of two", EINVAL);
    refused("fill=perhaps", "on or off", EINVAL);
    refused("stall_timeout=soon", "stall_timeout=soon", EINVAL);
    refused("fault=luck=3", "luck", EINVAL);
    refused("plain words", "key=value", EINVAL);
    refused("", "key=value", EINVAL);
    refused("\xff\xfe=1", "UTF-8", EINVAL);
    refused("source=gopher://host/disk", "scheme", EINVAL);
    refused("source=/no/such/image", "/no/such/image", ENOENT);

    CHECK(vms_open(none, NULL, &image) == -EINVAL);
    CHECK(strstr(vms_last_error(), "source=URL"));

    image = OPEN1(NULL, "source=pattern:1M");
    CHECK(vms_set(image, "prefetch=none") == 0);
    CHECK(vms_set(image, "error_after=2s") == 0);
    CHECK(vms_set(image, "fill=off") == 0);
    CHECK(vms_set(image, "fill=perhaps") == -EINVAL);
    CHECK(strstr(vms_last_error(), "fill=perhaps"));
    CHECK(vms_set(image, "connections=3") == -EINVAL);
    CHECK(strstr(vms_last_error(), "while the image is open"));
    CHECK(vms_set(image, "fill") == -EINVAL);
    CHECK(vms_close(image) == 0);
    return 0;
}
