#!/bin/bash
# The nbdkit plugin with clients that know nothing of streaming: qemu-io, qemu-img, nbdinfo, nbdcopy and fio.
#
# What is read is the origin's, what was written is there again after a kill, what is absent is never taken for
# zeroes, a dead link is a pause and never an error, and it holds up neither other clients nor the end of the server.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

"$root/scripts/install-deps.sh" nbdkit || skip "packages are missing (scripts/install-deps.sh nbdkit)"
begin
plugin=$("$root/scripts/build-nbdkit.sh")
mib=$((1 << 20))

mkdir "$work/published"
source=$work/published/disk.img
source_image "$source" 96
serve origin "$work/published"
url=${url_of[origin]}/disk.img

# nbd NAME ARGUMENTS...: a server with the plugin; its clients go to ${uri_of[NAME]}.
declare -A uri_of=()
nbd() {
    local name=$1
    shift
    rm -f "$work/$name.sock"
    uri_of[$name]="nbd+unix:///?socket=$work/$name.sock"
    start "$name" nbdkit -f -U "$work/$name.sock" "$plugin" "$@"
    wait_for 30 "nbdkit '$name' to answer" answers "$name" || { cat "$work/$name.log" >&2; return 1; }
}
answers() { timeout 5 nbdinfo --size "${uri_of[$1]}" >/dev/null; }
# threads NAME: how many it has; sixteen more for each client.
threads() { awk '$1 == "Threads:" { print $2 }' "/proc/${pid_of[$1]}/status"; }

# equal NAME FILE RANGES...: what the server gives has these bytes of a file, each range OFFSET:LENGTH.
equal() {
    local name=$1 file=$2 range
    shift 2
    timeout 60 nbdcopy "${uri_of[$name]}" "$work/copy" || return 1
    for range in "$@"; do
        equal_bytes "$work/copy" "$file" "${range%:*}" "${range#*:}" || return 1
    done
}
fails() { ! "$@"; }
tells() { timeout 20 nbdinfo "${uri_of[$1]}" | grep -E "$2"; }

# io URI COMMANDS...: by qemu-io, which ends with an error when a command fails or a pattern differs.
io() {
    local to=$1 command arguments=()
    shift
    for command in "$@"; do arguments+=(-c "$command"); done
    timeout 60 qemu-io -f raw -d unmap "${arguments[@]}" "$to"
}

# refused WHAT PART ARGUMENTS...: nbdkit ends with an error that has the part, in the foreground as in the background.
refused() {
    local what=$1 part=$2
    shift 2
    check "$what: ends with an error that says so" refusal "$part" -f "$@"
    check "$what: also when it would go into the background" refusal "$part" "$@"
}
refusal() {
    local part=$1 status=0
    shift
    timeout 30 nbdkit -U "$work/refused.sock" -P "$work/refused.pid" "$@" >"$work/refused.out" 2>&1 || status=$?
    rm -f "$work/refused.sock"
    cat "$work/refused.out"
    if [ -s "$work/refused.pid" ]; then
        echo "it had begun to serve"
        kill "$(cat "$work/refused.pid")" 2>/dev/null || true
        rm -f "$work/refused.pid"
        return 1
    fi
    [ "$status" = 1 ] || { echo "status $status"; return 1; }
    grep -qF -- "$part" "$work/refused.out"
}

echo "# what the plugin says of itself"
nbdkit "$plugin" --dump-plugin >"$work/dump"
same "it names the version of the library" "$("$vmstream" --version | grep -o '[0-9.]*$')" \
    "$(sed -n 's/^vmstream_library_version=//p' "$work/dump")"
check "it is parallel" grep -qx thread_model=parallel "$work/dump"
nbdkit --help "$plugin" >"$work/help"
check "it has help" grep -q 'url=.*<URL>' "$work/help"

echo "# what is wrong is said at the start"
refused "no URL" "url=" "$plugin"
refused "an unknown option" "conections" "$plugin" "$url" conections=3
refused "an image that is not there" "404" "$plugin" "$url.gone"
refused "an origin that is not there" "refused" "$plugin" http://127.0.0.1:1/disk.img open_timeout=1s
nbd first "$url" cache="$work/first.cache" prefetch=none fill=off
refused "a cache in use" "first.cache" "$plugin" "$url" cache="$work/first.cache"

