"""Fuzzing the compiled part guided by coverage: libFuzzer with AddressSanitizer and UBSan (compiled.c).

    python -m tests.fuzz.compiled [SECONDS] [--keep]

It begins with the corpus, and leaves what it finds in .cache/fuzz-compiled; `--keep` takes the smallest inputs that
cover all of it into the corpus. What fails is left there too, as crash-*.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import sanitized

CORPUS = Path(__file__).with_name("corpus") / "compiled"
FOUND = sanitized.ROOT / ".cache/fuzz-compiled"
LONGEST = 512
"""Bytes of one input: a program of about 200 steps."""

_ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONHASHSEED": "0"}
"""What Python keeps to the end of a process are no leaks."""


def fuzz(program: Path, seconds: int) -> tuple[int, str]:
    """Run it for so long: its exit status, and what it said."""
    FOUND.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [program, FOUND, CORPUS, f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=25",
         "-rss_limit_mb=3000", "-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={FOUND}/crash-"],
        env=os.environ | _ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False,
        timeout=seconds + 300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def keep(program: Path) -> int:
    """Make the corpus anew, of the smallest inputs that cover all that is covered. How many there are."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([program, "-merge=1", f"-max_len={LONGEST}", "-set_cover_merge=1", directory, FOUND, CORPUS],
                       env=os.environ | _ENVIRONMENT, capture_output=True, check=True, timeout=900)
        for old in CORPUS.iterdir():
            old.unlink()
        kept = sorted(Path(directory).iterdir())
        for path in kept:
            shutil.copy(path, CORPUS / path.name[:12])
    return len(kept)


def main() -> int:
    """Fuzz for so many seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.compiled", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="and take what it finds into the corpus")
    options = parser.parse_args()
    if reason := sanitized.missing_for_guided():
        print(f"the compiled part is not fuzzed guided by coverage: {reason}")
        return 0
    program = sanitized.guided()
    status, output = fuzz(program, options.seconds)
    if status:
        print(output[-6000:], file=sys.stderr)
        return 1
    if options.keep:
        print(f"{keep(program)} inputs in the corpus")
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", output))
    print(f"{stats['number_of_executed_units']} inputs tried with the compiled part, guided by coverage;"
          f" {stats['peak_rss_mb']} MiB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
