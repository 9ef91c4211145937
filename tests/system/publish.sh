#!/bin/bash
# publish.sh: an image is published, rehearsed twice and streamed; then a new version of it.
#
# Stock User-Mode Linux over the mount boots and starts an application, each time with an empty cache over a link of 25 Mbit/s
# and 50 ms: first from the raw image as it lies there, then from the link, which has been rehearsed. What is compared
# are counts, stalls and bytes, as times depend on the machine. Every file that the guest reads is checked by its own sum.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
need_command linux.uml user-mode-linux
begin
image=$("$root/scripts/build-root.sh")
site=$work/site
export TMPDIR=$work

publish() { "$vmstream" publish "$@" -o "$site" --name disk 2>"$work/publish.log"; }
check "the image is published" publish "$image/disk.img"
link=$(tail -n 1 "$work/check.out")
raw=$(sed -n 's/^image //p' "$site/disk.vmp")
check "the raw image lies there unchanged" cmp "$image/disk.img" "$site/$raw"
tree_bytes=$(sed -n 's/^tree [^ ]* //p' "$site/disk.vmp")
used=$(du --block-size=1 "$site/$raw" | cut -f 1)
check "its hashes are 0.6 % of the used bytes at most" test $((tree_bytes * 1000)) -le $((used * 6))

# boot NAME URL [OPTIONS...]: a whole guest with an empty cache; nothing is fetched but what it needs or is foreseen to.
boot() {
    local name=$1 url=$2 status=0
    shift 2
    mount_disk "$name" "$url" "$work/$name.cache" --option fill=off "$@"
    console "$name" run_uml "$work/$name/disk" --job app || status=$?
    unmount "$name" || status=1
    return "$status"
}
serve origin "$site" --rate 25mbit --rtt 50ms
check "a guest boots from the raw image" boot raw "${url_of[origin]}/$raw"

check "a command that fails publishes nothing" test "$(
    "$vmstream" rehearse "$site/disk" -- sh -c "head -c 1M {disk} >/dev/null; exit 7" >"$work/rehearse.log" 2>&1
    echo $?
)$(grep -c '^packs' "$site/disk.vmp")" = 70
rehearse() { "$vmstream" rehearse "$site/disk" --times 2 -- "$root/scripts/uml.sh" '{disk}' --job app; }
check "a boot is rehearsed twice" rehearse
check "and packs are published" grep -q '^packs disk-[0-9a-f]*\.vmk [0-9]*$' "$site/disk.vmp"
check "the image has stayed as it was" grep -qx "image $raw" "$site/disk.vmp"
check "no copy is left behind" test -z "$(find "$work" -maxdepth 1 -name 'vmstream-rehearsal-*')"

hash=${link##*#}
check "a guest boots from the link" boot published "${url_of[origin]}/disk.vmp#$hash"
for what in demand_stalls bytes_fetched; do
    before=$(json_number "$work/raw.json" $what) after=$(json_number "$work/published.json" $what)
    echo "# $what: $before from the raw image, $after from the link"
    check "it has fewer $what" test "${after:-0}" -lt "${before:-0}"
done
check "what it holds is what was published, but for what the guest wrote" sh -c \
    "'$vmstream' verify '$work/published.cache' >'$work/verify'; [ \$? != 1 ] && grep '^published  [1-9]' '$work/verify'"
sed -n 's/^[a-z]/# &/p' "$work/verify"
stop origin
# What follows moves the whole image, so the origin is near from here on.
serve near "$site"
mount_disk read "${url_of[near]}/disk.vmp#$hash" "$work/read.cache" --read-only
check "a guest reads every file" console read run_uml "$work/read/disk" --job hash --ro --timeout 240
unmount read
same "and all are the published ones" "$(cat "$image/root.sha256")" "$(marker "$work/read.console" root sha256)"

# A new version: something before everything else, so that all lies elsewhere.
{ head -c 1M /dev/zero | tr '\0' x; cat "$site/$raw"; } >"$work/new.img"
check "a new version is published" publish "$work/new.img"
new=$(tail -n 1 "$work/check.out")
check "what was learnt is in it" grep -q '^packs' "$site/disk.vmp"
check "the old files are there for who uses them" test -e "$site/$raw"
fetch() { "$vmstream" fetch "$new" -o "$work/fetched.img" --json-status "$work/fetched.json" "$@"; }
check "it is fetched with what the old cache holds" fetch --reuse "$work/read.cache"
check "and is the new version" cmp "$work/new.img" "$work/fetched.img"
check "most of it was here" test "$(json_number "$work/fetched.json" bytes_fetched)" -lt $((used / 2))
check "byte for byte what was published" "$vmstream" verify "$work/fetched.img" "$new"
stop near

if [ "$(id -u)" = 0 ]; then
    mkdir "$work/small"
    mount -t tmpfs -o size=16M vmstream-test "$work/small"
    full() { ! "$vmstream" publish "$image/disk.img" -o "$work/small" --name disk 2>"$work/full.log"; }
    check "a full disk ends it" full
    check "with a word of what to do" grep -q 'No space left on device.*make room there' "$work/full.log"
    check "and nothing of it stays" test -z "$(find "$work/small" -name 'disk*.*' -o -path '*/new/*')"
    umount "$work/small"
fi
finish
