#!/bin/bash
# One publication at three kinds of origin with no code of ours on two of them: nginx (plain, and TLS with an authority
# of its own), a server of S3, and `vmstream serve`. What is fetched is the same from each, byte for byte, zeroes
# travel from none, and who has the wrong password gets nothing.
#
# The S3 server is moto's, from PyPI, in a Python environment of its own under the build cache; the first run installs it.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

"$root/scripts/install-deps.sh" test || skip "packages are missing (scripts/install-deps.sh test)"
for command in nginx openssl python3 curl; do need_command $command $command; done
nginx=$(command -v nginx)
begin

moto=${VMSTREAM_BUILD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmstream-build}/moto
if ! [ -x "$moto/bin/moto_server" ]; then
    { python3 -m venv "$moto" && "$moto/bin/pip" install --quiet 'moto[server,s3]>=5,<6'; } >"$work/moto.log" 2>&1 ||
        skip "no S3 server: moto could not be installed from PyPI ($(tail -n 1 "$work/moto.log"))"
fi

# --- what is published: an image, and a model of a guest that reads a part of it ---
site=$work/site
image=$work/disk.img
source_image "$image" 48
size=$(stat -c %s "$image")
{
    echo "# vmtrace 1 size=$size block=4096"
    for ((n = 0; n < 200; n++)); do echo "$((n * 1000)) R $((n * 17 % 150 * 65536)) 16384"; done
} >"$work/guest.vmtrace"
"$vmstream" train --quiet -o "$work/model.vmm" "$work/guest.vmtrace" >/dev/null
link=$("$vmstream" publish --quiet "$image" -o "$site" --model "$work/model.vmm")
root_hash=${link##*#}
check "the model has brought packs" grep -q '^packs ' "$site/disk.vmp"

# free_port: one that nobody listens at just now.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# --- nginx ---
plain=$(free_port)
tls=$(free_port)
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout "$work/ca.key" -out "$work/ca.pem" 2>/dev/null
openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout "$work/key.pem" -out "$work/csr.pem" 2>/dev/null
openssl x509 -req -in "$work/csr.pem" -CA "$work/ca.pem" -CAkey "$work/ca.key" -CAcreateserial -days 2 \
    -extfile <(echo 'subjectAltName=DNS:localhost,IP:127.0.0.1') -out "$work/cert.pem" 2>/dev/null
printf 'reader:%s\n' "$(openssl passwd -apr1 -salt vmstream right)" >"$work/users"
chmod 644 "$work/users"
chmod 755 "$work"
places="root $site; location ~ /\. { deny all; } location ~ \.vmp\$ { add_header Cache-Control max-age=60; }"
cat >"$work/nginx.conf" <<CONF
daemon off; pid $work/nginx.pid; error_log $work/nginx.log;
$([ "$(id -u)" != 0 ] || echo 'user root;')
events {}
http {
    access_log off; client_body_temp_path $work/body; proxy_temp_path $work/proxy; fastcgi_temp_path $work/fastcgi;
    uwsgi_temp_path $work/uwsgi; scgi_temp_path $work/scgi;
    server { listen 127.0.0.1:$plain; $places location ^~ /closed/ { alias $site/; auth_basic closed; auth_basic_user_file $work/users; } }
    server { listen 127.0.0.1:$tls ssl; ssl_certificate $work/cert.pem; ssl_certificate_key $work/key.pem; $places }
}
CONF
start nginx "$nginx" -p "$work" -c "$work/nginx.conf"
wait_for 10 "nginx to answer" curl -sf -o /dev/null "http://127.0.0.1:$plain/disk.vmp" ||
    { cat "$work/nginx.log" >&2; die "nginx does not run"; }

# --- a bucket, sent there by publish ---
s3=$(free_port)
start moto "$moto/bin/moto_server" -H 127.0.0.1 -p "$s3"
wait_for 60 "the S3 server to answer" curl -sf -o /dev/null "http://127.0.0.1:$s3/"
export AWS_ENDPOINT_URL=http://127.0.0.1:$s3 AWS_REGION=us-east-1
unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_ENDPOINT_URL_S3 http_proxy all_proxy || true
# to_bucket: publishes again, to a bucket as well.
to_bucket() { "$vmstream" -v publish "$image" -o "$site" --to s3://images/disks; }
# refuses PART COMMAND...: it fails, and says so.
refuses() {
    local part=$1
    shift
    ! "$@" >"$work/refused" 2>&1 || return 1
    cat "$work/refused"
    grep -q "$part" "$work/refused"
}
check "without credentials it says which variables to set" refuses 'set AWS_ACCESS_KEY_ID' to_bucket
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret
check "a bucket that does not exist is named" refuses 's3://images/disks/.*no such bucket' to_bucket
AWS_ENDPOINT_URL=http://127.0.0.1:$(free_port) \
    check "a service that is not there is told after some tries" refuses 'no answer.*AWS_ENDPOINT_URL' to_bucket
curl -sf -X PUT "$AWS_ENDPOINT_URL/images" >/dev/null
curl -sf -X PUT -H 'Content-Type: application/json' "$AWS_ENDPOINT_URL/images?policy" -o /dev/null --data-binary \
    '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::images/*"}]}'
check "publish sends it to a bucket" to_bucket
same "and prints its link there" "$AWS_ENDPOINT_URL/images/disks/disk.vmp#$root_hash" "$(to_bucket 2>/dev/null)"
kept() { to_bucket 2>&1 | grep -c 'is there already'; }
same "what is there is not sent again: image, tree and packs" 3 "$(kept)"
# header FILE: how long caches may keep an object.
header() { curl -sf -o /dev/null -D - "$AWS_ENDPOINT_URL/images/disks/$1" | tr -d '\r' | sed -n 's/^cache-control: //Ip'; }
tree=$(sed -n 's/^tree \([^ ]*\) .*/\1/p' "$site/disk.vmp")
same "caches keep the pointer for a minute" "public, max-age=60" "$(header disk.vmp)"
same "and the rest for ever" "public, max-age=31536000, immutable" "$(header "$tree")"

# --- sessions in a bucket: sent there from beside a cache, and learnt from there ---
mkdir "$work/texts" "$work/sessions"
for n in 1 2 3; do
    {
        echo "# vmtrace 1 size=$size block=4096 validator=root:$root_hash"
        for ((at = 0; at < 20; at++)); do echo "$((at * 1000)) R $(((n * 40 + at) * 65536)) 16384"; done
    } >"$work/texts/$n.vmtrace"
done
"$vmstream" trace --compact -o "$work/sessions" "$work"/texts/*.vmtrace
send() { "$vmstream" sessions "$work/sessions" --send s3://images/sessions/disk; }
same "sessions go to a bucket" "3 sent, 0 refused, 0 left for another time" "$(send)"
same "each of them once" "0 sent, 0 refused, 0 left for another time" "$(send)"
for junk in junk.vms notes.txt; do
    curl -sf -X PUT "$AWS_ENDPOINT_URL/images/sessions/disk/$junk" -o /dev/null --data-binary 'no session'
done
learn() { "$vmstream" train --anew -o "$work/bucket.vmm" s3://images/sessions/disk 2>"$work/said"; }
check "what lies there is learnt" learn
check "but for what is no session, which is said" grep -q 'images/sessions/disk/junk.vms.*left out' "$work/said"
"$vmstream" train --quiet --anew -o "$work/local.vmm" "$work"/sessions/*.vms >/dev/null
check "it is the model of the same sessions on a disk" cmp "$work/local.vmm" "$work/bucket.vmm"
check "where nothing lies nothing is learnt" refuses 'nothing to learn' "$vmstream" train -o "$work/none.vmm" s3://images/nothing

# --- serve ---
serve origin "$site"

# --- the same from each ---
# fetch NAME LINK [OPTIONS...]: into $work/NAME.raw; what it cost is in $work/NAME.json.
fetch() {
    local name=$1 from=$2
    shift 2
    timeout 120 "$vmstream" fetch "$from" -o "$work/$name.raw" --json-status "$work/$name.json" "$@"
}
declare -A origins=(
    [nginx]="http://127.0.0.1:$plain/disk.vmp"
    [tls]="https://localhost:$tls/disk.vmp --option cacert=$work/ca.pem"
    [s3]="$AWS_ENDPOINT_URL/images/disks/disk.vmp"
    [serve]="${url_of[origin]}/disk.vmp"
)
for name in nginx tls s3 serve; do
    # shellcheck disable=SC2086  # words: an address and options
    set -- ${origins[$name]}
    from=$1
    shift
    check "$name: fetched" fetch "$name" "$from#$root_hash" "$@"
    check "$name: byte for byte the image" cmp "$image" "$work/$name.raw"
    same "$name: all of it is here" "$size" "$(json_number "$work/$name.json" resident_bytes)"
    same "$name: zeroes did not travel, as at the others" "$(json_number "$work/nginx.json" bytes_zero)" \
        "$(json_number "$work/$name.json" bytes_zero)"
done
check "some of it is zeroes" test "$(json_number "$work/nginx.json" bytes_zero)" -gt 1000000

# --- who may, and who may not ---
closed=http://127.0.0.1:$plain/closed/disk.vmp#$root_hash
check "a wrong password is refused, and said" refuses 401 fetch wrong "$closed" --option user=reader:wrong --option open_timeout=5s
check "nothing came of it" test ! -s "$work/wrong.raw"
check "no password as well" refuses 401 fetch none "$closed" --option open_timeout=5s
check "the right one is taken" fetch right "$closed" --option user=reader:right
check "and gives the image" cmp "$image" "$work/right.raw"
check "an authority that nobody trusts is refused" refuses certificate fetch distrust "https://localhost:$tls/disk.vmp#$root_hash" \
    --option open_timeout=5s
check "so is another root hash" refuses '' fetch other "http://127.0.0.1:$plain/disk.vmp#${root_hash//[0-9]/a}" --option open_timeout=5s

finish
