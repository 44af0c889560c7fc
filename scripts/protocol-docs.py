#!/usr/bin/env python3
"""Writes the tables and the frames of docs/protocol.md from the code; with --check, only says whether they are right.

The frames are answered by the core itself while this runs: what stands on the page is what a device model gets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "daemon"))

import docspage

from unplugd.core.blacklist import node
from unplugd.core.counters import PROTOCOL_ERRORS, Counters
from unplugd.core.guest import Guest, Verdict
from unplugd.core.guestlog import Limits
from unplugd.core.ioreq import BAR, FRAME_SIZE, PAYLOAD_LIMIT, RESET, pio
from unplugd.core.protocol import DEVICES, LEGACY_TABLE, TABLE, Row, Rules, Unplug
from unplugd.core.registry import PUBLIC, Registry
from unplugd.core.stream import IoreqStream, NeedVerdict
from unplugd.simulator.drivers import DRIVERS, In, Log, Out, Step

MEANINGS = {
    Unplug.IDE_DISKS: "all IDE and SCSI disks, but no CD drives",
    Unplug.NICS: "all emulated network cards",
    Unplug.AUX_IDE_DISKS: "all IDE disks but the primary master; overridden by bit 0",
    Unplug.NVME_DISKS: "all NVMe disks",
}

NOT_DRIVERS = ("stubborn", "chatty")
"""Guests of the simulator that no real driver is."""


def address(addr: int) -> str:
    """A port, or an offset into the platform BAR."""
    return f"BAR + {addr - BAR}" if addr >= BAR else f"{addr:#x}"


def accesses(rows: tuple[Row, ...]) -> str:
    """The protocol's table."""
    return docspage.table(
        ("access", "what it is", "answer (`data`)", "`kind` in metrics"),
        (
            (f"{'read' if row.read else 'write'} {row.size} at {address(row.addr)}", row.meaning, row.answer,
             f"`{row.effect.kind}`")
            for row in rows
        ),
    )  # fmt: skip


def bits() -> str:
    """The unplug mask."""
    return docspage.table(
        ("bit", "value", "name in configuration and metrics", "unplugs"),
        ((str(bit.bit_length() - 1), str(int(bit)), f"`{name}`", MEANINGS[bit]) for name, bit in DEVICES.items()),
    )


def registry() -> str:
    """The product numbers."""
    return docspage.table(
        ("product number", "name", "node of its build 1"),
        (
            (f"{number:#x}" if number > 9 else str(number), f"`{name}`",
             f"`{path}`" if (path := node(name, 1)) else "none: xenstore takes neither `.` nor `+` in a path")
            for name, number in PUBLIC.items()
        ),
    )  # fmt: skip


# --- what guests send


def instruction(step: Step) -> str:
    """A step of a driver as its guest's processor runs it."""
    where = {1: "b", 2: "w", 4: "l"}
    match step:
        case In(size, port):
            return f"`in{where[size]}` {address(port)}"
        case Out(size, port, value):
            return f"`out{where[size]}` {address(port)}, {value:#x}"
        case Log(_, string, port, _):
            return f"log lines by {'`rep outsb`' if string else '`outb`'} to {address(port)}"
        case _:
            raise AssertionError(step)


def guests() -> str:
    """What the known drivers send when they are welcome."""
    return docspage.table(
        ("guest", "accesses, in this order"),
        (
            (guest.title, "; ".join(instruction(step) for step in guest.steps))
            for guest in DRIVERS.values()
            if guest.name not in NOT_DRIVERS
        ),
    )


# --- frames


class Conversation:
    """One connection to the core. The build 86451 of product 1 is blacklisted."""

    def __init__(self) -> None:
        self.guest = Guest(Rules(), Limits(), Registry(), 0.0)
        self.stream = IoreqStream(self.guest, Counters())

    def say(self, request: bytes) -> bytes:
        """The response; its connection is closed where it is empty."""
        answer, _used = self.stream.receive(request, 0.0)
        while isinstance(need := self.stream.waiting, NeedVerdict):
            answer = self.stream.resume(Verdict((need.product, need.build) == (1, 86451)), 0.0)
        return answer


