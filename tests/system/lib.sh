# shellcheck shell=bash
# lib.sh: sourced by each system test, on top of scripts/harness.sh.
#
# A test says what it needs (need_...: else it is skipped, which the summary shows), makes its checks (check,
# same) and calls finish. Its lines are those of TAP; the last one is PASS, FAIL or SKIP and its name. Exit
# status: 0 passed, 1 failed, 77 skipped. What is not a check - a server that does not start - ends the test at
# once as failed.

# shellcheck source=scripts/harness.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/harness.sh"

test_name=$(basename "$0" .sh)
checks=0
failures=0

skip() {
    echo "SKIP $test_name: $*"
    exit 77
}

# check WHAT COMMAND...: one promise; what the command says is shown when it is broken.
check() {
    local what=$1
    shift
    checks=$((checks + 1))
    # Not in a subshell: what is checked may be the end of a process that this shell must wait for.
    if "$@" >"$work/check.out" 2>&1; then
        echo "ok $checks - $what"
    else
        failures=$((failures + 1))
        echo "not ok $checks - $what"
        tail -n 30 "$work/check.out" | sed 's/^/# /'
    fi
}

# same WHAT EXPECTED GOT: two texts are equal and not empty.
same() { check "$1" equal_texts "$2" "$3"; }
equal_texts() {
    if [ -z "$2" ] || [ "$1" != "$2" ]; then
        echo "expected '$1'"
        echo "got      '$2'"
        return 1
    fi
}

# equal_bytes FILE FILE OFFSET LENGTH: a range of bytes is the same in both.
equal_bytes() { cmp --ignore-initial="$3" --bytes="$4" "$1" "$2"; }

finish() {
    echo "1..$checks"
    if [ $failures = 0 ]; then
        echo "PASS $test_name: $checks checks"
        exit 0
    fi
    local log
    for log in "$work"/*.log; do
        [ ! -s "$log" ] || { echo "# last lines of $(basename "$log"):"; tail -n 8 "$log" | sed 's/^/#   /'; }
    done
    echo "FAIL $test_name: $failures of $checks checks"
    exit 1
}

need_fuse() {
    [ -w /dev/fuse ] || skip "no /dev/fuse that this user may open"
    command -v fusermount3 >/dev/null || skip "no fusermount3 (Debian package fuse3)"
}
need_root() { [ "$(id -u)" = 0 ] || skip "needs root to $1"; }
need_command() { command -v "$1" >/dev/null || skip "no $1 (Debian package $2)"; }

# run_uml, run_qemu OPTIONS...: a machine, in place of the (sub)shell that says so: its end is the shell's, and a
# signal to the shell's process reaches the script, which then kills its machine.
run_uml() { exec "$root/scripts/uml.sh" "$@"; }
run_qemu() { exec "$root/scripts/qemu.sh" "$@"; }

# console NAME COMMAND...: a whole run of a machine in a subshell, what it prints in $work/NAME.console; its end is shown
# when it went wrong.
console() {
    local name=$1 status=0
    shift
    ("$@") >"$work/$name.console" 2>&1 || status=$?
    [ "$status" = 0 ] || { echo "exit status $status"; tail -n 12 "$work/$name.console"; return 1; }
}

# source_image FILE MIB: noise with holes of zeroes between, the same on every run: an AES key stream.
source_image() {
    local file=$1 mib=$2 at
    head -c "${mib}M" /dev/zero | openssl enc -aes-128-ctr -nosalt -K 0123456789abcdef0123456789abcdef \
        -iv 00000000000000000000000000000000 >"$file" 2>/dev/null
    # One MiB in eight is empty, and the empty pieces begin inside a block.
    for ((at = 3; at < mib; at += 8)); do
        dd if=/dev/zero of="$file" bs=512 seek=$((at * 2048 + 3)) count=2048 conv=notrunc status=none
    done
}

# need_patched_qemu: QEMU with the vmstream driver, first in PATH. VMSTREAM_QEMU names another build of it.
need_patched_qemu() {
    local tool qemu prefix
    need_command python3 python3
    for tool in meson ninja dpkg-source; do need_command $tool "that scripts/install-deps.sh qemu installs"; done
    qemu=${VMSTREAM_QEMU:-$("$root/scripts/build-qemu.sh")} || die "QEMU with the driver could not be built"
    prefix=$("$root/scripts/stage.sh")
    export PATH="$qemu/bin:$PATH" LD_LIBRARY_PATH="$prefix/lib"
}
# on NAME COMMAND [ARGUMENTS]: a command to the QMP monitor at $work/NAME.qmp.
on() { "$root/tests/system/qmp.py" "$work/$1.qmp" "${@:2}"; }
