#!/bin/bash
# run.sh [DIRECTORY]: builds the C tests against the libvmstream.so and libvmstream.a in DIRECTORY and runs them.
#
# Without DIRECTORY a release build is made first. Each program keeps one promise of include/vmstream.h, ends with 0
# when it holds, and is ended after a time limit when it hangs. Every build treats warnings as errors. The last line
# reads "N passed, N failed, N skipped"; the exit status is 1 when something failed.
#
# VMS_STACK_MAX: bytes of stack that the I/O path may use; what the header promises for a release build unless given.
set -u

root=$(cd "$(dirname "$0")/../.." && pwd)
tests=$root/tests/c
libraries=${1:-}
stack_max=${VMS_STACK_MAX:-1024}
CC=${CC:-cc}
CXX=${CXX:-c++}
# Far above what any test takes on a busy machine; valgrind is some 30 times slower.
limit_s=60
limit_valgrind_s=300

if [ -z "$libraries" ]; then
    (cd "$root" && cargo build --release --lib --locked) || exit 1
    libraries=${CARGO_TARGET_DIR:-$root/target}/release
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
so=$work/libvmstream.so
ln -s "$(realpath "$libraries/libvmstream.so")" "$so"
soname=$(readelf -d "$so" | sed -n 's/.*soname: \[\(.*\)\]/\1/p')
[ -z "$soname" ] || ln -s libvmstream.so "$work/$soname"

passed=0 failed=0 skipped=0
names=()

# try NAME COMMAND...: runs a check and counts it; 77 means that it cannot be run here.
try() {
    local name=$1 status=0
    shift
    "$@" >"$work/log" 2>&1 </dev/null || status=$?
    case $status in
        0)
            passed=$((passed + 1))
            echo "ok      $name"
            ;;
        77)
            skipped=$((skipped + 1))
            echo "skipped $name: $(tail -n 1 "$work/log")"
            ;;
        *)
            failed=$((failed + 1))
            names+=("$name")
            [ $status != 124 ] || echo "did not end in time" >>"$work/log"
            echo "FAILED  $name (status $status)"
            sed 's/^/        /' "$work/log"
            ;;
    esac
}

warnings=(-Wall -Wextra -Wpedantic -Werror)
flags=(-std=gnu11 -g -O1 "${warnings[@]}" "-I$root/include" "-I$tests")
links=(-L"$work" -lvmstream "-Wl,-rpath,$work" -pthread)

# compile NAME [FLAG...]: one test program.
compile() {
    "$CC" "${flags[@]}" -o "$work/$1" "$tests/$1.c" "${@:2}"
}

build_and_run() {
    compile "$1" "${links[@]}" && timeout $limit_s "$work/$1" "${@:2}"
}

header_as() { # COMPILER LANGUAGE STANDARD
    command -v "$1" >/dev/null || { echo "there is no $1"; return 77; }
    "$1" -x "$2" "-std=$3" "${warnings[@]}" "-I$root/include" -o "$work/header" "$tests/header_alone.c" "${links[@]}" &&
        timeout $limit_s "$work/header"
}

# The library exports the functions of the header and nothing else.
exports() {
    nm -D --defined-only "$so" | awk '{ print $3 }' | sed 's/@.*//' | sort >"$work/exported"
    grep -o '\bvms_[a-z_]*(' "$root/include/vmstream.h" | tr -d '(' | sort -u >"$work/declared"
    # The comment at the top shows calls of functions that are declared below; so nothing has to be left out.
    diff "$work/declared" "$work/exported"
}

# The dynamic linker's name and way of binding: see build.rs.
dynamic_section() {
    local version
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
    case $version in
        0.*) version=${version%.*} ;;
        *) version=${version%%.*} ;;
    esac
    [ "$soname" = "libvmstream.so.$version" ] || { echo "the soname is '$soname'"; return 1; }
    readelf -d "$so" | grep -q 'FLAGS.*NOW' || { echo "not bound at load time"; return 1; }
}

