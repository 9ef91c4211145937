#!/bin/bash
# The pages of `vmstream serve` in a real browser: what stands in the document, and that pictures of them can be taken. The
# pictures stay in target/page-front.png and target/page-image.png, for people to look at.
set -euo pipefail
# shellcheck source=tests/system/lib.sh
. "$(dirname "$0")/lib.sh"

command -v chromium >/dev/null || "$root/scripts/install-deps.sh" page >&2 || skip "there is no chromium, and it cannot be installed"
begin
cd "$root"
check "the pages are whole in a browser" \
    timeout 600 cargo test --locked --test serve the_pages_are_whole_in_a_browser -- --ignored --exact page::the_pages_are_whole_in_a_browser
check "a picture of the front page" test -s target/page-front.png
check "a picture of an image's page" test -s target/page-image.png
finish
