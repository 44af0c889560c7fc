"""The compiled part under AddressSanitizer and UBSan: its unit tests, then both fuzzers. `make sanitize` runs this.

    python -m tests.fuzz [SECONDS]      # of each fuzzer

The last line counts what passed, and .cache/sanitized has it for CI.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import sanitized

UNIT = sanitized.ROOT / "tests/unit"
_IMPORTS_IT = re.compile(
    r"^\s*from unplugd\.sockets import .*_fastpath|^\s*from unplugd\.sockets\._fastpath import"
    r"|importorskip\(\"unplugd\.sockets\._fastpath\"", re.MULTILINE)
"""What a test module that runs the compiled part has in its text."""


def modules() -> list[Path]:
    """The unit tests that run the compiled part."""
    return [path for path in sorted(UNIT.glob("test_*.py")) if _IMPORTS_IT.search(path.read_text())]


def unit_tests() -> bool:
    """Run them with the sanitized extension in place of the installed one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.fuzz.sanitized", "-n", "2", "--timeout", "300",
               *map(str, modules())]
    environment = sanitized.environment()
    return subprocess.run(command, cwd=sanitized.ROOT, env=environment, check=False, timeout=900).returncode == 0


def fuzzer(name: str, seconds: int) -> bool:
    """Run a fuzzer for so long."""
    command = [sys.executable, "-m", f"tests.fuzz.{name}", str(seconds)]
    return subprocess.run(command, cwd=sanitized.ROOT, check=False, timeout=seconds + 600).returncode == 0


def main() -> int:
    """Run all three."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=30)
    seconds = parser.parse_args().seconds
    reasons = {"unit tests": sanitized.missing(), "fastpath": sanitized.missing(),
               "compiled": sanitized.missing_for_guided()}
    stages: dict[str, Callable[[], bool]] = {
        "unit tests": unit_tests,
        "fastpath": lambda: fuzzer("fastpath", seconds),
        "compiled": lambda: fuzzer("compiled", seconds),
    }
    outcome = {"passed": 0, "failed": 0, "skipped": 0}
    for name, stage in stages.items():
        begin = time.monotonic()
        if reasons[name]:
            result = "failed" if "CI" in os.environ else "skipped"
            print(f"sanitize: {name}: {reasons[name]}")
        else:
            result = "passed" if stage() else "failed"
        outcome[result] += 1
        print(f"--- {name}: {result} ({time.monotonic() - begin:.0f} s)", flush=True)
    counts = ", ".join(f"{count} {word}" for word, count in outcome.items() if count or word != "skipped")
    (sanitized.ROOT / ".cache/sanitized").write_text(counts + "\n")
    print(f"=== {counts} ===")
    return 1 if outcome["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
