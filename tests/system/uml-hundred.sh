#!/bin/bash
# uml-hundred.sh [VERSION...]: COUNT boots (100) of each patched User-Mode Linux in a row, while two other processes
# keep the processors busy. No crash, no hang, no process left behind.
#
# Every tenth boot begins with an empty cache, so that requests wait; the others find what has come.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/system/patched-uml.sh
. "$(dirname "$0")/patched-uml.sh"

versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(6.1 6.12)
count=${COUNT:-100}
for version in "${versions[@]}"; do need_patched_uml "$version"; done
begin
image=$("$root/scripts/build-root.sh")
serve origin "$image"

start spin-1 bash -c 'while :; do :; done'
start spin-2 bash -c 'while :; do :; done'

boots() {
    local n status
    for ((n = 0; n < count; n++)); do
        ((n % 10)) || rm -rf "$work/cache"
        status=0
        (run_uml "stream:${url_of[origin]}/disk.img,cache=$work/cache" --kernel "$kernel" --job nothing --timeout 60) \
            >"$work/console" 2>&1 || status=$?
        if [ "$status" != 0 ]; then
            echo "boot $n ended with status $status"
            tail -n 25 "$work/console"
            return 1
        fi
    done
}
for version in "${versions[@]}"; do
    need_patched_uml "$version"
    check "$version: $count boots under load, each of which ends well" boots
    rm -rf "$work/cache"
done
finish
