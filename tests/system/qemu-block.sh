#!/bin/bash
# The QEMU block driver under QEMU's own tools: what its iotests ask of a protocol driver that can be written to.
#
# Requests of all kinds go to a streamed image and, the same ones, to a plain copy of it through QEMU's file driver;
# afterwards the two must be equal. Then what else QEMU does with a node: map, convert, reopen, overlays, jobs,
# exports, iothreads, hot-unplug, and errors that a user may make.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

begin
need_patched_qemu
mib=$((1 << 20))

mkdir "$work/published"
source=$work/published/disk.img
source_image "$source" 32
serve origin "$work/published"
url=${url_of[origin]}/disk.img

# Nothing here may hang the run; the longest is a job over the whole image.
img() { timeout 120 qemu-img "$@"; }
# io OPTIONS -c COMMAND...: qemu-io, which fails when one of its commands does, and also when a read finds another
# pattern than it expects.
io() { timeout 120 qemu-io "$@"; }
fails() { ! "$@"; }
# says TEXT COMMAND...: the command fails, and says why.
says() {
    local text=$1
    shift
    ! "$@" >"$work/said" 2>&1 || { echo "it did not fail"; return 1; }
    grep -q -- "$text" "$work/said" || { cat "$work/said"; return 1; }
}
# disk CACHE [,OPTIONS], plain FILE: the streamed image, and a plain one, as --image-opts wants it.
disk() { echo "driver=vmstream,url=$url,cache-dir=$work/$1${2-}"; }
plain() { echo "driver=raw,file.driver=file,file.filename=$1"; }
# object KEY VALUE...: a JSON object, values that are no objects being strings.
object() {
    local pairs=''
    while [ $# -gt 0 ]; do
        case $2 in
            '{'* | true | false) pairs+=",\"$1\":$2" ;;
            *) pairs+=",\"$1\":\"$2\"" ;;
        esac
        shift 2
    done
    echo "{${pairs#,}}"
}

# --- the same requests to a streamed image and to a plain one ---------------------------------------------------

# requests SEED BLOCK: qemu-io commands, one a line, that any order of the parallel ones leaves with the same result.
requests() {
    local n at length lane
    RANDOM=$1
    for ((n = 0; n < 220; n++)); do
        at=$(((RANDOM * 32768 + RANDOM) % (30 * mib)))
        length=$((RANDOM % (3 * $2) + 1))
        case $((n % 11)) in
            0 | 1) echo "write -P $((n % 250 + 1)) $at $length" ;;
            2) echo "write -P $((n % 250 + 1)) $((at / 512 * 512)) $((length / 512 * 512 + 512))" ;;
            3) echo "write -z $at $length" ;;
            4) echo "write -z -u $at $length" ;;
            5) echo "discard $((at / $2 * $2)) $(((length / $2 + 1) * $2))" ;;
            6) echo "read $at $length" ;;
            7) echo "writev -P $((n % 250 + 1)) $((at / 512 * 512)) 512 1024 4096" ;;
            8)
                # Writes that share blocks but no bytes, in flight together with reads over all of them.
                for lane in 0 1 2 3 4 5 6 7; do
                    echo "aio_write -q -P $((n % 200 + lane + 1)) $((at / 512 * 512 + lane * 1536)) 1536"
                    echo "aio_read -q $((at / 512 * 512)) $((8 * 1536))"
                done
                echo aio_flush
                ;;
            9) echo "write -f -P $((n % 250 + 1)) $at $length" ;;
            10) echo flush ;;
        esac
    done
}
# both BLOCK CACHEMODE: all requests to a cold cache with blocks of this size, and to a copy.
both() {
    local block=$1 mode=$2 cache=cache-$1-$2
    requests $((2006 + block)) "$block" >"$work/requests"
    cp "$source" "$work/expected.img"
    timeout 240 qemu-io -t "$mode" -d unmap --image-opts "$(disk "$cache" ",block-size=$block")" \
        <"$work/requests" >"$work/io.out" 2>&1
    timeout 240 qemu-io -t "$mode" -d unmap -f raw "$work/expected.img" <"$work/requests" >/dev/null 2>&1
    # A command that failed says so; reads do not and are compared at the end.
    ! grep -iE 'error|failed|cannot|invalid' "$work/io.out" || return 1
    grep -q 'wrote' "$work/io.out" || { echo "qemu-io did nothing"; tail -n 3 "$work/io.out"; return 1; }
    # With the origin's link the same driver, without it the local file of what is here: both must say the same.
    img compare --image-opts "$(disk "$cache")" "$(plain "$work/expected.img")"
}
for block in 512 4096 65536; do
    check "all kinds of requests end as on a plain file, blocks of $block" both $block writeback
