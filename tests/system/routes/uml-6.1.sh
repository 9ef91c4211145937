# shellcheck shell=bash
# User-Mode Linux 6.1 with the streaming disk driver, which opens both disks itself.

# shellcheck source=tests/system/patched-uml.sh
. "$(dirname "${BASH_SOURCE[0]}")/../patched-uml.sh"
patched_uml_route 6.1
