#!/bin/bash
# uml.sh DISK [options]: boots Debian's User-Mode Linux from a disk image or a mounted stream of one.
#
#   --disk2 FILE     a second disk, /dev/ubdb in the guest; the job sees DISK2=1
#   --init PATH      first program of the guest (default /demo/init)
#   --job NAME       which job of /demo/jobs the first program runs (default app)
#   --ro             mount the root read-only
#   --mem SIZE       memory of the guest (default 256M)
#   --timeout S      whole seconds until the guest counts as hung (default 120)
#
# The console goes to standard output, each line with the seconds since the start of this script in front. The
# exit status is the job's own as the guest tells it in its last marker line ("@@ exit N"); 124 when the time was
# up, 125 when the guest ended without that line (a panic, a killed machine), 126 when processes of the machine
# were left behind and had to be killed. The machine runs in a session of its own, so that exactly its
# processes - User-Mode Linux has one for its disks and one for each address space - can be found and ended.
set -euo pipefail

usage() { echo "usage: uml.sh DISK [--disk2 FILE] [--init PATH] [--job NAME] [--ro] [--mem SIZE] [--timeout S]" >&2; exit 2; }

[ $# -gt 0 ] || usage
disk=$1; shift
disk2='' init=/demo/init job=app mode=rw mem=256M limit_s=120
while [ $# -gt 0 ]; do
    case $1 in
        --disk2) disk2=${2:?--disk2 needs a file}; shift 2 ;;
        --init) init=${2:?--init needs a path}; shift 2 ;;
        --job) job=${2:?--job needs a name}; shift 2 ;;
        --ro) mode=ro; shift ;;
        --mem) mem=${2:?--mem needs a size}; shift 2 ;;
        --timeout) limit_s=${2:?--timeout needs seconds}; shift 2 ;;
        *) usage ;;
    esac
done
[ -r "$disk" ] || { echo "uml.sh: cannot read the disk $disk" >&2; exit 2; }

kernel=$(command -v linux.uml) || { echo "uml.sh: no linux.uml: install Debian's user-mode-linux" >&2; exit 2; }
work=$(mktemp -d)
machine=''
console_open=no

# The session's number is the process number of its first member, which setsid made.
# Those that ended and only wait for their parent to ask (state Z) count as gone.
members() { [ -z "$machine" ] || pgrep -s "$machine" -r R,S,D,T,t || true; }

cleanup() {
    # An array, because the trap may strike while read runs with an empty IFS, and then nothing splits words.
    local pids
    mapfile -t pids < <(members)
    [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
    # Collects the machine, so that the shell does not report its end on its own.
    [ -z "$machine" ] || wait "$machine" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# The clock of the stamps, in microseconds: the digits of EPOCHREALTIME whatever the decimal point is.
now_us() { echo "${EPOCHREALTIME//[^0-9]/}"; }
start_us=$(now_us)
stamp() {
    local us=$(($(now_us) - start_us))
    printf '%3d.%03d %s\n' $((us / 1000000)) $((us / 1000 % 1000)) "$1"
}

arguments=("ubd0=$disk" root=/dev/ubda "$mode" "mem=$mem" con=null "con0=fd:0,fd:1" "init=$init" "JOB=$job"
    "uml_dir=$work" quiet)
[ -z "$disk2" ] || arguments+=("ubd1=$disk2" DISK2=1)

mkfifo "$work/console"
# TMPDIR holds the file behind the guest's memory; a tmpfs where there is one.
TMPDIR=$([ -w /dev/shm ] && echo /dev/shm || echo /tmp) \
    setsid "$kernel" "${arguments[@]}" </dev/null >"$work/console" 2>&1 &
machine=$!
exec 3<"$work/console"
console_open=yes

status=''
verdict=''
while [ $console_open = yes ]; do
    # Woken every second at least: the console may stay open in a process that was left behind, and then its
    # end is no sign that the machine has ended.
    if IFS= read -r -t 1 line <&3; then
        line=${line%$'\r'}
        stamp "$line"
        case $line in
            "@@ exit "*) status=${line#@@ exit }; status=${status%% *} ;;
        esac
    elif [ $? -le 128 ]; then
        console_open=no
    elif ! kill -0 "$machine" 2>/dev/null; then
        console_open=no
    fi
    if [ $(($(now_us) - start_us)) -gt $((limit_s * 1000000)) ]; then
        verdict="did not end within $limit_s s"
        break
    fi
done

if [ -n "$verdict" ]; then
    stamp "uml.sh: the guest $verdict; killed"
    exit 124
fi
{ wait "$machine" || true; } 2>/dev/null

# A machine that ended well takes its helpers along, if not in the same instant.
for _ in {1..40}; do
    [ -n "$(members)" ] || break
    sleep 0.05
done
left=$(members | tr '\n' ' ')
if [ -z "$status" ]; then
    stamp "uml.sh: the guest ended without its last marker: it crashed or was killed"
    exit 125
fi
if [ -n "${left// /}" ]; then
    stamp "uml.sh: processes of the machine were left behind and killed: $left"
    exit 126
fi
exit "$status"
