#!/bin/bash
# build-qemu.sh (make qemu): builds Debian's QEMU with the vmstream block driver, once, and prints the directory.
#
# Its bin/ has qemu-img, qemu-io, qemu-nbd, qemu-storage-daemon and qemu-system-x86_64: emulation (TCG) of the "pc" and
# "q35" machines with virtio, NVMe, IDE and a serial line, and nothing else, so that it is built in minutes. They find
# the library by LD_LIBRARY_PATH=PREFIX/lib, PREFIX being what stage.sh prints. The firmware is Debian's.
#
# The source is that of Debian 12, fetched with a private list of sources, so neither root nor a deb-src line is
# needed. Source and result are kept in ${XDG_CACHE_HOME:-~/.cache}/vmstream-build; what was built has a name made of
# everything that went into it. To follow a newer package, remove qemu-source there. VMSTREAM_MIRROR names another
# Debian mirror.
set -euo pipefail
export LC_ALL=C

[ $# = 0 ] || { echo "usage: build-qemu.sh" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
driver=$here/../c-examples/qemu
die() { echo "build-qemu.sh: $*" >&2; exit 1; }

base=${XDG_CACHE_HOME:-$HOME/.cache}/vmstream-build
source=$base/qemu-source
mkdir -p "$base"
work=''
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

# Two that come at once must not build twice.
exec 9>"$base/qemu.lock"
flock 9

# fetch: Debian's source package into $source; whole or not at all.
fetch() {
    local mirror=${VMSTREAM_MIRROR:-http://deb.debian.org/debian} keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local apt=$work/apt suite
    [ -r $keyring ] || die "no $keyring: install Debian's debian-archive-keyring"
    mkdir -p "$apt"/{lists/partial,cache/archives/partial} "$work/source"
    for suite in bookworm bookworm-updates; do
        echo "deb-src [signed-by=$keyring] $mirror $suite main"
    done >"$apt/sources.list"
    [ -n "${VMSTREAM_MIRROR-}" ] ||
        echo "deb-src [signed-by=$keyring] http://deb.debian.org/debian-security bookworm-security main" >>"$apt/sources.list"
    local options=(-q -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=$(id -un)")
    echo "fetching the source of Debian's QEMU, once" >&2
    (cd "$work/source" && apt-get "${options[@]}" update && apt-get "${options[@]}" source --download-only qemu) \
        >"$work/fetch.log" 2>&1 || { tail -n 5 "$work/fetch.log" >&2; die "cannot fetch the source of qemu from $mirror"; }
    rm -rf "$source"
    mv "$work/source" "$source"
}

if ! compgen -G "$source/*.dsc" >/dev/null; then
    "$here/install-deps.sh" qemu
    work=$(mktemp -d "$base/work.XXXXXX")
    fetch
fi

# The description of the source package has the sums of its files. Of the library the header is what is compiled in.
hash=$(cat "$0" "$driver"/vmstream.c "$driver"/*.patch "$driver"/devices.mak "$here/../include/vmstream.h" \
    "$here/../vmstream.pc.in" "$source"/*.dsc | sha256sum | cut -c 1-12)
final=$base/qemu-$hash
if [ -e "$final/bin" ]; then
    echo "$final"
    exit 0
fi

"$here/install-deps.sh" build qemu
prefix=$("$here/stage.sh")
[ -n "$work" ] || work=$(mktemp -d "$base/work.XXXXXX")
tree=$work/qemu
echo "building QEMU with the vmstream driver, once: some minutes" >&2
dpkg-source --no-check -x "$source"/*.dsc "$tree" >"$work/unpack.log" 2>&1 ||
    { tail -n 5 "$work/unpack.log" >&2; die "cannot unpack $source"; }
patch --batch -d "$tree" -p 1 <"$driver"/qemu-7.2.patch >&2 || die "$driver/qemu-7.2.patch does not apply"
cp "$driver/vmstream.c" "$tree/block/"
cp "$driver/devices.mak" "$tree/configs/devices/x86_64-softmmu/vmstream.mak"

mkdir "$tree/build"
(
    cd "$tree/build"
    PKG_CONFIG_PATH=$prefix/lib/pkgconfig ../configure --without-default-features --without-default-devices \
        --target-list=x86_64-softmmu --with-devices-x86_64=vmstream --enable-system --enable-tcg --enable-tools \
        --enable-linux-aio --enable-linux-io-uring --enable-vmstream --disable-debug-info --disable-docs \
        --extra-cflags='-Werror=implicit -Werror=incompatible-pointer-types' --disable-werror \
        --firmwarepath=/usr/share/qemu:/usr/share/seabios
    nice ninja qemu-img qemu-io qemu-nbd storage-daemon/qemu-storage-daemon qemu-system-x86_64
) </dev/null >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; die "the build failed"; }

mkdir -p "$work/out/bin"
cp "$tree"/build/{qemu-img,qemu-io,qemu-nbd,storage-daemon/qemu-storage-daemon,qemu-system-x86_64} "$work/out/bin/"
for old in "$base"/qemu-*/; do
    case $old in
        */qemu-source/) ;;
        *) rm -rf "$old" ;;
    esac
done
mv "$work/out" "$final"
echo "$final"
