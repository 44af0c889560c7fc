#!/usr/bin/env bash
# get-xen.sh [CACHE]: unpacks xenstored, oxenstored and xenstore tools of this machine's Debian into CACHE/xen-<stamp>,
# installing nothing, and builds xenshim.so there. Prints that directory. CACHE is $UNPLUGD_LAB_CACHE or .cache/lab in the
# checkout.
#
# Quick when it has been done. Two at a time are safe: the second waits, and a directory is there whole or not at all.
# What failed is not tried again for some minutes, but fails at once with the same line: a hundred tests may ask.
# Needs apt-get with its package lists, dpkg, gcc and libc6-dev.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=$(realpath -m "${1:-${UNPLUGD_LAB_CACHE:-$here/../../.cache/lab}}")
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
stamp=$({ cat "$here/get-xen.sh" "$here/xenshim.c"; echo "$suite"; } | sha256sum | cut -c 1-16)
target=$cache/xen-$stamp
if [ -d "$target" ]; then
    echo "$target"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/get-xen.lock"
flock 9
missing=$cache/xen-$stamp.missing
fail() {
    echo "get-xen.sh: $1" | tee "$missing" >&2
    exit 1
}

# fetch DIRECTORY : the packages of the newest Xen that this machine's package lists have.
fetch() (
    cd "$1"
    version=$(apt-cache search --names-only '^xen-utils-[0-9.]+$' | sed 's/^xen-utils-\([0-9.]*\) .*/\1/' | sort -V | tail -n 1)
    [ -n "$version" ] || { echo "no package xen-utils-VERSION" && return 1; }
    apt-get download -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 \
        "xen-utils-$version" "libxenmisc$version" xen-utils-common xenstore-utils libxen-dev \
        libxenstore4 libxencall1 libxendevicemodel1 libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1 \
        libxentoolcore1 libxentoollog1
)

# Somebody else's apt may hold the lock of the lists, for which apt does not wait.
update() {
    local try
    for try in 1 2 3; do
        apt-get update -q -o Acquire::Retries=3 && return 0
        sleep $((try * 3))
    done
    return 1
}

if [ ! -d "$target" ]; then
    if [ -n "$(find "$missing" -mmin -10 2>/dev/null)" ]; then
        cat "$missing" >&2
        exit 1
    fi
    # Packages once fetched serve for every version of the shim.
    debs=$cache/debs-$suite
    if [ ! -d "$debs" ]; then
        fetched=$(mktemp -d "$cache/debs.XXXXXX")
        trap 'rm -rf "$fetched"' EXIT
        # The package lists at hand may be older than the mirror, or absent.
        { fetch "$fetched" || { update && fetch "$fetched"; }; } >&2 9>&- ||
            fail "the packages of Debian's Xen cannot be fetched here ($suite)"
        mv "$fetched" "$debs"
    fi
    command -v gcc >/dev/null || fail "there is no gcc to build xenshim.so with"
    building=$(mktemp -d "$cache/building.XXXXXX")
    trap 'rm -rf "$building"' EXIT
    for deb in "$debs"/*.deb; do dpkg -x "$deb" "$building/root" 9>&-; done
    gcc -O2 -Wall -Werror -fPIC -shared -D__XEN_TOOLS__ -I "$building/root/usr/include" \
        -o "$building/xenshim.so" "$here/xenshim.c" || fail "xenshim.c does not compile against this Xen ($suite)"
    chmod 755 "$building"
    mv "$building" "$target"
    rm -f "$missing"
fi
echo "$target"
