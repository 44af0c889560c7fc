#!/bin/sh
# install.sh QEMU-SOURCE : puts the device `unplugd` into a QEMU source tree, to be configured and built as ever. It adds
# two files to hw/i386/xen and a line to its meson.build; run again, it brings the two files up to date.
set -eu
here=$(dirname "$0")
into=${1:?usage: install.sh QEMU-SOURCE}/hw/i386/xen
line="i386_ss.add(when: 'CONFIG_XEN', if_true: files('unplugd.c'))"

[ -f "$into/xen_platform.c" ] && [ -f "$into/meson.build" ] || {
    echo "install.sh: $1 is no source tree of QEMU 7.2 or later: there is no $into/xen_platform.c" >&2
    exit 2
}
cp "$here/unplugd.c" "$here/../unplugd-client.h" "$into/"
grep -qxF "$line" "$into/meson.build" || printf '%s\n' "$line" >>"$into/meson.build"
