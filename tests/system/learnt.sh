#!/bin/bash
# learnt.sh: a guest that is followed by what two earlier guests have taught, over a link of 25 Mbit/s and 50 ms.
#
# Stock User-Mode Linux over the mount does a task that needs some 50 MB of the image, three times, each with an empty cache.
# The first two know nothing and are recorded. What they recorded is trained into a model that lies beside the image, where
# the third mount finds it by itself. The third run is compared with its bound: the guest's own time, as its own record tells
# it, and the least stall on such a link of somebody who knows the future (vmstream replay). Then a fourth guest learns from
# the sessions alone, with nothing at the origin.
#
# The times are printed. What is checked leaves room for a busy machine: 15 % over the bound are the aim, 50 % may be.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
need_command linux.uml user-mode-linux
begin
image=$("$root/scripts/build-root.sh")
case $image in *busybox*) skip "the task needs Python, and no Debian image could be made" ;; esac
rate=${RATE:-25mbit} rtt=${RTT:-50ms}
mkdir "$work/site" "$work/recorded"
cp --reflink=auto --sparse=always "$image/disk.img" "$work/site/"

# survey NAME [OPTIONS...]: a whole run with an empty cache. Its time in milliseconds goes to ${took_ms[NAME]}, from the mount's
# start to the end of the machine; the sums it computed to $work/NAME.sums, its session to $work/NAME.vms.
declare -A took_ms=()
survey() {
    local name=$1 began_us status=0
    shift
    serve "$name-origin" "$work/site" --rate "$rate" --rtt "$rtt"
    began_us=$(now_us)
    mount_disk "$name" "${url_of[$name-origin]}/disk.img" "$work/$name.cache" "$@"
    console "$name" run_uml "$work/$name/disk" --job survey --timeout 240 || status=$?
    took_ms[$name]=$((($(now_us) - began_us) / 1000))
    unmount "$name" && stop "$name-origin" || status=1
    sed -n 's/.*\(survey: .*checksum .*\)/\1/p' "$work/$name.console" >"$work/$name.sums"
    return "$status"
}
say() { awk -v name="$1" -v ms="${took_ms[$1]}" -v stalls="$(json_number "$work/$1.json" demand_stalls)" \
    -v stall="$(json_number "$work/$1.json" stall_s)" -v bytes="$(json_number "$work/$1-origin.stats" bytes)" \
    'BEGIN { printf "# %s: %.1f s, %d stalls, %.1f s stalled, %.1f MB\n", name, ms / 1000, stalls, stall, bytes / 1e6 }'; }

for name in first second; do
    check "the $name guest, whom nobody knows, does its task" survey $name
    say $name
    cp "$work/$name.cache"/sessions/*.vms "$work/recorded/$name.vms"
done
needed=$(sed -n 's/.*survey: \([0-9]*\) bytes.*/\1/p' "$work/first.console")
check "the task reads 30 MB at least" test "${needed:-0}" -ge 30000000

check "a model comes of it" "$vmstream" train -o "$work/site/disk.img.vmm" "$work/recorded"/*.vms
check "the third guest does its task" survey third
say third
same "the same task" "$(cat "$work/first.sums")" "$(cat "$work/third.sums")"
same "followed by the model beside the image" "published beside the image" \
    "$(sed -n 's/.*"model": "\(.*\)".*/\1/p' "$work/third.json")"

# stall_ms NAME: how long the guest waited in all, in whole milliseconds.
stall_ms() { awk -v s="$(json_number "$work/$1.json" stall_s)" 'BEGIN { printf "%d", s * 1000 }'; }
check "it waits less than who knew nothing" test "$(stall_ms third)" -lt "$(stall_ms first)"
check "its own session can be replayed" "$vmstream" replay --trace "$work/third.cache"/sessions/*.vms --policy none \
    --rate "$rate" --rtt "$rtt" --think 1 --json "$work/bound.json"
bound=$(json_number "$work/bound.json" oracle_total_s)
ratio=$(awk -v ms="${took_ms[third]}" -v bound="${bound:-0}" 'BEGIN { if (bound > 0) printf "%.3f", ms / 1000 / bound }')
echo "# third: total / bound = $ratio (bound $bound s, of which the guest's own time $(json_number "$work/bound.json" guest_s) s)"
check "it comes near the bound" awk -v ratio="${ratio:-99}" 'BEGIN { exit !(ratio > 0.9 && ratio <= 1.5) }'

rm "$work/site/disk.img.vmm"
check "a fourth guest learns from the sessions alone" survey fourth --option sessions="$work/recorded"
say fourth
check "both of them" test "$(json_number "$work/fourth.json" model_sessions)" = 2
check "and waits less too" test "$(stall_ms fourth)" -lt "$(stall_ms first)"
finish
