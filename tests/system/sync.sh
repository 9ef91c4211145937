#!/bin/bash
# A write to a file opened with O_SYNC or O_DSYNC is durable when it returns: the mount is killed right behind it.
#
# Monitors that send no fsync rely on it: User-Mode Linux opens its disk so with the flag "s" (ubd0s=FILE).
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
begin
mkdir "$work/published"
source_image "$work/published/disk.img" 16
cp "$work/published/disk.img" "$work/expected.img"
serve origin "$work/published"

block=0
for flag in dsync sync; do
    for _ in 1 2 3 4; do
        mount_disk disk "${url_of[origin]}/disk.img" "$work/cache" --option fill=off
        # A whole block and a part of one.
        for bytes in 4096 512; do
            block=$((block + 1))
            head -c $bytes /dev/urandom >"$work/data"
            for file in "$work/disk/disk" "$work/expected.img"; do
                dd if="$work/data" of="$file" bs=$bytes seek=$((block * 8 * 4096 / bytes)) oflag=$flag conv=notrunc status=none
            done
        done
        killed_mount disk
    done
    mount_disk disk "${url_of[origin]}/disk.img" "$work/cache" --option fill=off
    check "what was written with $flag outlives SIGKILL" cmp "$work/disk/disk" "$work/expected.img"
    check "the disk unmounts cleanly" unmount disk
done
finish
