#!/bin/bash
# desktop-point.sh [--profile large|small] [-o DIR]: takes a restore point of the desktop with its spreadsheet open.
#
# The system of build-desktop.sh boots in QEMU (emulated; no KVM is needed); when the spreadsheet has come to rest its
# caches are dropped by the agent and the point is taken, into DIR, which must not exist.
#
# Without -o the point is kept beside the desktop, in ${XDG_CACHE_HOME:-~/.cache}/vmstream-build, and its directory is
# printed. Its name is a hash of all that makes it - the desktop, this script, the one that waits for the spreadsheet, the
# sources of `vmstream snapshot`, and QEMU - so what is kept never differs from what would be made now.
set -euo pipefail
# shellcheck source=scripts/harness.sh
. "$(dirname "$0")/harness.sh"

profile=large
out=''
while [ $# -gt 0 ]; do
    case $1 in
        --profile) profile=${2:?--profile needs a name}; shift 2 ;;
        -o) out=${2:?-o needs a directory}; shift 2 ;;
        *) echo "usage: desktop-point.sh [--profile large|small] [-o DIR]" >&2; exit 2 ;;
    esac
done
# What is large in it the sheet does not use.
memory_mib=384
machine=pc-q35-7.2

image=$("$root/scripts/build-desktop.sh" --profile "$profile")
if [ -z "$out" ]; then
    base=${XDG_CACHE_HOME:-$HOME/.cache}/vmstream-build
    hash=$( (basename "$image"; qemu-system-x86_64 --version; cd "$root"
        cat scripts/desktop-point.sh scripts/desktop-session.py src/bin/vmstream/snapshot.rs src/bin/vmstream/point.rs
        find src/bin/vmstream/snapshot src/bin/vmstream/point -type f | LC_ALL=C sort | xargs cat) |
        sha256sum | cut -c 1-12)
    final=$base/point-$profile-$hash
    exec 9>"$base/point-$profile.lock"
    flock 9
    if [ -e "$final/machine" ]; then
        echo "$final"
        exit 0
    fi
    # Beside its last place, as it is moved there. Of one that was killed, under the same lock.
    out=$base/point-$profile.new
    rm -rf "$out"
fi

begin
echo "taking a restore point of the $profile desktop" >&2
qemu-img create -q -f qcow2 -b "$image/disk.img" -F raw "$work/disk.qcow2"
# A tablet, because a pointer that is seen over VNC must be where the user points.
start source qemu-system-x86_64 -nodefaults -no-user-config -display none \
    -machine $machine,accel=tcg,memory-backend=ram -m $memory_mib \
    -object "memory-backend-file,id=ram,size=${memory_mib}M,mem-path=$work/ram,share=on" \
    -device VGA,vgamem_mb=8 -device virtio-tablet-pci -device virtio-balloon-pci -device virtio-serial-pci \
    -chardev "socket,path=$work/agent,server=on,wait=off,id=agent" \
    -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 \
    -drive "file=$work/disk.qcow2,format=qcow2,if=none,id=disk" -device virtio-blk-pci,drive=disk \
    -qmp "unix:$work/source.qmp,server=on,wait=off" -serial "file:$work/source.serial"
opened() { grep -q '^@@ desktop ready' "$work/source.serial" || ! alive source; }
wait_for 300 "the spreadsheet" opened
alive source || { cat "$work/source.log" >&2; die "the machine ended while it booted"; }
timeout 300 "$root/scripts/desktop-session.py" --qmp "$work/source.qmp" --rest
"$vmstream" snapshot --qmp "$work/source.qmp" --agent "$work/agent" -o "$out" >&2
stop source || true

if [ -n "${final-}" ]; then
    find "$base" -maxdepth 1 -type d -name "point-$profile-*" -exec rm -rf {} +
    mv "$out" "$final"
    out=$final
fi
echo "$out"
