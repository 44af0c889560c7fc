#!/usr/bin/env bash
# test.sh STAGE... : runs stages of lint, types, imports, docs, core, unit, integration, each with its seconds, all of them even when
# one fails. Where tests ran, it ends with one line that counts them, which is also left in .cache/tests.
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test || exit 2

bin=$PWD/.venv/bin
passed=0 failed=0 skipped=0
bad=()
began=$SECONDS

# What pytest leaves for the sum: its own closing line has a dozen forms.
count() { # junit file
    "$bin/python" - "$1" <<'PY'
import sys
import xml.etree.ElementTree as ET

passed = failed = skipped = 0
for suite in ET.parse(sys.argv[1]).getroot().iter("testsuite"):
    total, errors, failures, skips = (int(suite.get(k, 0)) for k in ("tests", "errors", "failures", "skipped"))
    failed += errors + failures
    skipped += skips
    passed += max(0, total - errors - failures - skips)
print(passed, failed, skipped)
PY
}

pytest_stage() { # name directory; several at a time: most of them wait for a process or for a second to pass
    local report=.cache/$1.xml counts status=0 p f s
    rm -f "$report"
    "$bin/python" -m pytest -q -n "$3" --dist worksteal --durations=5 --durations-min=5 --junit-xml="$report" "$2" || status=$?
    counts=$(count "$report" 2>/dev/null) || counts='0 0 0'
    read -r p f s <<<"$counts"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    return $status
}

stage() {
    case $1 in
        lint) "$bin/ruff" check --quiet ;;
        types) "$bin/mypy" --no-error-summary ;;
        imports) "$bin/lint-imports" --no-logo >.cache/imports.log 2>&1 || { tail -n 30 .cache/imports.log; return 1; } ;;
        docs)
            local status=0 script
            for script in scripts/*-docs.py; do
                [ ! -f "$script" ] || "$bin/python" "$script" --check || status=1
            done
            return $status
            ;;
        # the core is tested by its own tests, to the last branch
        core)
            local cover=("$bin/coverage") about=(--rcfile=/dev/null --data-file=.cache/coverage-core)
            "${cover[@]}" run "${about[@]}" --branch --source=unplugd.core -m pytest -q \
                tests/unit/test_{protocol,answers,guests_recorded,ioreq,stream,guest,bucket,registry,blacklist,guestrules,families,events,guestlog,history,escape,pageoffer,counters}.py \
                >.cache/core.log 2>&1 || { tail -n 30 .cache/core.log; return 1; }
            "${cover[@]}" report "${about[@]}" --show-missing --skip-covered --fail-under=100
            ;;
        unit) pytest_stage unit tests/unit 2 ;;
        integration) pytest_stage integration tests/integration 4 ;;
        *) echo "test.sh: no such stage: $1" >&2; return 2 ;;
    esac
}

for name in "$@"; do
    begin=$SECONDS
    if stage "$name"; then verdict=ok; else verdict=FAILED; bad+=("$name"); fi
    printf -- '--- %s: %s (%d s)\n' "$name" "$verdict" $((SECONDS - begin))
done

summary="$passed passed, $failed failed"
[ "$skipped" = 0 ] || summary+=", $skipped skipped"
if [ ${#bad[@]} -gt 0 ]; then echo "--- failed: ${bad[*]}"; fi
case " $* " in
    *' unit '* | *' integration '*)
        echo "$summary" >.cache/tests
        printf '=== %s in %d s ===\n' "$summary" $((SECONDS - began))
        ;;
esac
[ ${#bad[@]} -eq 0 ]
