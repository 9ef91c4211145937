#!/bin/bash
# demo-restore.sh (make demo-restore): a spreadsheet that is open in a large Debian goes on elsewhere, from a link.
#
# A Debian of more than four gigabytes boots in QEMU (emulated; no KVM is needed), with X, twm and Gnumeric with a sheet. A
# restore point is taken of it and published. Three users work in the sheet, near the server; what they needed is learnt
# and published. Then other users, who do other things in the sheet, get it over a link of 25 Mbit/s and 50 ms, and
# over one of 8 Mbit/s and 30 ms, each with an empty cache:
#
#   download    everything first, as it lies there (the bytes in use, without holes) or packed with zstd -3. The packed size is
#               measured; the times are these sizes divided by the rate of the link, and start nothing yet
#   demand      a page of memory or a block of the disk comes when the guest touches it, and never earlier
#   learnt      the same, with the model and the packs that lie beside the image; nothing else is fetched
#
# "usable" is from pressing enter until the screen has answered the user's first move, "done" until all of the session's
# cells have been checked (desktop-session.py says how), "slowest" the longest that a later key went unanswered. An
# emulator that has just been started is slow by itself: it has to translate all code anew. Bytes and requests are what
# the origin counted until the session was done.
#
# LINKS, WAYS, LESSONS and PICTURES in the environment change the links ("RATE/RTT ..."), the ways ("learnt demand"), the
# number of users who are learnt from, and the directory that the pictures of the screens go to; PROFILE=small takes a
# system without the gigabytes. Needs 11 GB of room in TMPDIR, and about half an hour, most of it for the users to
# whom everything comes on demand: WAYS=learnt leaves them out.
set -euo pipefail
# shellcheck source=scripts/harness.sh
. "$(dirname "$0")/harness.sh"

links=${LINKS:-25mbit/50ms 8mbit/30ms}
ways=${WAYS:-learnt demand}
lessons=${LESSONS:-3}
profile=${PROFILE:-large}
pictures=${PICTURES:-$root/target/demo-restore}
memory_mib=384
# No session takes longer, also page by page over 50 ms; beyond that something hangs.
limit_s=900
# Longest that one key may go unanswered.
key_s=300

for way in $ways; do
    [[ " learnt demand " = *" $way "* ]] || die "no way '$way': ways are learnt and demand"
done

"$root/scripts/install-deps.sh" demo restore
[ -n "${VMSTREAM-}" ] || (cd "$root" && cargo build --release --quiet)
begin
[ -w /dev/fuse ] || die "no /dev/fuse that this user may open: load the fuse module, or run as root"
mkdir -p "$pictures"
session=$root/scripts/desktop-session.py
image=$("$root/scripts/build-desktop.sh" --profile "$profile")
echo "the system: $(cat "$image/size")"

echo "1. it boots, and its spreadsheet comes to rest"
qemu-img create -q -f qcow2 -b "$image/disk.img" -F raw "$work/disk.qcow2"
# A tablet, because a pointer that is seen over VNC must be where the user points.
start source qemu-system-x86_64 -nodefaults -no-user-config -display none \
    -machine pc-q35-7.2,accel=tcg,memory-backend=ram -m $memory_mib \
    -object "memory-backend-file,id=ram,size=${memory_mib}M,mem-path=$work/ram,share=on" \
    -device VGA,vgamem_mb=8 -device virtio-tablet-pci -device virtio-balloon-pci -device virtio-serial-pci \
    -chardev "socket,path=$work/agent,server=on,wait=off,id=agent" \
    -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 \
    -drive "file=$work/disk.qcow2,format=qcow2,if=none,id=disk" -device virtio-blk-pci,drive=disk \
    -qmp "unix:$work/source.qmp,server=on,wait=off" -serial "file:$work/source.serial"
opened() { grep -q '^@@ desktop ready' "$work/source.serial" || ! alive source; }
wait_for 300 "the spreadsheet" opened
alive source || { cat "$work/source.log" >&2; die "the machine ended while it booted"; }
timeout 300 "$session" --qmp "$work/source.qmp" --rest

echo "2. a restore point is taken and published"
"$vmstream" snapshot --qmp "$work/source.qmp" --agent "$work/agent" -o "$work/point"
stop source || true
rm -f "$work/ram" "$work/disk.qcow2"
# publish [OPTIONS...]: prints nothing; the name of the pointer and the root hash are always the same.
publish() { "$vmstream" publish --restore-point "$work/point" -o "$work/site" --name desktop "$@" 2>"$work/publish.log" >/dev/null ||
    { tail -n 5 "$work/publish.log" >&2; die "cannot publish"; }; }
