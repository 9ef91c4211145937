#!/bin/bash
# A stock guest boots from a streamed root disk with a second streamed disk beside it, and every byte is right.
#
# 1. Read: each file of the root and the whole second disk are hashed inside the guest and compared with what the
#    origin publishes.
# 2. Write: the guest writes files and single sectors; after a clean unmount a new mount of the same caches
#    shows them to the next boot, and everything else on the second disk is still the origin's.
# 3. Without the origin: the same boot again with no server running, from what is already here.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
need_command linux.uml user-mode-linux
need_command debugfs e2fsprogs
begin
image=$("$root/scripts/build-root.sh" --profile "${PROFILE:-full}")
mkdir "$work/published"
disk2=$work/published/disk2.img
source_image "$disk2" 64

serve root-origin "$image"
serve disk2-origin "$work/published"
attach() {
    mount_disk root-disk "${url_of[root-origin]}/disk.img" "$work/root.cache"
    mount_disk second-disk "${url_of[disk2-origin]}/disk2.img" "$work/second.cache"
}
detach() {
    check "the root disk unmounts cleanly" unmount root-disk
    check "the second disk unmounts cleanly" unmount second-disk
}
disks=("$work/root-disk/disk" --disk2 "$work/second-disk/disk" --timeout 240)

attach
boot read "${disks[@]}" --job hash --ro
same "every file of the streamed root is the published one" \
    "$(cat "$image/root.sha256")" "$(marker "$work/read.console" root sha256)"
same "the streamed second disk is the published one" \
    "$(sha256sum "$disk2" | cut -d ' ' -f 1)" "$(marker "$work/read.console" disk2 sha256)"

# What the "write" job is to have written, computed here from the published image and the job's own rules.
written=$({
    for n in 1 2 3 4 5 6 7 8; do (set +o pipefail; yes "entry $n of a guest that writes" | head -c $((n * n * 37501))); done
    debugfs -R 'cat /etc/passwd' "$image/disk.img" 2>/dev/null
    echo "# appended by the guest"
} | sha256sum | cut -d ' ' -f 1)
cp "$disk2" "$work/expected.img"
for sector in 1 77 4099 20000; do
    (set +o pipefail; yes "sector $sector" | head -c 512) |
        dd of="$work/expected.img" bs=512 seek=$sector conv=notrunc status=none
done

boot write "${disks[@]}" --job write
same "the guest reads back what it wrote" "$written" "$(marker "$work/write.console" written sha256)"
detach

attach
boot again "${disks[@]}" --job written
same "the guest finds its files after a new mount" "$written" "$(marker "$work/again.console" written sha256)"
same "the guest finds its sectors after a new mount" \
    "$(marker "$work/write.console" sectors sha256)" "$(marker "$work/again.console" sectors sha256)"
check "its sectors changed nothing else on the second disk" cmp "$work/second-disk/disk" "$work/expected.img"
detach

stop root-origin || true
stop disk2-origin || true
attach
boot alone "${disks[@]}" --job written
same "without the origin the guest finds its files" "$written" "$(marker "$work/alone.console" written sha256)"
check "without the origin the second disk is whole" cmp "$work/second-disk/disk" "$work/expected.img"
detach
finish
