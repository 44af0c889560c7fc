#!/usr/bin/env bash
# analyse.sh : what two compilers and their analysers say of the compiled part (daemon/fastpath). Any finding fails it.
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh sanitize || exit 2

include=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
flags=(-std=gnu11 -O2 -D_FORTIFY_SOURCE=3 -Idaemon/fastpath -isystem "$include")
sources=(daemon/fastpath/*.c)
status=0

# As setup.py, and stricter. -fanalyzer looks at one file at a time, along the paths that it can take.
for source in "${sources[@]}"; do
    gcc "${flags[@]}" -Wall -Wextra -Wconversion -Wshadow -Wformat=2 -Wundef -Wstrict-prototypes \
        -fanalyzer -Werror -c "$source" -o /dev/null || status=1
done
# The fuzzer is no product: warnings, but no analyser.
gcc "${flags[@]}" -Wall -Wextra -Wshadow -Werror -fsyntax-only tests/fuzz/compiled.c || status=1

# What is left out, and why:
#   DeprecatedOrUnsafeBufferHandling   asks for memcpy_s() in place of every memcpy(); no libc of Linux has it
#   easily-swappable-parameters        two neighbours of one type: every fd beside a size
#   narrowing-conversions              gcc's -Wconversion says the same, and knows masks and constants
checks='-*,clang-analyzer-*,bugprone-*,cert-*,-clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling'
checks+=',-bugprone-easily-swappable-parameters,-bugprone-narrowing-conversions'
if command -v clang-tidy >/dev/null; then
    clang-tidy --quiet --warnings-as-errors='*' -checks="$checks" "${sources[@]}" -- "${flags[@]}" 2>/dev/null || status=1
else
    echo 'analyse: clang-tidy is not installed: gcc alone has looked'
fi
[ "$status" = 0 ] && echo "analyse: ${#sources[@]} files, nothing found"
exit "$status"
