#!/usr/bin/env bash
# get-prometheus.sh : Debian's Prometheus server and promtool into the lab's cache, unpacked and not installed, so that
# no service is started and no user added. Needs no root. Idempotent.
set -euo pipefail
cache=${UNPLUGD_LAB_CACHE:-$(cd "$(dirname "$0")/../.." && pwd)/.cache/lab}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
[ ! -x "$cache/prometheus/usr/bin/promtool" ] || exit 0

work=$(mktemp -d "$cache/prometheus.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
# apt drops to its own user for a download where it may: let that user write here.
chmod 755 "$work"
[ "$(id -u)" != 0 ] || ! id _apt >/dev/null 2>&1 || chown _apt "$work"
# promtool has a package of its own since Debian 13
fetch() {
    local names=(prometheus)
    ! apt-cache show promtool >/dev/null 2>&1 || names+=(promtool)
    apt-get -q -o Acquire::Retries=3 download "${names[@]}"
}
fetch || { apt-get -q -o Acquire::Retries=3 update && fetch; }
for deb in *.deb; do dpkg-deb -x "$deb" unpacked; done
"unpacked/usr/bin/promtool" --version
mkdir -p tree/usr/bin
mv unpacked/usr/bin/prometheus unpacked/usr/bin/promtool tree/usr/bin/
# Somebody else may have been quicker.
mv -T tree "$cache/prometheus" 2>/dev/null || [ -x "$cache/prometheus/usr/bin/promtool" ]
