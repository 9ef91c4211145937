#!/bin/bash
# uml.sh [VERSION...]: what streaming costs a guest of User-Mode Linux (6.1 and 6.12 with the streaming driver).
#
# Resident: a guest reads MIB (512) that are all here. The streamed disk against the same local file as an ordinary
# disk of the same kernel; and Debian's kernel on a file of a FUSE mount against the same file. Both sides in turn,
# ROUNDS (7) times; the best time of each, as whatever else runs on the machine can only add to it. A ratio is the
# file's time by the stream's: 1 is no cost. "first" is direct, and the first touch of all blocks in this session, of
# which the library takes note; "direct" is the same once more; "buffered" goes through the guest's page cache.
#
# Link: the guest boots over 25 Mbit/s with a round trip of 50 ms, fetching on demand only. Its time is set against
# what bytes and round trips need for the requests it made. relay.py, between guest and link, tells when each request
# was issued and its last byte came, and its bytes. Requests that overlap in time are an episode. The ideal link is
# asked the same at the same times: the answer to a request begins to come a round trip after it was issued, or when
# the answers before it have come, and takes bytes / rate; nothing else. So the ideal time of the boot is the real one,
# less for each episode what it took longer than on the ideal link. A request that was issued only because an earlier
# answer was late is not moved.
set -euo pipefail
# shellcheck source=scripts/harness.sh
. "$(dirname "$0")/../../scripts/harness.sh"

skip() { die "cannot run here: $*"; }
need_command() { command -v "$1" >/dev/null || skip "no $1 (Debian package $2)"; }
# shellcheck source=tests/system/patched-uml.sh
. "$root/tests/system/patched-uml.sh"

versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(6.1 6.12)
mib=${MIB:-512} rounds=${ROUNDS:-7}
rate_mbit=25 rtt_ms=50
for version in "${versions[@]}"; do need_patched_uml "$version"; done
need_command python3 python3
begin
image=$("$root/scripts/build-root.sh")
mkdir "$work/published"
head -c "${mib}M" /dev/zero | openssl enc -aes-128-ctr -nosalt -K 0123456789abcdef0123456789abcdef \
    -iv 00000000000000000000000000000000 >"$work/published/data.img" 2>/dev/null
cp "$image/disk.img" "$work/root.img"

# guest NAME OPTIONS...: a run of the machine, its console in $work/NAME.console.
guest() {
    local name=$1
    shift
    "$root/scripts/uml.sh" "$@" >"$work/$name.console" 2>&1 ||
        { tail -n 12 "$work/$name.console" >&2; die "the guest of '$name' failed"; }
}
# read_by NAME OPTIONS...: one reading of the second disk; its times are added to $work/NAME.{direct,buffered}.
read_by() {
    local name=$1 kind
    shift
    guest "$name" "$work/root.img" "$@" --job readspeed --ro
    for kind in first direct buffered; do
        awk -v key="$kind=" '$3 == "readspeed" { for (i = 4; i <= NF; i++) if (index($i, key) == 1)
            print substr($i, length(key) + 1) }' "$work/$name.console" >>"$work/$name.$kind"
    done
}
best() { sort -n "$1" | head -n 1; }
row() { # WHAT FILE-SIDE STREAM-SIDE WANTED
    local kind
    for kind in first direct buffered; do
        awk -v what="$1, $kind" -v a="$(best "$work/$2.$kind")" -v b="$(best "$work/$3.$kind")" -v mib="$mib" -v wanted="$4" \
            'BEGIN { printf "%-44s %8.0f %8.0f %7.2f  >= %s\n", what, mib * 1e6 / a, mib * 1e6 / b, a / b, wanted }'
    done
}

echo "reading $mib MiB, all of it resident"
printf '%-44s %8s %8s %7s  %s\n' '' 'file' 'stream' 'ratio' 'wanted'
printf '%-44s %8s %8s\n' '' 'MiB/s' 'MiB/s'
serve origin "$work/published"
url=${url_of[origin]}/data.img
for version in "${versions[@]}"; do
    need_patched_uml "$version"
    stream=stream:$url,cache=$work/cache
    rm -rf "$work/cache"
    # Fills the cache, and the host's page cache for both sides.
    guest fill "$work/root.img" --kernel "$kernel" --disk2 "$stream" --job readspeed --ro
    for ((round = 0; round < rounds; round++)); do
        read_by "file-$version" --kernel "$kernel" --disk2 "$work/cache/disk"
        read_by "stream-$version" --kernel "$kernel" --disk2 "$stream"
    done
    row "User-Mode Linux $version" "file-$version" "stream-$version" 0.95
done
if [ -w /dev/fuse ] && command -v linux.uml >/dev/null; then
    mount_disk mount "$url" "$work/cache"
    for ((round = 0; round < rounds; round++)); do
        # The ordinary disk is a copy: the mount has the cache's.
        read_by file-stock --disk2 "$work/published/data.img"
        read_by fuse-stock --disk2 "$work/mount/disk"
    done
    unmount mount
    row "Debian's User-Mode Linux on a FUSE mount" file-stock fuse-stock 0.7
fi
stop origin || true

echo
echo "booting over $rate_mbit Mbit/s, $rtt_ms ms, on demand only"
printf '%-30s %9s %9s %9s %9s %7s  %s\n' '' 'requests' 'KiB' 'boot s' 'ideal s' 'ratio' 'wanted'
for version in "${versions[@]}"; do
    need_patched_uml "$version"
    for block_size in 4K 64K; do
        serve slow "$image" --rate "${rate_mbit}mbit" --rtt "${rtt_ms}ms" 
        rm -rf "$work/boot.cache" "$work/relay.port"
        start relay python3 "$root/benches/drivers/relay.py" "${port_of[slow]}" "$work/relay.port" "$work/requests"
        wait_for 10 "the relay to listen" test -s "$work/relay.port"
        guest boot "stream:http://127.0.0.1:$(cat "$work/relay.port")/disk.img,cache=$work/boot.cache,prefetch=none,fill=off,block_size=$block_size" \
            --kernel "$kernel" --job app
        stop relay || true
        stop slow || true
        total_s=$(tail -n 1 "$work/boot.console" | awk '{ print $1 }')
        sort -n "$work/requests" | awk -v rate=$((rate_mbit * 1000000 / 8)) -v rtt=$((rtt_ms * 1000)) -v total="$total_s" \
            -v what="UML $version, blocks of $block_size" '
            function close_episode() { if (open) excess += (last - first) - (free - first) }
            {
                # All that came before has ended: a new episode, on a link that is free.
                if (!open || $1 > last) { close_episode(); open = 1; first = $1; last = 0; free = 0 }
                begins = $1 + rtt
                if (begins < free) begins = free
                free = begins + $3 * 1e6 / rate
                if ($2 > last) last = $2
                bytes += $3; n++
            }
            END { close_episode(); ideal = total - excess / 1e6
                printf "%-30s %9d %9d %9.2f %9.2f %7.3f  <= 1.1\n", what, n, bytes / 1024, total, ideal, total / ideal }'
    done
done
echo
echo "again: benches/drivers/uml.sh ${versions[*]}"
