#!/bin/bash
# demo.sh (make demo): one guest, one image on a web server 25 Mbit/s and 50 ms away, five ways to start it.
#
#   download   the whole image first, then boot from the local file: what one does today
#   demand     boot at once; a block comes when the guest asks for it and never earlier. With blocks of 64 KiB: with
#              the default of 4 KiB, which streaming uses, the guest would wait for three minutes in 50 ms steps
#   streaming  boot at once; what is about to be used comes ahead, and the rest of the link fills the image
#   learnt     the same, but earlier guests have left their traces: what two streaming runs recorded - the one above and
#              one more - was trained into a model, and the publisher has put that beside the image. The mount finds it there
#   published  the same model, but the image was published (vmstream publish): what it foresees comes in packs, compressed and
#              in order, zeroes do not come at all, and every block is checked against the hash in the link
#
# All five are really carried out, each with an empty cache and an origin of its own that paces the link. The
# clock starts when the user presses enter: at the download's or the mount's start. "First output" is the moment
# the application's first line appears on the guest's console. Stalls are the mount's own account: how often and
# how long in all the guest waited for a block. Bytes and requests are what the origin counted. RATE, RTT and
# DEMAND_BLOCK in the environment change the link and the block size of the second way, PICTURE where the picture of
# the fourth way goes.
set -euo pipefail
# shellcheck source=scripts/harness.sh
. "$(dirname "$0")/harness.sh"

rate=${RATE:-25mbit} rtt=${RTT:-50ms}
demand_block=${DEMAND_BLOCK:-64K}
# More than the slowest way needs, also with DEMAND_BLOCK=4K; beyond that something hangs.
boot_limit_s=300

"$root/scripts/install-deps.sh" demo
[ -n "${VMSTREAM-}" ] || (cd "$root" && cargo build --release --quiet)
begin
[ -w /dev/fuse ] || die "no /dev/fuse that this user may open: load the fuse module, or run as root"
image=$("$root/scripts/build-root.sh" --profile demo)
size=$(stat -c %s "$image/disk.img")
echo "image: $((size >> 20)) MiB, Debian with Python; link: $rate, $rtt round trip"

# boot NAME DISK: runs the guest's application and stores its console; shows what a user would see.
boot() {
    local name=$1 disk=$2
    boot_us=$(now_us)
    "$root/scripts/uml.sh" "$disk" --timeout $boot_limit_s >"$work/$name.console" ||
        { tail -n 20 "$work/$name.console" >&2; die "the guest of '$name' failed"; }
    end_us=$(now_us)
    sed -n 's/^ *[0-9.]* \(ledger: .*\)/  guest: \1/p' "$work/$name.console"
}

# row NAME TITLE [STATUS]: one line of the table from the clocks, the console and the counters of this way.
rows=()
row() {
    local name=$1 title=$2 status=${3-} stalls=- stall_s=-
    local first
    first=$(marker "$work/$name.console" first-output)
    [ -n "$first" ] || die "the guest of '$name' never printed its first line"
    if [ -n "$status" ]; then
        stalls=$(json_number "$status" demand_stalls)
        stall_s=$(json_number "$status" stall_s)
    fi
    rows+=("$(awk -v t="$title" -v start="$start_us" -v boot="$boot_us" -v end="$end_us" -v first="$first" \
        -v n="$stalls" -v s="$stall_s" -v bytes="$(json_number "$work/$name-origin.stats" bytes)" \
        -v requests="$(json_number "$work/$name-origin.stats" requests)" 'BEGIN {
            printf "%-28s %10.1f s %10.1f s %8s %9s %9.1f MB %9s", t, (boot - start) / 1e6 + first,
                (end - start) / 1e6, n == "" ? "?" : n, s == "-" ? s : sprintf("%.1f s", s), bytes / 1e6, requests }')")
}

# What the origin serves: for the fourth way a directory with a model in it, for the fifth one with a published image.
published=$image
image_name=disk.img
origin() { serve "$1-origin" "$published" --rate "$rate" --rtt "$rtt"; }

echo "1. download first"
origin download
start_us=$(now_us)
curl -sS --fail --max-time 600 -o "$work/download.img" "${url_of[download-origin]}/disk.img"
cmp "$work/download.img" "$image/disk.img" || die "the downloaded image differs from the published one"
boot download "$work/download.img"
stop download-origin
row download "download first"
rm -f "$work/download.img"

# run NAME [OPTIONS...]: boots from a mount of the same image, with an empty cache.
run() {
    local name=$1
    shift
    origin "$name"
    start_us=$(now_us)
    mount_disk "$name" "${url_of[$name-origin]}/$image_name" "$work/$name.cache" "$@"
    boot "$name" "$work/$name/disk"
    unmount "$name"
    stop "$name-origin"
}

# stream NAME TITLE [OPTIONS...]: the same, as a line of the table.
stream() {
    local name=$1 title=$2
    shift 2
    run "$name" "$@"
    row "$name" "$title" "$work/$name.json"
}

echo "2. on demand"
stream demand "demand only, blocks of $demand_block" --option prefetch=none --option fill=off --option block_size="$demand_block"
echo "3. streaming"
stream streaming "streaming, readahead"
echo "4. streaming, learnt: from the run above and one more, by a model that lies beside the image"
run again
mkdir "$work/site"
cp --reflink=auto --sparse=always "$image/disk.img" "$work/site/"
"$vmstream" train -o "$work/site/disk.img.vmm" "$work"/{streaming,again}.cache/sessions/*.vms | sed 's/^.*\//  /'
published=$work/site
stream learnt "streaming, learnt"
[ "$(json_number "$work/learnt.json" model_sessions)" = 2 ] || die "the guest of 'learnt' was not followed by the model"
# This guest once more, in virtual time, to be looked at.
picture=${PICTURE:-$root/target/demo.svg}
mkdir -p "$(dirname "$picture")"
"$vmstream" replay --model "$work/site/disk.img.vmm" --rate "$rate" --rtt "$rtt" --think 1 --svg "$picture" \
    --trace "$work"/learnt.cache/sessions/*.vms >/dev/null

echo "5. published: the same image and model, as vmstream publish puts them on a web server"
link=$("$vmstream" publish "$image/disk.img" -o "$work/publication" --name disk --model "$work/site/disk.img.vmm")
published=$work/publication
image_name=${link##*/}
stream published "published, learnt"
[ "$(json_number "$work/published.json" model_sessions)" = 2 ] || die "the guest of 'published' was not followed by the model"

echo
printf '%-28s %12s %12s %8s %9s %12s %9s\n' '' 'first output' 'total' stalls stalled transferred requests
printf '%s\n' "${rows[@]}"
echo
echo "picture of the fourth way: $picture"