done
check "all kinds of requests end as on a plain file, with O_DIRECT" both 4096 none
check "all kinds of requests end as on a plain file, written through" both 16384 writethrough
check "blocks smaller than a page are refused with O_DIRECT" says "do not go together" \
    io -t none --image-opts "$(disk small ,block-size=512)" -c "read 0 512"

for aio in native io_uring; do
    check "aio=$aio reads and writes" io -t none --image-opts "$(disk cache-aio ",aio=$aio")" \
        -c "write -P 7 1M 64k" -c "read -P 7 1M 64k" -c "write -P 9 4097k 512" -c "read -P 9 4097k 512" -c flush
done
same "what was written under one aio is there under the default" 7 \
    "$(io --image-opts "$(disk cache-aio)" -c "read -v 1M 1" | awk 'NR == 1 { print $2 + 0 }')"

# --- sizes, ends, status ----------------------------------------------------------------------------------------

check "a read beyond the end fails" says "error" io --image-opts "$(disk ends)" -c "read 32M 512"
check "a write over the end fails" says "error" io --image-opts "$(disk ends)" -c "write 33553920 1024"
check "the last sector is read and written" io --image-opts "$(disk ends)" -c "read 33553920 512" \
    -c "write -P 5 33553920 512" -c "read -P 5 33553920 512"
check "it cannot be truncated" says "cannot be resized" io --image-opts "$(disk ends)" -c "truncate 64M"
check "nor resized, and it is said what to do" says "qcow2" img resize --image-opts "$(disk ends)" 64M

head -c 1000001 "$source" >"$work/published/odd.img"
odd=driver=vmstream,url=${url_of[origin]}/odd.img
check "an image that ends inside a sector is not written" says "ends inside a sector" \
    io --image-opts "$odd" -c "write 0 512"
cp "$work/published/odd.img" "$work/padded.img"
truncate -s %512 "$work/padded.img"
check "but read to its end" img compare -f raw "$work/padded.img" "vmstream:${url_of[origin]}/odd.img"
converts() {
    img convert -f raw -O raw "vmstream:${url_of[origin]}/odd.img" "$work/odd.raw" &&
        cmp "$work/padded.img" "$work/odd.raw"
}
check "and converted" converts

# Without filling, as it would go on behind the questions.
zero_extents() {
    img map --output=json --image-opts "$(disk "$1" ,fill=off)" >"$work/map.json"
    grep -c '"zero": true' "$work/map.json" || true
}
same "nothing absent is a hole" 0 "$(zero_extents map)"
converts_cold() {
    img convert -O raw --image-opts "$(disk convert)" "$work/converted.raw" && cmp "$source" "$work/converted.raw"
}
check "a cold image is converted byte by byte" converts_cold
# A source that knows its holes does not send them.
cp "$source" "$work/sparse.img"
fallocate --dig-holes "$work/sparse.img"
sparse() {
    local url=file:$work/sparse.img
    img convert -O raw --image-opts "$(disk holes)" "$work/converted.raw" &&
        cmp "$source" "$work/converted.raw"
}
check "neither is an image with holes" sparse
check "whose holes are shown once they are known" test "$(url=file:$work/sparse.img zero_extents holes)" -ge 4
zeroed() {
    io -d unmap --image-opts "$(disk convert)" -c "write -z -u 8M 1M" -c "discard 12M 1M" -c "write -P 1 8400k 4k" &&
        [ "$(zero_extents convert)" = 3 ]
}
check "zeroes that were written and discards are holes" zeroed
check "and read so" io --image-opts "$(disk convert)" -c "read -P 0 8M 208k" -c "read -P 1 8400k 4k" -c "read -P 0 12M 1M"
converts_half() {
    io --image-opts "$(disk half ,fill=off)" -c "read 0 16M" &&
        img convert -O qcow2 --image-opts "$(disk half ,fill=off)" "$work/half.qcow2" &&
        img compare "$work/half.qcow2" -F raw "$source"
}
check "half of an image is converted right, holes or not" converts_half
differs() {
    io --image-opts "$(disk half)" -c "write -P 1 20M 1" &&
        says "Content mismatch" img compare --image-opts "$(disk half)" "$(plain "$source")"
}
check "compare notices a wrong byte" differs

