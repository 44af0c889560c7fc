"""What concerns the whole host: neighbours that flood, a thousand guests at once, memory, start, scrapes, idling.

Each figure is measured in a number of rounds, where it compares two things with both in every round. Where a real
xenstored is wanted and cannot be had here, the figure is left out.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.daemons import MEMORY, daemon, embedded, external, sockets, uuid_of
from benchmarks.figures import Figure
from benchmarks.programs import beside, echo_server, measured, portload
from tests.lab.xenstored import LabError, Xenstored
from unplugd.simulator.privatedaemon import PrivateDaemon, fetch

THOUSAND = 1000

Progress = Callable[[str], None]


def neighbours(rounds: int, progress: Progress) -> Iterator[Figure]:
    """p99 of 50 guests beside one that does not stop. Where the C server can be asked the same, so it is."""
    floods = ("-p", "lines", "-d", "8", "-n", "90000000", "-w", "0")
    pipelines = ("-d", "512", "-n", "90000000", "-w", "0")
    with (
        tempfile.TemporaryDirectory(prefix="unplugd-bench-", dir=MEMORY) as name,
        echo_server(echoes := [f"{name}/{n}.sock" for n in range(51)]),
        daemon(embedded(51)) as trial,
    ):
        guests = sockets(trial, 1, 51)
        yield _beside(guests, "floods its log", floods, rounds, progress, goal=1.5)
        deep = (*floods[:3], "128", *floods[4:])
        yield _beside(guests, "floods its log, 128 writes in flight", deep, rounds, progress, goal=2.0)
        figure = _beside(guests, "pipelines without end", pipelines, rounds, progress, goal=1.6)
        theirs = _beside(echoes, "pipelines without end", (*pipelines, "-s", "1"), rounds, progress, "-s", "1",
                         goal=1.6)
        yield replace(figure, absolute=f"{figure.absolute}; at C echo {theirs.median:.2f}")


def _beside(
    paths: list[str], what: str, noise: Sequence[str], rounds: int, progress: Progress, *options: str, goal: float
) -> Figure:
    """All sockets but the last, beside one that does this on the last."""
    *guests, noisy = paths
    alone, disturbed = [], []
    for turn in range(rounds):
        progress(f"round {turn + 1} of {rounds}: 50 guests, one {what}")
        alone.append(measured(guests, "-p", "magic", "-n", "10000", *options)["p99_us"])
        # -n is only an upper bound: the array of times that goes with it stays untouched memory
        with beside(portload([noisy], *noise)):
            disturbed.append(measured(guests, "-p", "magic", "-n", "10000", *options)["p99_us"])
    return _times(f"p99 of 50 guests while one {what} / without", disturbed, alone, goal)


def _times(name: str, ours: list[float], theirs: list[float], goal: float) -> Figure:
    ratios = tuple(one / other for one, other in zip(ours, theirs, strict=True))
    behind = f"{statistics.median(ours):.0f} us, {statistics.median(theirs):.0f} us"
    return Figure(name, ratios, goal, reference=tuple(theirs), absolute=behind)


def thousand(rounds: int, progress: Progress) -> Iterator[Figure]:
    """A thousand connected domains: the cost of an access, scrapes, idling."""
    with daemon(embedded(1)) as small, daemon(embedded(THOUSAND)) as trial:
        one = sockets(small, 1, 1)
        everyone = sockets(trial, 1, THOUSAND)
        yield from _flat(rounds, progress, one, everyone)
        yield from _scrapes(rounds, progress, trial, everyone)
        progress("idling")
        time.sleep(6)  # what the connections left behind is over
        before, since = activity(trial.pid), time.monotonic()
        time.sleep(10)
        used, switches = (now - then for now, then in zip(activity(trial.pid), before, strict=True))
        elapsed = time.monotonic() - since
        yield Figure("CPU with 1,000 idle domains", (used / elapsed * 100,), 0.1, "%")
        yield Figure("wake-ups with 1,000 idle domains", (switches / elapsed,), 0.1, "a second")


def _flat(rounds: int, progress: Progress, one: list[str], everyone: list[str]) -> Iterator[Figure]:
    """The cost of an access to one domain where it is alone, and where a thousand are connected.

    Going to a thousand sockets in turn costs the kernel, and the client, more than going to one: what of that is
    unplugd's is what it costs more than at the C server.
    """
    with tempfile.TemporaryDirectory(prefix="unplugd-bench-", dir=MEMORY) as name:
        echo, echoes = [f"{name}/one.sock"], [f"{name}/{n}.sock" for n in range(THOUSAND)]
        with echo_server(echo), echo_server(echoes):
            costs: dict[str, list[float]] = {}
            for number in range(rounds):
                progress(f"round {number + 1} of {rounds}: one domain, a thousand domains")
                for what, paths, options in (
                    ("alone", one, ()), ("among", everyone, ("-o",)), ("in turn", everyone, ()),
                    ("echo alone", echo, ("-s", "1")), ("echo in turn", echoes, ("-s", "1")),
                ):  # fmt: skip
                    run = measured(paths, "-p", "magic", "-n", "20000", "-w", "2000", *options)
                    costs.setdefault(what, []).append(1e6 / run["frames_per_second"])
    yield _times("cost of an access, 1,000 domains connected / one", costs["among"], costs["alone"], 1.1)
    ours, theirs = (
        [turn / alone for turn, alone in zip(costs[f"{who}in turn"], costs[f"{who}alone"], strict=True)]
        for who in ("", "echo ")
    )
    yield Figure(
        "cost of an access to 1,000 in turn / to one, over that of C echo",
        tuple(mine / its for mine, its in zip(ours, theirs, strict=True)), 1.1, reference=tuple(costs["echo alone"]),
        absolute=f"{statistics.median(ours):.2f}, C echo {statistics.median(theirs):.2f}",
    )  # fmt: skip


def _scrapes(rounds: int, progress: Progress, trial: PrivateDaemon, everyone: list[str]) -> Iterator[Figure]:
    control = trial.directory / "run" / "control.sock"
    fetch(control, "/metrics")
    alone, scraped, took = [], [], []
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}: scrapes")
        alone.append(measured(everyone, "-p", "magic", "-n", "10000")["p99_us"])
        command = portload(everyone, "-p", "magic", "-n", "10000")
        with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            while client.poll() is None:
                begin = time.monotonic()
                fetch(control, "/metrics")
                took.append((time.monotonic() - begin) * 1e3)
                time.sleep(0.1)
            assert client.stdout is not None
            scraped.append(json.loads(client.stdout.read())["p99_us"])
    yield _times("p99 of 1,000 domains scraped ten times a second / not scraped", scraped, alone, 1.6)
    yield Figure("a scrape of 1,000 domains", tuple(took), 50.0, "ms")


def memory(rounds: int, progress: Progress) -> Iterator[Figure]:
    """What connected domains cost, whose xenstored is a process of its own."""
    del rounds
    progress("memory")
    amounts: list[int] = []
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        for domains in (1, THOUSAND):
            try:
                xenstored = Xenstored("c", Path(name) / f"xenstored-{domains}")
            except LabError:
                return
            with xenstored:
                for domid in range(1, domains + 1):
                    xenstored.create(domid, f"vm{domid}", uuid_of(domid))
                with daemon(external(xenstored.socket)) as trial:
                    time.sleep(3)  # domains' nodes are watched behind READY=1
                    with beside(portload(sockets(trial, 1, domains), "-p", "magic", "-n", "90000000", "-w", "0")):
                        fetch(trial.directory / "run" / "control.sock", "/metrics")
                        time.sleep(1.0)
                        amounts.append(resident(trial.pid))
    one, thousand_of_them = amounts
    yield Figure("resident memory, 1,000 connected domains", (thousand_of_them / 1024,), 64.0, "MiB")
    yield Figure("resident memory, a further domain", ((thousand_of_them - one) / (THOUSAND - 1),), 20.0, "KiB")


def resident(pid: int) -> int:
    """KiB of memory that a process has."""
    return int(_status(pid)["VmRSS"].split()[0])


def activity(pid: int) -> tuple[float, float]:
    """Seconds of CPU that a process used, and how often it waited."""
    numbers = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(numbers[0]) / 1e9, float(_status(pid)["voluntary_ctxt_switches"])


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


ECHOES = 5
"""Boots of a thousand guests at the C server, of which the middle one counts."""


def starts(rounds: int, progress: Progress) -> Iterator[Figure]:
    """From the start of the process to READY=1, and a thousand guests that boot at once."""
    took, used = [], []
    for _ in range(rounds):
        progress("start with one domain")
        with daemon(embedded(1)) as trial:
            took.append(trial.ready_after)
            used.append(activity(trial.pid)[0])
    yield Figure(
        "start to READY=1, one domain", tuple(took), 0.25, "s", absolute=f"{statistics.median(used):.2f} s of CPU"
    )
    with tempfile.TemporaryDirectory(dir=MEMORY) as name, contextlib.ExitStack() as stack:
        try:
            xenstored = stack.enter_context(Xenstored("c", Path(name) / "xenstored"))
        except LabError:
            return
        for domid in range(1, THOUSAND + 1):
            xenstored.create(domid, f"vm{domid}", uuid_of(domid))
        echoes = [f"{name}/{n}.sock" for n in range(THOUSAND)]
        stack.enter_context(echo_server(echoes))
        boot = ("-a", "-p", "linux", "-n", "6", "-w", "0")
        took, used, ours, theirs = [], [], [], []
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}: start with 1,000 domains, which then boot")
            with daemon(external(xenstored.socket)) as trial:
                took.append(trial.ready_after)
                used.append(activity(trial.pid)[0])
                time.sleep(3)  # domains' nodes are watched behind READY=1
                # it is over in less than a tenth of a second: one alone says little
                theirs.append(statistics.median(
                    measured(echoes, *boot, "-s", "1")["frames_per_second"] for _ in range(ECHOES)))
                ours.append(measured(sockets(trial, 1, THOUSAND), *boot)["frames_per_second"])
        yield Figure(
            "start to READY=1, 1,000 domains in a real xenstored", tuple(took), 1.0, "s",
            absolute=f"{statistics.median(used):.2f} s of CPU",
        )  # fmt: skip
        ratios = tuple(one / other for one, other in zip(ours, theirs, strict=True))
        behind = f"{statistics.median(ours):,.0f}/s, echo {statistics.median(theirs):,.0f}/s"
        yield Figure(
            "1,000 Linux guests boot at once, accesses/s / C echo", ratios, 0.18, least=True, reference=tuple(theirs),
            absolute=behind,
        )  # fmt: skip


PARTS: tuple[Callable[[int, Progress], Iterator[Figure]], ...] = (starts, memory, neighbours, thousand)


def measure(rounds: int, progress: Progress) -> Iterator[Figure]:
    """All figures."""
    for part in PARTS:
        yield from part(rounds, progress)
