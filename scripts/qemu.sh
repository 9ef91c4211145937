#!/bin/bash
# qemu.sh [options] -- DRIVES...: boots Debian's kernel in QEMU, emulated (TCG), from virtio disks.
#
# DRIVES are QEMU's own options that define the block nodes "root" and, if there is a second disk, "second":
#
#   qemu.sh --job hash -- -blockdev raw,node-name=root,file.driver=file,file.filename=disk.img
#
#   --qemu FILE      the emulator (default qemu-system-x86_64)
#   --device WORDS   more properties of the disks, as rerror=stop,werror=stop
#   --second         there is a node "second": /dev/vdb in the guest
#   --init PATH      first program of the guest (default /demo/init)
#   --job NAME       which job of /demo/jobs the first program runs (default app)
#   --append WORDS   more words for the kernel's command line; NAME=VALUE reaches the job as a variable
#   --ro             mount the root read-only
#   --mem SIZE       memory of the guest (default 512M)
#   --timeout S      whole seconds until the guest counts as hung (default 240)
#
# Console, exit status and what becomes of the machine's processes: see machine.sh.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

qemu=qemu-system-x86_64 device='' second=no init=/demo/init job=app append='' mode=rw mem=512M limit_s=240
while [ $# -gt 0 ]; do
    case $1 in
        --qemu) qemu=${2:?--qemu needs a file}; shift 2 ;;
        --device) device=,${2:?--device needs properties}; shift 2 ;;
        --second) second=yes; shift ;;
        --init) init=${2:?--init needs a path}; shift 2 ;;
        --job) job=${2:?--job needs a name}; shift 2 ;;
        --append) append=${2?--append needs words}; shift 2 ;;
        --ro) mode=ro; shift ;;
        --mem) mem=${2:?--mem needs a size}; shift 2 ;;
        --timeout) limit_s=${2:?--timeout needs seconds}; shift 2 ;;
        --) shift; break ;;
        *) usage ;;
    esac
done
[ $# -gt 0 ] || usage
command -v "$qemu" >/dev/null || { echo "qemu.sh: no $qemu: install Debian's qemu-system-x86 or give --qemu" >&2; exit 2; }
kernel=$("$here/guest-kernel.sh")

disks=(-device "virtio-blk-pci,drive=root$device")
[ $second = no ] || disks+=(-device "virtio-blk-pci,drive=second$device")

# shellcheck source=scripts/machine.sh
. "$here/machine.sh"
# Nothing that the guest's job does not need: no network card, no screen; its first serial line is the console. No
# watchdog either: on a busy host an emulated processor may stand still for long, and the kernel's alarm would be
# written into the middle of a marker line.
run_machine "$limit_s" "$qemu" -machine q35,accel=tcg -m "$mem" -nodefaults -no-user-config -no-reboot -display none \
    -serial stdio "$@" "${disks[@]}" -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" \
    -append "console=ttyS0 quiet nowatchdog panic=-1 $mode init=$init JOB=$job $append"
