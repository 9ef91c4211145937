#!/bin/bash
# demo-hold.sh (make demo-hold): a server moves over a link of 1 Mbit/s, and is on-line when it will most likely not stall.
#
# A small machine that answers questions over its serial line runs in QEMU (emulated; no KVM is needed). A restore point is
# taken of it and published. Some clients ask it, near the origin; what it needed for them is learnt and published. Then
# it is brought to the far end of a slow link: 'vmstream run --wait' holds it back until the risk of a stall within 30 s
# is low, a client asks from the moment it is on-line, and the stream goes on behind it. When all of the image is here the
# origin is ended, and the server goes on answering.
#
# What the forecast said each second, how long each answer took, and the moments of both are drawn into HOLD_SVG
# (target/demo-hold/hold.svg). Beside it many such servers are held in virtual time, each known from the others that were
# learnt from, for longer and longer: what was said of them, and what happened, is drawn into TRUST_SVG
# (target/demo-hold/trust.svg).
#
# RATE, RTT and RISK in the environment change the link and the risk, LESSONS the number of clients who are learnt from,
# PAGES how many of the server's 96 pages clients ask for: the more, the less they have in common. Takes about ten minutes,
# most of them waiting for the link, and a minute more for each further lesson. HOLD_SAMPLES names a file for what is drawn.
set -euo pipefail
# shellcheck source=scripts/harness.sh
. "$(dirname "$0")/harness.sh"

rate=${RATE:-1mbit}
rtt=${RTT:-50ms}
risk=${RISK:-5%}
picture=${HOLD_SVG:-$root/target/demo-hold/hold.svg}
trust=${TRUST_SVG:-$root/target/demo-hold/trust.svg}
lessons=${LESSONS:-3}
memory_mib=128
# Pages of the server that clients ask for, all that it has, and the size of each in KiB: a disk that 1 Mbit/s
# carries in a minute.
pages=${PAGES:-24} all_pages=96 page_kib=64
# How long a client asks who is learnt from, and after the end of the origin.
lesson_s=60 after_s=30

"$root/scripts/install-deps.sh" demo restore
[ -n "${VMSTREAM-}" ] || (cd "$root" && cargo build --release --quiet)
begin
[ -w /dev/fuse ] || die "no /dev/fuse that this user may open: load the fuse module, or run as root"
mkdir -p "$(dirname "$picture")" "$(dirname "$trust")"
kernel=$("$root/scripts/guest-kernel.sh")
client=$root/scripts/hold-client.py

echo "1. a server with $all_pages pages of $page_kib KiB boots"
tree=$work/tree
mkdir -p "$tree"/{bin,dev,proc,www}
cp "$(command -v busybox)" "$tree/bin/busybox"
for ((page = 1; page <= all_pages; page++)); do head -c ${page_kib}K /dev/urandom >"$tree/www/$page"; done
for ((page = 1; page <= pages; page++)); do
    echo "$page $(sha256sum <"$tree/www/$page" | cut -d ' ' -f 1)"
done >"$work/sums"
# The sum of a page is made from what is read of the disk, so who gets it right has streamed it right.
cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
busybox stty raw -echo
while read -r page; do
    case $page in
        drop) echo 3 >/proc/sys/vm/drop_caches; set -- dropped ;;
        *) set -- $(busybox sha256sum "/www/$page") ;;
    esac
    echo "= $page $1"
done
INIT
chmod 755 "$tree/init"
mke2fs -q -F -t ext4 -b 4096 -O ^has_journal -d "$tree" "$work/disk.img" $((all_pages * page_kib / 1024 + 8))M >/dev/null
start source qemu-system-x86_64 -nodefaults -no-user-config -display none -machine pc-q35-7.2,accel=tcg,memory-backend=ram \
    -m $memory_mib -object "memory-backend-file,id=ram,size=${memory_mib}M,mem-path=$work/ram,share=on" \
    -device virtio-balloon-pci -chardev "socket,id=line,path=$work/source.line,server=on,wait=off" -serial chardev:line \
    -drive "file=$work/disk.img,format=raw,if=virtio" -qmp "unix:$work/source.qmp,server=on,wait=off" \
    -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" \
    -append "console=ttyS0 quiet nowatchdog panic=-1 ro init=/init init_on_free=1 transparent_hugepage=never"
