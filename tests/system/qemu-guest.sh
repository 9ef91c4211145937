#!/bin/bash
# Guests on the QEMU block driver when things get rough: eight at once around the caches, and a link that is cut.
#
# 1. Four readers and four writers with O_DIRECT on one streamed disk behind an iothread check every sector; what is
#    left on it is what the host computes.
# 2. The link is cut for 30 s in the middle of a boot: the guest only waits.
# 3. With pause-after the machine stops instead of waiting, tells so over QMP, and goes on by itself when the link is
#    back; no program in the guest sees an error.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_patched_qemu
begin
image=$("$root/scripts/build-root.sh" --profile demo)
mkdir "$work/published"
direct=$root/tests/system/guest/direct.py
python3 "$direct" make "$work/published/disk2.img"
# Slow enough that a boot takes its time over it.
serve root-origin "$image" --rate 50mbit --rtt 10ms
serve second-origin "$work/published"

# root_disk CACHE OPTIONS: the root as a node; only what the guest asks for comes, so there is something to cut.
root_disk() {
    echo "driver=vmstream,node-name=root,url=${url_of[root-origin]}/disk.img,cache-dir=$work/$1,fill=off$2"
}
# guest NAME OPTIONS... -- NODES...: starts a machine in the background, its console in $work/NAME.log.
guest() {
    local name=$1
    shift
    start "$name" "$root/scripts/qemu.sh" --timeout 300 "$@"
}
# ended NAME: waits for the machine; good when its job was.
ended() { wait_for 300 "the machine of $1" gone "$1" && stop "$1"; }
# arrived CACHE MIB: so much of the root is in the local file.
arrived() { [ "$(du -k "$work/$1/disk" | cut -f 1)" -ge $(($2 << 10)) ]; }
no_errors() { ! grep -iE 'I/O error|EXT4-fs error|Remounting filesystem read-only' "$work/$1.log"; }

second=driver=vmstream,url=${url_of[second-origin]}/disk2.img,cache-dir=$work/direct.second
guest direct --second --device iothread=thread --job direct -- -object iothread,id=thread \
    -blockdev "$(root_disk direct.root "")" \
    -blockdev "$second,node-name=second,fill=off,prefetch=none,cache.direct=on,aio=native"
check "eight readers and writers in a guest agree on every sector" ended direct
cp "$work/published/disk2.img" "$work/expected.img"
python3 "$direct" expected "$work/expected.img"
same "the guest reads at the end what it should" \
    "$(sha256sum "$work/expected.img" | cut -d ' ' -f 1)" "$(marker "$work/direct.log" direct sha256)"
check "and it is what the cache keeps" qemu-img compare --image-opts "$second" \
    "driver=raw,file.driver=file,file.filename=$work/expected.img"

# The guest's kernel comes from the host; the first few MiB of the root are its first programs.
guest cut --ro --job hash -- -blockdev "$(root_disk cut.root "")"
check "a guest boots" wait_for 120 "a part of the root" arrived cut.root 8
kill -STOP "${pid_of[root-origin]}"
sleep 30
check "with the link cut for 30 s it waits" alive cut
check "the console says that the link is dead" grep -q "vmstream: root: the link is dead; requests wait" "$work/cut.log"
kill -CONT "${pid_of[root-origin]}"
check "the guest goes on to its end" ended cut
check "the console says that the link is back" grep -q "vmstream: root: the link is back" "$work/cut.log"
same "and has read every file right" "$(cat "$image/root.sha256")" "$(marker "$work/cut.log" root sha256)"
check "without an error" no_errors cut

guest pause --ro --job hash --device rerror=stop,werror=stop,iothread=thread -- -object iothread,id=thread \
    -blockdev "$(root_disk pause.root ",pause-after=3")" \
    -chardev "socket,path=$work/pause.qmp,server=on,wait=off,id=monitor" -mon chardev=monitor,mode=control \
    -chardev "socket,path=$work/events.qmp,server=on,wait=off,id=events" -mon chardev=events,mode=control
wait_for 20 "the monitor" test -S "$work/events.qmp"
start events "$root/tests/system/qmp.py" "$work/events.qmp" events
status() { on pause query-status | grep -q "\"status\": \"$1\""; }
event() { grep -q "\"event\": \"$1\"" "$work/events.log"; }
check "a guest boots that is to pause" wait_for 120 "a part of the root" arrived pause.root 8
kill -STOP "${pid_of[root-origin]}"
check "the machine stops when the link has been dead for a while" wait_for 60 "the machine to stop" status io-error
check "there was an event for the error" wait_for 10 "BLOCK_IO_ERROR" event BLOCK_IO_ERROR
check "which stops the machine" \
    grep -q '"BLOCK_IO_ERROR".*"action": "stop"\|"action": "stop".*"BLOCK_IO_ERROR"' "$work/events.log"
check "and one for the stop" wait_for 10 "STOP" event STOP
check "the console says why" wait_for 10 "a message" \
    grep -q "vmstream: root: the link is dead; requests fail" "$work/pause.log"
# Longer than pause-after and the library's patience with a silent connection.
sleep 12
check "it stays so" status io-error
kill -CONT "${pid_of[root-origin]}"
check "it goes on by itself" wait_for 60 "RESUME" event RESUME
check "the console says so" wait_for 10 "a message" \
    grep -q "vmstream: root: the link is back; the machine goes on" "$work/pause.log"
check "the guest comes to its end" ended pause
same "having read every file right" "$(cat "$image/root.sha256")" "$(marker "$work/pause.log" root sha256)"
check "without seeing an error" no_errors pause
stop events || true
finish