COLUMNS = "addr              data              count     size      eport     pad   b. t."


def hexadecimal(frame: bytes) -> str:
    """The bytes of a frame as they travel, field by field; what follows it on its own lines."""
    cuts = (0, 8, 16, 20, 24, 28, 30, 31, 32)
    line = "  ".join(frame[begin:end].hex() for begin, end in pairwise(cuts))
    line = line[: -len("00  00")] + f"{frame[30]:02x} {frame[31]:02x}"
    payload = frame[FRAME_SIZE:]
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in payload)
    return line + (f"\n          + payload {payload.hex(' ')}  {text}" if payload else "")


def exchanges() -> Iterator[tuple[str, bytes]]:
    """What is shown, in one conversation."""
    yield "read 2 at 0x10: the magic number", pio(0x10, size=2, read=True, eport=7)
    yield "read 1 at 0x12: the protocol version", pio(0x12, size=1, read=True, eport=7)
    yield "write 2 at 0x12: product 1", pio(0x12, size=2, data=1, eport=7)
    yield "write 4 at 0x10: build 86451, which is blacklisted here", pio(0x10, size=4, data=86451, eport=7)
    yield "read 2 at 0x10: the magic number of a blacklisted driver", pio(0x10, size=2, read=True, eport=7)
    yield "write 2 at 0x10: unplug disks and NICs, and bit 15, which means nothing", pio(0x10, size=2, data=0x8003)
    yield "`rep outsb` of a log line to 0x12", pio(0x12, size=1, count=4, string=True) + b"hi\r\n"
    yield "`rep insw` of two elements at 0x10", pio(0x10, size=2, count=2, string=True, read=True)
    yield "read 4 at 0x1c: nothing is there", pio(0x1C, size=4, read=True)
    yield "the platform device came out of reset", RESET
    yield "read 2 at 0x10: the verdict is forgotten", pio(0x10, size=2, read=True)


def frames() -> str:
    """Requests and what the core answers."""
    conversation = Conversation()
    parts = []
    for title, request in exchanges():
        answer = conversation.say(request)
        assert answer, title
        parts.append(f"{title}\n  request   {indented(request)}\n  response  {indented(answer)}\n")
    return f"```text\n            {COLUMNS}\n" + "\n".join(parts) + "```"


def indented(frame: bytes) -> str:
    """A frame beside its name."""
    return hexadecimal(frame).replace("\n", "\n  ")


FAULTS = {
    "bad-state": pio(0x10, size=2)[:30] + b"\x02\x00",
    "bad-type": pio(0x10, size=2)[:31] + b"\x01",
    "bad-count": pio(0x10, size=2, count=0),
    "bad-size": pio(0x10, size=3),
    "payload-too-long": pio(0x12, size=4, count=PAYLOAD_LIMIT // 4 + 1, string=True),
    "bad-address": pio(BAR + 0x100, size=1),
}
"""A frame for each reason for which a connection is closed."""


def faults() -> str:
    """The device model's faults."""
    assert tuple(FAULTS) == PROTOCOL_ERRORS
    rows = []
    for reason, request in FAULTS.items():
        conversation = Conversation()
        answer = conversation.say(request)
        fault = conversation.stream.fault
        assert not answer, reason
        assert fault is not None, reason
        assert fault.reason == reason, fault
        rows.append((f"`{reason}`", fault.detail))
    return docspage.table(("`reason`", "for example"), rows)


PARTS = {
    "accesses": accesses(TABLE),
    "legacy": accesses(LEGACY_TABLE),
    "bits": bits(),
    "registry": registry(),
    "guests": guests(),
    "frames": frames(),
    "faults": faults(),
}

if __name__ == "__main__":
    sys.exit(docspage.main("protocol.md", PARTS))
