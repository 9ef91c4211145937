# shellcheck shell=bash
# Patched QEMU, emulating, with the vmstream block driver for both disks.

route_need() { need_patched_qemu; }
# The machine opens the disks itself.
route_attach() {
    qemu_nodes=(
        -blockdev "driver=vmstream,node-name=root,url=$1,cache-dir=$2"
        -blockdev "driver=vmstream,node-name=second,url=$3,cache-dir=$4,cache.direct=on"
    )
}
route_boot() { run_qemu --second "$@" -- "${qemu_nodes[@]}"; }
route_detach() { :; }
route_crash() { :; }
