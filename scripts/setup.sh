#!/usr/bin/env bash
# setup.sh demo|test|sanitize : what `make demo`, `make test`, or `make sanitize` and `make analyse` need, made ready in this
# checkout.
#
# Idempotent; quick when there is nothing to do. As root, what is missing comes from apt; without root, it says what is
# missing and what the project then does without. Beside apt's packages, only .venv and .cache are written.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-test}
case $mode in demo | test | sanitize) ;; *) echo "usage: scripts/setup.sh demo|test|sanitize" >&2; exit 2 ;; esac

log=.cache/setup.log
minimum=3.11
mkdir -p .cache
exec 9>.cache/setup.lock
flock 9     # two `make`s at a time: the second waits and then finds it all done

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 2; }

# run DESCRIPTION COMMAND... : one line for a person; the command's own output goes to the log, its end to the terminal
# if it fails.
run() {
    local what=$1 begin=$SECONDS
    shift
    printf '=== %s\n' "$what" >>"$log"
    if "$@" >>"$log" 2>&1 9>&-; then
        say "$what ($((SECONDS - begin)) s)"
    else
        printf 'setup: %s: failed. The end of %s:\n' "$what" "$log" >&2
        tail -n 15 "$log" | sed 's/^/    /' >&2
        return 1
    fi
}

# --- Python -----------------------------------------------------------------------------------------------------------

suits() {
    "$1" -c "import sys; sys.exit(sys.version_info < tuple(map(int, '$minimum'.split('.'))))" 2>/dev/null
}

python=
for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
    if suits "$candidate"; then
        python=$(command -v "$candidate")
        break
    fi
done
[ -n "$python" ] || fail "unplugd needs Python $minimum or newer; $(python3 --version 2>&1 || true) is what is here." \
    "Debian 12 and later have it: apt-get install python3"

# --- what only apt can give -------------------------------------------------------------------------------------------

# The compiled part of unplugd, and systemd-python, are built from C.
has_headers() {
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
}
can_compile() { command -v cc >/dev/null && has_headers; }
has_libsystemd() { command -v pkg-config >/dev/null && pkg-config --exists libsystemd; }

packages=()     # missing packages
lacks=()        # and what is done without each of them
need() { packages+=("$1"); lacks+=("$1: $2"); }

survey() {
    packages=() lacks=()
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv 'no virtual environment, so nothing runs'
    [ "$mode" != demo ] || return 0
    command -v cc >/dev/null || {
        need gcc 'no compiled fast path, no systemd-python, and no xenstored in the tests'
        need libc6-dev 'as gcc'
    }
    command -v g++ >/dev/null || need g++ 'whether the C client is C++ too is not tried'
    command -v man >/dev/null && command -v lexgrog >/dev/null || need man-db 'manual pages are not tried'
    command -v groff >/dev/null || need groff 'as man-db'
    has_headers || need python3-dev 'no compiled fast path and no systemd-python'
    command -v pkg-config >/dev/null || need pkg-config 'as libsystemd-dev'
    has_libsystemd || need libsystemd-dev 'no systemd-python: sockets passed by systemd are not tested'
    command -v zsh >/dev/null || need zsh 'its completion is not tried'
    command -v fish >/dev/null || need fish 'its completion is not tried'
    command -v curl >/dev/null || need curl "the README's look at /metrics is not tried"
    { [ -x /usr/lib/systemd/systemd-journald ] || [ -x /lib/systemd/systemd-journald ]; } &&
        command -v systemd-analyze >/dev/null || need systemd 'no journald and no systemd in the tests'
    [ "$mode" = sanitize ] || return 0
    command -v clang >/dev/null || need clang 'the compiled part is not fuzzed guided by coverage'
    command -v clang-tidy >/dev/null || need clang-tidy 'the compiled part is analysed by gcc alone'
    { command -v clang >/dev/null && ls "$(clang -print-runtime-dir)"/libclang_rt.fuzzer*.a; } >/dev/null 2>&1 ||
        need libclang-rt-dev 'as clang'
    [ -e /usr/share/i18n/locales/de_DE ] || need locales 'the tests do not run in a German locale'
}

