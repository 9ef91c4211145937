#!/bin/bash
# first.sh: how much has to come, and how often the link is crossed, until the first predicted block of a published image is here.
#
# An image of 4 GB, of which some 300 MB are used, lies behind a proxy that moves in rounds (rounds.py): a round trip
# is a round, whatever this machine is busy with, and what had to wait for an answer shows as one round more. The guest does
# nothing, so what comes is what was foreseen. TCP and TLS add a round trip or more to each new connection, which is why
# those are counted beside it.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
need_command python3 python3
begin
export TMPDIR=$work
site=$work/site
mkdir "$site"
image=$site/disk.img
size=4000002048

# --- an image: sixty pieces of 5 MiB of text that shrinks about as a system's files do ---
truncate -s $size "$image"
head -c 100M /dev/zero | openssl enc -aes-128-ctr -nosalt -K 0123456789abcdef0123456789abcdef \
    -iv 00000000000000000000000000000000 2>/dev/null | od -An -v -tx1 >"$work/text" || true
for ((n = 0; n < 60; n++)); do
    dd if="$work/text" of="$image" bs=1M skip=$((n * 5)) seek=$((n * 61)) count=5 conv=notrunc status=none
done
rm "$work/text"

# --- two guests before: they read the beginning of the disk, as all do, then here and there what a file may be ---
guest() {
    awk -v size=$size -v seed="$1" 'BEGIN {
        srand(7)
        print "# vmtrace 1 size=" size " block=4096"
        print "0 R 0 4096\n20000 R 4096 12288\n300000 R 65536 16384"
        at = 600000
        for (n = 0; n < 1500; n++) {
            piece = int(rand() * 60); block = int(rand() * 1200); blocks = 1 + int(rand() * 16)
            at += int(rand() * 250000)
            # Each leaves out one in ten of what they have in common.
            if (n % 10 != seed) printf "%d R %.0f %d\n", at, (piece * 61 * 256 + block) * 4096, blocks * 4096
        }
    }'
}
guest 3 >"$work/one.vmtrace"
guest 7 >"$work/two.vmtrace"
"$vmstream" train --quiet -o "$work/model.vmm" "$work/one.vmtrace" "$work/two.vmtrace" >/dev/null
link=$("$vmstream" publish --quiet "$image" -o "$site" --link --model "$work/model.vmm")
tree_bytes=$(sed -n 's/^tree [^ ]* //p' "$site/disk.vmp")
used=$(du --block-size=1 "$image" | cut -f 1)
packed=$(sed -n 's/^packs [^ ]* //p' "$site/disk.vmp")
echo "# $used bytes used, $tree_bytes of side-car without packs, $packed of packs"
check "some 300 MB are used" test "$used" -ge 300000000
check "the side-car without packs has 0.6 % of that at most" test $((tree_bytes * 1000)) -le $((used * 6))
serve origin "$site"

# rounds NAME N: a mount whose guest does nothing, and an origin that is $N round trips long. What came is in $work/NAME.rounds.
rounds() {
    local name=$1
    rm -f "$work/proxy.port"
    start "$name-proxy" "$root/tests/system/rounds.py" "${port_of[origin]}" "$work/proxy.port" "$work/$name.rounds" "$2"
    wait_for 10 "the proxy to listen" test -s "$work/proxy.port"
    mkdir -p "$work/$name"
    mounts+=("$work/$name")
    start "$name" "$vmstream" mount "http://127.0.0.1:$(cat "$work/proxy.port")/disk.vmp#${link##*#}" "$work/$name" \
        --cache "$work/$name.cache" --json-status "$work/$name.json" \
        --option stall_timeout=60s
    wait_for 60 "round $2" round_over "$name" "$2"
}
round_over() { grep -q "^$2 " "$work/$1.rounds"; }
here() { [ "$(json_number "$work/$1.json" resident_bytes)" -gt 0 ]; }
finish_rounds() {
    # While the origin is silent: nobody has to wait for it.
    unmount "$1"
    stop "$1-proxy" || true
}

rounds two 2
sleep 2
check "after two round trips no block is here" test "$(json_number "$work/two.json" resident_bytes)" = 0
finish_rounds two
rounds three 3
check "after three there is one" wait_for 20 "a block" here three
finish_rounds three
sed 's/^/#   round, connection, first there?, bytes asked, bytes answered: /' "$work/three.rounds"
# The path to the first predicted block: all that came in the rounds before, and the answer with the packs' first frames. Over
# which connection those come is a race of threads, so it is told and not checked; by their place in the file they come behind the model, whose first
# piece is asked for in the same round.
warm=$(grep -c '^3 .* warm .*\.vmk ' "$work/three.rounds" || true)
first=$(awk '$1 == 3 && $6 ~ /\.vmk$/ { split($7, span, "-"); print span[1], $5 }' "$work/three.rounds" | sort -n | sed -n 2p)
before=$(awk '$1 < 3 { sum += $5 } END { print sum }' "$work/three.rounds")
bytes=$((before + ${first##* }))
echo "# $bytes bytes until the first predicted block is here; $(grep -c ' new ' "$work/three.rounds") connections, and" \
    "$(grep -c '^[12] .* new ' "$work/three.rounds") of them on the way there; $warm requests for frames came on these"
check "the first frames are asked for" test -n "$first"
check "64 KiB at most have come by then" test "$bytes" -le 65536
same "the first round is the pointer" 1 "$(grep -c '^1 .*/disk\.vmp' "$work/three.rounds")"
same "in the second come tree and packs at once" 2 "$(grep -c '^2 ' "$work/three.rounds")"
stop origin
finish