echo "# extents: what is absent is data"
extents() { timeout 60 nbdinfo --map "${uri_of[first]}"; }
check "of a cold cache everything is data" equal_texts "0 $((96 * mib)) 0 data" "$(extents | xargs)"
same "for qemu-img as well" "$((96 * mib))" "$(timeout 60 qemu-img map --output=json -f raw "${uri_of[first]}" |
    grep '"zero": false, "data": true' | grep -o '"length": [0-9]*' | awk '{ sum += $2 } END { print sum }')"
check "some blocks arrive, and some are zeroed" io "${uri_of[first]}" "read -q 0 8M" "write -q -z -u 9M 1M"
check "only what was zeroed is a hole" equal_texts \
    "0 $((9 * mib)) 0 data $((9 * mib)) $mib 3 hole,zero $((10 * mib)) $((86 * mib)) 0 data" "$(extents | xargs)"
check "clients see where it comes from" tells first "description: streamed from $url"
converts() {
    timeout 120 qemu-img convert -f raw -O raw "${uri_of[first]}" "$work/copy" &&
        equal_bytes "$work/copy" "$source" 0 $((9 * mib)) && cmp --ignore-initial=$((10 * mib)) "$work/copy" "$source"
}
check "qemu-img convert gives the source, also what was absent" converts

echo "# writes, zeroing, trim, flush: the same on a plain file"
expected=$work/expected.img
cp "$source" "$expected"
nbd second "$url" cache="$work/second.cache"
# The same pseudo-random commands on every run, of all lengths and offsets; trims of whole blocks, because parts of
# blocks may stay as they are.
script() {
    local n offset length
    RANDOM=2006
    for ((n = 0; n < 400; n++)); do
        offset=$(((RANDOM * 32768 + RANDOM) % (60 * mib)))
        length=$((RANDOM * 7 + 1))
        case $((n % 8)) in
            0 | 1) echo "write -q -P $((n % 251 + 1)) $offset $length" ;;
            2) echo "write -q -f -P $((n % 251 + 1)) $offset $length" ;;
            3) echo "write -q -z $offset $length" ;;
            4) echo "write -q -z -u $offset $length" ;;
            5) echo "discard -q $((offset / 4096 * 4096)) $(((length / 4096 + 1) * 4096))" ;;
            6) echo "aio_write -q -P $((n % 251 + 1)) $offset $length"; echo aio_flush ;;
            7) echo flush ;;
        esac
    done
    echo quit
}
script >"$work/script"
scripted() { timeout 120 qemu-io -f raw -d unmap "$1" <"$work/script" >"$work/scripted.out" 2>&1; ! grep -iE 'fail|error|invalid' "$work/scripted.out"; }
check "400 writes, zeroings and trims, on the plain file" scripted "$expected"
check "the same on the streamed disk" scripted "${uri_of[second]}"
check "all bytes are equal" equal second "$expected" 0:$((96 * mib))
check "a trim of parts of blocks leaves what is around" io "${uri_of[second]}" \
    "write -q -P 7 64M 16k" "discard -q $((64 * mib + 100)) 8092" "read -q -P 7 64M 100" \
    "read -q -P 0 $((64 * mib + 4096)) 4096" "read -q -P 7 $((64 * mib + 8192)) 8192"
check "a write behind the end is refused" fails io "${uri_of[second]}" "write 96M 512"

echo "# eight clients at once, each with a connection of its own"
fio_nbd() {
    timeout 200 fio --ioengine=nbd --uri="${uri_of[second]}" --iodepth=8 --rw=randrw --bsrange=512-64k \
        --blockalign=512 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --fsync=50 --randseed=2006 \
        --offset=66M --offset_increment=3M --size=3M --numjobs=8 --name=clients --group_reporting "$@" \
        --output="$work/fio.out" >"$work/fio.err" 2>&1 || { tail -n 20 "$work/fio.out" "$work/fio.err"; return 1; }
    grep -q 'READ: bw=' "$work/fio.out"
}
check "they read, write and verify" fio_nbd

echo "# kill -9"
# Without the checkpoints that would record what was written even if a flush did nothing.
killed=("$url" cache="$work/killed.cache" prefetch=none fill=off checkpoint=60m)
for kind in flush fua zero; do
    nbd killed "${killed[@]}"
    case $kind in
        flush) check "a flushed write" io "${uri_of[killed]}" "write -q -P 99 $((1 * mib + 300)) 70000" flush ;;
        fua) check "a write with forced unit access" io "${uri_of[killed]}" "write -q -f -P 98 2M 4k" ;;
        zero) check "zeroes and a trim, flushed" io "${uri_of[killed]}" "write -q -z 8M 64k" "discard -q 9M 64k" flush ;;
    esac
    stop killed KILL || true
