"""Memory after many accesses and domains is memory before, within GROWTH."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from tests.lab.daemon import Daemon, embedded, eventually, uuid
from tests.lab.frames import frame

GROWTH = 0.05
"""The part by which the daemon may be larger afterwards."""
WARMING = 1500
"""Domains that come and go before: Python takes memory from the system a megabyte at a time, which is 3 %."""
BATCH = 2000
"""Accesses sent at once."""


def resident(daemon: Daemon) -> int:
    """The daemon's memory in KiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found is not None
    return int(found[1])


def run(accesses: int = 1_000_000, domains: int = 1000) -> tuple[dict[str, str], list[str]]:
    """So many accesses, and so many domains that come, speak and go; figures and what does not hold."""
    daemon = Daemon(embedded(1))
    with contextlib.closing(daemon):
        daemon.start()
        for first in range(2, 2 + WARMING, 100):
            _come_and_go(daemon, 100, first=first)
        _access(daemon, 100_000)
        before = resident(daemon)
        _access(daemon, accesses)
        between = resident(daemon)
        for first in range(2 + WARMING, 2 + WARMING + domains, 100):
            _come_and_go(daemon, 100, first=first)
        after = resident(daemon)
        descriptors = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
        left = sorted(path.name for path in daemon.runtime.rglob("dom*"))
    problems = []
    if after > before * (1 + GROWTH):
        problems.append(f"memory: {before} KiB before, {after} KiB after")
    if left != ["dom1", "dom1.sock"]:
        problems.append(f"memory: files of domains that are gone: {left[:5]}")
    if descriptors > 64:
        problems.append(f"memory: {descriptors} descriptors are open")
    figures = {
        "memory before": f"{before} KiB",
        f"memory after {accesses} accesses": f"{between} KiB",
        f"memory after {domains} domains came and went": f"{after} KiB ({after / before - 1:+.1%})",
        "descriptors open": str(descriptors),
    }
    return figures, problems


def _access(daemon: Daemon, count: int) -> None:
    """Accesses of every kind; the log's are few, so that its file does not become what is measured."""
    kinds = [
        frame(0x10, 2, read=True), frame(0x12, 1, read=True), frame(0x10, 2, 3), frame(0x10, 1, 1),
        frame(0x1F, 4, read=True), frame(0x14, 2, 7),
    ]  # fmt: skip
    with daemon.connect(1) as wire:
        for at in range(0, count, BATCH):
            # Frames that the daemon has not seen before: what it remembers of frames is bounded too.
            turn = [frame(0x10, 2, read=True, eport=at + number) for number in range(BATCH // 2)]
            turn += kinds * (BATCH // 2 // len(kinds))
            wire.send(b"".join(turn))
            assert len(wire.take(32 * len(turn))) == 32 * len(turn)


def _come_and_go(daemon: Daemon, count: int, *, first: int) -> None:
    """Introduce domains, let each speak, release them."""
    base = daemon.config["xenstore"]["domain"]
    new = [{"domid": domid, "name": f"vm{domid}", "uuid": uuid(domid)} for domid in range(first, first + count)]
    daemon.configure({"xenstore": {"domain": base + new}})
    daemon.reload()
    for domid in range(first, first + count):
        with daemon.connect(domid) as wire:
            wire.announce(3, domid)
            wire.write(0x10, 2, 3)
            wire.log(b"hello\n")
    daemon.configure({"xenstore": {"domain": base}})
    daemon.reload()
    eventually(lambda: daemon.value("unplugd_domains") == 1)
    eventually(lambda: not list(daemon.runtime.glob(f"dom{first}*")))
