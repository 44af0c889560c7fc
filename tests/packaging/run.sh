#!/usr/bin/env bash
# run.sh : the Debian package in a clean Debian 12, sdist and wheel in clean environments, the image built and run.
#
# Needs root, Debian's mirror and PyPI, and fetches what it needs of the machine by apt. Ends with one line that counts.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ "$(id -u)" != 0 ]; then
    echo "run.sh: needs root: a clean Debian is a tree of root's" >&2
    exit 2
fi
scripts/setup.sh test

needed=(mmdebstrap debhelper dh-python build-essential pybuild-plugin-pyproject python3-all-dev python3-setuptools python3-wheel
    lintian buildah crun man-db groff)
missing=()
for package in "${needed[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get -qy -o DPkg::Lock::Timeout=300 update
    DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}"
fi

mkdir -p .cache/packaging
exec timeout --kill-after=30 1200 .venv/bin/python -m pytest -q --durations=5 --timeout=600 \
    --junit-xml=.cache/packaging.xml tests/packaging
