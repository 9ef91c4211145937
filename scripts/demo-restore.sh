#!/bin/bash
# demo-restore.sh (make demo-restore): a spreadsheet that is open in a large Debian goes on elsewhere, from a link.
#
# A Debian of more than four gigabytes boots in QEMU (emulated; no KVM is needed), with X, twm and Gnumeric with a sheet. A
# restore point is taken of it and published. Users work in the sheet, the first near the server, each further one at the end
# of a link of 25 Mbit/s and 50 ms with what is known from those before; what they needed is learnt and published. (A guest
# that has to wait does things that one near the server does not, such as writing in its log that it is slow.) Then other
# users, who do other things in the sheet, get it over a link of 25 Mbit/s and 50 ms, and over one of 8 Mbit/s and 30 ms, each
# with an empty cache:
#
#   download    everything first, as it lies there (the bytes in use, without holes) or packed with zstd -3. The packed size is
#               measured; the times are these sizes divided by the rate of the link, and start nothing yet
#   demand      a page of memory or a block of the disk comes when the guest touches it, and never earlier
#   learnt      the same, with the model and the packs that lie beside the image; nothing else is fetched
#   filled      the same, and what the link has left fills the image, its memory first: what `vmstream run` does unless told
#               otherwise
#   held        as learnt, and the guest goes on only when a wait of more than a tenth of a second on end is unlikely within
#               10 s (run --wait risk=5%,for=10s); left out unless WAYS asks for it
#
# "usable" is from pressing enter until the screen has answered the user's first move, "done" until all of the session's
# cells have been checked (desktop-session.py says how), "slowest" the longest that a later key went unanswered. An
# emulator that has just been started is slow by itself: it has to translate all code anew. So the time in which the guest
# stood still for want of data stands beside it, from the first answer on: in all, within the one key that had most of
# it, and the longest on end. Bytes and requests are what the origin counted until the session was done.
#
# LINKS, WAYS, LESSONS and PICTURES in the environment change the links ("RATE/RTT ..."), the ways ("learnt demand"), the
# number of users who are learnt from, and the directory that the pictures of the screens go to. TIMES=20 has so many
# users, one after the other, in the place of each one that is measured, and says how many were answered rightly; it goes
# well with one link and one way (LINKS=25mbit/50ms WAYS=learnt). PROFILE=small takes a
# system without the gigabytes. Needs 11 GB of room in TMPDIR, and about three quarters of an hour, most of it for the users to
# whom everything comes on demand: WAYS=learnt leaves them out.
set -euo pipefail
# shellcheck source=scripts/desktop-users.sh
. "$(dirname "$0")/desktop-users.sh"

links=${LINKS:-25mbit/50ms 8mbit/30ms}
ways=${WAYS:-learnt demand}
lessons=${LESSONS:-4}
times=${TIMES:-1}
profile=${PROFILE:-large}
pictures=${PICTURES:-$root/target/demo-restore}
# No session takes longer, also page by page over 50 ms; beyond that something hangs.
limit_s=1800
# Longest that one key may go unanswered.
key_s=300

for way in $ways; do
    [[ " learnt filled held demand " = *" $way "* ]] || die "no way '$way': ways are learnt, filled, held and demand"
done

"$root/scripts/install-deps.sh" demo restore
[ -n "${VMSTREAM-}" ] || (cd "$root" && cargo build --release --quiet)
begin
[ -w /dev/fuse ] || die "no /dev/fuse that this user may open: load the fuse module, or run as root"
mkdir -p "$pictures"
image=$("$root/scripts/build-desktop.sh" --profile "$profile")
echo "the system: $(cat "$image/size")"

echo "1. it boots; when its spreadsheet has come to rest a restore point is taken"
VMSTREAM=$vmstream "$root/scripts/desktop-point.sh" --profile "$profile" -o "$work/point" >/dev/null
echo "2. the restore point is published"
# publish [OPTIONS...]: prints nothing; the name of the pointer and the root hash are always the same.
publish() { "$vmstream" publish --restore-point "$work/point" -o "$work/site" --name desktop "$@" 2>"$work/publish.log" >/dev/null ||
    { tail -n 5 "$work/publish.log" >&2; die "cannot publish"; }; }
publish
hash=$(sed -n 's/^root //p' "$work/site/desktop.vmp")
raw=$work/site/$(sed -n 's/^image //p' "$work/site/desktop.vmp")
used=$(du --block-size=1 "$raw" | cut -f 1)
memory_used=$(du --block-size=1 "$work/point/memory.raw" | cut -f 1)
packed=$(zstd -3 -q -c "$raw" | wc -c)
echo "   $((used / 1000000)) MB in use ($((packed / 1000000)) MB with zstd -3), of them $((memory_used / 1000000)) MB memory"