# --- what qemu-img makes of it ----------------------------------------------------------------------------------

# prints TEXT COMMAND...: the command succeeds, and prints that.
prints() {
    local text=$1
    shift
    if ! "$@" >"$work/printed" 2>&1 || ! grep -q -- "$text" "$work/printed"; then
        cat "$work/printed"
        return 1
    fi
}
copies_part() {
    img dd -f raw -O raw bs=1M skip=3 count=5 "if=vmstream:$url" "of=$work/dd.raw" &&
        cmp -n $((2 * mib)) -i $((3 * mib)):0 "$source" "$work/dd.raw"
}
check "dd copies a part" copies_part
check "info tells the size" prints "virtual size: 32 MiB" img info "vmstream:$url"
check "info tells the size of a block" prints "cluster_size: 4096" img info "vmstream:$url"
check "measure knows what a copy takes" prints "required size" img measure -O qcow2 --image-opts "$(disk convert)"
check "check says that it has no checks" says "does not support checks" img check --image-opts "$(disk convert)"
for mode in writeback none; do
    check "bench reads with 64 in flight, cache=$mode" \
        img bench -t $mode -c 4000 -d 64 -s 4096 --image-opts "$(disk "bench-$mode")"
    check "bench writes with 64 in flight, cache=$mode" \
        img bench -t $mode -w -c 4000 -d 64 -s 4096 -o 512 --image-opts "$(disk "bench-$mode")"
done
check "bench reads with more in flight than the library takes" \
    img bench -c 3000 -d 512 -s 4096 --image-opts "driver=vmstream,url=$url,options.0=ring=16,options.1=pending_max=32"

# --- reopen, debugging drivers ----------------------------------------------------------------------------------

check "it is reopened read-only and back" io --image-opts "$(disk reopen)" -c "write -P 3 0 512" -c "reopen -r" \
    -c "read -P 3 0 512" -c "reopen -w" -c "write -P 4 0 512" -c "read -P 4 0 512"
check "read-only it refuses writes" says "read-only\|Operation not permitted\|Permission" \
    io --image-opts "$(disk reopen)" -c "reopen -r" -c "write 0 512"
check "its options cannot be changed by reopening" says "Cannot change the option\|cannot" \
    io --image-opts "$(disk reopen)" -c "reopen -o cache-dir=$work/other"
check "blkdebug injects an error above it" says "Input/output error" io --image-opts \
    "driver=raw,file.driver=blkdebug,file.inject-error.0.event=read_aio,file.image.driver=vmstream,file.image.url=$url" \
    -c "read 0 4k"
cp "$source" "$work/verify.raw"
check "blkverify finds it equal to a plain file" timeout 60 qemu-io -c "aio_read 0 1M" -c "aio_write -P 8 8193 5000" \
    -c aio_flush -c "write -P 0 2M 100k" -c "read 0 4M" "blkverify:$work/verify.raw:vmstream:$url"
printf x | dd of="$work/verify.raw" bs=1 seek=$((5 * mib)) conv=notrunc status=none
check "blkverify finds a difference" fails timeout 60 qemu-io -c "read 5M 4k" "blkverify:$work/verify.raw:vmstream:$url"

# --- overlays ---------------------------------------------------------------------------------------------------

