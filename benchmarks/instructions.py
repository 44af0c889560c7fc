"""Counts what one access costs in instructions, which do not depend on how busy the machine is.

    python -m benchmarks.instructions

The daemon runs under valgrind's callgrind, which sees user mode only: the system calls (three for each read:
epoll_wait, recv, send) are not in the figure. Two runs that differ only in the number of accesses give the cost of one;
start and stop cancel out. Takes some minutes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.daemons import configuration, embedded
from benchmarks.programs import BUILD, build
from unplugd.errors import UnplugdError
from unplugd.trial import Trial

CASES: tuple[tuple[str, int, list[str]], ...] = (
    ("magic number, one at a time", 1, ["-p", "magic"]),
    ("talking, one at a time", 1, []),
    ("talking, 64 pipelined", 64, []),
    ("talking, 64 pipelined, no frame like another", 64, ["-u"]),
)
FEW, MANY = 3232, 9696
"""Accesses: whole numbers of rounds of 64 and, in the talking pattern, nearly of lines."""


def count(accesses: int, depth: int, options: list[str]) -> int:
    """The instructions of a daemon that starts, serves `accesses` and stops."""
    directory = Path(tempfile.mkdtemp(prefix="unplugd-count-"))
    wrapper = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory}/callgrind.out"]
    try:
        with Trial(directory, configuration(directory, embedded(1)), patience=300, wrapper=wrapper) as trial:
            # Into the rate limit first, so that all lines of what is counted are dropped.
            for rounds, how in ((3200, ["-d", "64"]), (accesses // depth, ["-d", str(depth), *options])):
                command = [str(BUILD / "portload"), "-w", "0", "-n", str(rounds), *how]
                subprocess.run(
                    [*command, str(directory / "run/dom1.sock")], stdout=subprocess.DEVNULL, check=True
                )
            trial.stop()
        found = re.search(r"Collected : (\d+)", trial.log.read_text(errors="replace"))
        if found is None:
            raise OSError(f"callgrind says nothing: {trial.log.read_text(errors='replace')[-500:]}")
        return int(found[1])
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """The command line."""
    if shutil.which("valgrind") is None:
        print("benchmarks: valgrind is needed: apt-get install valgrind", file=sys.stderr)
        return 2
    build()
    try:
        for name, depth, options in CASES:
            cost = (count(MANY, depth, options) - count(FEW, depth, options)) / (MANY - FEW)
            print(f"{name:<46} {cost:>8,.0f} instructions", flush=True)
    except (UnplugdError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
