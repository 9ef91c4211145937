#!/bin/bash
# install-deps.sh GROUP...: makes sure that the Debian packages of the named groups are there.
#
#   build   what `make` needs beside Rust
#   demo    what `make demo` needs: the guest's kernel, tools that make its disk, FUSE
#   restore what `make demo-restore` needs on top of demo: QEMU
#   test    what `make test` needs on top of both
#   uml     what `make uml` needs: a kernel is built
#   qemu    what `make qemu` needs on top of build
#   page    what the test of the server's pages needs: a browser
#   nbdkit  what `make nbdkit` and the test of that plugin need
#
# Nothing happens when all commands are found, so every script may call this first. Only missing packages are
# installed, after at most one `apt-get update`. Without root or apt it says what to install and ends with 1.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# group:what must be found:package that brings it. "What" is a command or, with a slash, a file.
needs="
build:cc:gcc
build:pkg-config:pkg-config
demo:linux.uml:user-mode-linux
demo:mke2fs:e2fsprogs
demo:fusermount3:fuse3
demo:busybox:busybox-static
demo:mmdebstrap:mmdebstrap
demo:curl:curl
demo:pgrep:procps
restore:qemu-system-x86_64:qemu-system-x86
restore:qemu-img:qemu-utils
restore:python3:python3
restore:zstd:zstd
test:fio:fio
test:nginx:nginx-light
test:openssl:openssl
test:shellcheck:shellcheck
test:mandoc:mandoc
test:valgrind:valgrind
test:debugfs:e2fsprogs
test:depmod:kmod
test:qemu-system-x86_64:qemu-system-x86
test:qemu-storage-daemon:qemu-system-common
test:qemu-io:qemu-utils
uml:make:make
uml:bc:bc
uml:flex:flex
uml:bison:bison
uml:patch:patch
uml:xz:xz-utils
uml:/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
qemu:dpkg-source:dpkg-dev
qemu:patch:patch
qemu:meson:meson
qemu:ninja:ninja-build
qemu:python3:python3
qemu:/usr/include/glib-2.0/glib.h:libglib2.0-dev
qemu:/usr/include/pixman-1/pixman.h:libpixman-1-dev
qemu:/usr/include/libfdt.h:libfdt-dev
qemu:/usr/include/zlib.h:zlib1g-dev
qemu:/usr/include/libaio.h:libaio-dev
qemu:/usr/include/liburing.h:liburing-dev
qemu:/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
qemu:/usr/share/qemu/linuxboot_dma.bin:qemu-system-data
qemu:/usr/share/seabios/bios-256k.bin:seabios
page:chromium:chromium
nbdkit:cc:gcc
nbdkit:make:make
nbdkit:nbdkit:nbdkit
nbdkit:/usr/include/nbdkit-plugin.h:nbdkit-plugin-dev
nbdkit:nbdcopy:libnbd-bin
nbdkit:qemu-io:qemu-utils
nbdkit:fio:fio
"

[ $# -gt 0 ] || { echo "usage: install-deps.sh build|demo|restore|test|page|nbdkit|qemu|uml ..." >&2; exit 2; }

present() {
    case $1 in
        */*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

if ! command -v cargo >/dev/null; then
    # Debian's own cargo is older than the edition this crate is written in.
    echo "install-deps.sh: no cargo found: install Rust 1.88 or later from https://rustup.rs" >&2
    exit 1
fi

missing=()
for group in "$@"; do
    known=no
    while IFS=: read -r of what package; do
        [ "$of" = "$group" ] || continue
        known=yes
        present "$what" || missing+=("$package")
    done <<<"$needs"
    [ $known = yes ] || { echo "install-deps.sh: no group '$group': groups are build, demo, restore, test, page, nbdkit, qemu and uml" >&2; exit 2; }
done
[ ${#missing[@]} -gt 0 ] || exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "install-deps.sh: missing Debian packages: ${missing[*]}" >&2
    echo "install-deps.sh: install them as root: apt-get install ${missing[*]}" >&2
    exit 1
fi

echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >&2; }
# The package lists may be fresh enough; only when they are not does the update cost its time.
install || { apt-get update -q >&2 && install; } || {
    # Emulator and tools of QEMU come from one release or not at all: where the tools are a newer one's, from
    # backports say, the release's own emulator wants them back.
    [[ " ${missing[*]} " = *" qemu-system-x86 "* ]] || exit 1
    release=$(apt-cache policy qemu-system-x86 | awk '/Candidate:/ { print $2 }')
    tools=$(apt-cache madison qemu-utils | awk -v like="${release%%+*}" 'index($3, like) == 1 { print $3; exit }')
    echo "install-deps.sh: trying again with qemu-utils $tools beside qemu-system-x86 $release" >&2
    missing+=("qemu-utils=$tools")
    apt-get install -y -q --no-install-recommends --allow-downgrades "${missing[@]}" </dev/null >&2
}

# apt may have taken away what was there before: the release's emulator drives out tools that are a newer one's.
[ -n "${VMSTREAM_DEPS_AGAIN-}" ] || VMSTREAM_DEPS_AGAIN=1 exec "$0" "$@"