overlay() { # FILE BASE: some writes over a streamed image
    img create -q -f qcow2 -b "$2" -F raw "$1" &&
        io "$1" -c "write -P 6 1M 100k" -c "write -P 7 9M 512" -c "read -P 6 1M 100k" && img check "$1"
}
# streamed OPTIONS: in the words that a backing file's name takes beside its format.
streamed() { echo "json:$(object file "$(object driver vmstream url "$url" "$@")")"; }
json=$(streamed cache-dir "$work/base")
check "an overlay over the short name" overlay "$work/short.qcow2" "vmstream:$url"
check "an overlay over a json name" overlay "$work/top.qcow2" "$json"
check "the chain of the one is shown" prints "^image: vmstream:$url" img info --backing-chain "$work/short.qcow2"
check "the chain of the other is shown" prints '^image: json:.*"cache-dir"' img info --backing-chain "$work/top.qcow2"
cp "$source" "$work/committed.raw"
io -f raw "$work/committed.raw" -c "write -P 6 1M 100k" -c "write -P 7 9M 512" >/dev/null
check "it is committed into the streamed image" img commit "$work/top.qcow2"
check "which then is what it should be" img compare --image-opts "$(disk base)" \
    "$(plain "$work/committed.raw")"
rebases() {
    img create -q -f qcow2 -b "$json" -F raw "$work/rebase.qcow2" && img rebase -b "" "$work/rebase.qcow2" &&
        img compare "$work/rebase.qcow2" -F raw "$work/committed.raw"
}
check "rebase makes an overlay independent" rebases
img create -q -f qcow2 -b disk.img -F raw -u "$work/published/over.qcow2" 32M
check "a streamed qcow2 finds its backing file beside it" \
    img compare -f qcow2 -F raw "vmstream:${url_of[origin]}/over.qcow2" "$source"

# --- jobs and exports -------------------------------------------------------------------------------------------

# quit_daemon NAME: ends what has a monitor.
quit_daemon() { on "$1" quit && wait_for 20 "$1 to end" gone "$1" && stop "$1"; }
# daemon NAME OPTIONS...: a storage daemon with its monitor at $work/NAME.qmp.
daemon() {
    local name=$1
    shift
    start "$name" qemu-storage-daemon --chardev "socket,path=$work/$name.qmp,server=on,wait=off,id=monitor" \
        --monitor chardev=monitor "$@"
    wait_for 10 "the storage daemon" test -S "$work/$name.qmp"
}
# Jobs that are done stay until they are dismissed; how they ended is in the list.
told() { on "$1" "$2" "${@:4}" | grep -q "$3"; } # DAEMON COMMAND PATTERN [ARGUMENTS]
# job DAEMON COMMAND KEY VALUE...: runs a job to its end, which must be a good one.
job() {
    local daemon=$1 command=$2
    shift 2
    on "$daemon" "$command" "$(object job-id job auto-dismiss false "$@")" || return 1
    if [ "$command" = blockdev-mirror ]; then
        wait_for 90 "the mirror to be ready" told "$daemon" query-jobs '"ready"' || return 1
        on "$daemon" job-complete "$(object id job)" || return 1
    fi
    wait_for 90 "the job" told "$daemon" query-jobs '"status": "concluded"' || return 1
    on "$daemon" query-jobs >"$work/jobs"
    on "$daemon" job-dismiss "$(object id job)" || return 1
    # How a job ended stays in the list until it is dismissed.
    ! grep '"error"' "$work/jobs"
}
file_node() { on jobs blockdev-add "$(object driver file node-name "$1" filename "$2")"; }

daemon jobs --blockdev "$(disk jobs ,node-name=streamed)"
truncate -s 32M "$work/mirror.raw" "$work/backup.raw"
check "a node to back up to" file_node backup "$work/backup.raw"
check "a backup job reads a cold image" job jobs blockdev-backup device streamed target backup sync full
check "and copies every byte" cmp "$source" "$work/backup.raw"
check "a node to mirror to" file_node mirror "$work/mirror.raw"
check "a mirror job comes to its end" job jobs blockdev-mirror device streamed target mirror sync full
check "with every byte" cmp "$source" "$work/mirror.raw"
# A mirror leaves its target where the source was.
daemon pulls
img create -q -f qcow2 -b "$(streamed)" -F raw "$work/pull.qcow2"
check "a node of an overlay" on pulls blockdev-add \
    "$(object driver qcow2 node-name pull file "$(object driver file filename "$work/pull.qcow2")")"
