# shellcheck shell=bash
# shellcheck disable=SC2154  # work is lib.sh's
# Stock User-Mode Linux, its disks two files of FUSE mounts.

route_need() {
    need_fuse
    need_command linux.uml user-mode-linux
}
route_attach() {
    mount_disk root-disk "$1" "$2"
    mount_disk second-disk "$3" "$4"
}
# Synchronous, as this kernel sends no fsync when its guest flushes.
route_boot() { run_uml "$work/root-disk/disk" --disk2 "$work/second-disk/disk" --sync "$@"; }
route_detach() {
    check "the root disk unmounts cleanly" unmount root-disk
    check "the second disk unmounts cleanly" unmount second-disk
}
route_crash() {
    killed_mount root-disk
    killed_mount second-disk
}
