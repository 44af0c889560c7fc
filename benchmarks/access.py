"""Single accesses: frames/s of unplugd, compiled and pure, over those of a C echo server on the same socket.

Both servers and the client share one CPU: on two, the time that a wake-up takes hides the server, and every ratio
becomes 1. A round measures all servers one right after the other.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.daemons import MEMORY, PURE, daemon, embedded, pinned, sockets
from benchmarks.figures import Figure
from benchmarks.programs import echo_server, measured


@dataclass(frozen=True, slots=True)
class Row:
    """What the client does, and what is aimed at with the compiled part and without it."""

    name: str
    depth: int
    round_trips: int
    goals: tuple[float, float]


ROWS = (
    Row("one access at a time", depth=1, round_trips=15000, goals=(0.90, 0.50)),
    Row("64 accesses pipelined", depth=64, round_trips=1500, goals=(0.50, 0.22)),
)

ECHO, COMPILED, PURELY = "echo", "compiled", "pure Python"


def measure(
    rounds: int, scale: float, cpu: int, compiled: bool, progress: Callable[[str], None]
) -> Iterator[Figure]:
    """All rows, their rounds interleaved; `scale` makes rounds shorter or longer."""
    with tempfile.TemporaryDirectory(prefix="unplugd-bench-", dir=MEMORY) as name, contextlib.ExitStack() as stack:
        echo = f"{name}/echo.sock"
        with pinned(cpu):
            stack.enter_context(echo_server([echo]))
            servers = {ECHO: (echo, 1)}
            for kind, wrapper in (COMPILED, ()), (PURELY, PURE):
                if compiled or kind is PURELY:
                    trial = stack.enter_context(daemon(embedded(1), wrapper=wrapper))
                    servers[kind] = (sockets(trial, 1, 1)[0], 3)
                    # into the rate limit: what is measured is a guest whose lines are dropped
                    measured([servers[kind][0]], "-d", "64", "-n", "3200", "-w", "0")
        seen: dict[tuple[str, Row], list[dict[str, float]]] = {(kind, row): [] for kind in servers for row in ROWS}
        for number in range(rounds):
            for row in ROWS:
                progress(f"round {number + 1} of {rounds}: {row.name}")
                # Not always the same one first: what comes second finds warmer or more used up a machine.
                order = list(servers.items())
                for kind, (path, state) in order if number % 2 == 0 else reversed(order):
                    seen[kind, row].append(_load(path, row, scale, cpu, state))
    for at, kind in enumerate((COMPILED, PURELY)):
        if kind in servers:
            for row in ROWS:
                yield _figure(f"{row.name}, {kind} / C echo", row.goals[at], seen[kind, row], seen[ECHO, row])


def _load(path: str, row: Row, scale: float, cpu: int, state: int) -> dict[str, float]:
    options = ["-c", str(cpu), "-s", str(state), "-d", str(row.depth), "-n", str(max(1, int(row.round_trips * scale)))]
    return measured([path], *options)


def _figure(name: str, goal: float, ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> Figure:
    mine, its = ([one["frames_per_second"] for one in runs] for runs in (ours, theirs))
    p50, p99 = (statistics.median(one[which] for one in ours) for which in ("p50_us", "p99_us"))
    speeds = f"{statistics.median(mine):,.0f}/s, echo {statistics.median(its):,.0f}/s"
    times = f"p50 {p50:.0f} us, p99 {p99:.0f} us"
    ratios = tuple(one / other for one, other in zip(mine, its, strict=True))
    return Figure(name, ratios, goal, least=True, reference=tuple(its), absolute=f"{speeds}; {times}")