raw_clone() {
    "$CC" -std=gnu11 -O2 -fno-stack-protector "${warnings[@]}" "-I$root/include" -c -o "$work/raw_gate.o" "$tests/raw_gate.c" &&
        compile raw_clone "$work/raw_gate.o" "${links[@]}" -Wl,-z,now &&
        timeout $limit_s "$work/raw_clone" "$stack_max"
}

static_link() {
    "$CC" "${flags[@]}" -o "$work/$1_static" "$tests/$1.c" "$libraries/libvmstream.a" -pthread -lm -ldl &&
        ! readelf -d "$work/$1_static" | grep "NEEDED.*vmstream" &&
        timeout $limit_s "$work/$1_static"
}

# Memory errors and memory that nobody can reach any more.
under_valgrind() {
    command -v valgrind >/dev/null || { echo "there is no valgrind"; return 77; }
    timeout $limit_valgrind_s valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
        --show-leak-kinds=definite --fair-sched=yes "$@"
}

example() {
    "$CC" -std=gnu11 -O2 "${warnings[@]}" "-I$root/include" -o "$work/$1" "$root/c-examples/$1.c" "${links[@]}"
}

# Compares what it prints with the bytes of the file.
lazy_read() {
    example lazy_read && head -c 300000 "$so" >"$work/disk" || return 1
    timeout $limit_s "$work/lazy_read" "$work/disk" 0 100K 262000 | tee "$work/printed" || return 1
    for offset in 0 102400 262000; do
        grep -q "^ *$offset: $(od -An -v -tx1 -j $offset -N 8 "$work/disk" | sed 's/^ //') " "$work/printed" || return 1
    done
    # Two places in one block of 4 KiB, and one in another.
    timeout $limit_s "$work/lazy_read" pattern:2T 0 512 1024G | tail -n 1 | grep -x 'fetched 8192 bytes in 2 pieces' || return 1
    ! timeout $limit_s "$work/lazy_read" "$work/no such disk" 2>"$work/error" && grep 'no such disk' "$work/error" &&
        ! timeout $limit_s "$work/lazy_read" pattern:1M 2M 2>"$work/error" && grep 'Invalid argument' "$work/error"
}

# Compares its sum with one made in another way.
event_loop() {
    example event_loop && head -c 200001 "$so" >"$work/disk" || return 1
    local sum
    sum=$(od -An -v -tu1 -w1 "$work/disk" | awk '{ sum += $1 * NR } END { printf "%.0f", sum }')
    timeout $limit_s "$work/event_loop" "$work/disk" | grep "200001 bytes, sum $(printf '%016x' "$sum")\$" || return 1
    ! timeout $limit_s "$work/event_loop" "$work/no such disk"
}

try 'header: C99' header_as "$CC" c c99
try 'header: C11' header_as "$CC" c c11
try 'header: C++11' header_as "$CXX" c++ c++11
try 'header: C++17' header_as "$CXX" c++ c++17
try exports exports
try 'dynamic section' dynamic_section
for name in version nulls resident bad_options lifetimes struct_size errno event_fd full_ring retries threads reopen \
    close_pending close_in_callback silent_server signals killed_sleeper quiet fork; do
    try $name build_and_run $name
done
# Loads the library by itself, so it is linked with it only for the sake of check.h.
try dlopen build_and_run dlopen "$so"
try raw_clone raw_clone
try 'static: version' static_link version
try 'static: threads' static_link threads
try 'example: lazy_read' lazy_read
try 'example: event_loop' event_loop
try 'valgrind: lazy_read' under_valgrind "$work/lazy_read" pattern:64M 0 1M 510
try 'valgrind: threads' under_valgrind "$work/threads" 60
for name in lifetimes close_pending close_in_callback event_fd nulls bad_options; do
    try "valgrind: $name" under_valgrind "$work/$name"
done

[ $failed = 0 ] || printf 'failed: %s\n' "${names[@]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
