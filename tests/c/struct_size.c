/* Structs with a size: a program built for a shorter one gets what it knows and not a byte more; one built for a
 * longer one finds zeroes behind what the library knows; nonsense is refused. */
#include "check.h"

union room {
    vms_stats stats;
    vms_forecast forecast;
    unsigned char bytes[1024];
    uint64_t words[128];
};

static int all(const unsigned char *bytes, size_t count, int value)
{
    while (count-- > 0)
        if (*bytes++ != value)
            return 0;
    return 1;
}

int main(void)
{
    vms_image *image = OPEN1(NULL, "source=pattern:1M");
    const uint64_t bad[] = { 0, 1, 8, 15, 17, 20, 4104, UINT64_MAX };
    union room room;
    size_t i;

    CHECK(vms_block_wait(image, VMS_READ, 0, 4096) == 0);

    memset(&room, 0xaa, sizeof room);
    room.stats.struct_size = 16; /* as if size were the last member */
    CHECK(vms_get_stats(image, &room.stats) == 0);
    CHECK(room.stats.struct_size == 16 && room.stats.size == 1 << 20);
    CHECK(all(room.bytes + 16, sizeof room - 16, 0xaa));

    memset(&room, 0xaa, sizeof room);
    room.stats.struct_size = sizeof room;
    CHECK(vms_get_stats(image, &room.stats) == 0);
    CHECK(room.stats.struct_size == sizeof room && room.stats.size == 1 << 20 && room.stats.misses == 1);
    CHECK(all(room.bytes + sizeof(vms_stats), sizeof room - sizeof(vms_stats), 0));

    memset(&room, 0xaa, sizeof room);
    room.forecast.struct_size = 24;
    CHECK(vms_get_forecast(image, 1000, &room.forecast) == 0);
    CHECK(room.forecast.stall_risk_ppm <= 1000000);
    CHECK(all(room.bytes + 24, sizeof room - 24, 0xaa));

    memset(&room, 0xaa, sizeof room);
    room.forecast.struct_size = 32; /* as programs have it that were built before a forecast had more */
    CHECK(vms_get_forecast(image, 1000, &room.forecast) == 0);
    CHECK(room.forecast.missing_bytes < 1 << 20);
    CHECK(all(room.bytes + 32, sizeof room - 32, 0xaa));

    memset(&room, 0xaa, sizeof room);
    room.forecast.struct_size = 512;
    CHECK(vms_get_forecast(image, 1000, &room.forecast) == 0);
    CHECK(room.forecast.missing_bytes < 1 << 20);
    CHECK(room.forecast.expected_stall_ns <= 1000000000 && room.forecast.foreseen == 0);
    CHECK(room.forecast.stall_risk_ppm > VMS_CALM_RISK_PPM || room.forecast.calm_in_ns == 0);
    CHECK(all(room.bytes + sizeof(vms_forecast), 512 - sizeof(vms_forecast), 0));
    CHECK(all(room.bytes + 512, sizeof room - 512, 0xaa));

    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&room, 0xaa, sizeof room);
        room.stats.struct_size = bad[i];
        CHECK(vms_get_stats(image, &room.stats) == -EINVAL);
        CHECK(strstr(vms_last_error(), "struct_size"));
        CHECK(vms_get_forecast(image, 1000, &room.forecast) == -EINVAL);
        CHECK(all(room.bytes + 8, sizeof room - 8, 0xaa));
    }
    CHECK(vms_close(image) == 0);
    return 0;
}
