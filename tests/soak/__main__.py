"""All of the soak: `python -m tests.soak [--long] [STAGE...]`. At its end: a table, and a line that counts stages."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.lab.systemd import why_not

Result = tuple[dict[str, str], list[str]]
ROOT = Path(__file__).parents[2]


def _kills(count: int, *, slow: bool = False) -> Result:
    # Here: pytest's modules, which it uses, are not wanted for --help.
    from tests.soak.kills import GAP, SLOW_GAP, run

    return run(count, gap=SLOW_GAP if slow else GAP)


def _fuzz(seconds: int) -> Result:
    found = ROOT / ".cache/fuzz"
    before = len(list(found.glob("crash-*")))
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.stream", str(seconds), "--found", str(found)],
        cwd=ROOT, capture_output=True, text=True, errors="replace", check=False, timeout=seconds + 300,
    )  # fmt: skip
    output = done.stdout + done.stderr
    figures = {"fuzzing, seconds": str(seconds)}
    for line in output.splitlines():
        if line.startswith("stat::"):
            name, value = line.removeprefix("stat::").split(":")
            figures["fuzzing, " + name.replace("_", " ")] = value.strip()
        elif "atheris is not installed" in line:
            figures["fuzzing"] = line
    crashes = len(list(found.glob("crash-*"))) - before
    problems = [] if done.returncode == 0 and not crashes else [f"fuzzing: {output[-2000:]}"]
    return figures, problems


def _sanitized(fuzzer: str, seconds: int) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{fuzzer}", str(seconds)],
        cwd=ROOT, capture_output=True, text=True, errors="replace", check=False, timeout=seconds + 600,
    )  # fmt: skip
    output = (done.stdout + done.stderr).strip()
    if done.returncode:
        return {}, [f"the compiled part, {fuzzer}: {output[-3000:]}"]
    return {f"the compiled part, {fuzzer}": output.splitlines()[-1]}, []


def _flood(seconds: float) -> Result:
    from tests.soak.flood import real, virtual

    figures, problems = real(seconds)
    more_figures, more_problems = virtual()
    return figures | more_figures, problems + more_problems


def _attacks() -> Result:
    from tests.soak.attacks import run

    return run()


def _outage() -> Result:
    from tests.soak.outage import run

    return run()


def _writers(seeds: int) -> Result:
    from tests.soak.writer import run

    return run(seeds)


def _memory(accesses: int, domains: int) -> Result:
    from tests.soak.memory import run

    return run(accesses, domains)


def _stages(*, long: bool) -> dict[str, Callable[[], Result]]:
    if long:
        return {
            "kills": lambda: _kills(200),
            "flood": lambda: _flood(600),
            "outage": _outage,
            "attacks": _attacks,
            "writers": lambda: _writers(10),
            "memory": lambda: _memory(1_000_000, 1000),
            "fuzz": lambda: _fuzz(3600),
            "fastpath": lambda: _sanitized("fastpath", 900),
            "compiled": lambda: _sanitized("compiled", 900),
        }
    return {
        "kills": lambda: _kills(40, slow=True),
        "flood": lambda: _flood(60),
        "outage": _outage,
        "attacks": _attacks,
        "writers": lambda: _writers(1),
        "memory": lambda: _memory(300_000, 200),
        "fuzz": lambda: _fuzz(180),
        "fastpath": lambda: _sanitized("fastpath", 45),
        "compiled": lambda: _sanitized("compiled", 30),
    }


def main() -> int:
    """Run the stages; 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the full figures, about two hours")
    parser.add_argument("stage", nargs="*", help="kills, flood, outage, attacks, writers, memory, fuzz, fastpath...")
    options = parser.parse_args()
    stages = _stages(long=options.long)
    if unknown := set(options.stage) - stages.keys():
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    outcome = {"passed": 0, "failed": 0, "skipped": 0}
    table: list[tuple[str, str]] = []
    begin = time.monotonic()
    for name in options.stage or stages:
        print(f"soak: {name} ...", flush=True)
        since = time.monotonic()
        if name in {"kills", "outage", "writers"} and (reason := why_not()):
            print(f"soak: {name}: {reason}")
            outcome["skipped" if "CI" not in os.environ else "failed"] += 1
            continue
        try:
            figures, problems = stages[name]()
        except Exception:  # noqa: BLE001 - a stage that breaks must not hide what the others say
            figures, problems = {}, [traceback.format_exc()]
        table.append((f"{name} ({time.monotonic() - since:.0f} s)", ""))
        table += [("  " + key, value) for key, value in figures.items()]
        table += [("  DOES NOT HOLD", problem) for problem in problems]
        outcome["failed" if problems else "passed"] += 1
    width = max((len(key) for key, value in table if value), default=0)
    print()
    for key, value in table:
        print(f"{key:<{width}}  {value}".rstrip())
    counts = ", ".join(f"{count} {word}" for word, count in outcome.items() if count or word != "skipped")
    (ROOT / ".cache").mkdir(exist_ok=True)
    (ROOT / ".cache/soak").write_text(counts + "\n")  # for CI, which adds up
    print(f"=== {counts} in {time.monotonic() - begin:.0f} s ===")
    return 1 if outcome["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
