# shellcheck shell=bash
# shellcheck disable=SC2154  # work is lib.sh's
# Stock QEMU, its disks two files of FUSE mounts.

# shellcheck source=tests/system/routes/fuse-uml.sh
. "$(dirname "${BASH_SOURCE[0]}")/fuse-uml.sh"

route_need() {
    need_fuse
    need_command qemu-system-x86_64 qemu-system-x86
}
# Discards of the guest reach the cache; without the word QEMU drops them.
route_boot() {
    run_qemu --second "$@" -- \
        -blockdev "driver=file,node-name=root,filename=$work/root-disk/disk,discard=unmap" \
        -blockdev "driver=file,node-name=second,filename=$work/second-disk/disk,discard=unmap"
}
