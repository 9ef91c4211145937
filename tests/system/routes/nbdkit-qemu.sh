# shellcheck shell=bash
# shellcheck disable=SC2154  # work and root are lib.sh's
# Stock QEMU, its disks two NBD exports of nbdkit with the plugin.

route_need() {
    need_command qemu-system-x86_64 qemu-system-x86
    need_nbdkit
}
need_nbdkit() {
    need_command nbdkit nbdkit
    need_command nbdinfo libnbd-bin
    [ -e /usr/include/nbdkit-plugin.h ] || skip "no nbdkit-plugin.h (Debian package nbdkit-plugin-dev)"
}
# exports_begin ROOT CACHE SECOND CACHE2: the two at the sockets $work/root-nbd and $work/second-nbd.
exports_begin() {
    local plugin
    plugin=$("$root/scripts/build-nbdkit.sh")
    export_disk root-nbd "$plugin" "$1" "$2"
    export_disk second-nbd "$plugin" "$3" "$4"
}
export_disk() { # NAME PLUGIN URL CACHE
    # One that was killed left its socket behind.
    rm -f "$work/$1"
    start "$1-server" nbdkit -f -U "$work/$1" "$2" "url=$3" "cache=$4"
    wait_for 30 "nbdkit to answer at $1" nbd_answers "$1" || { cat "$work/$1-server.log" >&2; return 1; }
}
nbd_answers() { timeout 5 nbdinfo --size "nbd+unix:///?socket=$work/$1" >/dev/null; }
exports_end() {
    check "nbdkit of the root disk ends cleanly" stop root-nbd-server
    check "nbdkit of the second disk ends cleanly" stop second-nbd-server
}
exports_crash() {
    stop root-nbd-server KILL || true
    stop second-nbd-server KILL || true
}

route_attach() { exports_begin "$@"; }
route_boot() {
    run_qemu --second "$@" -- \
        -blockdev "driver=nbd,node-name=root,server.type=unix,server.path=$work/root-nbd,discard=unmap" \
        -blockdev "driver=nbd,node-name=second,server.type=unix,server.path=$work/second-nbd,discard=unmap"
}
route_detach() { exports_end; }
route_crash() { exports_crash; }
