# shellcheck shell=bash
# machine.sh: sourced by uml.sh and qemu.sh; runs one virtual machine and tells how it ended.
#
# The console goes to standard output, each line with the seconds since the start of the script in front. The
# machine runs in a session of its own, so that exactly its processes - User-Mode Linux has one for its disks and one
# for each address space - can be found and ended. They are ended when the script ends, whichever way it ends.

# What the exit status of the script means beside the job's own, which the guest tells in its last marker line
# ("@@ exit N"): the time was up; no such line, so the guest crashed or was killed; processes were left behind.
machine_timed_out=124 machine_crashed=125 machine_left=126

machine=''
work=$(mktemp -d)

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

# run_machine SECONDS COMMAND...: runs the machine with its console on standard output and does not return; the
# guest counts as hung after so many whole seconds.
run_machine() {
    local limit_s=$1 console_open=yes status='' verdict='' part='' left line
    shift
    mkfifo "$work/console"
    setsid "$@" </dev/null >"$work/console" 2>&1 &
    machine=$!
    exec 3<"$work/console"
    while [ $console_open = yes ]; do
        # Woken every second at least: the console may stay open in a process that was left behind, and then its
        # end is no sign that the machine has ended.
        if IFS= read -r -t 1 line <&3; then
            line=$part${line%$'\r'} part=''
            stamp "$line"
            case $line in
                "@@ exit "*) status=${line#@@ exit }; status=${status%% *} ;;
            esac
        elif [ $? -le 128 ]; then
            console_open=no
        else
            # Woken in the middle of a line: what came of it would be lost.
            part+=$line
            kill -0 "$machine" 2>/dev/null || console_open=no
        fi
        if [ $(($(now_us) - start_us)) -gt $((limit_s * 1000000)) ]; then
            verdict="did not end within $limit_s s"
            break
        fi
    done

    if [ -n "$verdict" ]; then
        stamp "$(basename "$0"): the guest $verdict; killed"
        exit $machine_timed_out
    fi
    { wait "$machine" || true; } 2>/dev/null

    # A machine that ended well takes its helpers along, if not in the same instant.
    for _ in {1..40}; do
        [ -n "$(members)" ] || break
        sleep 0.05
    done
    left=$(members | tr '\n' ' ')
    if [ -z "$status" ]; then
        stamp "$(basename "$0"): the guest ended without its last marker: it crashed or was killed"
        exit $machine_crashed
    fi
    if [ -n "${left// /}" ]; then
        stamp "$(basename "$0"): processes of the machine were left behind and killed: $left"
        exit $machine_left
    fi
    exit "$status"
}