check "a stream job pulls a whole image into the overlay" job pulls block-stream device pull
check "its daemon ends" quit_daemon pulls
check "the overlay then needs no backing file" fails prints "backing file:" img info "$work/pull.qcow2"
check "and is whole" img compare "$work/pull.qcow2" -F raw "$source"

reopen() { # READ-ONLY CACHE
    on jobs blockdev-reopen \
        "{\"options\":[$(object driver vmstream node-name streamed url "$url" cache-dir "$work/$2" read-only "$1")]}"
}
check "a node is reopened read-only" reopen true jobs
check "and back" reopen false jobs
check "but not with another cache" says "Cannot change the option 'cache-dir'" reopen false other
check "a server for NBD" on jobs nbd-server-start \
    "$(object addr "$(object type unix data "$(object path "$work/nbd")")")"
check "an export" on jobs block-export-add "$(object type nbd id nbd node-name streamed name disk writable true)"
nbd="nbd+unix:///disk?socket=$work/nbd"
check "which is benched" img bench -f raw -c 2000 -d 64 "$nbd"
writers() {
    local n bad=0
    for n in 1 2 3 4; do
        io -f raw "$nbd" -c "write -P $n $((n * 4))M 1M" -c "read 0 32M" -c "read -P $n $((n * 4))M 1M" &
    done
    for n in 1 2 3 4; do wait -n || bad=1; done
    [ "$bad" = 0 ]
}
check "and written by four clients at once" writers
# churn: nodes come and go under the I/O of another one.
churn() {
    local n
    for ((n = 0; n < 50; n++)); do
        on jobs blockdev-add "$(object driver vmstream node-name churn url "$url" cache-dir "$work/churn")" &&
            on jobs blockdev-del "$(object node-name churn)" || return 1
    done
}
start load qemu-img bench -f raw -c 1000000 -d 16 "$nbd"
check "50 nodes come and go under load" churn
check "the load goes on" alive load
stop load KILL || true
check "a node in use is not deleted" says "in use" on jobs blockdev-del "$(object node-name streamed)"
check "the daemon ends" quit_daemon jobs

background() {
    timeout 60 qemu-nbd --fork --persistent --pid-file="$work/nbd.pid" -k "$work/nbd2" -f raw "vmstream:$url" &&
        img compare -f raw -F raw "nbd+unix:///?socket=$work/nbd2" "$source"
}
check "qemu-nbd serves it in the background" background
if [ -s "$work/nbd.pid" ]; then
    kill "$(cat "$work/nbd.pid")"
    check "and ends" wait_for 20 "qemu-nbd to end" fails kill -0 "$(cat "$work/nbd.pid")"
fi

# --- a machine, held at its first read ---------------------------------------------------------------------------

# The guest is a boot sector that reads another sector for ever; until somebody wakes the origin, the first time
# lasts. The boot sector itself is here before: QEMU reads it for a geometry when it makes the device.
{
    # mov si, 7c10h; mov ah, 42h (read); mov dl, 80h (first disk); int 13h; jmp back
    printf '\xbe\x10\x7c\xb4\x42\xb2\x80\xcd\x13\xeb\xf5\0\0\0\0\0'
    # what to read: 1 sector to 0:8000h, number 16384, which lies at 8 MiB
    printf '\x10\0\x01\0\0\x80\0\0\0\x40\0\0\0\0\0\0'
    head -c 478 /dev/zero
    printf '\x55\xaa'
} >"$work/boot-sector"
cp "$source" "$work/published/boot.img"
dd if="$work/boot-sector" of="$work/published/boot.img" conv=notrunc status=none
boots() { echo "driver=vmstream,url=${url_of[origin]}/boot.img,cache-dir=$work/$1${2-}"; }
# held NAME NODE OPTIONS...: a machine with the disk behind an iothread.
held() {
    local name=$1 node=$2
    shift 2
    kill -STOP "${pid_of[origin]}"
    start "$name" qemu-system-x86_64 -machine q35,accel=tcg -m 64M -nodefaults -no-user-config -display none \
        -chardev "socket,path=$work/$name.qmp,server=on,wait=off,id=monitor" -mon chardev=monitor,mode=control \
        -object iothread,id=thread -blockdev "$node" "$@"
    wait_for 10 "the machine's monitor" test -S "$work/$name.qmp"
}
# known CACHE: a cache that knows its image, and nothing of it but the boot sector.
known() { io --image-opts "$(boots "$1" ,fill=off,prefetch=none)" -c "read 0 512" >/dev/null; }
known machine
waits() { told "$1" query-blockstats '"waiting": [1-9]' "$(object query-nodes true)"; }
held scsi "$(boots machine ,node-name=disk,fill=off,error-after=3)" -device virtio-scsi-pci,iothread=thread,id=bus \
    -device scsi-hd,drive=disk,id=device,bus=bus.0,bootindex=1
