"""Measures unplugd against the C echo server of this directory: same socket, same client, same run.

    python -m benchmarks [--rounds N] [--access-only] [--json FILE] [--picture FILE]

Both servers and the client share one CPU: on two, the time that a wake-up takes hides the server, and every ratio
becomes 1. Rounds alternate between the servers, so that whatever else the machine does falls on both; a row's figure is
the median of the rounds' ratios. A figure is reported, never asserted. How to read the table: docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import host, picture
from benchmarks.programs import BUILD, build, echo_server
from unplugd import __version__, fastpath
from unplugd.errors import UnplugdError
from unplugd.trial import Trial

NOISY = 0.15
"""The echo server's own frames/s may differ this much between rounds (quartiles, relative to the median)."""

CONFIGURATION = """\
runtime_dir = {run}

[xenstore]
backend = "embedded"
[[xenstore.domain]]
domid = 1
name = "bench"
uuid = "4f0e0c5e-0000-4000-8000-000000000001"

[socket]
device_model_uids = [{uid}]

[log]
sinks = ["file"]
directory = {log}

[http]
listen = ""
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what the client does, and what is aimed at (None: nothing)."""

    name: str
    depth: int
    round_trips: int
    goal: float | None
    unique: bool = False
    """Every frame differs from all others, in a field that is only echoed."""


ROWS = (
    Row("one access at a time", depth=1, round_trips=15000, goal=0.80),
    Row("64 accesses pipelined", depth=64, round_trips=1500, goal=0.50),
    Row("one at a time, no frame like another", depth=1, round_trips=15000, goal=None, unique=True),
    Row("64 pipelined, no frame like another", depth=64, round_trips=500, goal=None, unique=True),
)


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement of both servers, one right after the other: portload's figures."""

    echo: dict[str, float]
    unplugd: dict[str, float]

    @property
    def ratio(self) -> float:
        """Frames per second of unplugd / of the echo server."""
        return self.unplugd["frames_per_second"] / self.echo["frames_per_second"]


