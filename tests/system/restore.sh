#!/bin/bash
# A restore point: a guest is taken in the middle of its work, published, and goes on elsewhere, from a link.
#
# 1. A guest counts, with data of its own in memory and on its disk. It is squeezed and taken; what cannot be taken is refused.
# 2. Published, and run from a slow origin it goes on where it was, its data whole; what it writes stays with the run.
# 3. Both processes are killed; the next run starts at the same point and fetches nothing again. Nobody else gets the cache
#    meanwhile; another user, with his own, sees nothing of the first.
# 4. The link is cut for 30 s right after the start: the guest only waits.
# 5. Two signals end a run at once and leave nothing behind; what kill -9 of the run alone leaves is cleared by the next.
# 6. Without an origin a machine starts whose image is here, and one of which a part is here waits for the rest.
# 7. An image without a restore point is booted.
# Expressions in single quotes are for the shell in the guest.
# shellcheck disable=SC2016
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

need_fuse
need_command qemu-system-x86_64 qemu-system-x86
need_command qemu-img qemu-utils
need_command python3 python3
begin
image=$("$root/scripts/build-root.sh" --profile demo)
kernel=$("$root/scripts/guest-kernel.sh")
cp --sparse=always "$image/disk.img" "$work/disk.img"

# in_guest NAME SECONDS COMMAND: what a command in the guest prints.
in_guest() { "$root/tests/system/serial.py" "$work/$1.line" "$2" "$3"; }
answers() { [ "$(in_guest "$1" 3 'echo yes')" = yes ]; }
has() { grep -q -- "$2" "$work/$1"; }
not() { ! "$@"; }
number() { json_number "$work/$1.json" "$2"; }

# machine NAME OPTIONS...: a machine that boots from the host's file.
machine() {
    local name=$1
    shift
    start "$name" qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -machine pc-q35-7.2,accel=tcg \
        -chardev "socket,id=line,path=$work/$name.line,server=on,wait=off" -serial chardev:line \
        -qmp "unix:$work/$name.qmp,server=on,wait=off" -drive "file=$work/disk.img,format=raw,if=virtio" \
        -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" \
        -append "console=ttyS0 quiet nowatchdog panic=-1 rw init=/bin/bash" "$@"
    wait_for 20 "the monitor" test -S "$work/$name.qmp"
}
memory=(-m 256M -object "memory-backend-file,id=ram,size=256M,mem-path=$work/ram,share=on" -machine memory-backend=ram
    -device virtio-balloon-pci)

# A machine whose memory is its own: the refusal says what to do.
machine plain -m 64M -S
snapshot() { "$vmstream" snapshot --qmp "$work/$1.qmp" "${@:2}" >"$work/snapshot.out" 2>&1; }
refused() { ! snapshot "$@"; }
check "memory that is not shared is refused" refused plain -o "$work/none"
check "with the options that share it" has snapshot.out "memory-backend-file,id=ram,size=64M,mem-path=FILE,share=on"
check "and nothing is left behind" test ! -e "$work/none" -a ! -e "$work/none.new"
stop plain

