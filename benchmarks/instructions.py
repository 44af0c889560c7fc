"""Counts what one access costs in instructions and allocations, which do not depend on how busy the machine is.

    python -m benchmarks.instructions

How many bytecodes one takes is bytecodes.py's.

The daemon runs under valgrind's callgrind, which sees user mode only: the system calls (three for each read:
epoll_wait, recv, send) are not in the figure. Only what is done while the client sends is counted, and two seconds
behind it: what a driver's start leaves to be recorded. The daemon is some fifty times slower there while
its clock runs as ever, so what it may take of a turn is a hundred times as much. Takes five minutes. What Python's
free lists give again (small tuples, floats, frames) is no allocation.
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
from unplugd.simulator.privatedaemon import PrivateDaemon

LATER = 2.0
"""Seconds until HTTP is loaded, before what is counted, and until all is recorded, behind it."""

MUCH_LATER = 12.0
"""The same where there are many domains: valgrind needs so long for what their start left behind."""


PATIENCE = """\
from unplugd.domains import turns
turns.BUDGET *= 100
turns.MINOR *= 100
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


ALLOCATORS = ("_PyObject_Malloc", "_PyObject_Calloc", "_PyObject_Realloc", "malloc", "calloc", "realloc")
"""The functions that give memory, in libpython and in libc."""


class Cost(NamedTuple):
    """What is counted."""

    instructions: float
    allocations: float

    def of_each(self, other: Cost, accesses: int) -> Cost:
        """One access's part of it, but for `other`."""
        return Cost(*((mine - its) / accesses for mine, its in zip(self, other, strict=True)))


def count(case: Case, wrapper: tuple[str, ...]) -> Cost:
    """All that comes of it."""
    with tempfile.TemporaryDirectory(prefix="unplugd-count-", dir=MEMORY) as name:
        directory = Path(name)
        (directory / "sitecustomize.py").write_text(PATIENCE)
        command = ["env", f"PYTHONPATH={directory}", *wrapper, "valgrind", "--tool=callgrind", "--instr-atstart=no",
                   f"--callgrind-out-file={directory}/callgrind.out"]
        # nothing is published: the embedded store's transactions would be most of a start, and no host has that store
        text = "publish = false\n" + configuration(directory, embedded(case.domains))
        with PrivateDaemon(directory, text, patience=300, wrapper=command) as trial:
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
        return Cost(int(found[1]), _calls((directory / "callgrind.out").read_text()))


def _calls(profile: str) -> int:
    """How often ALLOCATORS were called (valgrind's manual, "Callgrind Format Specification")."""
    names: dict[str, str] = {}
    called, calls = "", 0
    for line in profile.splitlines():
        if found := re.fullmatch(r"c?fn=(\(\d+\))(?: (.*))?", line):
            number, name = found.groups()
            if name is not None:
                names[number] = name.partition("'")[0]  # a recursive call has its depth behind that
            if line.startswith("c"):
                called = names[number]
        elif line.startswith("calls=") and called in ALLOCATORS:
            calls += int(line.removeprefix("calls=").split()[0])
    return calls


def _instrument(pid: int, what: str) -> None:
    subprocess.run(["callgrind_control", "-i", what, str(pid)], capture_output=True, check=True)


def main() -> int:
    """The command line."""
    if shutil.which("valgrind") is None:
        print("benchmarks: valgrind is needed: apt-get install valgrind", file=sys.stderr)
        return 2
    build()
    try:
        print(f"{'':<50} {'instructions of an access':>27} {'allocations':>21}")
        print(f"{'':<50} {'pure Python':>14} {'compiled':>12} {'pure Python':>12} {'compiled':>8}")
        rest: dict[tuple[int, tuple[str, ...]], Cost] = {}
        for case in CASES:
            costs = []
            for wrapper in (PURE, ()):
                if (case.domains, wrapper) not in rest:
                    nothing = NOTHING._replace(domains=case.domains, later=case.later)
                    rest[case.domains, wrapper] = count(nothing, wrapper)
                costs.append(count(case, wrapper).of_each(rest[case.domains, wrapper], case.accesses))
            pure, compiled = costs
            print(f"{case.name:<50} {pure.instructions:>14,.0f} {compiled.instructions:>12,.0f}"
                  f" {pure.allocations:>12.1f} {compiled.allocations:>8.1f}", flush=True)
    except (UnplugdError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
