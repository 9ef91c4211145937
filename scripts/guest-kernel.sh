#!/bin/bash
# guest-kernel.sh: makes, once, what guests with virtio disks boot with, and prints the directory it lies in.
#
#   vmlinuz, initrd   Debian's own x86_64 kernel for QEMU, and a small first file system for it
#   uml-initrd        the same for Debian's User-Mode Linux, whose virtio_blk is a module (absent without it)
#
# The first file system loads the modules that a root on /dev/vda needs, mounts it as the command line says (ro or
# rw) and hands over to init=, /demo/init unless given. Kept under ${XDG_CACHE_HOME:-~/.cache}/vmstream-build by
# what went in. Nothing is installed: the kernel's package is only unpacked.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

[ $# = 0 ] || { echo "usage: guest-kernel.sh" >&2; exit 2; }
die() { echo "guest-kernel.sh: $*" >&2; exit 1; }
for tool in busybox depmod modprobe apt-get; do
    command -v $tool >/dev/null || die "no $tool: scripts/install-deps.sh demo test installs it"
done

package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
[ -n "$package" ] || die "apt knows no linux-image-amd64: run apt-get update (Debian on x86_64 is needed)"
candidate=$(apt-cache policy "$package" | awk '/Candidate:/ { print $2 }')
uml_version=none
! command -v linux.uml >/dev/null || uml_version=$(linux.uml --version | tail -n 1)

base=${XDG_CACHE_HOME:-$HOME/.cache}/vmstream-build
mkdir -p "$base"
hash=$( (cat "$0" "$(command -v busybox)"; echo "$package $candidate $uml_version") | sha256sum | cut -c 1-12)
final=$base/guest-kernel-$hash

exec 9>"$base/guest-kernel.lock"
flock 9
if [ -e "$final/vmlinuz" ]; then
    echo "$final"
    exit 0
fi
work=$(mktemp -d "$base/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/out"

cat >"$work/init" <<'INIT'
#!/bin/busybox sh
# The first file system's only program: modules, the root, and over to it.
export PATH=/bin
/bin/busybox mkdir -p /proc /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order

mode=rw init=/demo/init
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in
        ro | rw) mode=$word ;;
        init=*) init=${word#init=} ;;
    esac
done
# A disk is found while the kernel goes on.
n=0
while [ ! -b /dev/vda ]; do
    n=$((n + 1))
    [ $n -lt 600 ] || { echo "initrd: no /dev/vda after a minute"; break; }
    /bin/busybox sleep 0.1
done
/bin/busybox mount -t ext4 -o $mode /dev/vda /root || echo "initrd: cannot mount /dev/vda"
/bin/busybox umount /proc
exec /bin/busybox switch_root /root "$init"
INIT

# pack NAME FILE...: a first file system with these modules, which are loaded in this order.
pack() {
    local name=$1 tree=$work/$1.tree file
    shift
    mkdir -p "$tree/bin" "$tree/modules"
    cp "$(command -v busybox)" "$tree/bin/busybox"
    cp "$work/init" "$tree/init"
    chmod 755 "$tree/init"
    : >"$tree/modules/order"
    for file in "$@"; do
        cp "$file" "$tree/modules/"
        basename "$file" >>"$tree/modules/order"
    done
    (cd "$tree" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -n >"$work/out/$name"
}

echo "fetching Debian's kernel $package, once" >&2
# As root apt would like to give the download to a user of its own, who may not write here; it says so and goes on.
(cd "$work" && apt-get download -q "$package" >"$work/download.log" 2>&1) ||
    { cat "$work/download.log" >&2; die "cannot download $package"; }
dpkg-deb -x "$work/$package"_*.deb "$work/kernel"
release=${package#linux-image-}
depmod -b "$work/kernel" "$release"
# Of one module all that it needs, in the order of loading; what several need is loaded once. The checksum has a
# second module for processors with an instruction for it, which the emulated one has not.
mapfile -t modules < <(for module in virtio_pci virtio_blk virtio_balloon crc32c_generic ext4; do
    modprobe -d "$work/kernel" -S "$release" --show-depends $module
done | awk '$1 == "insmod" && !seen[$2]++ && !/crc32c-intel/ { print $2 }')
[ ${#modules[@]} -gt 3 ] || die "the modules of $package were not found"
pack initrd "${modules[@]}"

uml_modules=/usr/lib/uml/modules/$uml_version
if [ -e "$uml_modules/kernel/drivers/block/virtio_blk.ko" ]; then
    mapfile -t modules < <(awk -F '[: ]+' '$1 ~ /\/virtio_blk\.ko$/ { for (i = NF; i > 0; i--) if ($i != "") print $i }' \
        "$uml_modules/modules.dep")
    pack uml-initrd "${modules[@]/#/$uml_modules/}"
fi

# Last, as its presence says that all is whole.
mv "$work/kernel/boot/vmlinuz-$release" "$work/out/vmlinuz"
for old in "$base"/guest-kernel-*/; do rm -rf "$old"; done
mv "$work/out" "$final"
echo "$final"
