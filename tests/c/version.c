/* The header and the library that was loaded are of one version. Also linked with the static library. */
#include "check.h"

int main(void)
{
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", VMS_VERSION_MAJOR, VMS_VERSION_MINOR, VMS_VERSION_PATCH);
    CHECK(strcmp(text, vms_version()) == 0);
    CHECK(strcmp("", vms_last_error()) == 0);
    return 0;
}
