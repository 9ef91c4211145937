# shellcheck shell=bash
# shellcheck disable=SC2154  # root is lib.sh's
# patched-uml.sh: sourced by tests and routes; User-Mode Linux with the driver of c-examples/uml.

# need_patched_uml VERSION: $kernel is that kernel, built if it has to be, and finds the library of this tree.
# UML_KERNEL names another one to try instead.
need_patched_uml() {
    local tool
    for tool in flex bison bc; do need_command $tool $tool; done
    [ "$(uname -m)" = x86_64 ] || skip "the kernels are built for x86_64 hosts"
    kernel=${UML_KERNEL:-$("$root/scripts/build-uml.sh" "$1")/linux}
    LD_LIBRARY_PATH=$("$root/scripts/stage.sh")/lib
    export LD_LIBRARY_PATH
}

# Two disks that the kernel opens by itself: nothing has to be started, and all dies with the machine.
patched_uml_route() {
    local version=$1
    eval "route_need() { need_patched_uml $version; }"
    route_attach() {
        disks=("stream:$1,cache=$2" --disk2 "stream:$3,cache=$4")
    }
    route_boot() { run_uml "${disks[@]}" --kernel "$kernel" "$@"; }
    route_detach() { :; }
    route_crash() { :; }
}
