#!/usr/bin/env bash
# run.sh [FILE...] : the Debian package in a clean Debian 12, sdist and wheel in clean environments, the image and compose.yaml
# run. With files of tests, only these.
#
# Needs root, Debian's mirror and PyPI, and fetches what it needs of the machine by apt. Ends with one line that counts,
# which it also leaves in .cache/packaging-tests.
set -euo pipefail
cd "$(dirname "$0")/../.."

rm -f .cache/packaging-tests
if [ "$(id -u)" != 0 ]; then
    echo "run.sh: needs root: a clean Debian is a tree of root's" >&2
    exit 2
fi
scripts/setup.sh test

needed=(mmdebstrap debhelper dh-python build-essential pybuild-plugin-pyproject python3-all-dev python3-setuptools python3-wheel
    lintian buildah podman podman-compose netavark aardvark-dns crun iptables iproute2 man-db groff)
missing=()
for package in "${needed[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get -qy -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update
    DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 install --no-install-recommends "${missing[@]}"
fi

mkdir -p .cache/packaging
report=.cache/packaging.xml
rm -f "$report"
status=0
# Two at a time, each file by one of them: most of the time is waiting for apt and pip. The limits only end what hangs.
timeout --kill-after=30 1800 .venv/bin/python -m pytest -q -n 2 --dist loadfile --durations=8 --timeout=1500 \
    --junit-xml="$report" "${@:-tests/packaging}" || status=$?
.venv/bin/python - "$report" >.cache/packaging-tests <<'PY'
import sys
import xml.etree.ElementTree as ET

passed = failed = skipped = 0
for suite in ET.parse(sys.argv[1]).getroot().iter("testsuite"):
    total, errors, failures, skips = (int(suite.get(k, 0)) for k in ("tests", "errors", "failures", "skipped"))
    failed += errors + failures
    skipped += skips
    passed += max(0, total - errors - failures - skips)
print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
PY
cat .cache/packaging-tests
exit "$status"
