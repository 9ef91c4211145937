#!/bin/bash
# A restore point: a guest is taken in the middle of its work, published, and goes on elsewhere, from a link.
#
# 1. A guest counts, with data of its own in memory and on its disk. It is squeezed and taken; what cannot be taken is refused.
# 2. Published, and run from a slow origin it goes on where it was, its data whole; what it writes stays with the run.
# 3. Both processes are killed; the next run starts at the same point and fetches nothing again. Nobody else gets the cache
#    meanwhile; another user, with his own, sees nothing of the first.
# 4. The link is cut for 30 s right after the start: the guest only waits.
# 5. An image without a restore point is booted.
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
check "a running machine is taken" snapshot source -o "$work/point" --balloon 96
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
start parts "$vmstream" mount "${url_of[origin]}/guest.vmp#$hash" "$work/parts" --regions
wait_for 30 "the parts" test -s "$work/parts/machine"
same_file() { cmp "$work/point/$1" "$work/parts/$1"; }
for part in machine state.bin memory.raw; do check "$part is what was taken" same_file $part; done
overwrite() { dd if=/dev/zero of="$work/parts/memory.raw" bs=4096 count=1 conv=notrunc; }
not() { ! "$@"; }
check "nobody can write to it" not overwrite
check "the mount ends" stop parts

# user NAME CACHE OPTIONS...: runs the guest; without anything fetched ahead, so that what is fetched is what was needed.
user() {
    local name=$1 cache=$2
    shift 2
    rm -f "$work/$name.line" "$work/$name.log"
    start "$name" "$vmstream" run "$link" --cache "$work/$cache" --option fill=off --json-status "$work/$name.json" "$@" \
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
unfit() { ! "$vmstream" run "$link" --cache "$work/cache" -- -display none -m 64M >"$work/unfit.out" 2>&1; }
check "a machine of another kind does not start" unfit
check "which is said" has unfit.out "before the guest could go on"

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
finish