publish
hash=$(sed -n 's/^root //p' "$work/site/desktop.vmp")
raw=$work/site/$(sed -n 's/^image //p' "$work/site/desktop.vmp")
used=$(du --block-size=1 "$raw" | cut -f 1)
memory_used=$(du --block-size=1 "$work/point/memory.raw" | cut -f 1)
packed=$(zstd -3 -q -c "$raw" | wc -c)
echo "   $((used / 1000000)) MB in use ($((packed / 1000000)) MB with zstd -3), of them $((memory_used / 1000000)) MB memory"

# user NAME VARIANT RATE RTT OPTIONS...: one user with an empty cache works in the sheet; then the machine is ended.
user() {
    local name=$1 variant=$2 rate=$3 rtt=$4 status=0
    shift 4
    serve "$name-origin" "$work/site" --rate "$rate" --rtt "$rtt"
    start_us=$(now_us)
    start "$name" "$vmstream" run "${url_of[$name-origin]}/desktop.vmp#$hash" --cache "$work/$name.cache" \
        --json-status "$work/$name.json" --option fill=off "$@" \
        -- -display none -qmp "unix:$work/$name.qmp,server=on,wait=off" -serial "file:$work/$name.serial"
    mounts+=("$work/$name.cache/run/mnt")
    wait_for 60 "the machine of '$name'" monitored "$name"
    timeout $limit_s "$session" --qmp "$work/$name.qmp" --serial "$work/$name.serial" --variant "$variant" \
        --limit $key_s --json "$work/$name.session" --picture "$pictures/$name.png" || status=$?
    [ $status = 0 ] || { cat "$work/$name.log" >&2; die "the session of '$name' failed ($status)"; }
    # Ended by the signal is how it should end.
    stop "$name" TERM || true
    stop "$name-origin"
}
monitored() { [ -S "$work/$1.qmp" ] && [ -e "$work/$1.serial" ] || ! alive "$1"; }

# row NAME TITLE: a line of the table.
rows=()
row() {
    rows+=("$(awk -v title="$2" -v start="$start_us" -v at="$(json_number "$work/$1.session" answered_at)" \
        -v began="$(json_number "$work/$1.session" started_at)" -v total="$(json_number "$work/$1.session" total_s)" \
        -v slowest="$(json_number "$work/$1.session" longest_s)" -v used="$used" -v packed="$packed" \
        -v bytes="$(json_number "$work/$1-origin.stats" link_bytes)" \
        -v requests="$(json_number "$work/$1-origin.stats" requests)" -v bits="$bits" 'BEGIN {
            usable = at - start / 1e6
            printf "%-34s %9.1f s %9.1f s %8.1f s %9.1f MB %8d  %5.0f x %5.0f x  %5.0f x %5.0f x", title, usable,
                began + total - start / 1e6, slowest, bytes / 1e6, requests,
                used / bytes, packed / bytes, used * 8 / bits / usable, packed * 8 / bits / usable }')")
}
# download TITLE BYTES: one that is only computed.
download() {
    rows+=("$(awk -v title="$1" -v bytes="$2" -v bits="$bits" 'BEGIN {
        printf "%-34s %9.1f s %11s %10s %9.1f MB", title, bytes * 8 / bits, "-", "-", bytes / 1e6 }')")
}

echo "3. $lessons users work in it, near the server, and are learnt from"
mkdir "$work/lessons"
for ((lesson = 1; lesson <= lessons; lesson++)); do
    user "lesson$lesson" "$lesson" 1gbit 1ms
    cp "$work/lesson$lesson.cache"/sessions/*.vms "$work/lessons/"
    rm -rf "$work/lesson$lesson.cache"
done
publish --sessions "$work/lessons"
rm -rf "$work/point"
echo "   $(sed -n 's/^packs [^ ]* //p' "$work/site/desktop.vmp") bytes of packs and model"

echo "4. other users, other links"
variant=$((lessons + 1))
for link in $links; do
    rate=${link%/*} rtt=${link#*/}
    bits=$(echo "$rate" | sed 's/gbit$/000000000/; s/mbit$/000000/; s/kbit$/000/')
    rows+=("$rate, $rtt:")
    download "  download (computed)" "$used"
    download "  download packed (computed)" "$packed"
    for way in $ways; do
        options=()
        [ "$way" != demand ] || options=(--option prefetch=none --option model=off)
        user "$way-$rate" $variant "$rate" "$rtt" ${options[@]+"${options[@]}"}
        row "$way-$rate" "  $way"
        rm -rf "$work/$way-$rate.cache"
    done
    variant=$((variant + 1))
done

echo
printf '%-34s %11s %11s %10s %12s %8s  %15s  %15s\n' '' '' '' '' '' '' 'fewer bytes' 'sooner than'
printf '%-34s %11s %11s %10s %12s %8s  %7s %7s  %7s %7s\n' '' usable 'done' slowest transferred requests raw packed raw packed
printf '%s\n' "${rows[@]}"
echo
echo "pictures of the restored screens: $pictures"
