#!/bin/bash
# uml.sh DISK [options]: boots User-Mode Linux from a disk image, a mounted stream of one, or a vhost-user socket.
#
#   --disk2 FILE     a second disk, /dev/ubdb in the guest
#   --vhost          DISK and FILE are sockets of vhost-user-blk daemons: /dev/vda and /dev/vdb in the guest
#   --sync           open the disks with O_SYNC: a kernel that passes no flush on keeps by it what it has synced
#   --kernel FILE    the kernel (default Debian's, linux.uml)
#   --init PATH      first program of the guest (default /demo/init)
#   --job NAME       which job of /demo/jobs the first program runs (default app)
#   --append WORDS   more words for the kernel's command line; NAME=VALUE reaches the job as a variable
#   --ro             mount the root read-only
#   --mem SIZE       memory of the guest (default 256M)
#   --timeout S      whole seconds until the guest counts as hung (default 120)
#
# Console, exit status and what becomes of the machine's processes: see machine.sh.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -gt 0 ] || usage
disk=$1; shift
disk2='' vhost=no sync='' kernel=linux.uml init=/demo/init job=app append=() mode=rw mem=256M limit_s=120
while [ $# -gt 0 ]; do
    case $1 in
        --disk2) disk2=${2:?--disk2 needs a file}; shift 2 ;;
        --vhost) vhost=yes; shift ;;
        --sync) sync=s; shift ;;
        --kernel) kernel=${2:?--kernel needs a file}; shift 2 ;;
        --init) init=${2:?--init needs a path}; shift 2 ;;
        --job) job=${2:?--job needs a name}; shift 2 ;;
        --append) read -r -a append <<<"${2?--append needs words}"; shift 2 ;;
        --ro) mode=ro; shift ;;
        --mem) mem=${2:?--mem needs a size}; shift 2 ;;
        --timeout) limit_s=${2:?--timeout needs seconds}; shift 2 ;;
        *) usage ;;
    esac
done

for one in "$disk" ${disk2:+"$disk2"}; do
    case $one in
        # Not a file: what the kernel itself understands, a stream or a COW file and what lies below it.
        *[:,]*) ;;
        *) [ -r "$one" ] || { echo "uml.sh: cannot read the disk $one" >&2; exit 2; } ;;
    esac
done
command -v "$kernel" >/dev/null ||
    { echo "uml.sh: no kernel $kernel: install Debian's user-mode-linux or give --kernel" >&2; exit 2; }
if [ $vhost = yes ]; then
    initrd=$("$here/guest-kernel.sh")/uml-initrd
    [ -r "$initrd" ] || { echo "uml.sh: $kernel has no module for virtio disks" >&2; exit 2; }
    # 2 is the number of block devices among virtio's kinds of devices.
    disks=("initrd=$initrd" "virtio_uml.device=$disk:2" ${disk2:+"virtio_uml.device=$disk2:2"})
else
    disks=("ubd0$sync=$disk" ${disk2:+"ubd1$sync=$disk2"} root=/dev/ubda)
fi

# shellcheck source=scripts/machine.sh
. "$here/machine.sh"
# TMPDIR holds the file behind the guest's memory; a tmpfs where there is one.
TMPDIR=$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)
export TMPDIR
run_machine "$limit_s" "$kernel" "${disks[@]}" "$mode" "mem=$mem" con=null "con0=fd:0,fd:1" "init=$init" "JOB=$job" \
    "uml_dir=$work" quiet ${append[@]+"${append[@]}"}
