"""What concerns the whole host: neighbours that flood, a thousand guests at once, memory, start, scrapes, idling.

Each figure is measured in a number of rounds, where it compares two things with both in every round. Where a real
xenstored is wanted and cannot be had here, the figure is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import BUILD, echo_server
from tests.lab.xenstored import LabError, Xenstored
from unplugd.trial import Trial, fetch

THOUSAND = 1000

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A tmpfs, as /run is: a thousand sockets and files are made at start, and a disk takes milliseconds for each."""

CONFIGURATION = """\
runtime_dir = {run}
[xenstore]
{store}
[socket]
device_model_uids = [{uid}]
[log]
sinks = ["file"]
directory = {log}
[http]
listen = ""
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the second table."""

    name: str
    values: tuple[float, ...]
    """One of each round."""
    unit: str
    """"" for a ratio."""
    goal: float
    least: bool = False
    """The goal is the least that is aimed at, not the most."""

    @property
    def median(self) -> float:
        """What is reported."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool:
        """Whether that is within the goal."""
        return self.median >= self.goal if self.least else self.median <= self.goal


def uuid_of(domid: int) -> str:
    """A domain's uuid."""
    return f"4f0e0c5e-0000-4000-8000-{domid:012x}"


def embedded(domains: int) -> str:
    """The embedded store with domains 1 to `domains`."""
    return 'backend = "embedded"\n' + "".join(
        f'[[xenstore.domain]]\ndomid = {n}\nname = "vm{n}"\nuuid = "{uuid_of(n)}"\n' for n in range(1, domains + 1)
    )


def external(path: Path) -> str:
    """A xenstored's socket."""
    return f'backend = "socket"\nsocket = {json.dumps(str(path))}\n'


@contextlib.contextmanager
def daemon(store: str) -> Iterator[Trial]:
    """An unplugd of its own."""
    with tempfile.TemporaryDirectory(prefix="unplugd-bench-", dir=MEMORY) as name:
        directory = Path(name)
        run, log = (json.dumps(str(directory / each)) for each in ("run", "log"))
        text = CONFIGURATION.format(run=run, log=log, store=store, uid=os.getuid())
        with Trial(directory, text, patience=120) as trial:
            yield trial


def sockets(trial: Trial, first: int, last: int) -> list[str]:
    """The sockets of domains `first` to `last`."""
    return [str(trial.directory / "run" / f"dom{domid}.sock") for domid in range(first, last + 1)]


def portload(paths: Sequence[str], *options: str) -> list[str]:
    """The client's command."""
    return [str(BUILD / "portload"), *options, *paths]