# user NAME VARIANT RATE RTT OPTIONS...: one user with an empty cache works in the sheet; then the machine is ended.
user() {
    local name=$1 variant=$2 rate=$3 rtt=$4 status=0
    shift 4
    begin_user "$name" "$rate" "$rtt" "$@"
    let_work "$name" $limit_s --variant "$variant" --limit $key_s --picture "$pictures/$name.png"
    end_user "$name" || status=$?
    cat "$work/$name-session.log"
    [ $status = 0 ] || tail -n 20 "$work/$name.log" >&2
    return $status
}

# row NAME TITLE: a line of the table.
rows=()
of() { json_number "$work/$1.session" "$2"; }
row() {
    rows+=("$(awk -v title="$2" -v start="${began_us[$1]}" -v at="$(of "$1" answered_at)" \
        -v began="$(of "$1" started_at)" -v total="$(of "$1" total_s)" -v slowest="$(of "$1" longest_s)" \
        -v waited="$(of "$1" waited_after_s)" -v key="$(of "$1" most_waited_s)" \
        -v longest="$(of "$1" longest_wait_after_s)" -v used="$used" -v packed="$packed" \
        -v bytes="$(json_number "$work/$1-origin.stats" link_bytes)" \
        -v requests="$(json_number "$work/$1-origin.stats" requests)" -v bits="$bits" 'BEGIN {
            usable = at - start / 1e6
            printf "%-30s %7.1f s %7.1f s %6.1f s  %6.1f s %5.1f s %5.1f s %8.1f MB %8d  %5.0f x %5.0f x  %5.0f x %5.0f x",
                title, usable, began + total - start / 1e6, slowest, waited, key, longest, bytes / 1e6, requests,
                used / bytes, packed / bytes, used * 8 / bits / usable, packed * 8 / bits / usable }')")
}
# download TITLE BYTES: one that is only computed.
download() {
    rows+=("$(awk -v title="$1" -v bytes="$2" -v bits="$bits" 'BEGIN {
        printf "%-30s %7.1f s %9s %8s  %8s %7s %7s %8.1f MB", title, bytes * 8 / bits, "-", "-", "-", "-", "-", bytes / 1e6 }')")
}

echo "3. $lessons users work in it, one near the server, and are learnt from"
mkdir "$work/lessons"
for ((lesson = 1; lesson <= lessons; lesson++)); do
    link=(1gbit 1ms)
    [ "$lesson" = 1 ] || { publish --sessions "$work/lessons"; link=(25mbit 50ms); }
    user "lesson$lesson" "$lesson" "${link[@]}" || die "the session of user $lesson failed"
    cp "$work/lesson$lesson.cache"/sessions/*.vms "$work/lessons/"
    rm -rf "$work/lesson$lesson.cache"
done
publish --sessions "$work/lessons"
rm -rf "$work/point"
echo "   $(sed -n 's/^packs [^ ]* //p' "$work/site/desktop.vmp") bytes of packs and model"

echo "4. other users, other links"
variant=$((lessons + 1)) failed=0
for link in $links; do
    rate=${link%/*} rtt=${link#*/}
    bits=$(echo "$rate" | sed 's/gbit$/000000000/; s/mbit$/000000/; s/kbit$/000/')
    rows+=("$rate, $rtt:")
    download "  download (computed)" "$used"
    download "  download packed (computed)" "$packed"
    for way in $ways; do
        options=()
        case $way in
            filled) options=(--option fill=on) ;;
            held) options=(--wait "risk=5%,for=10s") ;;
            demand) options=(--option prefetch=none --option model=off) ;;
        esac
        right=0
        for ((time = 0; time < times; time++)); do
            name=$way-$rate-$time
            if user "$name" $((variant + time)) "$rate" "$rtt" ${options[@]+"${options[@]}"}; then
                right=$((right + 1))
                row "$name" "  $way$([ "$times" = 1 ] || echo ", variant $((variant + time))")"
            else
                failed=$((failed + 1))
            fi
            rm -rf "$work/$name.cache"
        done
        [ "$times" = 1 ] || rows+=("  $way: $right of $times sessions right")
    done
    variant=$((variant + times))
done

echo
printf '%-30s %9s %9s %8s  %24s %11s %8s  %15s  %15s\n' '' '' '' '' 'stood still, in all, in a' '' '' 'fewer bytes' 'sooner than'
printf '%-30s %9s %9s %8s  %8s %7s %7s %11s %8s  %7s %7s  %7s %7s\n' '' usable 'done' slowest 'for data' 'a key' 'at once' transferred requests raw packed raw packed
printf '%s\n' "${rows[@]}"
echo
echo "pictures of the restored screens: $pictures"
[ $failed = 0 ] || die "$failed sessions went wrong"
