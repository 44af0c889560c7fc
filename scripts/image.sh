#!/usr/bin/env bash
# image.sh : the image localhost/unplugd from Dockerfile and dist/unplugd_*.deb, with buildah, or with docker where there
# is no buildah. BASE is another image than Debian's own to build it on.
set -euo pipefail
cd "$(dirname "$0")/.."

ls dist/unplugd_*.deb >/dev/null 2>&1 || { echo "image.sh: no package in dist/: make deb" >&2; exit 2; }
if command -v buildah >/dev/null; then
    exec buildah build --layers --isolation chroot --format docker ${BASE:+--build-arg BASE="$BASE"} -t localhost/unplugd .
elif command -v docker >/dev/null; then
    exec docker build ${BASE:+--build-arg BASE="$BASE"} -t localhost/unplugd .
fi
echo "image.sh: neither buildah nor docker is here: apt-get install buildah" >&2
exit 2