done
nbd killed "${killed[@]}"
check "all of it is there after kill -9" io "${uri_of[killed]}" "read -q -P 99 $((1 * mib + 300)) 70000" \
    "read -q -P 98 2M 4k" "read -q -P 0 8M 64k" "read -q -P 0 9M 64k"
stop killed || true

# A client that waits for the server to return. It must not rely on writes that were not flushed: hence write-through.
nbd killed "${killed[@]}" -v
start patient qemu-io -t writethrough --image-opts \
    "driver=nbd,server.type=unix,server.path=$work/killed.sock,reconnect-delay=60" \
    -c "write -q -P 77 12M 64k" -c "sleep 3000" -c "read -q -P 77 12M 64k" -c "read -q -P 99 $((1 * mib + 300)) 70000"
wait_for 30 "its write" grep -q 'pwrite count=65536 offset=12582912 fua=1' "$work/killed.log"
stop killed KILL || true
nbd killed "${killed[@]}"
check "a client that waits for the server goes on" wait_for 60 "the client to end" gone patient
check "and finds what it had written through" stop patient
stop killed || true
start writer fio --ioengine=nbd --uri="${uri_of[second]}" --rw=randwrite --bs=4k --iodepth=16 --offset=93M --size=1M \
    --time_based --runtime=60 --name=writer --output=/dev/null
sleep 1
check "a writer is at work" alive writer
stop second KILL || true
stop writer KILL || true
nbd second "$url" cache="$work/second.cache"
check "what the eight clients wrote verifies" fio_nbd --verify_only
check "what was flushed earlier is there" equal second "$expected" 0:$((64 * mib))

echo "# a dead link"
nbd third "$url" cache="$work/third.cache" prefetch=none fill=off stall_timeout=1s retry_max=500ms
check "a block that arrives before" io "${uri_of[third]}" "read -q 0 4k"
quiet=$(threads third)
kill -STOP "${pid_of[origin]}"
start reader qemu-io -f raw -c "read 16M 4k" "${uri_of[third]}"
start partial qemu-io -f raw -c "write -P 6 $((18 * mib + 5)) 20000" "${uri_of[third]}"
sleep 2
check "a read waits" alive reader
check "so does a write to blocks and parts of blocks" alive partial
check "another client goes on" io "${uri_of[third]}" "read -q 0 4k" "write -q -P 5 32M 8k" flush "read -q -P 5 32M 8k"
stop reader KILL || true
stop partial KILL || true
back() { [ "$(threads "$1")" -le "$2" ]; }
check "clients that go away leave nothing behind" wait_for 20 "its threads to end" back third "$quiet"
start reader qemu-io -f raw -c "read 16M 4k" "${uri_of[third]}"
start partial qemu-io -f raw -c "write -P 6 $((17 * mib + 5)) 10" "${uri_of[third]}"
sleep 1
check "a read waits again" alive reader
check "so does a write again" alive partial
kill -CONT "${pid_of[origin]}"
check "the read ends with the link" wait_for 30 "the reader to end" gone reader
check "with no error" stop reader
check "so does the write" wait_for 30 "the writer to end" gone partial
check "with no error too" stop partial
check "around it are the origin's bytes" equal third "$source" $((17 * mib)):5 $((17 * mib + 15)):5000
check "what a client wanted to write that went away was not written" equal third "$source" $((18 * mib)):30000
check "and can be written now" io "${uri_of[third]}" "write -q -P 8 18M 20k" flush "read -q -P 8 18M 20k"
stop third || true

# The first client that is told goes away, while the others' answers are sent: nbdkit 1.32 does not bear that by itself,
# and without care for it ended with a failed assertion once in ten times.
ends_while_clients_wait() {
    local n round
    for round in {1..20}; do
        rm -rf "$work/fourth.cache"
        nbd third "$url" cache="$work/fourth.cache" prefetch=none fill=off
        kill -STOP "${pid_of[origin]}"
        for n in 1 2 3 4; do start "reader$n" nbdcopy "${uri_of[third]}" null:; done
        sleep 0.3
        for n in 1 2 3 4; do alive "reader$n" || { echo "round $round: client $n does not wait"; return 1; }; done
        stop third TERM || { echo "round $round: nbdkit ended with status $?"; tail -n 3 "$work/third.log"; return 1; }
        for n in 1 2 3 4; do
            wait_for 20 "client $n to end" gone "reader$n" || return 1
            stop "reader$n" || true
        done
        kill -CONT "${pid_of[origin]}"
    done
}
check "SIGTERM ends the server although its clients wait, and they are told" ends_while_clients_wait
kill -CONT "${pid_of[origin]}"