# The server answers a question of its own kind with what it did: it gave its caches back.
echo "drop dropped" >"$work/drop"
# What is said before it listens is lost.
dropped() { "$client" --line "$work/source.line" --sums "$work/drop" --seconds 1 --variant 1 --limit 3 >/dev/null || ! alive source; }
wait_for 120 "the server" dropped
alive source || { cat "$work/source.log" >&2; die "the machine ended while it booted"; }

echo "2. a restore point is taken and published"
"$vmstream" snapshot --qmp "$work/source.qmp" -o "$work/point"
stop source || true
rm -f "$work/ram"
publish() { "$vmstream" publish --restore-point "$work/point" -o "$work/site" --name server "$@" 2>"$work/publish.log" >/dev/null ||
    { tail -n 5 "$work/publish.log" >&2; die "cannot publish"; }; }
publish
hash=$(sed -n 's/^root //p' "$work/site/server.vmp")
echo "   $(($(du -sk "$work/point" | cut -f 1) / 1000)) MB in use"

# run NAME OPTIONS...: the server at the end of a link.
run() {
    local name=$1
    shift
    start "$name" "$vmstream" run "${url_of[origin]}/server.vmp#$hash" --cache "$work/$name.cache" \
        --json-status "$work/$name.json" "$@" -- -display none -serial "unix:$work/$name.line,server=on,wait=off"
    mounts+=("$work/$name.cache/run/mnt")
    wait_for 300 "the line of '$name'" lined "$name"
}
lined() { [ -S "$work/$1.line" ] || ! alive "$1"; }

echo "3. $lessons clients ask it, near the origin, and are learnt from"
mkdir "$work/lessons"
serve origin "$work/site" --rate 1gbit --rtt 1ms
for ((lesson = 1; lesson <= lessons; lesson++)); do
    run "lesson$lesson" --option fill=off
    "$client" --line "$work/lesson$lesson.line" --sums "$work/sums" --seconds $lesson_s --variant $lesson \
        --log "$work/lesson$lesson.log" >/dev/null
    stop "lesson$lesson" TERM || true
    cp "$work/lesson$lesson.cache"/sessions/*.vms "$work/lessons/"
    rm -rf "$work/lesson$lesson.cache"
done
stop origin
publish --sessions "$work/lessons"

echo "4. over $rate and $rtt it is held until the risk is $risk"
serve origin "$work/site" --rate "$rate" --rtt "$rtt"
run far --wait "risk=$risk,for=30s,max=20m"
"$client" --line "$work/far.line" --sums "$work/sums" --seconds $after_s --variant $((lessons + 1)) --log "$work/far.log" \
    --status "$work/far.json" --samples "$work/samples" --complete-at-end kill "${pid_of[origin]}" >"$work/client.json" ||
    { cat "$work/far.log" >&2; die "the server did not answer"; }
[ -z "${HOLD_SAMPLES-}" ] || cp "$work/samples" "$HOLD_SAMPLES"
# It was ended by the client; only its process is left to be collected.
stop origin || true
alive far || die "the server ended with its origin"
"$vmstream" inspect --run "$work/samples" --svg "$picture"
stop far TERM || true

echo "5. such servers are held in virtual time, for longer and longer"
traces=()
for session in "$work"/lessons/*.vms; do traces+=(--trace "$session"); done
# In virtual time the holes of the image take as long as its data; so no hold is long enough for it that was so here.
"$vmstream" replay --leave-one-out --fill --think 1 --rate "$rate" --rtt "$rtt" \
    --hold "up-to=20m,every=50s,for=30s,risk=$risk" --hold-svg "$trust" "${traces[@]}"

said() { json_number "$work/client.json" "$1"; }
echo
echo "on-line after $(said online_s) s; the first answer took $(said first_s) s, the longest of $(said answers) $(said longest_s) s, \
$(said over_1s) more than a second"
echo "the origin sent $(json_number "$work/origin.stats" link_bytes) bytes and was ended; the server answered for $after_s s more"
echo "pictures: $picture and $trust"
