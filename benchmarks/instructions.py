"""Counts what one access costs in instructions, which do not depend on how busy the machine is.

    python -m benchmarks.instructions

The daemon runs under valgrind's callgrind, which sees user mode only: the system calls (three for each read:
epoll_wait, recv, send) are not in the figure. Only what is done while the client sends is counted, and two seconds
behind it: what a driver's start leaves to be recorded. The daemon is some fifty times slower there while
its clock runs as ever, so what it may take of a turn is a hundred times as much. Takes five minutes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.daemons import MEMORY, PURE, configuration, embedded, sockets
from benchmarks.programs import build, measured
from unplugd.errors import UnplugdError
from unplugd.trial import Trial

LATER = 2.0
"""Seconds until HTTP is loaded, before what is counted, and until all is recorded, behind it."""

MUCH_LATER = 12.0
"""The same where there are many domains: valgrind needs so long for what their start left behind."""


PATIENCE = """\
from unplugd import connection, turns
turns.BUDGET *= 100
turns._MINOR *= 100
connection.SLOW *= 100
"""
"""Run by the daemon's interpreter before all else. The compiled part has its own figure, and stays far below it."""


class Case(NamedTuple):
    """What a client does to so many domains, and how often."""

    name: str
    options: Sequence[str]
    accesses: int
    domains: int = 1
    later: float = LATER


CASES = (
    Case("magic number, one at a time", ("-p", "magic", "-n", "6400"), 6400),
    Case("talking, one at a time", ("-n", "6464"), 6464),
    Case("talking, one at a time, no frame like another", ("-u", "-n", "6464"), 6464),
    Case("talking, 64 pipelined", ("-d", "64", "-n", "404"), 25856),
    Case("talking, 64 pipelined, no frame like another", ("-u", "-d", "64", "-n", "404"), 25856),
    Case("a guest's start, by access, with its records", ("-a", "-p", "linux", "-n", "6"), 1200, 200, MUCH_LATER),
)


NOTHING = Case("a client comes and goes", ("-p", "magic", "-n", "1"), 0)
"""What is not counted of a case: what a client costs that makes hardly an access, and what goes on anyway."""


def count(case: Case, wrapper: tuple[str, ...]) -> int:
    """The instructions of all that comes of it."""
    with tempfile.TemporaryDirectory(prefix="unplugd-count-", dir=MEMORY) as name:
        directory = Path(name)
        (directory / "sitecustomize.py").write_text(PATIENCE)
        command = ["env", f"PYTHONPATH={directory}", *wrapper, "valgrind", "--tool=callgrind", "--instr-atstart=no",
                   f"--callgrind-out-file={directory}/callgrind.out"]
        # nothing is published: the embedded store's transactions would be most of a start, and no host has that store
        text = "publish = false\n" + configuration(directory, embedded(case.domains))
        with Trial(directory, text, patience=300, wrapper=command) as trial:
            paths = sockets(trial, 1, case.domains)
            if case.domains == 1:   # into the rate limit first, so that all lines of what is counted are dropped
                measured(paths, "-w", "0", "-d", "64", "-n", "3200")
            time.sleep(case.later)
            _instrument(trial.pid, "on")
            measured(paths, "-w", "0", *case.options)
            time.sleep(case.later)
            _instrument(trial.pid, "off")
            trial.stop()
            said = trial.log.read_text(errors="replace")
    found = re.search(r"Collected : (\d+)", said)
    if found is None:
        raise OSError(f"callgrind says nothing: {said[-500:]}")
    return int(found[1])


def _instrument(pid: int, what: str) -> None:
    subprocess.run(["callgrind_control", "-i", what, str(pid)], capture_output=True, check=True)


def main() -> int:
    """The command line."""
    if shutil.which("valgrind") is None:
        print("benchmarks: valgrind is needed: apt-get install valgrind", file=sys.stderr)
        return 2
    build()
    try:
        print(f"{'instructions of an access':<50} {'pure Python':>12} {'compiled':>12}")
        rest: dict[tuple[int, tuple[str, ...]], int] = {}
        for case in CASES:
            for wrapper in (PURE, ()):
                if (case.domains, wrapper) not in rest:
                    nothing = NOTHING._replace(domains=case.domains, later=case.later)
                    rest[case.domains, wrapper] = count(nothing, wrapper)
            pure, compiled = (
                (count(case, wrapper) - rest[case.domains, wrapper]) / case.accesses for wrapper in (PURE, ())
            )
            print(f"{case.name:<50} {pure:>12,.0f} {compiled:>12,.0f}", flush=True)
    except (UnplugdError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
