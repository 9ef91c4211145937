#!/bin/bash
# routes.sh [ROUNDS]: what each way from an unpatched monitor to a streamed disk costs when everything is here.
#
# A guest reads its second disk, 512 MiB that are all resident, with direct I/O in pieces of 1 MiB, and in another
# pass 4 KiB pieces of the first 32 MiB, and takes the time itself. The disk is the same local file on every route of a
# monitor, which take turns in each round; medians, and the ratio to the monitor's own way to a raw file. QEMU
# emulates its processor here (TCG), which hides some of what a route costs; User-Mode Linux hides less.
set -euo pipefail
# shellcheck source=scripts/harness.sh
. "$(dirname "$0")/../../scripts/harness.sh"

rounds=${1:-5}
disk_mib=512 small_mib=32
"$root/scripts/install-deps.sh" build demo test nbdkit
[ -n "${VMSTREAM-}" ] || (cd "$root" && cargo build --release --quiet)
begin
plugin=$("$root/scripts/build-nbdkit.sh")

# The guest's root: one program that reads, tells and powers off. It is not streamed.
tree=$work/tree
mkdir -p "$tree"/{bin,dev,proc,sys,demo}
cp "$(command -v busybox)" "$tree/bin/busybox"
cat >"$tree/demo/init" <<INIT
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev || : # done already, by the kernel
disk=/dev/vdb
[ -e \$disk ] || disk=/dev/ubdb
pass() {
    read -r begun _ </proc/uptime
    /bin/busybox dd if=\$disk of=/dev/null bs=\$2 count=\$3 iflag=direct || echo "dd failed"
    read -r ended _ </proc/uptime
    echo "@@ \$1 begun=\$begun ended=\$ended"
}
pass warm 1M $disk_mib
pass large 1M $disk_mib
pass small 4k $((small_mib * 256))
echo "@@ exit 0"
echo 1 >/proc/sys/kernel/sysrq
echo o >/proc/sysrq-trigger
while :; do /bin/busybox sleep 1; done
INIT
chmod 755 "$tree/demo/init"
mke2fs -q -t ext4 -d "$tree" "$work/root.img" 16M

head -c "${disk_mib}M" /dev/zero | openssl enc -aes-128-ctr -nosalt -K 00112233445566778899aabbccddeeff \
    -iv 00000000000000000000000000000000 >"$work/source.img" 2>/dev/null
nbdkit -U - "$plugin" "$work/source.img" cache="$work/cache" --run "nbdcopy \"\$uri\" null:"
cmp "$work/source.img" "$work/cache/disk"
disk=$work/cache/disk

# Each route: begin_ROUTE and end_ROUTE around run_ROUTE; the one named raw is the monitor's baseline.
qemu() { "$root/scripts/qemu.sh" --second --ro --timeout 120 -- -blockdev "driver=file,node-name=root,filename=$work/root.img" "$@"; }
nbd_node() { echo "driver=nbd,node-name=second,server.type=unix,server.path=$work/nbd"; }
serve_nbd() {
    rm -f "$work/nbd"
    start nbd nbdkit -f -U "$work/nbd" "$@"
    wait_for 30 "nbdkit to answer" timeout 5 nbdinfo --size "nbd+unix:///?socket=$work/nbd" >/dev/null
}
serve_plugin() { serve_nbd "$plugin" "$work/source.img" cache="$work/cache"; }
mounted_disk() {
    mkdir -p "$work/mount"
    mount_disk mount "$work/source.img" "$work/cache"
}
# storage_daemon NODE...: exports the node "second" to a vhost-user client.
storage_daemon() {
    rm -f "$work/vhost" "$work/vhost.pid" "$work/root-vhost"
    start vhost qemu-storage-daemon --pidfile "$work/vhost.pid" --blockdev "$1" \
        --blockdev "driver=file,node-name=root,filename=$work/root.img" \
        --export "type=vhost-user-blk,id=root,node-name=root,writable=on,addr.type=unix,addr.path=$work/root-vhost" \
        --export "type=vhost-user-blk,id=second,node-name=second,writable=on,addr.type=unix,addr.path=$work/vhost"
    wait_for 30 "qemu-storage-daemon" test -s "$work/vhost.pid"
}
vhost_uml() { "$root/scripts/uml.sh" "$work/root-vhost" --disk2 "$work/vhost" --vhost --ro; }

