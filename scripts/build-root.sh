#!/bin/bash
# build-root.sh [--profile demo|full]: makes the guest's root disk, once, and prints the directory it lies in.
#
# The directory holds disk.img, a raw ext4 image made from a real Debian system, and root.sha256, the sum over
# all its files that the guest's "hash" job computes again through the streamed disk. It is kept in
# ${XDG_CACHE_HOME:-~/.cache}/vmstream-build under a name made of everything that went into it, so a changed
# script, job or suite makes a new image and an unchanged one costs nothing. Nothing is ever mounted here:
# mke2fs fills the file system from a directory.
#
#   demo   Debian's essential packages and Python, 128 MiB: small enough to download as a whole for comparison
#   full   a minimal Debian with a C compiler, Perl and Python, 1.25 GiB of which a third is used
#
# VMSTREAM_MIRROR names another Debian mirror. Without mmdebstrap, without root (the files of the image would
# not belong to root) or without a reachable mirror the root is a single static busybox; it is said on stderr.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

profile=demo
while [ $# -gt 0 ]; do
    case $1 in
        --profile) profile=${2:?--profile needs a name}; shift 2 ;;
        *) echo "usage: build-root.sh [--profile demo|full]" >&2; exit 2 ;;
    esac
done
case $profile in
    demo) variant=essential include=mount,python3 size_mib=128 ;;
    full) variant=minbase include=gcc,libc6-dev,perl,python3 size_mib=1280 ;;
    *) echo "build-root.sh: no profile '$profile': profiles are demo and full" >&2; exit 2 ;;
esac

here=$(cd "$(dirname "$0")" && pwd)
guest=$here/../tests/system/guest
suite=bookworm
# The host's own release has its archive keys installed; any other host has at least bookworm's with mmdebstrap.
# shellcheck disable=SC1091  # a file of the host
[ ! -r /etc/os-release ] || suite=$(. /etc/os-release; [ "${ID-}" = debian ] && echo "${VERSION_CODENAME:-bookworm}" || echo bookworm)

hash=$( (cat "$0"; cd "$guest"; find . -type f | sort | xargs cat; echo "$suite") | sha256sum | cut -c 1-12)
base=${XDG_CACHE_HOME:-$HOME/.cache}/vmstream-build
final=$base/$profile-$hash
mkdir -p "$base"

# Two test scripts that start together must not build twice.
exec 9>"$base/lock"
flock 9
if [ -e "$final/disk.img" ]; then
    echo "$final"
    exit 0
fi

work=$(mktemp -d "$base/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir "$work/out"
# mktemp made a private directory; what becomes the guest's "/" must be open to all its users.
chmod 755 "$work"

debian() {
    command -v mmdebstrap >/dev/null && [ "$(id -u)" = 0 ] || return 1
    # Documentation and translations are never read by the jobs and would only make the download longer.
    mmdebstrap --variant="$variant" --include="$include" \
        --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        "$suite" "$tree" ${VMSTREAM_MIRROR:+"$VMSTREAM_MIRROR"} >"$work/mmdebstrap.log" 2>&1 && return 0
    tail -n 5 "$work/mmdebstrap.log" >&2
    rm -rf "$tree"
    return 1
}

busybox_only() {
    echo "build-root.sh: no Debian system can be made here (root, mmdebstrap and a mirror are needed): busybox only" >&2
    final=$base/$profile-busybox-$hash
    rm -rf "$final"
    mkdir -p "$tree"/{bin,sbin,etc,dev,proc,sys,tmp,root,usr/bin,usr/sbin}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    local applet
    for applet in $("$tree/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
}

echo "making the guest's root disk ($profile, $suite), once" >&2
debian || busybox_only

# The same inputs should give the same bytes as far as that is cheap: no host name, no logs of the build.
echo guest >"$tree/etc/hostname"
rm -rf "$tree"/etc/resolv.conf "$tree"/var/log/*.log "$tree"/var/log/apt "$tree"/var/cache/*/* "$tree"/var/lib/apt/lists/*
# Of Perl the small image keeps perl-base: the modules came only for a script that has done its work.
[ "$profile" != demo ] || rm -rf "$tree"/usr/share/perl/5* "$tree"/usr/lib/*-linux-gnu/perl/5*
mkdir -p "$tree/demo"
cp -r "$guest/." "$tree/demo/"
chmod 755 "$tree/demo/init"
chmod 755 "$tree"

(cd "$tree" && find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1) >"$work/out/root.sha256"
mke2fs -q -t ext4 -b 4096 -L vmstream -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 \
    -d "$tree" "$work/out/disk.img" "${size_mib}M" >&2
# Those of other versions of this tree may be in use; what nobody has made for a month is forgotten.
find "$base" -maxdepth 1 -type d -name "$profile-*" -mtime +30 -exec rm -rf {} +
mv "$work/out" "$final"
echo "$final"
