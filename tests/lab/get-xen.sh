#!/usr/bin/env bash
# get-xen.sh [CACHE]: unpacks Debian's xenstored, oxenstored and xenstore tools into CACHE/xen-<stamp>, installing nothing,
# and builds xenshim.so there. Prints that directory. CACHE is $UNPLUGD_LAB_CACHE or .cache/lab in the checkout.
#
# Quick when it has been done. Two at a time are safe: the second waits, and a directory is there whole or not at all.
# Needs apt-get with its package lists, dpkg, gcc and libc6-dev.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=$(realpath -m "${1:-${UNPLUGD_LAB_CACHE:-$here/../../.cache/lab}}")
version=4.17        # Debian 12; the shim has the functions that its xenstoreds call
packages=(
    "xen-utils-$version" xen-utils-common xenstore-utils libxen-dev "libxenmisc$version"
    libxenstore4 libxencall1 libxendevicemodel1 libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1
    libxentoolcore1 libxentoollog1
)

stamp=$(cat "$here/get-xen.sh" "$here/xenshim.c" | sha256sum | cut -c 1-16)
target=$cache/xen-$stamp
if [ -d "$target" ]; then
    echo "$target"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/get-xen.lock"
flock 9
if [ ! -d "$target" ]; then
    # Packages once fetched serve for every version of the shim.
    debs=$cache/debs-$version
    if [ ! -d "$debs" ]; then
        fetched=$(mktemp -d "$cache/debs.XXXXXX")
        trap 'rm -rf "$fetched"' EXIT
        fetch() (cd "$fetched" && apt-get download -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 "${packages[@]}")
        # The package lists at hand may be older than the mirror, or absent.
        { fetch || { apt-get update -q && fetch; }; } >&2 9>&- || {
            echo "get-xen.sh: Debian's Xen $version packages cannot be fetched here" >&2
            exit 1
        }
        mv "$fetched" "$debs"
    fi
    building=$(mktemp -d "$cache/building.XXXXXX")
    trap 'rm -rf "$building"' EXIT
    for deb in "$debs"/*.deb; do dpkg -x "$deb" "$building/root" 9>&-; done
    gcc -O2 -Wall -Werror -fPIC -shared -D__XEN_TOOLS__ -I "$building/root/usr/include" \
        -o "$building/xenshim.so" "$here/xenshim.c"
    chmod 755 "$building"
    mv "$building" "$target"
fi
echo "$target"
