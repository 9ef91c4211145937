#!/bin/bash
# qemu.sh [ROUNDS]: what the QEMU block driver costs when everything is here already.
#
# The vmstream driver and QEMU's own file driver read the same local file in turns, with the same cache and aio modes:
# under qemu-img bench, and in a guest (TCG) that reads 512 MiB with O_DIRECT and without. A row has the median of each
# and the median of the rounds' ratios; 1.00 is the speed of the file driver, and 0.95 is wanted. Figures are for this
# machine and this run; only the ratios mean anything elsewhere.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/../../tests/system/lib.sh"

rounds=${1:-5}
mib=512
need_patched_qemu
begin
image=$("$root/scripts/build-root.sh" --profile demo)
mkdir "$work/published"
source_image "$work/published/disk.img" $mib
serve origin "$work/published"
qemu-img convert -O raw --image-opts "driver=vmstream,url=${url_of[origin]}/disk.img,cache-dir=$work/cache" "$work/copy.img"
cmp "$work/copy.img" "$work/published/disk.img"
rm "$work/copy.img"
streamed=driver=vmstream,url=${url_of[origin]}/disk.img,cache-dir=$work/cache
plain=driver=file,filename=$work/cache/disk
stop origin || true

# median: of the numbers on standard input, one a line.
median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
# row WHAT MIB FILE: FILE has lines "vmstream-seconds file-seconds", one for each round.
row() {
    printf '%-52s %9.0f %9.0f %7.2f\n' "$1" "$(awk -v n="$2" '{ print n / $1 }' "$3" | median)" \
        "$(awk -v n="$2" '{ print n / $2 }' "$3" | median)" "$(awk '{ print $2 / $1 }' "$3" | median)"
}
# seconds OPTIONS...: of one run of qemu-img bench.
seconds() { timeout 120 qemu-img bench "$@" | sed -n 's/Run completed in \([0-9.]*\) seconds.*/\1/p'; }

echo "everything resident, $mib MiB, $rounds rounds in turns; repeat with: benches/drivers/qemu.sh $rounds"
printf '%-52s %9s %9s %7s\n' '' vmstream file ratio
printf '%-52s %9s %9s %7s\n' '' MiB/s MiB/s ''
for mode in 'writeback threads' 'none threads' 'none native' 'none io_uring'; do
    read -r cache aio <<<"$mode"
    for shape in 'read 4096 64 100000' 'read 65536 16 16384' 'write 4096 64 50000'; do
        read -r what size depth count <<<"$shape"
        options=(-t "$cache" -s "$size" -d "$depth" -c "$count" --image-opts)
        [ "$what" = read ] || options=(-w "${options[@]}")
        : >"$work/rounds"
        # The first of each is for warming up. Who begins changes, as the machine may be on its way somewhere.
        for ((round = 0; round <= rounds; round++)); do
            [ $((round % 2)) = 0 ] || a=$(seconds "${options[@]}" "$streamed,aio=$aio")
            b=$(seconds "${options[@]}" "$plain,aio=$aio")
            [ $((round % 2)) = 1 ] || a=$(seconds "${options[@]}" "$streamed,aio=$aio")
            [ $round = 0 ] || echo "$a $b" >>"$work/rounds"
        done
        row "qemu-img bench, cache=$cache aio=$aio: $what $((size / 1024))K x $depth" $((size * count >> 20)) "$work/rounds"
    done
done

# Two files: the machine has both open, and one of them is the library's. Filled in the same way.
cp --sparse=never "$work/cache/disk" "$work/plain.img"
for cache in off on; do
    "$root/scripts/qemu.sh" --ro --timeout 600 --second --job speed --append "ROUNDS=$rounds" -- \
        -blockdev "driver=file,node-name=root,filename=$image/disk.img,read-only=on" \
        -blockdev "$streamed,node-name=second,cache.direct=$cache" \
        -blockdev "driver=file,filename=$work/plain.img,node-name=plain,cache.direct=$cache" \
        -device virtio-blk-pci,drive=plain,addr=0x18 >"$work/speed.console" ||
        { tail -n 20 "$work/speed.console" >&2; die "the guest failed"; }
    for mode in direct buffered; do
        awk -v mode="mode=$mode" '$3 == "speed" && $4 == mode {
            split($6, us, "="); s = us[2] / 1e6
            if ($5 == "disk=/dev/vdb") a = s; else print a, s }' "$work/speed.console" >"$work/rounds"
        row "guest (TCG), $mode; cache.direct=$cache" $mib "$work/rounds"
    done
done