qemu_raw() { qemu -blockdev "driver=file,node-name=second,filename=$disk"; }
qemu_fuse() { mounted_disk; qemu -blockdev "driver=file,node-name=second,filename=$work/mount/disk"; unmount mount; }
qemu_nbdkit_file() { serve_nbd file "$disk"; qemu -blockdev "$(nbd_node)"; stop nbd; }
qemu_nbdkit() { serve_plugin; qemu -blockdev "$(nbd_node)"; stop nbd; }
uml_raw() { "$root/scripts/uml.sh" "$work/root.img" --disk2 "$disk" --ro; }
uml_fuse() { mounted_disk; "$root/scripts/uml.sh" "$work/root.img" --disk2 "$work/mount/disk" --ro; unmount mount; }
uml_vhost_raw() { storage_daemon "driver=file,node-name=second,filename=$disk"; vhost_uml; stop vhost; }
uml_vhost_nbdkit() { serve_plugin; storage_daemon "$(nbd_node)"; vhost_uml; stop vhost; stop nbd; }
uml_vhost_fuse() {
    mounted_disk
    storage_daemon "driver=file,node-name=second,filename=$work/mount/disk"
    vhost_uml
    stop vhost
    unmount mount
}

# title:function; the first of each monitor is what the others are compared with.
table=(
    "QEMU, raw file:qemu_raw" "QEMU, mount:qemu_fuse" "QEMU, nbdkit file plugin:qemu_nbdkit_file"
    "QEMU, nbdkit vmstream plugin:qemu_nbdkit"
    "UML, raw file:uml_raw" "UML, mount:uml_fuse" "UML, vhost-user, raw file:uml_vhost_raw"
    "UML, vhost-user, mount:uml_vhost_fuse" "UML, vhost-user, nbdkit:uml_vhost_nbdkit"
)
: >"$work/times"
for ((round = 1; round <= rounds; round++)); do
    for row in "${table[@]}"; do
        name=${row#*:}
        $name >"$work/console" 2>&1 || { cat "$work/console" >&2; die "$name failed"; }
        for pass in large small; do
            begun=$(marker "$work/console" $pass begun) ended=$(marker "$work/console" $pass ended)
            echo "$name $pass $begun $ended" >>"$work/times"
        done
    done
done

echo "MiB/s in the guest, everything resident, $rounds rounds; again with: benches/drivers/routes.sh $rounds"
printf '%-32s %10s %7s %10s %7s\n' '' '1 MiB' ratio '4 KiB' ratio
for row in "${table[@]}"; do
    awk -v title="${row%%:*}" -v name="${row#*:}" -v large_mib=$disk_mib -v small_mib=$small_mib '
        function median(a, n,   i, j, t) {
            for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j - 1] > a[j]; j--) { t = a[j]; a[j] = a[j - 1]; a[j - 1] = t }
            return n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2
        }
        function rate(which, pass, mib,   i, n, taken) {
            for (i in seconds) { split(i, key, SUBSEP); if (key[1] == which && key[2] == pass) taken[++n] = seconds[i] }
            return mib / median(taken, n)
        }
        { seconds[$1, $2, NR] = $4 - $3 > 0.01 ? $4 - $3 : 0.01 } # what the clock of the guest tells apart
        END {
            base = substr(name, 1, index(name, "_")) "raw"
            l = rate(name, "large", large_mib); s = rate(name, "small", small_mib)
            printf "%-32s %10.0f %7.2f %10.1f %7.2f\n", title, l, l / rate(base, "large", large_mib), s,
                s / rate(base, "small", small_mib)
        }' "$work/times"
done
