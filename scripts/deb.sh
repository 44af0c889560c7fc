#!/usr/bin/env bash
# deb.sh : dist/unplugd_<version>_<architecture>.deb, for Debian 12 and later, from the files of this checkout (not those that git
# ignores).
#
# As root, missing build dependencies come from apt; without root it says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

needed=(debhelper dh-python build-essential pybuild-plugin-pyproject python3-all-dev python3-setuptools python3-wheel)
missing=()
for package in "${needed[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "deb.sh: an administrator adds what is missing: apt-get install ${missing[*]}" >&2
        exit 2
    fi
    # a new machine has no lists at all
    apt-get -qy -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update
    DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install --no-install-recommends "${missing[@]}"
fi

mkdir -p .cache/deb dist
work=$(mktemp -d .cache/deb/build.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir "$work/unplugd"
git ls-files -z --cached --others --exclude-standard -- . ':!tests/xen' | xargs -0 tar -c --ignore-failed-read | tar -x -C "$work/unplugd"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
packaged=$(dpkg-parsechangelog -l debian/changelog -S Version)
if [ "$version" != "$packaged" ]; then
    echo "deb.sh: pyproject.toml says $version, debian/changelog $packaged" >&2
    exit 1
fi
(cd "$work/unplugd" && dpkg-buildpackage -us -uc -b >../log 2>&1) || {
    tail -n 40 "$work/log" >&2
    exit 1
}
built=$(basename "$work"/unplugd_"${version}"_*.deb)
# whoever reads it meanwhile has the old one whole
cp "$work/$built" "dist/.$built.new"
mv "dist/.$built.new" "dist/$built"
find dist -name 'unplugd_*.deb' ! -name "$built" -delete
ls -l dist/unplugd_"${version}"_*.deb