echo "# without the origin"
stop origin || true
stop second || true
nbd second "$url" cache="$work/second.cache" -t 1
check "all that had arrived is there" equal second "$expected" 0:$((64 * mib))
stop second || true

echo "# who may write, and as whom"
serve origin "$work/published"
readonly_to() { tells "$1" 'is_read_only: true' && ! io "${uri_of[$1]}" "write 0 512"; }
nbd fifth "$url" -r
check "with -r nobody" readonly_to fifth
stop fifth || true
nbd fifth "http://guest:secret@${url#http://}?signature=key" read_only=true
check "with read_only=true nobody" readonly_to fifth
check "no client sees credentials" fails tells fifth 'secret|signature'
stop fifth || true
if [ "$(id -u)" = 0 ]; then
    chmod 711 "$work"
    install -d -o nobody -m 700 "$work/nobody"
    nbd fifth -u nobody "$url" cache="$work/nobody"
    same "with -u the cache is that user's" nobody "$(stat -c %U "$work/nobody/disk")"
    stop fifth || true
fi
(cd "$work/published" && timeout 30 nbdkit -U "$work/back.sock" -P "$work/back.pid" "$plugin" disk.img cache=../back.cache)
# Written by the process in the background.
wait_for 10 "the process number of nbdkit" test -s "$work/back.pid"
pid_of[back]=$(cat "$work/back.pid")
uri_of[back]="nbd+unix:///?socket=$work/back.sock"
check "in the background paths are those of the start" equal back "$source" 0:$((96 * mib))
kill "${pid_of[back]}"
check "it ends when asked" wait_for 20 "nbdkit in the background to end" gone back
unset 'pid_of[back]'

stop origin || true

echo "# memory errors"
# Of the library as developers build it: valgrind takes some of what an optimiser makes for errors.
if command -v valgrind >/dev/null; then
    (cd "$root" && cargo build --lib --locked --quiet)
    mkdir "$work/debug"
    soname=$(objdump -p "$root/target/debug/libvmstream.so" | awk '$1 == "SONAME" { print $2 }')
    ln -s "$root/target/debug/libvmstream.so" "$work/debug/$soname"
    # valgrind NAME ARGUMENTS...: as nbd, with every wait longer.
    memcheck() {
        local name=$1
        shift
        uri_of[$name]="nbd+unix:///?socket=$work/$name.sock"
        start "$name" env LD_LIBRARY_PATH="$work/debug" valgrind --quiet --error-exitcode=99 --leak-check=full \
            --errors-for-leak-kinds=definite nbdkit -f -U "$work/$name.sock" "$plugin" "$@"
        wait_for 60 "nbdkit '$name' to answer" answers "$name" || { cat "$work/$name.log" >&2; return 1; }
    }
    memcheck checked pattern:16M cache="$work/checked.cache"
    check "all kinds of requests" io "${uri_of[checked]}" "read -q 0 4M" "write -q -P 3 5M 70000" "write -q -f -P 4 100 10" \
        "discard -q 1M 64k" "write -q -z 2M 100k" "write -q -z -u 3M 100k" flush "read -q -P 3 5M 70000"
    check "a copy" timeout 60 nbdcopy "${uri_of[checked]}" null:
    check "valgrind saw no errors" stop checked TERM
    memcheck waiting pattern:16M fault=error=100%
    quiet=$(threads waiting)
    start reader qemu-io -f raw -c "read 0 4k" "${uri_of[waiting]}"
    start partial qemu-io -f raw -c "write 5 10" "${uri_of[waiting]}"
    sleep 1
    # Both go before the server is told to: what it has for a client that is still there it does not free at its end.
    stop reader KILL || true
    stop partial KILL || true
    given_up() { [ "$(grep -c 'cannot \(read\|write\) .* bytes' "$work/waiting.log")" = 2 ]; }
    check "two requests are given up" wait_for 20 "two messages" given_up
    wait_for 20 "the threads of the clients to end" back waiting "$quiet"
    check "valgrind saw no errors with them" stop waiting TERM
else
    echo "# no valgrind (Debian package valgrind): not looked for"
fi
finish
