#!/bin/bash
# Random reads and writes by fio over a streamed disk, each read checked against what was written before.
#
# Four jobs in regions of their own: buffered blocks; buffered pieces of all sizes from single sectors up; direct
# pieces with a sync after every few; and reads mixed with writes. After them discards and writes go at random to
# a fifth region and, the same, to a plain file. Then, from a new mount of the same cache, all that was written is
# verified once more, and what lies between and behind the regions must still be the origin's.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
need_command fio fio
begin

# Source: 96 MiB. Regions begin at odd sectors and leave gaps of a few sectors, so that their edges share blocks
# with the origin's bytes.
mib=$((1 << 20)) region=$((14 << 20))
mkdir "$work/published"
source=$work/published/disk.img
source_image "$source" 96
serve origin "$work/published"
url=${url_of[origin]}/disk.img

# job NAME NUMBER: where it works, and what all jobs share. Blocks are checked by a crc and a header with their
# own place, so a block that moved or an old one is noticed as well.
job() {
    local name=$1 number=$2
    echo "--name=$name --filename=$work/disk/disk --offset=$((number * (region + 3 * 512) + 512)) --size=$region" \
        "--verify=crc32c --verify_fatal=1 --randseed=$((2006 + number))"
}
common="--verify_state_save=0 --ioengine=psync --thread --invalidate=0 --group_reporting --output=$work/fio.out"
aligned="$(job aligned 0) --rw=randwrite --bs=4k --direct=0"
pieces="$(job pieces 1) --rw=randwrite --bssplit=512/30:1536/15:4k/25:7680/10:64k/20 --fsync=64"
synced="$(job synced 2) --rw=randwrite --bsrange=512-16k --blockalign=512 --direct=1 --fsync=16"
mixed="$(job mixed 3) --rw=randrw --rwmixread=40 --bs=8k --verify_backlog=64"

# shellcheck disable=SC2086  # the jobs are words
fio_run() {
    local limit_s=150 status=0
    timeout $limit_s fio $common "$@" >"$work/fio.err" 2>&1 || status=$?
    [ $status = 0 ] || { echo "fio ended with $status"; tail -n 15 "$work/fio.err" "$work/fio.out"; return 1; }
    # A disk that refuses writes would leave nothing to verify.
    grep -q 'WRITE: bw=\|READ: bw=' "$work/fio.out"
}

# discards: ranges of any offset and length, within blocks and over many, on the disk and on a plain file alike.
# fio can discard on block devices only, hence by hand.
discards() {
    local round offset length
    # The same sequence on every run.
    RANDOM=2006
    cp "$source" "$work/expected.img"
    for ((round = 0; round < 150; round++)); do
        offset=$((64 * mib + (RANDOM * 32768 + RANDOM) % (8 * mib)))
        length=$((RANDOM % 40000 + 1))
        for file in "$work/disk/disk" "$work/expected.img"; do
            if ((round % 3)); then
                fallocate --punch-hole --offset "$offset" --length "$length" "$file"
            else
                # Bytes of some other place of the source.
                dd if="$source" of="$file" iflag=skip_bytes,fullblock oflag=seek_bytes skip=$((offset / 2)) \
                    seek="$offset" bs="$length" count=1 conv=notrunc status=none
            fi || return 1
        done
    done
    cmp --ignore-initial="$discard_begin" --bytes="$discard_length" "$work/expected.img" "$work/disk/disk"
}
# A little more than where the discards may go, to see that nothing beside them changed.
discard_begin=$((63 * mib)) discard_length=$((10 * mib))

mount_disk disk "$url" "$work/cache"
size=$(stat -L -c %s "$work/disk/disk")
same "the disk has the size of the image" $((96 * mib)) "$size"
# shellcheck disable=SC2086  # the jobs are words
check "four jobs at once write and verify" fio_run $aligned $pieces $synced $mixed
check "discards and writes at random read back right" discards
check "the disk unmounts cleanly" unmount disk

mount_disk disk "$url" "$work/cache"
# shellcheck disable=SC2086
check "all that was written verifies from a new mount" fio_run $aligned --verify_only $pieces --verify_only $synced --verify_only
check "the sector before the first region is the origin's" equal_bytes "$source" "$work/disk/disk" 0 512
for number in 0 1 2 3; do
    check "the gap behind region $number is the origin's" equal_bytes "$source" "$work/disk/disk" \
        $((number * (region + 3 * 512) + 512 + region)) $((3 * 512))
done
check "discards and writes are kept" equal_bytes "$work/expected.img" "$work/disk/disk" $discard_begin $discard_length
check "all behind them is the origin's" equal_bytes "$source" "$work/disk/disk" $((73 * mib)) $((23 * mib))
check "the disk unmounts cleanly again" unmount disk
stop origin || true
finish
