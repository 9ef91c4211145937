# shellcheck shell=bash
# harness.sh: sourced by the demonstration and the system tests; starts, awaits and ends their processes.
#
# Every process started here is known by a name, writes to $work/NAME.log and is ended when the script ends,
# whichever way it ends; so are the mounts. Every wait has a limit after which the script fails with what it was
# waiting for. Nothing is ever ended that was not started here.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$PATH:/usr/sbin:/sbin"

# The tool under test; VMSTREAM names another build of it.
vmstream=${VMSTREAM:-$root/target/release/vmstream}

# Longest time a well-behaved process takes to end after it was asked to, in seconds: a mount syncs its cache.
stop_s=20

work=''
declare -A pid_of=() port_of=() url_of=()
mounts=()

# begin: makes $work, a private directory for logs, caches and mount points, removed at the end.
begin() {
    [ -x "$vmstream" ] || { echo "$0: no $vmstream: run make first, or set VMSTREAM" >&2; exit 1; }
    work=$(mktemp -d "${TMPDIR:-/tmp}/vmstream-XXXXXX")
    trap end EXIT
    trap 'exit 143' TERM
    trap 'exit 130' INT
}

# end: what the trap does; the order matters: a mount whose process is gone can be taken away without waiting.
end() {
    local status=$? name directory
    trap '' TERM INT
    for name in "${!pid_of[@]}"; do
        kill -KILL "${pid_of[$name]}" 2>/dev/null || true
        kill -CONT "${pid_of[$name]}" 2>/dev/null || true
    done
    for directory in "${mounts[@]}"; do
        if mounted "$directory"; then
            fusermount3 -uzq "$directory" 2>/dev/null || umount -l "$directory" 2>/dev/null || true
        fi
    done
    if [ "$status" != 0 ] && [ -n "${KEEP-}" ]; then
        echo "kept for a look: $work" >&2
    else
        rm -rf "$work"
    fi
    exit "$status"
}

die() {
    echo "$0: $*" >&2
    exit 1
}

# mounted DIRECTORY: asks the kernel's table; looking at the directory itself could wait for a dead file system.
mounted() { awk -v at="$1" '$5 == at { found = 1 } END { exit !found }' /proc/self/mountinfo; }

now_us() { echo "${EPOCHREALTIME//[^0-9]/}"; }

# wait_for SECONDS WHAT COMMAND...: polls until the command succeeds.
wait_for() {
    local limit=$1 what=$2 deadline
    shift 2
    deadline=$(($(now_us) + limit * 1000000))
    until "$@" 2>/dev/null; do
        [ "$(now_us)" -lt $deadline ] || { echo "$0: waited $limit s in vain for $what" >&2; return 1; }
        sleep 0.02
    done
}

alive() { [ -n "${pid_of[$1]-}" ] && kill -0 "${pid_of[$1]}" 2>/dev/null; }
gone() { ! alive "$1"; }

# start NAME COMMAND...: in the background, its output in $work/NAME.log.
start() {
    local name=$1
    shift
    "$@" </dev/null >>"$work/$name.log" 2>&1 &
    pid_of[$name]=$!
}

# stop NAME [SIGNAL]: ends it and answers its exit status; one that does not end in time is killed, which fails.
stop() {
    local name=$1 pid=${pid_of[$1]-} status=0
    [ -n "$pid" ] || return 0
    kill -"${2:-TERM}" "$pid" 2>/dev/null || true
    # After SIGKILL there is nothing to wait for in vain, and bash would report the end it noticed while polling.
    if [ "${2-}" != KILL ] && ! wait_for $stop_s "$name (process $pid) to end" gone "$name"; then
        kill -KILL "$pid" 2>/dev/null || true
        status=1
    fi
    wait "$pid" 2>/dev/null || status=$?
    unset "pid_of[$name]"
    return $status
}

# serve NAME DIRECTORY [OPTIONS...]: an origin on a free port of this machine; its address in ${url_of[NAME]}.
# Started a second time under its name it listens on the same port again. Its statistics, written at its end,
# are in $work/NAME.stats.
serve() {
    local name=$1 directory=$2
    shift 2
    rm -f "$work/$name.port"
    start "$name" "$vmstream" serve "$directory" --listen "127.0.0.1:${port_of[$name]:-0}" \
        --port-file "$work/$name.port" --stats "$work/$name.stats" "$@"
    wait_for 10 "the origin to listen" served "$name" || { cat "$work/$name.log" >&2; return 1; }
    port_of[$name]=$(tr -dc '0-9' <"$work/$name.port")
    # shellcheck disable=SC2034  # read by those who source this
    url_of[$name]=http://127.0.0.1:${port_of[$name]}
}
# Alive as well: a process that failed to start would let the whole time pass.
served() { [ -s "$work/$1.port" ] || ! alive "$1" && [ -s "$work/$1.port" ]; }

# mount_disk NAME URL CACHE [OPTIONS...]: the streamed disk is then at $work/NAME/disk; its status, written
# while it runs and at its end, in $work/NAME.json.
mount_disk() {
    local name=$1 url=$2 cache=$3
    shift 3
    mkdir -p "$work/$name"
    mounts+=("$work/$name")
    start "$name" "$vmstream" mount "$url" "$work/$name" --cache "$cache" --json-status "$work/$name.json" "$@"
    wait_for 30 "the disk in $work/$name" disk_there "$name" || { cat "$work/$name.log" >&2; return 1; }
}
# The limit guards against a mount that accepts the question and never answers it.
disk_there() { timeout 5 test -s "$work/$1/disk"; }

# unmount NAME: the clean way, as a user's Ctrl-C.
unmount() {
    stop "$1" TERM || { cat "$work/$1.log" >&2; return 1; }
    ! mounted "$work/$1" || { echo "$0: $work/$1 is still mounted after its process ended" >&2; return 1; }
}

# killed_mount NAME: kill -9, and the dead mount point taken away as its owner would.
killed_mount() {
    stop "$1" KILL || true
    ! mounted "$work/$1" || fusermount3 -uzq "$work/$1" || umount -l "$work/$1"
}

# json_number FILE KEY: the first number of this name in a JSON file; empty when there is none.
json_number() {
    { grep -Eo "\"$2\"[[:space:]]*:[[:space:]]*[0-9.eE+-]+" "$1" 2>/dev/null || true; } | sed -n '1s/.*:[[:space:]]*//p'
}

# marker FILE NAME [KEY]: from a console log the stamp of a guest's line "@@ NAME ...", or the value of its KEY=.
marker() {
    if [ $# = 2 ]; then
        awk -v name="$2" '$2 == "@@" && $3 == name { print $1; exit }' "$1"
    else
        awk -v name="$2" -v key="$3=" '$2 == "@@" && $3 == name {
            for (i = 4; i <= NF; i++) if (index($i, key) == 1) { print substr($i, length(key) + 1); exit } }' "$1"
    fi
}
