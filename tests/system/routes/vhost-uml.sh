# shellcheck shell=bash
# shellcheck disable=SC2154  # work is lib.sh's
# Stock User-Mode Linux, its disks two vhost-user-blk exports of stock qemu-storage-daemon, which has them from nbdkit.

# shellcheck source=tests/system/routes/nbdkit-qemu.sh
. "$(dirname "${BASH_SOURCE[0]}")/nbdkit-qemu.sh"

route_need() {
    need_command linux.uml user-mode-linux
    need_command qemu-storage-daemon qemu-system-common
    need_nbdkit
}
route_attach() {
    exports_begin "$@"
    rm -f "$work/root-vhost" "$work/second-vhost" "$work/vhost.pid"
    start vhost qemu-storage-daemon --pidfile "$work/vhost.pid" \
        --blockdev "driver=nbd,node-name=root,server.type=unix,server.path=$work/root-nbd,discard=unmap" \
        --blockdev "driver=nbd,node-name=second,server.type=unix,server.path=$work/second-nbd,discard=unmap" \
        --export "type=vhost-user-blk,id=root,node-name=root,writable=on,addr.type=unix,addr.path=$work/root-vhost" \
        --export "type=vhost-user-blk,id=second,node-name=second,writable=on,addr.type=unix,addr.path=$work/second-vhost"
    # Written when all exports are there.
    wait_for 30 "qemu-storage-daemon to be ready" test -s "$work/vhost.pid" || { cat "$work/vhost.log" >&2; return 1; }
}
route_boot() { run_uml "$work/root-vhost" --disk2 "$work/second-vhost" --vhost "$@"; }
route_detach() {
    check "qemu-storage-daemon ends cleanly" stop vhost
    exports_end
}
route_crash() {
    stop vhost KILL || true
    exports_crash
}
