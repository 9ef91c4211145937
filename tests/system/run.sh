#!/bin/bash
# run.sh [NAME...]: runs the system tests (all, or those named) one after the other and sums up.
#
# Each test is tests/system/NAME.sh; a name with a colon, matrix:ROUTE, is the argument of one. The last line reads "N passed, N failed, N skipped"; skipped tests are
# named with their reason before it. Exit status 1 when one failed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(matrix:fuse-uml matrix:fuse-qemu matrix:nbdkit-qemu matrix:vhost-uml matrix:uml-6.1 matrix:uml-6.12 matrix:qemu uml-patched uml-hundred qemu-block qemu-guest nbdkit fio sync times wait page link-cut learnt publish first origins diskfull kill9 restore run-uml desktop)
# No test may hang the run: the longest takes about five minutes.
limit_s=900

passed=0 failed=0
skips=()
for name in "${names[@]}"; do
    script=$here/${name%%:*}.sh argument=()
    [ "${name%%:*}" = "$name" ] || argument=("${name#*:}")
    [ -x "$script" ] || { echo "run.sh: no test '$name' in $here" >&2; exit 2; }
    echo "== $name"
    log=$(mktemp)
    status=0
    timeout --kill-after=30 $limit_s "$script" ${argument[@]+"${argument[@]}"} 2>&1 | tee "$log" || status=${PIPESTATUS[0]}
    case $status in
        0) passed=$((passed + 1)) ;;
        77) skips+=("$(grep '^SKIP' "$log" | tail -n 1)") ;;
        *)
            failed=$((failed + 1))
            # The test's own verdict is there unless it died or was cut off.
            grep -q '^FAIL' "$log" || echo "FAIL $name: ended with status $status"
            ;;
    esac
    rm -f "$log"
done

[ ${#skips[@]} = 0 ] || printf '!! %s\n' "${skips[@]}"
echo "system tests: $passed passed, $failed failed, ${#skips[@]} skipped"
[ $failed = 0 ]