machine source "${memory[@]}"
wait_for 120 "the guest" answers source
sum=$(in_guest source 60 'mount -t tmpfs t /tmp; mount -t proc p /proc; head -c 6M /dev/urandom >/tmp/x; sha256sum </tmp/x')
disk_sum=$(in_guest source 60 'head -c 2M /dev/urandom >/kept; sync; sha256sum </kept; echo 3 >/proc/sys/vm/drop_caches')
in_guest source 10 '(i=0; while :; do i=$((i+1)); echo $i >/tmp/n; sleep 0.2; done) & sleep 1' >/dev/null
counted=$(in_guest source 10 'cat /tmp/n')
check "a machine is taken that is to go on" snapshot source -o "$work/early" --keep-running
taken=$(sha256sum "$work/early"/*)
in_guest source 20 'echo later >/later; sync' >/dev/null
later=$(in_guest source 10 'sleep 1; cat /tmp/n')
check "it goes on ($counted, then $later)" test "$later" -gt "$counted"
same "what was taken is still that instant" "$taken" "$(sha256sum "$work/early"/*)"
has_later() { debugfs -R 'ls /' "$1" 2>/dev/null | grep -qw later; }
check "which knows nothing of later" not has_later "$work/early/disk.raw"
check "a running machine is taken" snapshot source -o "$work/point" --balloon 96
check "with what came between" has_later "$work/point/disk.raw"
check "its memory was squeezed" test "$(du -k "$work/point/memory.raw" | cut -f 1)" -lt $((96 << 10))
check "the description has no path of this host" test "$(grep -c "$work" "$work/point/machine")" = 0
check "QEMU has ended" wait_for 10 "QEMU to end" gone source
stop source || true

check "it is published" "$vmstream" publish --restore-point "$work/point" -o "$work/site" --name guest
hash=$(sed -n 's/^root //p' "$work/site/guest.vmp")
serve origin "$work/site" --rate 50mbit --rtt 20ms
link=vmstream://${url_of[origin]#http://}/guest.vmp#$hash

# The parts as files.
mkdir "$work/parts"
mounts+=("$work/parts")
start parts "$vmstream" mount "$link" "$work/parts" --regions
wait_for 30 "the parts" test -s "$work/parts/machine"
same_file() { cmp "$work/point/$1" "$work/parts/$1"; }
for part in machine state.bin memory.raw; do check "$part is what was taken" same_file $part; done
same "they have the image's time" "$(sed -n 's/^mtime //p' "$work/site/guest.vmp")" "$(stat -c %Y "$work/parts/memory.raw")"
overwrite() { dd if=/dev/zero of="$work/parts/memory.raw" bs=4096 count=1 conv=notrunc; }
check "nobody can write to it" not overwrite
check "the mount ends" stop parts

# user NAME CACHE OPTIONS...: runs the guest; without anything fetched ahead, so that what is fetched is what was needed.
# NAME's link and fill are those of the variables, which a caller may set for one of them.
user() {
    local name=$1 cache=$2
    shift 2
    rm -f "$work/$name.line" "$work/$name.log"
    start "$name" "$vmstream" run "$link" --cache "$work/$cache" --option "fill=${fill-off}" --json-status "$work/$name.json" "$@" \
        -- -display none -serial "unix:$work/$name.line,server=on,wait=off" -pidfile "$work/$name.pid"
    mounts+=("$work/$cache/run/mnt")
    wait_for 90 "the guest to go on" goes_on "$name" || { cat "$work/$name.log" >&2; return 1; }
}
goes_on() { has "$1.log" "goes on" || ! alive "$1"; }
sum_in() { in_guest "$1" 120 "sha256sum <$2"; }

user first cache
now=$(in_guest first 60 'cat /tmp/n')
check "the guest goes on counting ($counted, then $now)" test "$now" -ge "$counted" -a "$now" -lt $((counted + 400))
same "its memory is whole" "$sum" "$(sum_in first /tmp/x)"
same "and its disk" "$disk_sum" "$(sum_in first /kept)"
in_guest first 60 'echo mine | tee /tmp/mine >/mine; sync' >/dev/null
same "it can write to both" "mine mine" "$(in_guest first 20 'echo $(cat /tmp/mine /mine)')"
used=$(du -sk "$work/point" | cut -f 1)
check "not all of it was fetched" test "$(number first bytes_fetched)" -lt $((used << 10))
second_run() { "$vmstream" run "$link" --cache "$work/cache" -- -display none >"$work/second.out" 2>&1; }
check "nobody else may use the cache meanwhile" not second_run
check "who is told why" has second.out "in use"

kill -KILL "${pid_of[first]}" "$(cat "$work/first.pid")"
stop first KILL || true
user again cache
before=$(json_number "$work/again.json" resident_bytes)
same "after kill -9 of both it starts at the same point" "$sum" "$(sum_in again /tmp/x)"
same "without anything that was written" "none" "$(in_guest again 20 'cat /tmp/mine /mine 2>/dev/null || echo none')"
same "the disk is whole as well" "$disk_sum" "$(sum_in again /kept)"
sleep 1
echo "# fetched again: $(number again bytes_fetched), resident $before, $(number again resident_bytes)"
check "nothing durable was fetched again" \
    test "$(number again bytes_fetched)" -le $(($(number first bytes_fetched) / 8))

stop again
unfit() { ! "$vmstream" run "$link" --cache "$work/cache" --keep-writes "$work/none/writes" -- -display none -m 64M >"$work/unfit.out" 2>&1; }
sessions() { find "$work/cache/sessions" -name '*.vms' | wc -l; }
recorded=$(sessions)
check "a machine of another kind does not start" unfit
check "which is said" has unfit.out "before the guest could go on"
check "and leaves neither a directory of its own nor one for writes" test ! -e "$work/cache/run" -a ! -e "$work/none"
same "nor a session" "$recorded" "$(sessions)"

# What these two did is learnt, and the next one may ask for calm.
check "what they did is learnt" "$vmstream" publish --quiet --restore-point "$work/point" -o "$work/site" --name guest \
    --sessions "$work/cache/sessions"
user calm calm.cache -v --wait risk=5%,for=10s,max=60s
check "a guest is held back until it is calm" has calm.log "the guest may begin after .*risk of a stall in 10 s"
same "and then goes on" "$sum" "$(sum_in calm /tmp/x)"
check "it ends as well" stop calm

user other other.cache
same "another user sees nothing of it" "none" "$(in_guest other 20 'cat /tmp/mine /mine 2>/dev/null || echo none')"
check "a signal ends the machine and the run" stop other
check "and leaves neither mount nor overlay" test ! -e "$work/other.cache/run"

user cut cut.cache --keep-writes "$work/writes"
kill -STOP "${pid_of[origin]}"
sleep 30
check "with the link cut for 30 s the machine is there" alive cut
kill -CONT "${pid_of[origin]}"
same "and then goes on, its memory whole" "$sum" "$(sum_in cut /tmp/x)"
in_guest cut 20 'echo kept >/mine; sync' >/dev/null
check "it ends" stop cut
check "what it wrote to the disk was kept" test -s "$work/writes/disk.qcow2"

# Signals. The machine is stopped, so it does not end by itself at the first.
user hasty hasty.cache
machine_of() { cat "$work/$1.pid"; }
runs() { [ -e "/proc/$1" ] && ! grep -q '^State:.[ZX]' "/proc/$1/status"; }
mounts_at() { awk -v at="$1" '$5 == at { count++ } END { print count + 0 }' /proc/self/mountinfo; }
hasty=$(machine_of hasty)
kill -STOP "$hasty"
kill -INT "${pid_of[hasty]}"
sleep 0.5
check "one signal is the machine's to follow" alive hasty
check "a second one ends the run at once" not stop hasty INT
check "and the machine" wait_for 5 "the machine to end" not runs "$hasty"
same "its mount is gone" 0 "$(mounts_at "$work/hasty.cache/run/mnt")"
check "and its directory" test ! -e "$work/hasty.cache/run"

user shot hasty.cache
kill -KILL "$(machine_of shot)"
status=0
wait "${pid_of[shot]}" || status=$?
unset 'pid_of[shot]'
same "a machine that is killed has the run end as in a shell" 137 $status
check "and say so" grep -q 'qemu-system-x86_64 was killed by SIGKILL' "$work/shot.log"

user victim hasty.cache
victim=$(machine_of victim)
stop victim KILL || true
check "kill -9 of the run ends the machine too" wait_for 5 "the machine to end" not runs "$victim"
same "it leaves its mount" 1 "$(mounts_at "$work/hasty.cache/run/mnt")"
user next hasty.cache
same "which the next run replaces by its own" 1 "$(mounts_at "$work/hasty.cache/run/mnt")"
same "and all is well" "$sum" "$(sum_in next /tmp/x)"
check "it ends" stop next
same "and leaves none" 0 "$(mounts_at "$work/hasty.cache/run/mnt")"

# Without an origin: first all of it is here, then as much as one guest needed.
serve near "$work/site"
near=vmstream://${url_of[near]#http://}/guest.vmp#$hash
complete() { grep -q '"complete": *true' "$work/$1.json"; }
link=$near fill=on user whole whole.cache
check "all of the image arrives" wait_for 60 "the rest of the image" complete whole
stop whole
link=$near user part part.cache
same "a part of it is fetched" "$sum" "$(sum_in part /tmp/x)"
stop part
check "the origin ends" stop near
link=$near user whole whole.cache
same "without an origin the whole machine goes on" "$sum" "$(sum_in whole /tmp/x)"
same "and its disk is right" "$disk_sum" "$(sum_in whole /kept)"
same "nothing was asked for" 0 "$(number whole requests)"
stop whole
start parts "$vmstream" mount "http${near#vmstream}" "$work/parts" --cache "$work/whole.cache" --regions
wait_for 30 "the parts" test -s "$work/parts/machine"
check "its parts can be looked at as well" same_file memory.raw
check "the mount of them ends" stop parts
link=$near user part part.cache
in_guest part 2 'sha256sum </kept' >"$work/glimpse" || true
check "of a part nothing wrong is read" not grep -qv "$disk_sum" "$work/glimpse"
check "the machine is there" alive part
serve near "$work/site"
same "and when the origin is back it has the rest" "$disk_sum" "$(sum_in part /kept)"
stop part
stop near
unknown() { ! timeout 60 "$vmstream" run "$near" --cache "$work/new.cache" --option open_timeout=1s -- -display none >"$work/new.out" 2>&1; }
check "an image that nothing is known of needs its origin" unknown
check "which is said" has new.out "guest.vmp.*Connection refused"

# A disk without a restore point is booted; here by the kernel that the options bring.
"$vmstream" publish "$work/disk.img" -o "$work/site" --name plain >"$work/publish.log" 2>&1
start boot "$vmstream" run "${url_of[origin]}/plain.vmp" --cache "$work/boot.cache" --option fill=off -- -display none \
    -no-reboot -machine accel=tcg -nodefaults -serial "unix:$work/boot.line,server=on,wait=off" -kernel "$kernel/vmlinuz" \
    -initrd "$kernel/initrd" -append "console=ttyS0 quiet nowatchdog panic=-1 rw init=/bin/bash"
mounts+=("$work/boot.cache/run/mnt")
wait_for 60 "the machine" test -S "$work/boot.line"
check "a disk without a restore point is booted" wait_for 150 "its shell" answers boot
same "and is the one of the host" "$disk_sum" "$(sum_in boot /kept)"
check "its end is QEMU's" stop boot
as_point() { "$vmstream" mount "${url_of[origin]}/plain.vmp" "$work/parts" --regions >"$work/plain.out" 2>&1; }
check "it has no parts" not as_point
check "which is said" has plain.out "is no restore point"

# A monitor that dies when it is told to go on: its guest may have run by then, so what it wrote is kept, and its session.
mkdir "$work/programs"
cat >"$work/programs/qemu-system-x86_64" <<'QEMU'
#!/usr/bin/env python3
import json, os, socket, sys

words = sys.argv[1:]
place = words[words.index("-qmp") + 1].removeprefix("unix:").split(",")[0]
overlay = next(word for word in words if "if=virtio" in word).split("file=")[1].split(",")[0]
monitor = socket.socket(socket.AF_UNIX)
monitor.bind(place)
monitor.listen()
line = monitor.accept()[0].makefile("rw")


def say(what):
    line.write(json.dumps(what) + "\n")
    line.flush()


say({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}})
for command in line:
    if json.loads(command)["execute"] == "cont":
        open(os.path.join(os.path.dirname(place), "mnt/disk"), "rb").read(4096)
        open(overlay, "ab").write(b"written")
        os._exit(3)
    say({"return": {}})
QEMU
chmod 755 "$work/programs/qemu-system-x86_64"
dies() {
    local status=0
    PATH=$work/programs:$PATH timeout 60 "$vmstream" run "${url_of[origin]}/plain.vmp" --cache "$work/dies.cache" \
        --keep-writes "$work/dies" --option fill=off >"$work/dies.out" 2>&1 || status=$?
    [ "$status" = 1 ]
}
check "a machine that dies as it goes on is an error" dies
same "what it wrote is kept" written "$(tail -c 7 "$work/dies/disk.qcow2")"
check "and what it read" test -n "$(ls "$work/dies.cache/sessions")"
mkdir -p "$work/mine/run"
echo mine >"$work/mine/run/results"
foreign() { ! timeout 60 "$vmstream" run "${url_of[origin]}/plain.vmp" --cache "$work/mine" >"$work/foreign.out" 2>&1; }
check "a directory 'run' that no run has left is refused" foreign
check "which is said" has foreign.out "mine/run .*'results'.*another --cache"
same "and is there" mine "$(cat "$work/mine/run/results")"
finish
