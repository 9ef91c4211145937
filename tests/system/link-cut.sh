#!/bin/bash
# The link dies in the middle of a read, three ways; the reader waits and goes on, and gets the right bytes.
#
# An origin that stops answering (SIGSTOP: connections stay open, nothing comes), one that is killed and comes
# back on its port, and one that is away for longer than the time after which a silent connection is given up.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
begin
mkdir "$work/published"
source=$work/published/disk.img
source_image "$source" 48
# At this rate the read lasts 6 s, time enough to cut the link in it three times.
link=(--rate 64mbit --rtt 10ms)
serve origin "$work/published" "${link[@]}"
# Without background filling the reader cannot outrun the cuts on blocks that had come earlier.
mount_disk disk "${url_of[origin]}/disk.img" "$work/cache" \
    --option fill=off --option stall_timeout=1s --option connect_timeout=1s --option retry_max=500ms

start reader dd if="$work/disk/disk" of="$work/copy" bs=64k
reached() { [ "$(stat -c %s "$work/copy" 2>/dev/null || echo 0)" -ge $(($1 << 20)) ]; }
# still: the copy does not grow any more; what was under way may still arrive before.
still() {
    local before
    before=$(stat -c %s "$work/copy")
    sleep 0.3
    [ "$before" = "$(stat -c %s "$work/copy")" ]
}

wait_for 30 "4 MiB to be read" reached 4
kill -STOP "${pid_of[origin]}"
check "with a silent origin the read comes to rest" wait_for 10 "the read to rest" still
check "the reader waits" alive reader
kill -CONT "${pid_of[origin]}"
check "the reader goes on" wait_for 30 "12 MiB to be read" reached 12

stop origin KILL || true
check "with a dead origin the read comes to rest" wait_for 10 "the read to rest" still
check "the reader still waits" alive reader
serve origin "$work/published" "${link[@]}"
check "the reader goes on after the origin came back" wait_for 30 "24 MiB to be read" reached 24

kill -STOP "${pid_of[origin]}"
# Three times the limit for silence: connections were given up and tried again, all in vain.
sleep 3
check "the reader outlasts given-up connections" alive reader
kill -CONT "${pid_of[origin]}"
check "the read comes to its end" wait_for 60 "the reader to end" gone reader
check "with no error" stop reader
check "what was read is the origin's image" cmp "$source" "$work/copy"
check "the disk unmounts cleanly" unmount disk
stalls=$(json_number "$work/disk.json" demand_stalls)
check "the status tells of stalls" test "${stalls:-0}" -ge 1

# A user who gives up. The file is open, so the first signal cannot unmount and only says so; the second one ends
# the mount although its reader waits for an origin that will not come back.
mount_disk disk "${url_of[origin]}/disk.img" "$work/cache2" --option fill=off
stop origin KILL || true
waiting() { [ "$(json_number "$work/disk.json" waiting)" = 1 ]; }
start reader dd if="$work/disk/disk" of=/dev/null bs=4k count=1
check "a read is waiting" wait_for 20 "a waiting read in the status" waiting
kill -TERM "${pid_of[disk]}"
check "the first signal says why it must wait" wait_for 10 "a message" grep -q "unmount" "$work/disk.log"
kill -TERM "${pid_of[disk]}"
check "the second signal ends the mount" wait_for 10 "the mount to end" gone disk
check "its reader is told" wait_for 10 "the reader to end" gone reader
killed_mount disk
stop reader || true
finish
