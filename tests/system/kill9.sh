#!/bin/bash
# kill9.sh [ROUNDS]: the mount is killed with SIGKILL at random moments while writers are at work.
#
# The checker is the test in tests/kill9.rs: it drives the same tool, knows every sector it wrote and which were
# flushed, and fio verifies beside it in some rounds. Two runs: a good origin, and a bad one (injected errors,
# cut bodies and delays).
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

rounds=${1:-${ROUNDS:-200}}
need_fuse
command -v fio >/dev/null || echo "# no fio (Debian package fio): the checker runs without it"
begin

torture() {
    (cd "$root" && VMSTREAM="$vmstream" VMSTREAM_KILL9_ROUNDS=$2 \
        timeout 600 cargo test --quiet --test kill9 -- --ignored --exact --nocapture "$1") | tee "$work/$1.log"
    # A test that was renamed away would "pass" without running.
    grep -q "kill9: $2 rounds" "$work/$1.log"
}
check "$rounds kills, no wrong byte, no lost flushed write" torture survives_kills "$rounds"
grep 'kill9: .*nothing' "$work/survives_kills.log" | sed 's/^/# /' || true
faulty=$(((rounds + 3) / 4))
check "$faulty kills over a faulty link, the same" torture survives_kills_over_a_faulty_link $faulty
finish
