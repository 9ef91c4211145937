#!/bin/bash
# The time of a mounted disk is the published image's, and only a guest's writes change it: an overlay on it, make and rsync look at it.
#
# 1. While bytes arrive, in one mount after the other, with a cache and without.
# 2. A guest writes: by the mount, and by the kernel itself once the image is complete. The next mount begins anew.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
begin
mkdir "$work/published"
source_image "$work/published/disk.img" 32
published=1234567890
touch -d "@$published" "$work/published/disk.img"
serve origin "$work/published" --rate 100mbit
link=${url_of[origin]}/disk.img
time_of() { stat -c %Y "$work/$1/disk"; }

# others NAME: the times seen that are not the image's, while all of it is read.
others() {
    cat "$work/$1/disk" >/dev/null &
    while kill -0 $! 2>/dev/null; do time_of "$1"; done | { grep -vx "$published" || true; }
    wait $!
}
for round in 1 2 3 4 5 6; do
    mount_disk disk "$link" "$work/cache"
    [ "$(time_of disk)" = $published ] || echo "round $round: $(time_of disk)"
    unmount disk
done >"$work/seen"
check "in mount after mount it is the image's" test ! -s "$work/seen"
mount_disk disk "$link" "$work/cache"
others disk >"$work/seen"
check "and stays it while bytes arrive" test ! -s "$work/seen"

not() { ! "$@"; }
write() { printf x | dd of="$work/disk/disk" bs=1 seek=70000 conv=notrunc status=none; }
younger() { [ "$(time_of disk)" -ge "$1" ]; }
before=$(date +%s)
write
check "a write shows" younger "$before"
check "the disk unmounts" unmount disk
mount_disk disk "$link" "$work/cache"
same "the next mount begins with the image's" $published "$(time_of disk)"
complete() { "$vmstream" status --json "$work/cache" | grep -q '"complete": true'; }
check "all of the image arrives" wait_for 60 "the rest" complete
before=$(date +%s)
write
check "a write to the complete image shows" younger "$before"
check "the disk unmounts" unmount disk
same "its file has the image's time" $published "$(stat -c %Y "$work/cache/disk")"

mount_disk disk "$link" "$work/cache" --read-only
same "so has a mount that nobody can write to" $published "$(time_of disk)"
check "which refuses" not write
same "and is not changed" $published "$(time_of disk)"
check "the disk unmounts" unmount disk

mkdir "$work/brief"
mounts+=("$work/brief")
start brief "$vmstream" mount "$link" "$work/brief" --option fill=on
wait_for 20 "the disk" test -e "$work/brief/disk"
others brief >"$work/seen"
check "without a cache it is the same" test ! -s "$work/seen"
check "the mount ends" stop brief
finish
