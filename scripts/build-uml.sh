#!/bin/bash
# build-uml.sh [6.1|6.12|all]: builds User-Mode Linux that streams its disks, once, and prints the directories.
#
# Each directory holds `linux`, the kernel, and its `config`. Made of Debian's linux-source package, the patches and
# files of c-examples/uml and a small configuration, it is kept in ${XDG_CACHE_HOME:-~/.cache}/vmstream-build under a
# name made of all that; libvmstream is linked dynamically and may change without a new kernel. The source package
# is downloaded once and kept as well; remove it there (linux-source-*.deb) to get a newer one.
#
# Needs no root. VMSTREAM_MIRROR names another Debian mirror, JOBS how many compilers run at once.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
patches=$root/c-examples/uml
versions=("${1:-all}")
[ "${versions[0]}" != all ] || versions=(6.1 6.12)
if [ $# -gt 1 ] || [ ! -d "$patches/${versions[0]}" ]; then
    echo "usage: build-uml.sh [6.1|6.12|all]" >&2
    exit 2
fi

die() { echo "build-uml.sh: $*" >&2; exit 1; }
base=${XDG_CACHE_HOME:-$HOME/.cache}/vmstream-build
mkdir -p "$base"
work='' compilers=''
# The compilers are a session of their own, to be ended with this script.
cleanup() {
    [ -z "$compilers" ] || kill -- "-$compilers" 2>/dev/null || true
    [ -z "$work" ] || rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# The newest source package that is here already; empty when there is none.
package_of() {
    find "$base" -maxdepth 1 -name "linux-source-$1_*.deb" | sort -V | tail -n 1
}

# download VERSION: from bookworm, whatever this machine has in its lists, and without touching them.
download() {
    local apt keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r $keyring ] || die "no $keyring: install debian-archive-keyring"
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/package"
    # As root apt would fetch as a user of its own, who may not write here.
    apt=(apt-get -q -o "Dir::Etc::SourceList=$work/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root
        -o 'Acquire::Languages=none')
    {
        echo "deb [signed-by=$keyring] ${VMSTREAM_MIRROR:-http://deb.debian.org/debian} bookworm main"
        echo "deb [signed-by=$keyring] http://deb.debian.org/debian-security bookworm-security main"
    } >"$work/apt/sources.list"
    echo "fetching Debian's linux-source-$1, once" >&2
    (cd "$work/package" && "${apt[@]}" update && "${apt[@]}" download "linux-source-$1") >"$work/apt/log" 2>&1 ||
        { tail -n 5 "$work/apt/log" >&2; die "cannot download linux-source-$1"; }
    mv "$work/package/linux-source-$1"_*.deb "$base/"
}

# configure SOURCE: the smallest configuration and ours on top of it, of which nothing may get lost.
configure() {
    local line
    make -C "$1" "${make[@]}" tinyconfig
    cat "$patches/config" >>"$work/build/.config"
    # It warns of every line that it finds twice.
    make -C "$1" "${make[@]}" olddefconfig 2>&1
    while read -r line; do
        case $line in
            CONFIG_*) grep -qxF "$line" "$work/build/.config" || { echo "not taken over: $line"; return 1; } ;;
        esac
    done <"$patches/config"
}

# build VERSION PACKAGE: the kernel, in $work/out.
build() {
    local source=$work/linux-source-$1 patch prefix
    prefix=$("$root/scripts/stage.sh")
    echo "building User-Mode Linux $1 with streamed disks, once (about 5 minutes on two processors)" >&2
    dpkg-deb -x "$2" "$work/deb"
    # Of what this kernel has no hardware for the configuration is wanted, but not the code: half of all files.
    tar -xJf "$work/deb/usr/src/linux-source-$1.tar.xz" -C "$work" --exclude='*/arch/*/boot/dts/*' \
        --exclude='*/drivers/'{gpu,infiniband,media,net/ethernet,net/wireless,scsi,staging}'/*.[ch]' \
        --exclude='*/sound/*.[ch]' --exclude='*/tools/testing/*'
    rm -rf "$work/deb"
    for patch in "$patches/$1"/*.patch; do
        patch --quiet --forward --fuzz=0 -d "$source" -p1 <"$patch" || { echo "$patch does not apply"; return 1; }
    done
    cp "$patches"/ubd_stream*.[ch] "$source/arch/um/drivers/"
    export PKG_CONFIG_PATH=$prefix/lib/pkgconfig KBUILD_BUILD_USER=vmstream KBUILD_BUILD_HOST=localhost
    mkdir -p "$work/build" "$work/out"
    make=(ARCH=um "O=$work/build" --no-print-directory)
    configure "$source" || return
    setsid nice make -C "$source" "${make[@]}" -j "${JOBS:-$(nproc)}" linux &
    compilers=$!
    wait $compilers || return
    compilers=''
    cp "$work/build/linux" "$work/out/linux"
    cp "$work/build/.config" "$work/out/config"
}

for version in "${versions[@]}"; do
    # Two callers must not download or build twice.
    exec 9>"$base/uml-$version.lock"
    package=$(package_of "$version")
    if [ -z "$package" ]; then
        flock 9
        package=$(package_of "$version")
    fi
    if [ -z "$package" ]; then
        work=$(mktemp -d "$base/work.XXXXXX")
        download "$version"
        rm -rf "$work"
        package=$(package_of "$version")
    fi
    hash=$( (echo "$version ${package##*/}"; cat "$0" "$patches/config" "$patches/$version"/*.patch \
        "$patches"/ubd_stream*.[ch] "$root/include/vmstream.h" "$root/vmstream.pc.in") | sha256sum | cut -c 1-12)
    final=$base/uml-$version-$hash
    [ -x "$final/linux" ] || flock 9
    if [ ! -x "$final/linux" ]; then
        "$root/scripts/install-deps.sh" build uml
        work=$(mktemp -d "$base/work.XXXXXX")
        if ! build "$version" "$package" >"$work/log"; then
            tail -n 30 "$work/log" >&2
            die "User-Mode Linux $version was not built"
        fi
        for old in "$base/uml-$version"-*/; do rm -rf "$old"; done
        mv "$work/out" "$final"
        rm -rf "$work"
        work=''
    fi
    exec 9>&-
    echo "$final"
done