@dataclass(frozen=True, slots=True)
class Result:
    """A row with its rounds."""

    row: Row
    rounds: tuple[Round, ...]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(one.ratio for one in self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the ratios."""
        return _quartiles([one.ratio for one in self.rounds])

    @property
    def noise(self) -> float:
        """How much the echo server differs from itself: the distance of its quartiles over its median."""
        speeds = [one.echo["frames_per_second"] for one in self.rounds]
        low, high = _quartiles(speeds)
        return (high - low) / statistics.median(speeds)

    def median(self, server: str, figure: str) -> float:
        """The median of one figure of one server."""
        values: list[float] = [asdict(one)[server][figure] for one in self.rounds]
        return statistics.median(values)


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def configuration(directory: Path) -> str:
    """A configuration with one domain, all of whose files are under `directory`."""
    run, log = (json.dumps(str(directory / name)) for name in ("run", "log"))
    return CONFIGURATION.format(run=run, log=log, uid=os.getuid())


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """What is started meanwhile runs on one CPU only, with all of its threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def load(path: Path, row: Row, cpu: int, *, state: int) -> dict[str, float]:
    """One run of the client."""
    command = [str(BUILD / "portload"), "-c", str(cpu), "-s", str(state), "-d", str(row.depth)]
    command += ["-n", str(row.round_trips), *(["-u"] if row.unique else []), str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures = json.loads(done.stdout)
    assert isinstance(figures, dict)
    return figures


def measure(rounds: int, cpu: int) -> list[Result]:
    """All rows, their rounds interleaved."""
    directory = Path(tempfile.mkdtemp(prefix="unplugd-bench-"))
    try:
        with contextlib.ExitStack() as stack:
            with pinned(cpu):
                stack.enter_context(echo_server(directory / "echo.sock"))
                stack.enter_context(Trial(directory, configuration(directory)))
            seen: dict[Row, list[Round]] = {row: [] for row in ROWS}
            for number in range(rounds):
                for row in ROWS:
                    _progress(f"round {number + 1} of {rounds}: {row.name}")
                    # Not always the same one first: what comes second finds warmer or more used up a machine.
                    pair = [("echo.sock", 1), ("run/dom1.sock", 3)]
                    order = pair if number % 2 == 0 else pair[::-1]
                    figures = {name: load(directory / name, row, cpu, state=state) for name, state in order}
                    seen[row].append(Round(figures["echo.sock"], figures["run/dom1.sock"]))
            _progress("")
            return [Result(row, tuple(seen[row])) for row in ROWS]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def table(results: Sequence[Result]) -> str:
    """The figures for people (and for docs/performance.md)."""
    head = (
        "frames/s, unplugd / echo",
        "median",
        "quartiles",
        "goal",
        "unplugd",
        "echo",
        "round trip p50",
        "p99",
    )
    lines: list[tuple[str, ...]] = [head]
    for one in results:
        low, high = one.spread
        lines.append(
            (
                one.row.name,
                f"{one.ratio:.2f}",
                f"{low:.2f}-{high:.2f}",
                "" if one.row.goal is None else f"{one.row.goal:.2f}",
                f"{one.median('unplugd', 'frames_per_second'):,.0f}/s",
                f"{one.median('echo', 'frames_per_second'):,.0f}/s",
                f"{one.median('unplugd', 'p50_us'):.0f} us",
                f"{one.median('unplugd', 'p99_us'):.0f} us",
            )
        )
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def compiled() -> bool:
    """Whether the daemon has its compiled part here."""
    with contextlib.closing(fastpath.new_event_loop()) as loop:
        return isinstance(loop, fastpath.Loop)


def report(results: Sequence[Result], figures: Sequence[host.Figure], cpu: int) -> dict[str, object]:
    """All figures, for machines."""
    return {
        "unplugd": __version__,
        "compiled": compiled(),
        "python": platform.python_version(),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "pinned_to": cpu},
        "rows": [
            {
                **asdict(one.row),
                "ratio": one.ratio,
                "quartiles": one.spread,
                "noise": one.noise,
                "rounds": [asdict(each) for each in one.rounds],
            }
            for one in results
        ],
        "host": [asdict(one) | {"median": one.median, "reached": one.reached} for one in figures],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds to measure (15)")
    parser.add_argument(
        "--cpu", type=int, default=max(os.sched_getaffinity(0)), help="the CPU to share (the last)"
    )
    parser.add_argument("--json", type=Path, default=BUILD / "results.json", help="where the figures go")
    parser.add_argument("--picture", type=Path, default=BUILD / "results.svg", help="where the picture goes")
    parser.add_argument("--access-only", action="store_true", help="only the ratios of single accesses")
    parser.add_argument("--host-rounds", type=int, default=5, help="rounds of the second table (5)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    try:
        build()
        results = measure(options.rounds, options.cpu)
        print(f"{'with' if compiled() else 'without'} the compiled part\n\n{table(results)}\n", flush=True)
        figures = [] if options.access_only else host.measure(options.host_rounds, _progress)
    except (UnplugdError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if figures:
        print(f"{host.table(figures)}\n")
    options.json.write_text(json.dumps(report(results, figures, options.cpu), indent=1) + "\n")
    bars = [picture.Bar(one.row.name, one.ratio, one.spread, one.row.goal) for one in results]
    options.picture.write_text(picture.draw("frames/s of unplugd / of a C echo server", bars))
    print(f"{options.rounds} rounds on CPU {options.cpu}; all figures: {os.path.relpath(options.json)}")
    for one in results:
        if one.noise > NOISY:
            print(
                f"WARNING: {one.row.name}: the echo server alone differed by {one.noise:.0%} between rounds. "
                f"This machine was too busy to say; run it again when it is quiet."
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
