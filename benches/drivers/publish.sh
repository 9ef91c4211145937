#!/bin/bash
# publish.sh [IMAGE [ROUNDS]]: how fast an image is published, beside zstd -3 -T2 over the bytes of it that are used.
#
# Both read from memory and write to the same disk, and both are waited for until what they wrote is there. They take turns
# ROUNDS times (5), and the medians count. Without IMAGE it is the Debian image that the system tests boot. The aim is a ratio of 0.7:
# a publisher who compressed his images before will hardly notice.
set -euo pipefail

# shellcheck source=scripts/harness.sh
. "$(dirname "$0")/../../scripts/harness.sh"

image=${1:-$("$root/scripts/build-root.sh")/disk.img}
rounds=${2:-5}
vmstream=${VMSTREAM:-$root/target/release/vmstream}
[ -x "$vmstream" ] || { echo "publish.sh: $vmstream is not built: run make" >&2; exit 1; }
command -v zstd >/dev/null || { echo "publish.sh: there is no zstd (Debian package zstd)" >&2; exit 1; }

# On a disk: what lies in memory costs nothing to write.
place=$(mktemp -d "${TMPDIR:-/var/tmp}/vmstream-publish.XXXXXX")
trap 'rm -rf "$place"' EXIT

# The used bytes: all blocks of 4096 that are not zero, one behind the other.
python3 - "$image" "$place/used" <<'PYTHON'
import sys
zero = bytes(4096)
with open(sys.argv[1], "rb") as image, open(sys.argv[2], "wb") as used:
    while piece := image.read(1 << 20):
        for at in range(0, len(piece), 4096):
            if any(block := piece[at:at + 4096]):
                used.write(block)
PYTHON
used=$(stat -c %s "$place/used")
cat "$image" "$place/used" >/dev/null

# seconds COMMAND...: how long it takes.
seconds() {
    local begin=$EPOCHREALTIME
    "$@" >/dev/null 2>&1
    awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }'
}
compress() { zstd -3 -T2 -q -f "$place/used" -o "$place/used.zst" && sync "$place/used.zst"; }
compress_only() { zstd -3 -T2 -q -c "$place/used"; }
publish() { rm -rf "$place/site" && "$vmstream" publish "$image" -o "$place/site" --name image; }
link() {
    rm -rf "$place/site" && mkdir "$place/site" &&
        "$vmstream" publish "$place/linked.img" -o "$place/site" --name image --link
}
# A guest that reads all that is used, so that all of it is packed; published before, so that packing is all there is to do.
pack() {
    "$vmstream" publish "$place/linked.img" -o "$place/packed" --name image --link --model "$place/model.vmm"
}
# So that each round packs anew: what is published already is not.
unpack() { sed -i '/^packs /d; /^check /d' "$place/packed/image.vmp"; }
cp --sparse=always "$image" "$place/linked.img"
python3 - "$image" "$place/guest.vmtrace" <<'PYTHON'
import os, sys
zero = bytes(4096)
with open(sys.argv[1], "rb") as image, open(sys.argv[2], "w") as trace:
    print(f"# vmtrace 1 size={os.fstat(image.fileno()).st_size} block=4096", file=trace)
    at, n = 0, 0
    while piece := image.read(65536):
        if any(piece):
            print(n * 1000, "R", at, len(piece), file=trace)
            n += 1
        at += len(piece)
PYTHON
mkdir "$place/packed"
"$vmstream" train --quiet -o "$place/model.vmm" "$place/guest.vmtrace"
"$vmstream" publish --quiet "$place/linked.img" -o "$place/packed" --name image --link >/dev/null
sync

for what in compress publish compress_only link pack; do : >"$place/$what.s"; done
for ((round = 0; round < rounds; round++)); do
    for what in compress publish compress_only link; do seconds $what >>"$place/$what.s"; done
    unpack
    seconds pack >>"$place/pack.s"
done
median() { sort -n "$place/$1.s" | awk '{ s[NR] = $1 } END { print s[int((NR + 1) / 2)] }'; }
rate() { awk -v used="$used" -v s="$(median "$1")" 'BEGIN { printf "%.0f MB/s in %.2f s", used / s / 1e6, s }'; }
ratio() { awk -v a="$(median "$1")" -v b="$(median "$2")" 'BEGIN { printf "%.2f", a / b }'; }
awk -v used="$used" 'BEGIN { printf "%.0f MB used; medians of '"$rounds"' rounds\n", used / 1e6 }'
echo "zstd -3 -T2 to a file       $(rate compress)"
echo "publish                     $(rate publish), $(ratio compress publish) x"
echo "zstd -3 -T2 to nowhere      $(rate compress_only)"
echo "publish --link              $(rate link), $(ratio compress_only link) x"
echo "publish --link and packs    $(rate pack)"