# Somebody else's apt may hold a lock that DPkg::Lock::Timeout does not cover (that of the package lists), and a mirror
# may fail once.
apt() {
    local try
    for try in 1 2 3 4 5; do
        if DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null; then
            return 0
        fi
        echo "apt-get $1: attempt $try failed"
        sleep $((try * 2))
    done
    return 1
}

install_packages() {
    # The lists at hand may do; when they are absent or older than the mirror, they are read anew.
    DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
        "${packages[@]}" </dev/null && return 0
    apt update
    apt install --no-install-recommends "${packages[@]}"
}

survey
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        run "apt-get install ${packages[*]}" install_packages || exit 1
        survey
    fi
    for line in "${lacks[@]}"; do say "missing $line"; done
    if [ ${#packages[@]} -gt 0 ]; then say "an administrator adds it with: apt-get install ${packages[*]}"; fi
    case " ${packages[*]-} " in *' python3-venv '*) exit 2 ;; esac
fi

# --- the virtual environment ------------------------------------------------------------------------------------------

extras=
[ "$mode" = demo ] || extras='[test]'
without=
can_compile || say "no C compiler or Python.h: the compiled part is left out; unplugd is slower without it"
can_compile && has_libsystemd || without=systemd-python
[ -z "$without" ] || say "no C compiler, Python.h or libsystemd: $without is left out; systemd cannot pass sockets to unplugd then"

# A stamp is the hash of all that the environment depends on; a checkout that has moved has a new one, since scripts in
# a virtual environment name it by its absolute path.
stamp_of() { # extras
    { pwd; "$python" -c 'import sys; print(sys.executable, sys.version)'; echo "$1" "$without"; cat pyproject.toml setup.py scripts/setup.sh daemon/fastpath/*.[ch]; } |
        sha256sum | cut -d ' ' -f 1
}

is_ready() {
    local stamp
    [ -x .venv/bin/python ] && [ -f .venv/.setup ] || return 1
    stamp=$(cat .venv/.setup)
    [ "$stamp" = "$(stamp_of "$extras")" ] && return 0
    # What serves the tests serves the demo.
    [ "$mode" = demo ] && [ "$stamp" = "$(stamp_of '[test]')" ]
}

install_unplugd() {
    local pip=(.venv/bin/python -m pip install --no-input --disable-pip-version-check --retries 5) wanted
    if [ -z "$without" ]; then
        "${pip[@]}" -e ".$extras"
        return
    fi
    wanted=$(.venv/bin/python - "$without" "$extras" <<'PY'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
wanted = project["dependencies"] + (project["optional-dependencies"]["test"] if sys.argv[2] else [])
print(*(one for one in wanted if not one.startswith(sys.argv[1])), sep="\n")
PY
    ) && mapfile -t wanted <<<"$wanted" && "${pip[@]}" "${wanted[@]}" && "${pip[@]}" --no-deps -e .
}

if ! is_ready; then
    : >"$log"
    if ! .venv/bin/python -c 'import sys, pip; sys.exit(sys.argv[1] != sys.prefix)' "$PWD/.venv" 2>/dev/null ||
        ! suits .venv/bin/python; then
        run '.venv' "$python" -m venv --clear .venv || exit 1
    fi
    rm -f .venv/.setup
    run ".venv: unplugd$extras and what it stands on${without:+, without $without}" install_unplugd || exit 1
    stamp_of "$extras" >.venv/.setup
fi
# As an installed package is. Where Python is told not to write what it compiled, each start would compile all of it.
.venv/bin/python -m compileall -q daemon || true

# --- the tests' neighbours --------------------------------------------------------------------------------------------
# Each script fetches or builds what it needs under .cache and is quick when it has it. A test whose neighbour could not
# be had says so itself.

if [ "$mode" = test ]; then
    for script in tests/lab/get-*.sh; do
        [ -f "$script" ] || continue
        begin=$SECONDS
        printf '=== %s\n' "$script" >>"$log"
        if ! bash "$script" >>"$log" 2>&1 9>&-; then
            # CI can fetch everything, so a failure ends it here, with one line. Elsewhere the tests do without.
            [ -z "${CI:-}" ] || fail "$script: $(tail -n 1 "$log")"
            say "missing what $script fetches; its tests do without: $(tail -n 1 "$log")"
        elif [ $((SECONDS - begin)) -gt 1 ]; then
            say "$script ($((SECONDS - begin)) s)"
        fi
    done
fi
say "ready for $mode"
