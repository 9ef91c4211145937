#!/bin/bash
# A desktop with an open spreadsheet goes on elsewhere, from a link, twenty times out of twenty.
#
# 1. The restore point of the small desktop is published; one user works in the sheet and is learnt from.
# 2. Twenty others, two at a time, each with a cache of its own over a link of its own, change a number of their own, add a
#    formula of their own, save, and have the guest print its cells: all of them are right.
# 3. Whatever their guests asked of memory and of disk came over the link, as each cache began empty and QEMU had no
#    other disk; and what lies in the caches now is what was published, block for block.
#
# The desktop and its restore point are made once and kept (scripts/build-desktop.sh, scripts/desktop-point.sh).
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/desktop-users.sh
. "$root/scripts/desktop-users.sh"

need_fuse
need_root "make the system of the desktop"
need_command mmdebstrap mmdebstrap
need_command qemu-system-x86_64 qemu-system-x86
need_command qemu-img qemu-utils
need_command python3 python3
restores=20
# A session takes 10 to 15 s where nobody else uses the processors.
limit_s=180
rate=100mbit rtt=20ms
begin
point=$(VMSTREAM=$vmstream "$root/scripts/desktop-point.sh" --profile small)

publish() { "$vmstream" publish --quiet --restore-point "$point" -o "$work/site" --name desktop "$@"; }
check "the restore point is published" publish
hash=$(sed -n 's/^root //p' "$work/site/desktop.vmp")
raw=$work/site/$(sed -n 's/^image //p' "$work/site/desktop.vmp")
# region NAME: where it begins and how long it is; the table is the end of the image.
region() { tail -c 4096 "$raw" | tr -d '\0' | sed -n "s/^$1 //p"; }
read -r disk_at disk_bytes < <(region disk)
read -r memory_at memory_bytes < <(region memory)

learnt_from() {
    begin_user lesson 1gbit 1ms && let_work lesson "$limit_s" --variant 1 --short
    end_user lesson || { cat "$work/lesson-session.log"; return 1; }
    publish --sessions "$work/lesson.cache/sessions"
}
check "a user works in the sheet and is learnt from" learnt_from

# asked NAME FROM BYTES: bytes that its guest asked of a region.
asked() { awk -v from="$2" -v to=$(($2 + $3)) '$2 == "R" && $3 >= from && $3 < to { sum += $4 } END { printf "%d\n", sum }' "$work/$1.vmtrace"; }
# The disk below the one that the guest writes to.
on_the_mount() {
    [ "$(qemu-img info -U --output=json "$work/$1.cache/run/disk.qcow2" | sed -n 's/.*"full-backing-filename": "\(.*\)".*/\1/p')" = \
        "$work/$1.cache/run/mnt/disk.raw" ]
}
right() {
    local status=0
    end_user "$1" || status=$?
    cat "$work/$1-session.log"
    return "$status"
}
streamed() {
    local memory disk
    memory=$(asked "$1" "$memory_at" "$memory_bytes") disk=$(asked "$1" "$disk_at" "$disk_bytes")
    echo "$memory bytes of memory, $disk of disk"
    # Less than this no session can do with; and all of it is much more than any asks for.
    [ "$memory" -gt $((8 << 20)) ] && [ "$memory" -lt $((memory_bytes / 2)) ] && [ "$disk" -gt $((1 << 20)) ] && [ "$disk" -lt $((disk_bytes / 2)) ]
}
as_published() { "$vmstream" verify "$work/$1.cache" "$work/site/desktop.vmp#$hash"; }

all_right=0
for ((first = 1; first <= restores; first += 2)); do
    users=()
    for ((user = first; user < first + 2 && user <= restores; user++)); do
        name=user$user
        users+=("$name")
        begin_user "$name" $rate $rtt || { cat "$work/$name.log"; die "no machine for user $user"; }
        let_work "$name" "$limit_s" --variant $((user + 1)) --short
    done
    for name in "${users[@]}"; do check "$name has its disk from the mount" on_the_mount "$name"; done
    for name in "${users[@]}"; do
        before=$failures
        check "$name: the cells are right" right "$name"
        [ "$failures" = "$before" ] || continue
        all_right=$((all_right + 1))
        sed 's/^/# /' "$work/$name-session.log"
        check "$name: memory and disk came over the link" streamed "$name"
        sed 's/^/# /' "$work/check.out"
        check "$name: what came is what was published" as_published "$name"
        rm -rf "$work/$name.cache"
    done
done
same "restores that answered rightly" $restores $all_right
finish
