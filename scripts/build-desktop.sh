#!/bin/bash
# build-desktop.sh [--profile large|small]: makes the disk of a desktop, once, and prints the directory it lies in.
#
# The directory holds disk.img, a raw disk with a partition table and a boot loader that any PC emulator boots without
# further files, and size, which says how much was installed. The system is Debian with X, twm and Gnumeric, which
# starts by itself with a small sheet; it says "@@ desktop ready" on the first serial line, and answers F12 there with
# the cells that were copied (scripts/desktop has its files).
#
#   large   beside that office programs, browsers, mail, pictures, compilers, statistics: a distribution that serves
#           everybody, of which one session needs next to nothing
#   small   nothing beside that, for tests
#
# Kept in ${XDG_CACHE_HOME:-~/.cache}/vmstream-build under a name made of everything that went into it, so a changed
# script or file makes a new image and an unchanged one costs nothing. Nothing is mounted by hand and no loop device is
# needed: mke2fs fills the file system from a directory. Needs root, mmdebstrap and a Debian mirror, which
# VMSTREAM_MIRROR may name; while it is made the large one needs 10 GB of room, and 5 GB when it is there.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

profile=large
while [ $# -gt 0 ]; do
    case $1 in
        --profile) profile=${2:?--profile needs a name}; shift 2 ;;
        *) echo "usage: build-desktop.sh [--profile large|small]" >&2; exit 2 ;;
    esac
done
die() { echo "build-desktop.sh: $*" >&2; exit 1; }

# The kernel with the drivers of emulated machines, the boot loader, the agent through which a snapshot drops caches,
# and what the session of scripts/desktop uses.
packages=(systemd-sysv udev dbus kmod linux-image-amd64 initramfs-tools grub-pc-bin grub-common qemu-guest-agent
    xserver-xorg-core xserver-xorg-input-libinput xinit x11-xserver-utils x11-utils xfonts-base twm xclip xterm
    fonts-dejavu-core adwaita-icon-theme librsvg2-common gnumeric vim-tiny less)
case $profile in
    small) ;;
    large)
        packages+=(libreoffice-writer libreoffice-calc libreoffice-impress libreoffice-draw firefox-esr chromium
            thunderbird gimp inkscape emacs-gtk vim git gcc g++ gfortran clang llvm python3-scipy octave r-base-core)
        ;;
    *) die "no profile '$profile': profiles are large and small" ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
files=$here/desktop
suite=bookworm
hash=$( (cat "$0"; cd "$files"; find . -type f | sort | xargs cat; echo "$suite") | sha256sum | cut -c 1-12)
base=${XDG_CACHE_HOME:-$HOME/.cache}/vmstream-build
final=$base/desktop-$profile-$hash
mkdir -p "$base"

exec 9>"$base/desktop-$profile.lock"
flock 9
if [ -e "$final/disk.img" ]; then
    echo "$final"
    exit 0
fi
[ "$(id -u)" = 0 ] || die "must be root: the files of the image belong to root"
for tool in mmdebstrap mke2fs chroot; do
    command -v $tool >/dev/null || die "no $tool: scripts/install-deps.sh demo installs it"
done

work=$(mktemp -d "$base/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir "$work/out"
# mktemp made a private directory; what becomes the guest's "/" must be open to all its users.
chmod 755 "$work"

echo "making the $profile desktop ($suite), once; this takes a while" >&2
# Recommended packages stay out: they would bring daemons. Nothing is synced while it is unpacked: a half tree is
# thrown away.
mmdebstrap --mode=root --variant=minbase --components=main --include="$(IFS=,; echo "${packages[*]}")" \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook="cp -rT --no-preserve=ownership '$files' \"\$1\" && rm \"\$1/setup\"" \
    --customize-hook="cp '$files/setup' \"\$1/tmp/setup\" && chroot \"\$1\" sh /tmp/setup && rm \"\$1/tmp/setup\"" \
    "$suite" "$tree" ${VMSTREAM_MIRROR:+"$VMSTREAM_MIRROR"} >"$work/mmdebstrap.log" 2>&1 || {
    tail -n 20 "$work/mmdebstrap.log" >&2
    die "cannot make the system: root, mmdebstrap and a reachable mirror are needed"
}
# Those that mmdebstrap copied from this machine.
echo desktop >"$tree/etc/hostname"
echo 127.0.0.1 localhost desktop >"$tree/etc/hosts"
rm -rf "$tree"/etc/resolv.conf "$tree"/var/log/*.log "$tree"/var/log/apt "$tree"/var/cache/*/* "$tree"/var/lib/apt/lists/*

# Room for what the user adds: a tenth, at least 256 MiB.
used_mib=$(du -sxm "$tree" | cut -f 1)
spare_mib=$((used_mib / 10 > 256 ? used_mib / 10 : 256))
echo "$used_mib MiB in $(chroot "$tree" dpkg-query -f x -W | wc -c) packages" >"$work/out/size"

disk=$work/out/disk.img
mke2fs -q -t ext4 -b 4096 -m 0 -L desktop -J size=16 -E offset=1048576,lazy_itable_init=0,lazy_journal_init=0 \
    -d "$tree" "$disk" "$((used_mib + spare_mib))M" >&2
# The first MiB: the boot loader's first sector, a table with one bootable Linux partition, and the loader proper
# from sector 1 on, where its first sector looks for it.
bytes=$(stat -c %s "$disk")
core=$tree/boot/grub/core.img
[ "$(stat -c %s "$core")" -le $((2047 * 512)) ] || die "the boot loader does not fit into the first MiB"
dd if="$tree/usr/lib/grub/i386-pc/boot.img" of="$disk" bs=446 count=1 conv=notrunc status=none
dd if="$core" of="$disk" bs=512 seek=1 conv=notrunc status=none
# little VALUE: four bytes, low first, as printf escapes.
little() { printf '\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)); }
# shellcheck disable=SC2059  # escapes are the point
printf "\x80\xfe\xff\xff\x83\xfe\xff\xff$(little 2048)$(little $((bytes / 512 - 2048)))" |
    dd of="$disk" bs=1 seek=446 conv=notrunc status=none
printf '\x55\xaa' | dd of="$disk" bs=1 seek=510 conv=notrunc status=none

find "$base" -maxdepth 1 -type d -name "desktop-$profile-*" -exec rm -rf {} +
mv "$work/out" "$final"
echo "$final"
