#!/bin/bash
# stage.sh: builds the release library and tool and installs them into target/stage; prints that directory.
#
# For what is built against vmstream in this tree - drivers, plugins, their tests - exactly as against an installed
# one: PKG_CONFIG_PATH=PREFIX/lib/pkgconfig to build, LD_LIBRARY_PATH=PREFIX/lib to run.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
prefix=${CARGO_TARGET_DIR:-$root/target}/stage
mkdir -p "$prefix"
# Two that come at once must not see each other's half of an installation.
exec 9>"$prefix.lock"
flock 9
make --quiet build >&2
make --quiet install PREFIX="$prefix" DESTDIR= >&2
echo "$prefix"