def measured(paths: Sequence[str], *options: str) -> dict[str, float]:
    """One run of the client, its figures."""
    done = subprocess.run(portload(paths, *options), stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@contextlib.contextmanager
def beside(command: Sequence[str]) -> Iterator[None]:
    """A client that goes on meanwhile."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            time.sleep(0.2)
            yield
            if process.poll() is not None:
                raise OSError("the neighbour ended before the others did")
        finally:
            process.kill()


def neighbours(rounds: int) -> Iterator[Figure]:
    """p99 of 50 guests beside one that does not stop."""
    with daemon(embedded(51)) as trial:
        guests, noisy = sockets(trial, 1, 50), sockets(trial, 51, 51)
        ways = {
            "floods its log": ("-p", "lines", "-d", "8", "-n", "90000000", "-w", "0"),
            "pipelines without end": ("-d", "512", "-n", "90000000", "-w", "0"),
        }
        for what, options in ways.items():
            ratios = []
            for _ in range(rounds):
                alone = measured(guests, "-p", "magic", "-n", "10000")["p99_us"]
                # -n is only an upper bound: the array of times that goes with it stays untouched memory
                with beside(portload(noisy, *options)):
                    ratios.append(measured(guests, "-p", "magic", "-n", "10000")["p99_us"] / alone)
            yield Figure(f"p99 of 50 guests while one {what} / without", tuple(ratios), "", 2.0)


def thousand(rounds: int) -> Iterator[Figure]:
    """A thousand connected domains: memory, idling, the cost of an access, scrapes."""
    with daemon(embedded(1)) as small:
        with beside(portload(sockets(small, 1, 1), "-n", "90000000", "-d", "1", "-p", "magic")):
            time.sleep(0.5)
        base = resident(small.pid)
        with daemon(embedded(THOUSAND)) as trial:
            everyone = sockets(trial, 1, THOUSAND)
            flat, scraping, took = [], [], []
            control = trial.directory / "run" / "control.sock"
            fetch(control, "/metrics")
            for _ in range(rounds):
                one = measured(sockets(small, 1, 1), "-p", "magic", "-n", "20000")["frames_per_second"]
                flat.append(one / measured(everyone, "-p", "magic", "-n", "20000", "-w", "2000")["frames_per_second"])
                alone = measured(everyone, "-p", "magic", "-n", "10000")["p99_us"]
                with subprocess.Popen(
                    portload(everyone, "-p", "magic", "-n", "10000"), stdout=subprocess.PIPE
                ) as client:
                    while client.poll() is None:
                        begin = time.monotonic()
                        fetch(control, "/metrics")
                        took.append((time.monotonic() - begin) * 1e3)
                        time.sleep(0.1)
                    assert client.stdout is not None
                    scraping.append(json.loads(client.stdout.read())["p99_us"] / alone)
            yield Figure("cost of an access with 1,000 connected domains / with one", tuple(flat), "", 1.1)
            yield Figure("p99 while Prometheus scrapes 1,000 domains / without", tuple(scraping), "", 2.0)
            yield Figure("a scrape of 1,000 domains", tuple(took), "ms", 50.0)
            with beside(portload(everyone, "-p", "magic", "-n", "90000000", "-w", "0")):
                time.sleep(1.0)
                connected = resident(trial.pid)
            yield Figure("resident memory, 1,000 connected domains", (connected / 1024,), "MiB", 64.0)
            yield Figure("resident memory, a further domain", ((connected - base) / (THOUSAND - 1),), "KiB", 16.0)
            time.sleep(6)  # what the connections left behind is over
            before, since = activity(trial.pid), time.monotonic()
            time.sleep(10)
            used, switches = (now - then for now, then in zip(activity(trial.pid), before, strict=True))
            elapsed = time.monotonic() - since
            yield Figure("CPU with 1,000 idle domains", (used / elapsed * 100,), "%", 0.1)
            yield Figure("wake-ups with 1,000 idle domains", (switches / elapsed,), "/s", 0.1)


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


def starts(rounds: int) -> Iterator[Figure]:
    """From the start of the process to READY=1, and a thousand guests that boot at once."""
    took = []
    for _ in range(rounds):
        with daemon(embedded(1)) as trial:
            took.append(trial.ready_after)
    yield Figure("start to READY=1, one domain", tuple(took), "s", 0.25)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        try:
            xenstored = stack.enter_context(Xenstored("c", Path(name) / "xenstored"))
        except LabError:
            return
        for domid in range(1, THOUSAND + 1):
            xenstored.create(domid, f"vm{domid}", uuid_of(domid))
        echoes = [str(Path(name) / f"{n}.sock") for n in range(THOUSAND)]
        stack.enter_context(echo_server(*map(Path, echoes)))
        took, storms = [], []
        for _ in range(rounds):
            with daemon(external(xenstored.socket)) as trial:
                took.append(trial.ready_after)
                time.sleep(3)  # domains' nodes are watched behind READY=1
                options = ("-a", "-p", "linux", "-n", "6", "-w", "0")
                theirs = measured(echoes, *options, "-s", "1")["frames_per_second"]
                storms.append(measured(sockets(trial, 1, THOUSAND), *options)["frames_per_second"] / theirs)
        yield Figure("start to READY=1, 1,000 domains in a real xenstored", tuple(took), "s", 1.0)
        yield Figure("1,000 Linux guests boot at once, accesses/s / echo", tuple(storms), "", 0.40, least=True)


PARTS: tuple[Callable[[int], Iterator[Figure]], ...] = (neighbours, thousand, starts)


def measure(rounds: int, progress: Callable[[str], None]) -> list[Figure]:
    """All figures."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: list[Figure] = []
    try:
        for part in PARTS:
            progress((part.__doc__ or "").split("\n", 1)[0])
            found += part(rounds)
    finally:
        progress("")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return found


def table(figures: Sequence[Figure]) -> str:
    """The figures for people."""
    rows: list[tuple[str, ...]] = [("the host", "median", "of the rounds", "goal", "")]
    for one in figures:
        sign = ">=" if one.least else "<="
        rows.append((
            one.name, f"{one.median:.3g} {one.unit}".strip(), f"{min(one.values):.3g}-{max(one.values):.3g}",
            f"{sign} {one.goal:g} {one.unit}".strip(), "" if one.reached else "not reached",
        ))  # fmt: skip
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )
