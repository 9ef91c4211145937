#!/bin/bash
# The file system of the cache runs full, and later has room again.
#
# The cache lies on a small tmpfs beside a ballast file that is removed half-way. While there is no room, the
# tool says what is full, nobody gets a wrong byte, and a write that cannot be kept is refused or waits, but is
# never acknowledged and lost. With room again reading and writing go on, in the same mount.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
need_root "mount a small tmpfs"
begin
mib=$((1 << 20))
mkdir "$work/published" "$work/small"
source=$work/published/disk.img
source_image "$source" 48
mount -t tmpfs -o size=56m tmpfs "$work/small" 2>/dev/null || skip "this system lets nobody mount a tmpfs"
mounts+=("$work/small")
# Room for two thirds of the image.
head -c 24M /dev/zero >"$work/small/ballast"

serve origin "$work/published"
mount_disk disk "${url_of[origin]}/disk.img" "$work/small/cache" --option fill=off --option retry_max=500ms
check "a write goes well while there is room" dd if="$work/published/disk.img" of="$work/disk/disk" \
    bs=4096 count=4 seek=16 conv=notrunc,fsync status=none
cp "$source" "$work/expected.img"
dd if="$source" of="$work/expected.img" bs=4096 count=4 seek=16 conv=notrunc status=none

start reader dd if="$work/disk/disk" of="$work/copy" bs=64k
told() { grep -Eqi 'no space|is full|disk full' "$work/disk.log"; }
check "the tool says that there is no room" wait_for 60 "a message about the full disk" told
check "and where" grep -Eqi "$work/small/cache.*(space|full)|(space|full).*$work/small/cache" "$work/disk.log"

read_so_far=$(stat -c %s "$work/copy")
check "what was read so far is right" cmp --bytes="$read_so_far" "$work/copy" "$work/expected.img"
check "what is resident can still be read" timeout 10 cmp --bytes=$((2 * mib)) "$work/disk/disk" "$work/expected.img"

# Into the last MiB, which nobody has read: its blocks have no room.
refused=yes
timeout 10 dd if="$source" of="$work/disk/disk" bs=64k count=16 seek=$((47 * 16)) conv=notrunc,fsync \
    status=none 2>"$work/write.err" && refused=no
check "the write that has no room is not acknowledged" test $refused = yes

rm "$work/small/ballast"
wait_for 60 "the reader to end" gone reader || true
stop reader || true
# The reader may have been told of an error or may have waited; a new one must get everything but the last MiB,
# where the refused write may have left part of its bytes.
check "with room again everything reads right" timeout 60 cmp --bytes=$((47 * mib)) "$work/disk/disk" "$work/expected.img"
check "with room again the write goes well" timeout 60 dd if="$source" of="$work/disk/disk" bs=64k count=16 \
    seek=$((47 * 16)) conv=notrunc,fsync status=none
dd if="$source" of="$work/expected.img" bs=64k count=16 seek=$((47 * 16)) conv=notrunc status=none
check "the disk unmounts cleanly" unmount disk

mount_disk disk "${url_of[origin]}/disk.img" "$work/small/cache" --option fill=off
check "a new mount shows the same" timeout 60 cmp "$work/disk/disk" "$work/expected.img"
check "the disk unmounts cleanly again" unmount disk
stop origin || true
umount "$work/small"
finish
