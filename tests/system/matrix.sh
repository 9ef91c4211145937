#!/bin/bash
# matrix.sh ROUTE: what every way from a monitor to a streamed disk has to hold, shown on one of them.
#
# A guest boots from a streamed root disk with a second streamed disk beside it, and every byte is right:
#
# 1. Read: each file of the root and the whole second disk are hashed inside the guest and compared with what the
#    origin publishes.
# 2. Write: the guest writes files and single sectors, and a later boot from the same caches finds them.
# 3. Killed: the machine and what holds its caches die by SIGKILL while the guest writes; a later boot finds all
#    that a sync in the guest had answered for.
# 4. Without the origin: a boot with no server running finds everything, from what is already here.
#
# A route is a file routes/ROUTE.sh that defines:
#
#   route_need                            need_... of lib.sh: skips the test when the machine cannot run it
#   route_attach ROOT CACHE SECOND CACHE2 makes the two disks ready: URL and cache directory of each. Where the
#                                         machine opens them by itself it only remembers them
#   route_boot uml.sh's options           the machine in the foreground, exit status of the guest's job; its last
#                                         command is run_uml or run_qemu of lib.sh
#   route_detach                          ends what route_attach started, each step a check
#   route_crash                           kills with SIGKILL what route_attach started; the machine is dead already
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

if [ $# != 1 ] || [ ! -r "$(dirname "$0")/routes/$1.sh" ]; then
    echo "usage: matrix.sh ROUTE, one of: $(cd "$(dirname "$0")/routes" && echo *.sh)" >&2
    exit 2
fi
test_name="matrix $1"
# shellcheck source=/dev/null
. "$(dirname "$0")/routes/$1.sh"
route_need
need_command debugfs e2fsprogs
begin

image=$("$root/scripts/build-root.sh" --profile "${PROFILE:-full}")
mkdir "$work/published"
disk2=$work/published/disk2.img
source_image "$disk2" 64
serve root-origin "$image"
serve second-origin "$work/published"

attach() {
    route_attach "${url_of[root-origin]}/disk.img" "$work/root.cache" \
        "${url_of[second-origin]}/disk2.img" "$work/second.cache"
}
# guest NAME OPTIONS...: a whole run of the machine, its console in $work/NAME.console.
guest() {
    local name=$1
    shift
    check "the guest of '$name' boots, works and powers off" console "$name" route_boot "$@"
}
told() { marker "$work/$1.console" "$2" sha256; }

attach
guest read --job hash --ro
same "every file of the streamed root is the published one" "$(cat "$image/root.sha256")" "$(told read root)"
same "the streamed second disk is the published one" "$(sha256sum "$disk2" | cut -d ' ' -f 1)" "$(told read disk2)"

# What the "write" job is to have written, computed here from the published image and the job's own rules.
written=$({
    for n in 1 2 3 4 5 6 7 8; do (set +o pipefail; yes "entry $n of a guest that writes" | head -c $((n * n * 37501))); done
    debugfs -R 'cat /etc/passwd' "$image/disk.img" 2>/dev/null
    echo "# appended by the guest"
} | sha256sum | cut -d ' ' -f 1)
cp "$disk2" "$work/expected.img"
sector() { # TEXT NUMBER
    (set +o pipefail; yes "$1" | head -c 512) | dd of="$work/expected.img" bs=512 seek="$2" conv=notrunc status=none
}
for n in 1 77 4099 20000; do sector "sector $n" $n; done

guest write --job write
same "the guest reads back what it wrote" "$written" "$(told write written)"
route_detach

attach
guest again --job written
same "a later boot finds the guest's files" "$written" "$(told again written)"
same "a later boot finds the guest's sectors" "$(told write sectors)" "$(told again sectors)"

start machine route_boot --job churn
kept() { awk '$2 == "@@" && $3 == "kept" { sub("n=", "", $4); n = $4 } END { print n + 0 }' "$work/machine.log"; }
many_kept() { [ "$(kept)" -ge 25 ]; }
check "the guest writes" wait_for 120 "25 syncs in the guest" many_kept
# It kills its machine and waits for it; then what it is told to have kept is final.
stop machine TERM || true
n=$(kept)
route_crash
attach
guest churned --job churned --append "KEPT=$n"
same "after SIGKILL all $n that the guest had synced is there" "n=$n wrong=0" \
    "$(awk '$2 == "@@" && $3 == "churned" { print $4, $5 }' "$work/churned.console")"
route_detach

stop root-origin || true
stop second-origin || true
attach
guest alone --job recheck
same "without the origin the guest finds its files" "$written" "$(told alone written)"
same "without the origin every other file is the published one" "$(told read kept)" "$(told alone kept)"
# The guest had told of n sectors of "churn". Some more may have reached the disk whose lines were still on their way
# from the guest to the console when the machine died: in their order, as each was synced before the next.
for ((i = 1; i <= n; i++)); do sector "churn $i" $((i * 37 + 5)); done
expected=$(sha256sum "$work/expected.img" | cut -d ' ' -f 1)
for ((i = n + 1; i <= n + 30; i++)); do
    [ "$(told alone disk2)" != "$expected" ] || break
    sector "churn $i" $((i * 37 + 5))
    expected=$(sha256sum "$work/expected.img" | cut -d ' ' -f 1)
done
same "without the origin the second disk is whole" "$expected" "$(told alone disk2)"
route_detach
finish