check "a guest waits for a sector" wait_for 20 "a waiting request" waits scsi
check "its disk is unplugged although the link is dead" on scsi device_del "$(object id device)"
check "and its node deleted" wait_for 20 "the node to go" on scsi blockdev-del "$(object node-name disk)"
kill -CONT "${pid_of[origin]}"
check "another node is made" on scsi blockdev-add \
    "$(object driver vmstream node-name disk url "${url_of[origin]}/boot.img" cache-dir "$work/machine")"
check "and plugged in" on scsi device_add "$(object driver scsi-hd drive disk id device bus bus.0)"
reads() { told "$1" query-blockstats '"waiting": 0' "$(object query-nodes true)"; }
check "and it has nothing that waits" reads scsi
check "the machine ends" quit_daemon scsi

rm -rf "$work/machine"
known machine
held quits "$(boots machine ,node-name=disk,fill=off)" -device virtio-blk-pci,drive=disk,iothread=thread,bootindex=1
check "another guest waits" wait_for 20 "a waiting request" waits quits
check "it quits although the link is dead" quit_daemon quits
kill -CONT "${pid_of[origin]}"

# --- mistakes ---------------------------------------------------------------------------------------------------

one() { io --image-opts "$1" -c "read 0 512"; }
check "no such image" says "404" one "driver=vmstream,url=${url_of[origin]}/none.img"
check "no such server" says "Is the server running" \
    one "driver=vmstream,url=http://127.0.0.1:1/disk.img,options.0=open_timeout=200ms"
check "no URL" says "url" one "driver=vmstream,cache-dir=$work/none"
check "an URL of another kind" says "gopher" one "driver=vmstream,url=gopher://x/y"
check "an empty short name" says "Expected 'vmstream:'" io "vmstream:" -c "read 0 512"
check "an option that does not exist" says "colour" one "$(disk none ,colour=red)"
check "one of the library's that does not exist" says "colour" one "$(disk none ,options.0=colour=red)"
check "an option behind the driver's back" says "'options' cannot set" one "$(disk none ,options.0=url=x)"
check "a block size that is none" says "power of two" one "$(disk none ,block-size=1000)"
check "a secret that does not exist" says "nobody" one "$(disk none ,username=u,password-secret=nobody)"
check "two kinds of local file" says "exclude each other" one "$(disk none ",cache-file=$work/none")"
check "two meanings of patience" says "exclude each other" one "$(disk none ,error-after=1,pause-after=1)"
mkdir "$work/notdir" && : >"$work/notdir/file"
check "a cache that is no directory" fails one "$(disk notdir/file/x)"
start holder qemu-storage-daemon --blockdev "$(disk busy ,node-name=busy)" --pidfile "$work/holder.pid"
wait_for 10 "the holder of a cache" test -s "$work/holder.pid"
check "a cache that another process has" says "one user at a time" one "$(disk busy)"
check "its holder ends" stop holder
check "and then it is free" one "$(disk busy)"

img convert -O raw --image-opts "$(disk whole)" "$work/whole.raw"
stop origin || true
check "without the server a whole cache is read" img compare --image-opts "$(disk whole)" \
    "$(plain "$source")"
finish
