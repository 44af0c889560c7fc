"""A guest that logs at full speed: what dom0 stores stays within the contract's bound.

Real time: the running daemon for so many seconds. Virtual time: ten minutes against the core alone, for each kind of
flood, which takes seconds.
"""

from __future__ import annotations

import contextlib
import time

from tests.lab.bystander import Bystander
from tests.lab.daemon import Daemon, embedded
from tests.lab.frames import frame, outs
from unplugd.core.counters import Counters
from unplugd.core.events import LinesDropped
from unplugd.core.guest import Guest
from unplugd.core.guestlog import Limits
from unplugd.core.protocol import Rules
from unplugd.core.registry import Registry
from unplugd.core.stream import IoreqStream

BURST, RATE, LEAST = 131072, 256, 64
"""The contract's figures: bytes at once, bytes a second, what a record costs at least."""
MINUTES = 10
TURN = 2.0
"""Virtual seconds between two reads of the flooding connection."""

FLOODS = {
    "lines of 63 bytes": b"x" * 63 + b"\n",
    "one byte a line": b"y\n",
    "empty lines": b"\n",
    "no end of line": b"z" * 4096,
    "terminal escapes": b"\x1b[2J\x07\n",
    "NULs and broken UTF-8": b"\0\xff\xc3\x28\n",
    "carriage returns": b"\r\r\n",
}


def bound(seconds: float) -> float:
    """Charged bytes that one guest can have stored."""
    return BURST + RATE * seconds


def charged(text: str) -> int:
    """What a record costs."""
    return max(LEAST, len(text))


def real(seconds: float) -> tuple[dict[str, str], list[str]]:
    """Flood the running daemon; figures and what does not hold."""
    daemon = Daemon(embedded(1, 2, log={"max_file_bytes": 1 << 26}))
    with contextlib.closing(daemon):
        daemon.start()
        begin = time.monotonic()
        sent = 0
        requests = [outs(0x12, (data * 4096)[:4096]) for data in FLOODS.values()]
        with Bystander(daemon, 2) as other, daemon.connect(1) as wire:
            while time.monotonic() - begin < seconds:
                for request in requests:
                    wire.send(request)
                for request in requests:
                    wire.answer(request)
                sent += len(requests) * 4096
        daemon.stop()
        limit = bound(time.monotonic() - begin)
        # The files hold what was stored, text and times; the records of unplugd's own are on standard error.
        stored = sum(map(charged, daemon.guest_lines("vm1")))
        records = [line for line in daemon.stderr().splitlines() if "vm1 (domain 1)" in line]
        stored += sum(charged(line.split("unplugd: ", 1)[-1]) for line in records[1:])
        daemon.start()
    problems = []
    if stored > limit + 256:
        problems.append(f"flood: {stored} bytes stored, the bound is {limit:.0f}")
    if other.longest > 1:
        problems.append(f"flood: the other guest waited {other.longest:.2f} s")
    figures = {
        "flood, seconds of real time": f"{seconds:.0f}",
        "flood, bytes sent": str(sent),
        "flood, bytes stored (bound)": f"{stored} ({limit:.0f})",
        "flood, the other guest's longest wait": f"{other.longest:.3f} s",
    }
    return figures, problems


def virtual() -> tuple[dict[str, str], list[str]]:
    """Ten minutes of each flood against the core, in virtual time."""
    figures, problems = {}, []
    for single in (False, True):
        for name, data in FLOODS.items():
            stored, dropped = _virtual(data, single=single)
            limit = bound(60 * MINUTES)
            if stored > limit:
                problems.append(f"{name}, virtual time: {stored} bytes stored, the bound is {limit:.0f}")
            if single:
                name += ", byte by byte"
            figures[f"{MINUTES} min of {name}"] = f"{stored} stored, {dropped} lines dropped"
    figures["bound of each"] = f"{bound(60 * MINUTES):.0f}"
    return figures, problems


def _virtual(data: bytes, *, single: bool) -> tuple[int, int]:
    guest = Guest(Rules(), Limits(RATE, BURST), Registry(), 0.0)
    stream = IoreqStream(guest, Counters())
    if single:
        turn = b"".join(frame(0x12, 1, byte) for byte in (data * 1024)[:1024])
    else:
        turn = outs(0x12, (data * 4096)[:4096])
    stored = dropped = 0
    now = 0.0
    while now < 60 * MINUTES:
        now += TURN
        at = 0
        while at < len(turn):
            at += stream.receive(turn[at:], now)[1]
        guest.log.tick(now)
        for event in guest.take_events():
            if isinstance(event, LinesDropped):
                dropped += event.lines
            # A guest's line is charged by its bytes, a record by its text.
            text = getattr(event, "text", None)
            stored += max(LEAST, len(text)) if isinstance(text, bytes) else charged(str(event))
    return stored, dropped
