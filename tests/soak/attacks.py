"""What 50 well-behaved guests wait, with and without each attack on the same daemon: median, p99, the longest.

The attacker is one more domain's device model, a process of its own with as many connections as it likes. On few CPUs
it takes its share of them from everybody; that is the kernel's fairness, not unplugd's, and in these figures too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import select
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.daemon import Daemon, Wire, embedded
from tests.lab.frames import RESET, frame, outs

GUESTS = 50
SECONDS = 4.0
BOUND = 1.0
"""Seconds within which everybody else must be answered."""

MAGIC_READ = frame(0x10, 2, read=True)


def _pump(path: Path, data: bytes, *, connections: int = 8, read: bool = True) -> None:
    sockets = {}
    for _ in range(connections):
        wire = Wire(path)
        wire.socket.setblocking(False)
        sockets[wire.socket] = 0
    while True:
        readable, writable, _ = select.select(list(sockets) if read else [], list(sockets), [], 0.1)
        for each in readable:
            each.recv(1 << 18)
        for each in writable:
            with contextlib.suppress(BlockingIOError):
                sockets[each] = (sockets[each] + each.send(data[sockets[each]:])) % len(data)


def _churn(path: Path, data: bytes) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            with contextlib.suppress(OSError):
                client.connect(str(path))
                client.sendall(data)
                client.recv(64)


def _crowd(path: Path) -> None:
    crowd = []
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.connect(str(path))
        crowd.append(client)
        if len(crowd) > 5000:
            for each in crowd:
                each.close()
            crowd.clear()


BUILDS = frame(0x12, 2, 3) + b"".join(frame(0x10, 4, build) for build in range(1000))
LOOP = frame(0x12, 2, 3) + frame(0x10, 4, 1) + frame(0x10, 2, 0xFFF3) + RESET

ATTACKS: dict[str, Callable[[Path], None]] = {
    "accesses, 8 connections": lambda path: _pump(path, MAGIC_READ * 2048),
    "log at full speed": lambda path: _pump(path, outs(0x12, b"flood\n" * 682) * 16),
    "single log bytes": lambda path: _pump(path, b"".join(frame(0x12, 1, byte) for byte in b"x\n" * 1024)),
    "string reads, never read": lambda path: _pump(
        path, frame(0x10, 2, read=True, count=2048, string=True) * 512, connections=200, read=False),
    "build numbers": lambda path: _pump(path, BUILDS),
    "announce, unplug, reset": lambda path: _pump(path, LOOP * 128),
    "connect and fault": lambda path: _churn(path, frame(state=5)),
    "thousands of connections": _crowd,
}  # fmt: skip


def _measure(wires: list[Wire], end: float) -> list[float]:
    waits: list[float] = []
    while len(waits) < 100 or time.monotonic() < end:
        for wire in wires:
            begin = time.perf_counter()
            assert wire.read(0x10, 2) == 0x49D2
            waits.append(time.perf_counter() - begin)
            if len(waits) >= 100 and time.monotonic() > end:
                break
            time.sleep(0.0005)
    return waits


def run() -> tuple[dict[str, str], list[str]]:
    """Try each attack; figures and what does not hold."""
    figures: dict[str, str] = {}
    problems: list[str] = []
    attacker = GUESTS + 1
    daemon = Daemon(embedded(*range(1, attacker + 1)))
    fork = multiprocessing.get_context("fork")
    with contextlib.closing(daemon), contextlib.ExitStack() as stack:
        daemon.start()
        wires = [stack.enter_context(daemon.connect(domid)) for domid in range(1, attacker)]
        for name, attack in ({"nobody": None} | ATTACKS).items():
            process = None
            if attack is not None:
                process = fork.Process(target=attack, args=(daemon.socket(attacker),), daemon=True)
                process.start()
                time.sleep(0.3)
            begin, starved = time.monotonic(), _starved(daemon)
            waits = _measure(wires, begin + SECONDS)
            starved = (_starved(daemon) - starved) / (time.monotonic() - begin)
            if process is not None:
                assert process.is_alive(), f"the attack {name} ended"
                process.kill()
                process.join()
            p99 = statistics.quantiles(waits, n=100)[98]
            figures[f"attacked by {name}"] = (
                f"median {statistics.median(waits) * 1e3:.2f} ms, p99 {p99 * 1e3:.1f} ms, "
                f"longest {max(waits) * 1e3:.0f} ms ({starved:.0%} of the time the daemon had no CPU)"
            )
            if p99 * (1 - min(starved, 1)) > BOUND:
                problems.append(f"attacked by {name}: p99 {p99:.2f} s")
    return figures, problems


def _starved(daemon: Daemon) -> float:
    """Seconds that the daemon was ready to run but had no CPU."""
    return int(Path(f"/proc/{daemon.pid}/schedstat").read_text().split()[1]) / 1e9


