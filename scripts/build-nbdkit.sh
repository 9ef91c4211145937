#!/bin/bash
# build-nbdkit.sh (make nbdkit): builds the nbdkit plugin against the library of this tree and prints its path.
#
# It finds the library where scripts/stage.sh put it, so it works without installation and without LD_LIBRARY_PATH:
# nbdkit PATH url=... For an installed library see c-examples/nbdkit/Makefile.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")

"$here/install-deps.sh" nbdkit
prefix=$("$here/stage.sh")
out=$root/target/nbdkit
plugin=$out/nbdkit-vmstream-plugin.so
mkdir -p "$out"

# Two callers must not write one file. The compiler takes half a second, less than it takes to say when it need not.
exec 9>"$out/lock"
flock 9
PKG_CONFIG_PATH=$prefix/lib/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH} \
    make --silent --always-make -C "$root/c-examples/nbdkit" PLUGIN="$plugin.new" CFLAGS='-O2 -g -Werror' \
    LDFLAGS="-Wl,-rpath,$prefix/lib" >&2
mv "$plugin.new" "$plugin"
echo "$plugin"
