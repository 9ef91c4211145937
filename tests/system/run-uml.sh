#!/bin/bash
# An image says that it wants to be booted in User-Mode Linux, and a link to it is all that it takes - and one word of the user's.
#
# 1. Nobody boots it by following a link; with --allow-uml the guest runs, its console is the command's, and its end is its end.
# 2. What it writes goes, unless it is to be kept.
# 3. Whatever ends the command - a signal, two, kill -9 - all of the guest's processes end, and no mount stays that the next run does not take
#    away.
# 4. Without an origin it boots again. Without User-Mode Linux it is said what is missing.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
need_command linux.uml user-mode-linux
need_command unshare util-linux
need_command setpriv util-linux
begin
image=$("$root/scripts/build-root.sh" --profile demo)
has() { grep -q -- "$2" "$work/$1"; }
not() { ! "$@"; }

check "options that make no machine are refused" \
    not "$vmstream" publish "$image/disk.img" -o "$work/site" --name guest --boot uml,root=/dev/sda
check "an image is published with words on how to boot it" \
    "$vmstream" publish "$image/disk.img" -o "$work/site" --name guest --boot uml,memory=128M
hash=$(sed -n 's/^root //p' "$work/site/guest.vmp")
serve origin "$work/site" --rate 200mbit --rtt 5ms
link=${url_of[origin]}/guest.vmp#$hash

# guest NAME SCRIPT OPTIONS...: a run whose init is a shell that is told SCRIPT by the console when it has shown its prompt; it ends when
# SCRIPT powers off. What is said too early is lost, as on any console.
words=(init=/bin/sh quiet)
console_of() {
    rm -f "$work/$1.line"
    mkfifo "$work/$1.line"
    exec 4<>"$work/$1.line"
}
guest() {
    local name=$1 script=$2
    shift 2
    console_of "$name"
    timeout 60 "$vmstream" run "$link" --cache "$work/cache" --allow-uml "$@" -- "${words[@]}" <"$work/$name.line" >"$work/$name.out" 2>&1 4<&- &
    wait_for 40 "a prompt" has "$name.out" '^# ' || true
    printf '%s\n' "$script" >&4
    wait $!
}
off='mount -t proc proc /proc; echo o >/proc/sysrq-trigger; sleep 60'

without() { timeout 60 "$vmstream" run "$link" --cache "$work/cache" </dev/null >"$work/without.out" 2>&1; }
check "a link alone does not run it" not without
check "and says what would" has without.out "--allow-uml"
mkdir "$work/parts"
mounts+=("$work/parts")
start parts "$vmstream" mount "$link" "$work/parts" --regions
wait_for 30 "its parts" test -s "$work/parts/machine"
same "its parts are the disk and how to boot it" "disk.raw machine" "$(cd "$work/parts" && echo *)"
check "the mount of them ends" stop parts

check "a guest boots, and its end is the command's" guest first "echo mine >/mine; sync; cat /mine; echo sum=\$(md5sum </usr/bin/dash); $off"
sum=$(sed -n 's/.*sum=\([0-9a-f]\{32\}\) .*/\1/p' "$work/first.out" | head -n 1)
in_image() { debugfs -R 'cat /usr/bin/dash' "$image/disk.img" 2>/dev/null || true; }
same "its disk is what was published" "$(in_image | md5sum | cut -d ' ' -f 1)" "$sum"
check "it could write" has first.out '^mine'
check "what it wrote is gone" guest second "cat /mine || echo none h''ere; $off"
check "as the next one sees" has second.out 'none here'
check "or is kept where it was asked for" guest third "echo kept >/kept-file; sync; $off" --keep-writes "$work/wri tes, kept"
check "in a file" test -s "$work/wri tes, kept/disk.cow"
check "no run leaves its directory" test ! -e "$work/cache/run"
# 124 would be that of timeout(1): it has to end by itself.
panics() { local status=0; guest panic 'exec false' || status=$?; [ "$status" != 0 ] && [ "$status" != 124 ]; }
check "a guest that panics ends, and is a failure" panics
as_disk() { timeout 60 "$vmstream" publish "$work/cache" -o "$work/again" --name again >"$work/again.out" 2>&1; }
check "its cache cannot be published as if it were a disk" not as_disk
check "which is said" has again.out "an image with parts"

# Processes whose directory is that of the run: the guest's, all of them.
run=$work/cache/run
guests() {
    local process count=0
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/cwd" 2>/dev/null)" != "$run" ] || ! grep -qs '^State:.[RSDTt]' "$process/status" || count=$((count + 1))
    done
    echo "$count"
}
several() { [ "$(guests)" -gt 3 ]; }
none() { [ "$(guests)" = 0 ]; }
mounts_at() { awk -v at="$1" '$5 == at { count++ } END { print count + 0 }' /proc/self/mountinfo; }
busy() {
    console_of busy
    "$vmstream" run "$link" --cache "$work/cache" --allow-uml -- "${words[@]}" <"$work/busy.line" >"$work/busy.log" 2>&1 4<&- &
    pid_of[busy]=$!
    mounts+=("$run/mnt")
    wait_for 40 "a prompt" has busy.log '^# '
    echo 'sleep 1000 & sleep 1001 & sleep 1002' >&4
    wait_for 60 "the guest's processes" several
}
busy
check "a signal ends the guest" not stop busy TERM
check "and all of its processes" wait_for 5 "them to end" none
check "and the run's directory" test ! -e "$run"
busy
kill -INT "${pid_of[busy]}"
check "two signals do" not stop busy INT
check "to all of them as well" wait_for 5 "them to end" none
same "no mount stays" 0 "$(mounts_at "$run/mnt")"
busy
stop busy KILL || true
check "after kill -9 they end too" wait_for 5 "them to end" none
check "and the next run takes away what is left" guest again "echo well; $off"
same "all of it" 0 "$(mounts_at "$run/mnt")"

complete() { grep -q '"complete": true' "$work/whole.json"; }
whole() {
    console_of whole
    "$vmstream" run "$link" --cache "$work/cache" --allow-uml --json-status "$work/whole.json" -- "${words[@]}" <"$work/whole.line" >"$work/whole.log" 2>&1 4<&- &
    pid_of[whole]=$!
    wait_for 60 "the rest of the image" complete
    stop whole TERM || true
}
check "the rest of the image arrives" whole
check "the origin ends" stop origin
check "without it the guest boots" guest offline "echo sum=\$(md5sum </usr/bin/dash); $off"
check "from the same disk" has offline.out "sum=$sum"

mkdir "$work/bin"
for tool in true qemu-img fusermount3; do ln -s "$(command -v $tool)" "$work/bin/$tool"; done
timeout=$(command -v timeout)
bare() { PATH=$work/bin "$timeout" 60 "$vmstream" run "$link" --cache "$work/cache" --allow-uml </dev/null >"$work/bare.out" 2>&1; }
check "without User-Mode Linux it does not start" not bare
check "which is said" has bare.out "user-mode-linux"
finish
