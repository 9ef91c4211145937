#!/bin/bash
# uml-patched.sh [VERSION...]: what the streaming disk driver of User-Mode Linux promises beyond what all routes do
# (matrix.sh): 6.1 and 6.12, unless told.
#
# Bad URLs and options; COW files over a stream; a restart of the guest; parallel direct readers and writers;
# discards; a read-only disk; one dead link beside a live one; and a link that is cut for half a minute in the middle
# of a boot.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/system/patched-uml.sh
. "$(dirname "$0")/patched-uml.sh"

versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(6.1 6.12)
# So long the origin is silent in the middle of a boot, in seconds.
cut_s=${CUT_S:-30}
for version in "${versions[@]}"; do need_patched_uml "$version"; done
need_command python3 python3
begin

image=$("$root/scripts/build-root.sh")
mkdir "$work/published"
second=$work/published/second.img
source_image "$second" 64
second_sum=$(sha256sum "$second" | cut -d ' ' -f 1)
serve root-origin "$image"
serve second-origin "$work/published"
root_url=${url_of[root-origin]}/disk.img
second_url=${url_of[second-origin]}/second.img

# What the "discard" job is to leave: odd sectors, whole blocks, more than one request's worth.
discards=512:512,40960:4096,1049088:3000320 zeroes=6000128:512,7340032:1048576
cp "$second" "$work/discarded.img"
for range in ${discards//,/ } ${zeroes//,/ }; do
    fallocate --punch-hole --offset "${range%:*}" --length "${range#*:}" "$work/discarded.img"
done
discarded_sum=$(sha256sum "$work/discarded.img" | cut -d ' ' -f 1)
direct=$root/tests/system/guest/direct.py
python3 "$direct" make "$work/published/direct.img"
direct_url=${url_of[second-origin]}/direct.img
cp "$work/published/direct.img" "$work/direct.img"
python3 "$direct" expected "$work/direct.img"
direct_sum=$(sha256sum "$work/direct.img" | cut -d ' ' -f 1)

# guest NAME OPTIONS...: a run that must end well; its console in $work/NAME.console.
guest() {
    local name=$1
    shift
    check "$version: the guest of '$name' boots, works and powers off" console "$name" run_uml "$@" --kernel "$kernel"
}
says() { check "$version: the console of '$1' says '$2'" grep -Eq "$2" "$work/$1.console"; }
told() { marker "$work/$1.console" "$2" "${3:-sha256}"; }

bad_disks() {
    guest bad-url "$root_disk" --disk2 "stream:${url_of[second-origin]}/no-such.img" --job nothing --ro
    says bad-url 'ubdb: cannot stream .*no-such.img.*404'
    guest bad-option "$root_disk" --disk2 "stream:$second_url,cahce=$work/x" --job nothing --ro
    says bad-option 'ubdb: cannot stream .*cahce.*no such option'
    # A root that is not there is the kernel's own end: it says so, and takes all its processes along.
    local status=0
    (run_uml "stream:${url_of[root-origin]}/no-such.img" --kernel "$kernel") >"$work/bad-root.console" 2>&1 || status=$?
    same "$version: without a root the machine ends as one that crashed" 125 $status
    says bad-root 'ubda: cannot stream'
    says bad-root 'Unable to mount root fs'
}

cow() {
    local cache=$work/cow.cache.$version status=0
    local disk=$work/cow.$version,stream:$root_url,cache=$cache
    guest cow "$disk" --job write
    guest cow-again "$disk" --job written
    same "$version: a second boot finds what the COW file has" "$(told cow written)" "$(told cow-again written)"
    (run_uml "$work/cow.$version" --kernel "$kernel") >"$work/cow-alone.console" 2>&1 || status=$?
    same "$version: the COW file alone is not taken for a disk" 125 $status
    says cow-alone 'boot with both'
    # The stream that its header names is open, but it is not the one that was asked for.
    guest cow-other "stream:$root_url,cache=$work/plain.$version" \
        --disk2 "$work/cow.$version,stream:$second_url,cache=$work/other.$version" --job absent --ro
    says cow-other 'Backing file mismatch'
    check "$version: what lies below it can be completed" "$vmstream" fetch "$root_url" -o "$cache/disk"
    check "$version: and is what was published" cmp "$image/disk.img" "$cache/disk"
    # What is complete is an ordinary file, and may take the stream's place; so may another name of the same image.
    guest cow-complete "$work/cow.$version,$cache/disk" --job written
    same "$version: the COW file lies as well over the complete file" "$(told cow written)" "$(told cow-complete written)"
    guest cow-moved "$work/cow.$version,stream:${root_url/127.0.0.1/localhost},cache=$work/moved.$version" --job written
    same "$version: the COW file follows an image that has moved" "$(told cow written)" "$(told cow-moved written)"
}

# Of the sectors of one request some come from the COW file and some from the stream.
cow_second() {
    local disk="$work/cow2.$version,stream:$direct_url,cache=$work/cow2.cache.$version,fill=off"
    guest cow-direct "$root_disk" --disk2 "$disk" --job direct
    same "$version: parallel direct I/O over a COW file is right" "$direct_sum" "$(told cow-direct direct)"
}

second_disk() {
    local cache="cache=$work/second.$version"
    guest direct "$root_disk" --disk2 "stream:$direct_url,$cache.direct,fill=off" --job direct
    same "$version: parallel direct I/O leaves the right bytes" "$direct_sum" "$(told direct direct)"
    # Room for very few at once: most requests have to be asked again.
    guest crowded "$root_disk" --disk2 "stream:$direct_url,$cache.crowded,fill=off,ring=2,pending_max=2" --job direct
    same "$version: and with room for two requests only" "$direct_sum" "$(told crowded direct)"

    guest discard "$root_disk" --disk2 "stream:$second_url,$cache.discard,fill=off" --job discard \
        --append "DISCARDS=$discards ZEROES=$zeroes"
    same "$version: what was discarded and zeroed is zero, all else the origin's" "$discarded_sum" "$(told discard discard)"
    check "$version: the rest of it can be fetched" "$vmstream" fetch "$second_url" -o "$work/second.$version.discard/disk"
    check "$version: the host sees the same" cmp "$work/discarded.img" "$work/second.$version.discard/disk"

    guest readonly "$root_disk" --disk2 "stream:$second_url,$cache.readonly,read_only=on,serial=no-1" --job readonly
    same "$version: a read-only disk reads right" "$second_sum" "$(told readonly readonly)"
}

reboots() {
    guest reboot "stream:$root_url,cache=$work/reboot.$version" --job reboot
    same "$version: a guest that restarts finds its disk" 1 "$(told reboot rebooted yes)"
}

one_dead_link() {
    local disk="stream:$second_url,cache=$work/links.$version,fill=off,prefetch=none"
    # From now on the cache knows the image, and opens with the origin silent.
    guest known "$root_disk" --disk2 "$disk" --job nothing
    kill -STOP "${pid_of[second-origin]}"
    start links run_uml_in_place "$root_disk" --kernel "$kernel" --disk2 "$disk" --job twolinks
    check "$version: with the second link dead the first disk goes on" wait_for 60 "the first disk" \
        grep -q '@@ first-disk' "$work/links.log"
    kill -CONT "${pid_of[second-origin]}"
    check "$version: with the link mended the machine ends" wait_for 60 "the machine to end" gone links
    check "$version: well" stop links
    same "$version: and the second disk is right" "$second_sum" "$(marker "$work/links.log" second-disk sha256)"
    rm -f "$work/links.log"
}

cut_link() {
    serve slow-origin "$image" --rate 4mbit --rtt 50ms
    start cut run_uml_in_place "stream:${url_of[slow-origin]}/disk.img,cache=$work/cut.$version,fill=off" \
        --kernel "$kernel" --job nothing --append loglevel=7 --timeout $((cut_s + 100))
    wait_for 60 "the first program to start" grep -q 'Run /demo/init' "$work/cut.log"
    kill -STOP "${pid_of[slow-origin]}"
    sleep "$cut_s"
    check "$version: with the link cut the guest waits" alive cut
    check "$version: and says for what" grep -Eq 'ubda: waiting for http.*disk.img: .*[0-9]+ s\)' "$work/cut.log"
    kill -CONT "${pid_of[slow-origin]}"
    check "$version: with the link back the machine ends" wait_for 90 "the machine to end" gone cut
    check "$version: well" stop cut
    check "$version: and said that it went on" grep -q 'ubda: http.* goes on after' "$work/cut.log"
    rm -f "$work/cut.log"
    stop slow-origin || true
}
# In the background the subshell is the machine's script itself, so that stopping it ends the machine.
run_uml_in_place() { run_uml "$@"; }

for version in "${versions[@]}"; do
    need_patched_uml "$version"
    root_cache=$work/root.$version
    root_disk=stream:$root_url,cache=$root_cache
    bad_disks
    cow
    cow_second
    second_disk
    reboots
    one_dead_link
    cut_link
done
finish
