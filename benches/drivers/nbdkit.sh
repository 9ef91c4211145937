#!/bin/bash
# nbdkit.sh [ROUNDS]: what the gate costs an NBD server when everything is here.
#
# nbdkit with the vmstream plugin against nbdkit with its own file plugin, with the same threads, on the same local
# file: the cache's image, which is complete. So the page cache serves both alike, and the difference is the question
# to the library before each access. The two take turns, and every other round the other one begins. Of the times
# of each the median counts; the ratio is that of the file plugin's time to ours, 1 for no cost at all. The range behind
# it is that of the single rounds: a wide one says that the machine was busy, not that the plugin was slow.
set -euo pipefail
# shellcheck source=scripts/harness.sh
. "$(dirname "$0")/../../scripts/harness.sh"

rounds=${1:-9}
# The whole image is read by each of the last three rows.
image_mib=512
"$root/scripts/install-deps.sh" build nbdkit
[ -n "${VMSTREAM-}" ] || (cd "$root" && cargo build --release --quiet)
begin
plugin=$("$root/scripts/build-nbdkit.sh")

# Noise, so that nothing is a hole.
head -c "${image_mib}M" /dev/zero | openssl enc -aes-128-ctr -nosalt -K 00112233445566778899aabbccddeeff \
    -iv 00000000000000000000000000000000 >"$work/source.img" 2>/dev/null
nbdkit -U - "$plugin" "$work/source.img" cache="$work/cache" --run "nbdcopy \"\$uri\" null:"
cmp "$work/source.img" "$work/cache/disk"

# A cache that is complete asks its origin no more; what is left of it is the name.
start file nbdkit -f -r -U "$work/file.sock" file "$work/cache/disk"
start vmstream nbdkit -f -r -U "$work/vmstream.sock" "$plugin" "$work/source.img" cache="$work/cache"
uri() { echo "nbd+unix:///?socket=$work/$1.sock"; }
for server in file vmstream; do
    wait_for 30 "nbdkit with $server" timeout 5 nbdinfo --size "$(uri $server)" >/dev/null
done

# reads URI SIZE DEPTH COUNT, copy URI: seconds.
reads() {
    # Step and size alike: from start to end, and again.
    timeout 120 qemu-img bench -f raw -t none -s "$2" -S "$2" -d "$3" -c "$4" "$1" |
        sed -n 's/^Run completed in \(.*\) seconds\.$/\1/p'
}
copy() {
    local begun
    begun=$(now_us)
    timeout 120 nbdcopy "$1" null:
    awk -v us=$(($(now_us) - begun)) 'BEGIN { print us / 1e6 }'
}

# row WHAT MIB COMMAND...: both servers in turns.
row() {
    local what=$1 mib=$2 command=$3 round server order seconds
    shift 3
    : >"$work/times"
    for ((round = 0; round <= rounds; round++)); do
        order='file vmstream'
        ((round % 2)) || order='vmstream file'
        for server in $order; do
            seconds=$("$command" "$(uri "$server")" "$@")
            # The first round warms up.
            [ $round = 0 ] || echo "$round $server $seconds" >>"$work/times"
        done
    done
    awk -v what="$what" -v mib="$mib" '
        function median(a, n,   i, j, t) {
            for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j - 1] > a[j]; j--) { t = a[j]; a[j] = a[j - 1]; a[j - 1] = t }
            return n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2
        }
        { time[$1, $2] = $3; if ($2 == "file") file[++n] = $3; else ours[++m] = $3 }
        END {
            for (i = 1; i <= n; i++) {
                ratio = time[i, "file"] / time[i, "vmstream"]
                if (i == 1 || ratio < low) low = ratio
                if (i == 1 || ratio > high) high = ratio
            }
            f = median(file, n); o = median(ours, m)
            printf "%-30s %10.0f %10.0f %8.2f   %.2f to %.2f\n", what, mib / f, mib / o, f / o, low, high
        }' "$work/times"
}

echo "MiB/s, everything resident, $rounds rounds; again with: benches/drivers/nbdkit.sh $rounds"
printf '%-30s %10s %10s %8s   %s\n' '' 'file' 'vmstream' ratio 'single rounds'
for depth in 16 64; do
    row "4 KiB reads, $depth at a time" 128 reads 4k $depth 32768
    row "64 KiB reads, $depth at a time" $image_mib reads 64k $depth $((image_mib * 16))
done
row "nbdcopy to null:" $image_mib copy
stop vmstream
stop file
