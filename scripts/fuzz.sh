#!/bin/bash
# fuzz.sh [TARGET...] (make fuzz): feeds the parsers with made-up bytes, FUZZ_SECONDS (60) each; all targets, or those named.
#
# Needs cargo-fuzz (installed from crates.io when it is missing) and a compiler that takes unstable options: nightly when
# rustup has one, else the stable one told to behave like it. What is found lies in fuzz/found/TARGET, and what makes a
# target fail in fuzz/artifacts/TARGET: mend the parser, and take the file into fuzz/corpus/TARGET, which `cargo test`
# reads with every run. Ends with 1 when a target failed.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root/fuzz"
seconds=${FUZZ_SECONDS:-60}
# One address space of so many MiB, and one allocation of half of it: more than any file that is accepted explains.
memory_max=2048

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
toolchain=()
if rustup run nightly rustc --version >/dev/null 2>&1; then
    toolchain=(+nightly)
else
    export RUSTC_BOOTSTRAP=1
fi

targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"|\1|p' Cargo.toml)
failed=()
for target in "${targets[@]}"; do
    echo "=== $target"
    mkdir -p "found/$target"
    # The first directory takes what is found; the corpus is only read.
    cargo "${toolchain[@]}" fuzz run --fuzz-dir . "$target" "found/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=$memory_max -malloc_limit_mb=$((memory_max / 2)) -timeout=10 \
        -max_len=16384 -print_final_stats=1 -verbosity=0 || failed+=("$target")
done
[ ${#failed[@]} = 0 ] || { echo "fuzz.sh: failed: ${failed[*]}" >&2; exit 1; }
echo "${#targets[@]} targets, $seconds s each, nothing found that fails"
