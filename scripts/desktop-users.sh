# shellcheck shell=bash
# desktop-users.sh: sourced, with harness.sh, by those who let users work in the restored desktop.
#
# $work/site has to hold the published restore point as desktop.vmp, $hash its root. Each user has an origin and a link of
# its own, and an empty cache, $work/NAME.cache. What comes of one, in $work:
#
#   NAME.session       what its session says of itself (desktop-session.py), with how its guest waited for the image
#   NAME.vmtrace       what the guest asked of the image, and when
#   NAME-origin.stats  what the origin counted

# shellcheck source=scripts/harness.sh
. "$(dirname "${BASH_SOURCE[0]}")/harness.sh"

session=$root/scripts/desktop-session.py
# When a user followed the link.
declare -A began_us=()

# begin_user NAME RATE RTT OPTIONS...: follows the link; done when the machine has a monitor. The options are those of
# `vmstream run`. Unless they say otherwise only what is foreseen comes ahead, as a fill would hide what was needed.
begin_user() {
    local name=$1 rate=$2 rtt=$3
    shift 3
    serve "$name-origin" "$work/site" --rate "$rate" --rtt "$rtt"
    # shellcheck disable=SC2034  # read by those who source this
    began_us[$name]=$(now_us)
    start "$name" "$vmstream" run "${url_of[$name-origin]}/desktop.vmp#${hash:?}" --cache "$work/$name.cache" \
        --json-status "$work/$name.json" --option fill=off "$@" \
        -- -display none -qmp "unix:$work/$name.qmp,server=on,wait=off" -serial "file:$work/$name.serial"
    mounts+=("$work/$name.cache/run/mnt")
    wait_for 60 "the machine of '$name'" monitored "$name"
}
monitored() { [ -S "$work/$1.qmp" ] && [ -e "$work/$1.serial" ] || ! alive "$1"; }

# let_work NAME SECONDS OPTIONS...: its session begins, and may take so long; the options are those of desktop-session.py.
let_work() {
    local name=$1 limit_s=$2
    shift 2
    start "$name-session" timeout "$limit_s" "$session" --qmp "$work/$name.qmp" --serial "$work/$name.serial" \
        --json "$work/$name.session" "$@"
}

# end_user NAME: waits for the end of its session and ends its machine; answers the status of the session, of which
# $work/NAME-session.log has the verdict.
end_user() {
    local name=$1 status=0
    wait "${pid_of[$name-session]}" || status=$?
    unset "pid_of[$name-session]"
    # Ended by the signal is how it should end.
    stop "$name" TERM || true
    stop "$name-origin"
    if [ $status = 0 ]; then
        "$vmstream" trace "$work/$name.cache"/sessions/*.vms -o "$work/$name.vmtrace"
        "$session" --waits "$work/$name.vmtrace" --json "$work/$name.session"
    fi
    return $status
}
