#!/bin/bash
# mount --wait: the disk appears when what earlier guests touched at their start is here, or when the longest wait is over.
#
# The earlier guests read 64 pieces of 32 KiB, all over the image, within two seconds: over this link they take more than
# three, so a guest that is let in at once would wait for most of them.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
begin
mkdir "$work/published"
source=$work/published/disk.img
source_image "$source" 64
serve origin "$work/published" --rate 5mbit --rtt 20ms

pieces=64
place() { echo $(($1 * 37 % pieces * 1024 * 1024)); }
# Three guests, which do the same at moments that differ a little.
for guest in 1 2 3; do
    {
        echo "# vmtrace 1 size=$((64 << 20)) block=4096"
        for ((piece = 0; piece < pieces; piece++)); do
            echo "$((1000 + piece * 30000 + guest * 400)) R $(place "$piece") 32768"
        done
    } >"$work/guest$guest.vmtrace"
done
"$vmstream" train -o "$work/model" "$work"/guest*.vmtrace

# read_pieces: what the guests read, as fast as it comes.
read_pieces() {
    local piece at
    for ((piece = 0; piece < pieces; piece++)); do
        at=$(place "$piece")
        cmp --ignore-initial="$at" --bytes=32768 "$source" "$work/$1/disk" || return 1
    done
}
# at_most FILE KEY NUMBER, at_least FILE KEY NUMBER: of a status file.
at_most() { [ "$(json_number "$1" "$2")" -le "$3" ] || { echo "$2: $(json_number "$1" "$2"), not $3"; return 1; }; }
at_least() { [ "$(json_number "$1" "$2")" -ge "$3" ] || { echo "$2: $(json_number "$1" "$2"), not $3"; return 1; }; }
said() { grep -q "$2" "$work/$1.log"; }
not_there() { [ ! -e "$work/$1/disk" ]; }

foreseen=(--option fill=off --option "model=$work/model")

mount_disk hasty "${url_of[origin]}/disk.img" "$work/hasty-cache" "${foreseen[@]}"
check "a guest that does not wait gets the right bytes" read_pieces hasty
check "the hasty disk unmounts cleanly" unmount hasty
check "but it waits for many of them" at_least "$work/hasty.json" demand_stalls 16

mount_disk patient "${url_of[origin]}/disk.img" "$work/patient-cache" "${foreseen[@]}" \
    -v --progress --wait risk=5%,for=5s,max=25s
check "the wait ended because the risk was low" said patient 'the guest may begin after'
check "before that it was shown" said patient 'risk of a stall in 5 s: [0-9]* %, low in about'
check "a guest that waited gets the right bytes" read_pieces patient
check "the patient disk unmounts cleanly" unmount patient
# It reads faster than those before it, so it catches up with the link towards the end.
check "and waits half as often as the hasty one, at most" \
    at_most "$work/patient.json" demand_stalls $(($(json_number "$work/hasty.json" demand_stalls) / 2))

mount_disk hurried "${url_of[origin]}/disk.img" "$work/hurried-cache" "${foreseen[@]}" --wait risk=1%,max=100ms
check "the longest wait ends it as well" said hurried 'the guest begins although it may stall'
check "the hurried disk unmounts cleanly" unmount hurried

mount_disk blind "${url_of[origin]}/disk.img" "$work/blind-cache" --wait risk=5%
check "without a model there is nothing to wait for" said blind 'nothing to go by'
check "the blind disk unmounts cleanly" unmount blind

mount_disk idle "${url_of[origin]}/disk.img" "$work/idle-cache" "${foreseen[@]}" --option prefetch=none --wait risk=5%
check "nor where nothing is fetched ahead" said idle 'nothing is fetched ahead'
check "the idle disk unmounts cleanly" unmount idle

serve slow "$work/published" --rate 200kbit
mkdir "$work/stopped"
start stopped "$vmstream" mount "${url_of[slow]}/disk.img" "$work/stopped" --cache "$work/stopped-cache" "${foreseen[@]}" \
    --progress --json-status "$work/stopped.json" --wait risk=5%,max=10m
check "a wait goes on while the risk is high" wait_for 20 "the forecast" said stopped 'risk of a stall'
check "the status file is renewed meanwhile" wait_for 5 "the status" at_least "$work/stopped.json" bytes_fetched 1
check "and nothing is mounted" not_there stopped
status=0
stop stopped TERM || status=$?
same "a signal ends it, and the command" 143 "$status"
finish
