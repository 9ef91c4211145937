#!/bin/bash
# test.sh [STAGE...] (make test): everything that is checked before a change goes in; all stages, or those named.
#
# A stage is a function below whose name begins with stage_; it prints what it does and ends with 0, with 77 when it
# cannot be run here (then its last line says why), or with anything else when something is wrong. A stage goes on
# to the next one whatever its result is, so that one run shows everything. A stage that runs many tests is counted
# with all of them, any other as one. The last line reads "N passed, N failed, N skipped"; the exit status is 1
# when something failed. What was skipped is named above it: a green line with skips is not a full check.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CARGO_TERM_COLOR=never

stage_dependencies() { scripts/install-deps.sh build demo test nbdkit qemu uml; }
stage_format() { cargo fmt --check; }
stage_lint() { cargo clippy --all-targets --locked -- -D warnings; }
stage_documentation() { RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked; }

# What an embedder links: without the tool and its dependencies.
stage_library_alone() { cargo clippy --lib --no-default-features --locked -- -D warnings; }

# The output of passed tests is kept as well: a test that could not run here says so on a line "SKIPPED: ...".
stage_tests() {
    local status=0
    cargo test --locked -- --show-output >"$work/tests" 2>&1 || status=$?
    grep -E '^( +Running|   Doc-tests|test result:|SKIP(PED)?:)' "$work/tests" || true
    [ $status = 0 ] || cat "$work/tests"
    return $status
}

# The gate under a model checker; it replaces the atomics, so it is a build of its own.
stage_model() {
    local status=0
    CARGO_TARGET_DIR=target/model RUSTFLAGS='--cfg vmstream_shuttle' \
        cargo test --lib --no-default-features --locked planner::model >"$work/model" 2>&1 || status=$?
    grep -E '^test ' "$work/model" || true
    [ $status = 0 ] || cat "$work/model"
    return $status
}

stage_release_build() { make build; }

stage_c() {
    [ -x tests/c/run.sh ] || { echo "SKIP c: there is no tests/c/run.sh"; return 77; }
    tests/c/run.sh
}

# Installs into a directory, builds a C program with nothing but what lies there, and takes all of it away again.
stage_install() {
    local stage=$work/stage prefix=/opt/vmstream flags left
    make --quiet install DESTDIR="$stage" PREFIX=$prefix
    cat >"$work/version.c" <<'C'
#include <stdio.h>
#include <vmstream.h>
int main(void) { return puts("linked and loaded") < 0 || vms_version() == 0; }
C
    # The files lie in the staging directory, but name the place they will have.
    flags=$(PKG_CONFIG_PATH=$stage$prefix/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$stage pkg-config --cflags --libs vmstream)
    # shellcheck disable=SC2086  # words
    cc -Wall -Werror -o "$work/version" "$work/version.c" $flags
    LD_LIBRARY_PATH=$stage$prefix/lib "$work/version"
    "$stage$prefix/bin/vmstream" --version
    left=$(nm -D --defined-only "$stage$prefix/lib/libvmstream.so" | awk '$3 !~ /^vms_/ { print $3 }')
    [ -z "$left" ] || { echo "exported beside vms_*: $left"; return 1; }
    make --quiet uninstall DESTDIR="$stage" PREFIX=$prefix
    left=$(find "$stage" ! -type d)
    [ -z "$left" ] || { echo "left behind by uninstall: $left"; return 1; }
}

stage_scripts() {
    shellcheck -x scripts/*.sh tests/system/*.sh tests/system/routes/*.sh benches/drivers/*.sh .ci/run
    [ ! -d tests/c ] || find tests/c -name '*.sh' -exec shellcheck -x {} +
}

stage_manual() {
    [ -d docs/man ] || { echo "SKIP manual: there is no docs/man"; return 77; }
    mandoc -Tlint -Wwarning docs/man/*.[1-8]
}

# What the system tests boot; here, as the first time takes longer than a test may.
stage_uml_kernels() { scripts/build-uml.sh all; }
stage_qemu_build() { scripts/build-qemu.sh; }
stage_desktop() {
    [ "$(id -u)" = 0 ] || { echo "SKIP desktop: only root can make the system of the desktop"; return 77; }
    scripts/install-deps.sh restore
    scripts/desktop-point.sh --profile small
}

stage_system() { tests/system/run.sh; }

stages=(dependencies format lint documentation library_alone tests model release_build c install scripts manual uml_kernels qemu_build desktop system)
[ $# = 0 ] || stages=("$@")

# count LOG STATUS: adds what a stage reports to the sums.
passed=0 failed=0 skipped=0
skips=() failures=()
count() {
    local name=$1 log=$2 status=$3 p f s
    read -r p f s < <(awk '
        /[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { p += $(NF - 5); f += $(NF - 3); s += $(NF - 1) }
        # Ignored tests of cargo are those that the system stage runs.
        /^test result:/ { p += $4; f += $6 }
        # Cargo knows no skipping: such a test was counted as passed.
        /^SKIP(PED)?: / { s++; p-- }
        END { print p + 0, f + 0, s + 0 }' "$log")
    case $status in
        0) [ $((p + f + s)) -gt 0 ] || p=1 ;;
        77) s=1 ;;
        *)
            [ "$f" -gt 0 ] || f=1
            failures+=("$name")
            ;;
    esac
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    mapfile -t -O ${#skips[@]} skips < <(grep -E '^SKIP' "$log" || true)
}

for name in "${stages[@]}"; do
    declare -F "stage_$name" >/dev/null || { echo "test.sh: no stage '$name'" >&2; exit 2; }
    echo "=== $name"
    status=0
    # Made before its reader starts, which might be the first of the two to look.
    : >"$work/log"
    # In a shell of its own with -e: a function whose result is tested would run on after a failed command.
    (trap - EXIT; set -e; "stage_$name") >>"$work/log" 2>&1 &
    pid=$!
    tail --pid=$pid -n +1 -s 0.2 -f "$work/log"
    wait $pid || status=$?
    count "$name" "$work/log" $status
done

echo
[ ${#skips[@]} = 0 ] || printf '!! %s\n' "${skips[@]}"
[ ${#failures[@]} = 0 ] || echo "failed stages: ${failures[*]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
