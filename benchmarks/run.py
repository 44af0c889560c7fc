"""Measures unplugd against a C server on the same socket, against a C sender into the same journal, and on a full host.

    python -m benchmarks [--rounds N] [--access-only] [--json FILE] [--picture FILE]

What is compared is measured in one round, one right after the other, so that whatever else the machine does falls on
both; a figure is the median of the rounds. It is reported, never asserted. How to read the table: docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import access, host, log, picture
from benchmarks.figures import Figure, table, warnings
from benchmarks.programs import BUILD, build
from unplugd import __version__
from unplugd.errors import UnplugdError
from unplugd.sockets import loop as eventloop


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def compiled() -> bool:
    """Whether the daemon has its compiled part here."""
    with contextlib.closing(eventloop.new_event_loop()) as loop:
        return isinstance(loop, eventloop.Loop)


def measure(options: argparse.Namespace) -> Iterator[Figure]:
    """All that was asked for."""
    yield from access.measure(options.rounds, options.scale, options.cpu, compiled(), _progress)
    if not options.access_only:
        yield from log.measure(options.host_rounds, options.cpu, _progress)
        yield from host.measure(options.host_rounds, _progress)


def report(figures: Sequence[Figure], cpu: int) -> dict[str, object]:
    """All figures, for machines."""
    return {
        "unplugd": __version__,
        "compiled": compiled(),
        "python": platform.python_version(),
        "machine": {
            "cpus": os.cpu_count(), "kernel": platform.release(), "pinned_to": cpu, "load": os.getloadavg(),
        },
        "figures": [
            asdict(one) | {"median": one.median, "quartiles": one.spread, "reached": one.reached, "noise": one.noise}
            for one in figures
        ],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of single accesses (15)")
    parser.add_argument("--host-rounds", type=int, default=7, help="rounds of all else (7)")
    parser.add_argument("--scale", type=float, default=1.0, help="accesses of a round, times the usual number")
    parser.add_argument(
        "--cpu", type=int, default=max(os.sched_getaffinity(0)), help="the CPU to share (the last)"
    )
    parser.add_argument("--json", type=Path, default=BUILD / "results.json", help="where the figures go")
    parser.add_argument("--picture", type=Path, default=BUILD / "results.svg", help="where the picture goes")
    parser.add_argument("--access-only", action="store_true", help="only the ratios of single accesses")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.host_rounds < 1:
        parser.error("--rounds and --host-rounds: at least 1")
    load = os.getloadavg()[0]
    try:
        build()
        figures = list(measure(options))
    except (UnplugdError, OSError, subprocess.CalledProcessError) as error:
        _progress("")
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    _progress("")
    how = "with" if compiled() else "without"
    print(f"Python {platform.python_version()}, {how} the compiled part, load {load:.1f} when it began\n")
    print(f"{table(figures)}\n")
    options.json.write_text(json.dumps(report(figures, options.cpu), indent=1) + "\n")
    bars = [picture.Bar(one.name, one.median, one.spread, one.goal) for one in figures if one.least]
    options.picture.write_text(picture.draw("of the speed of what C does", bars))
    print(f"On CPU {options.cpu}, in {options.rounds} rounds; all figures: {os.path.relpath(options.json)}")
    for warning in warnings(figures):
        print(warning)
    return 0


if __name__ == "__main__":
    sys.exit(main())
