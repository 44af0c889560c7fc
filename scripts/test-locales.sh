#!/usr/bin/env bash
# test-locales.sh : unplugctl's unit tests in the C locale and in a German one; .cache/locale-tests has the sum for CI.
# Files and sockets are UTF-8 whatever the locale, and what is shown can be read in each.
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh sanitize || exit 2

# Python makes UTF-8 of the C locale, unless it is told not to.
export PYTHONCOERCECLOCALE=0 PYTHONUTF8=0
locales=(C)
mkdir -p .cache/locale
if localedef -i de_DE -f UTF-8 --no-archive "$PWD/.cache/locale/de_DE.UTF-8"; then
    locales+=(de_DE.UTF-8)
else
    echo 'test-locales: no German locale can be made here: apt-get install locales'
fi

passed=0 failed=0
for locale in "${locales[@]}"; do
    printf -- '--- %s\n' "$locale"
    if LOCPATH=$PWD/.cache/locale LC_ALL=$locale .venv/bin/python -m pytest -q -n 2 tests/unit/test_ctl_*.py; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed" >.cache/locale-tests
[ "$failed" = 0 ]
