"""What one access of the guest needs, step by step: the wall that QEMU's own unplug stays behind.

serve() is a generator: it yields steps (ask unplugd, write a port of QEMU's, read guest memory, ...), is sent what
they brought, and returns what goes into the slot. It does no I/O, so that every port, size, direction and string
form can be tried without Xen.

The ioreq server owns ports 0x0d-0x16: every access of 1, 2 or 4 bytes that touches the protocol's ports 0x10-0x13
lies within. An access below 0x10 that runs into the protocol's ports is split where QEMU's memory core would split
it (`outl 0x0e` is 2 bytes for the DMA controller and a 2-byte unplug mask at 0x10): the DMA controller's part goes
to QEMU as it is, the protocol's part to unplugd. The only writes that QEMU ever sees at 0x10 are unplugd's order and
the platform flags, whose ROM lock only QEMU can set.

Only ports are known here; nothing of processes, sockets or the Xen libraries belongs here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import cast

from unplugd.attach.slots import Access, Kind
from unplugd.core.ioreq import PAYLOAD_LIMIT

FIRST_PORT = 0x0D
"""The first port of the ioreq server: 4 bytes from here reach 0x10."""
LAST_PORT = 0x16
"""The last one: 4 bytes from 0x13 end here."""
WINDOW = 0x10
"""The protocol's ports begin here; what is below belongs to the DMA controller (0x08-0x0f)."""
UNPLUG_PORT = 0x10
FLAGS_PORT = 0x10


@dataclass(frozen=True, slots=True)
class Ask:
    """Send an access to the domain's unplugd socket; brings a Reply."""

    port: int
    size: int
    data: int = 0
    """The value of a single write."""
    read: bool = False
    count: int = 1
    payload: bytes | None = None
    """String I/O: the elements of a write in the order in which the guest emits them, b"" for a read."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What unplugd answered."""

    data: int
    """The value read; for a write the unplug order."""
    payload: bytes = b""
    """The elements of a string read."""
    absent: bool = False
    """True: unplugd could not be reached, and this is what a port without a device answers."""


@dataclass(frozen=True, slots=True)
class WriteQemu:
    """Write a port of QEMU's; brings None once QEMU has done it."""

    port: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class ReadQemu:
    """Read a port of QEMU's; brings the value."""

    port: int
    size: int


@dataclass(frozen=True, slots=True)
class ReadGuest:
    """Read `length` bytes of guest-physical memory; brings them."""

    address: int
    length: int


@dataclass(frozen=True, slots=True)
class WriteGuest:
    """Write guest-physical memory; brings None."""

    address: int
    data: bytes


Step = Ask | WriteQemu | ReadQemu | ReadGuest | WriteGuest
Brought = Reply | int | bytes | None
Plan = Generator[Step, Brought, int | None]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an access that goes to one side."""

    port: int
    size: int
    shift: int
    """Where its bits begin in the value of the whole."""
    ours: bool
    """True: unplugd's; False: QEMU's."""


def ones(size: int) -> int:
    """What a port without a device reads as."""
    return (1 << 8 * size) - 1


def _power(value: int) -> int:
    """The largest power of two that is not above `value`."""
    return 1 << (value.bit_length() - 1)


def pieces(port: int, size: int) -> tuple[Piece, ...]:
    """Split an access as QEMU's memory core splits it between the DMA controller and the platform device.

    Source: qemu softmmu/physmem.c, memory_access_size(): the largest power of two that fits; at the DMA controller
    also not more than the address is aligned to, while the platform device's ports take unaligned accesses whole.
    """
    if port >= WINDOW:
        return (Piece(port, size, 0, ours=True),)
    result = []
    at, end = port, port + size
    while at < end:
        ours = at >= WINDOW
        left = end - at if ours else min(end, WINDOW) - at
        part = _power(left) if ours else min(_power(left), at & -at)
        result.append(Piece(at, part, 8 * (at - port), ours))
        at += part
    return tuple(result)


def elements(block: bytes, size: int, *, backwards: bool) -> bytes:
    """Turn a block of memory into the order of string I/O, or back: with `df` set, the last element comes first."""
    if not backwards:
        return block
    return b"".join(block[at:at + size] for at in range(len(block) - size, -1, -size))


def blocks(access: Access, limit: int = PAYLOAD_LIMIT) -> Iterator[tuple[int, int]]:
    """The memory of string I/O as (lowest guest-physical address, elements), at most `limit` bytes each."""
    per_block = limit // access.size
    for first in range(0, access.count, per_block):
        count = min(per_block, access.count - first)
        if access.backwards:
            yield access.data - (first + count - 1) * access.size, count
        else:
            yield access.data + first * access.size, count


def serve(access: Access) -> Plan:
    """Carry one access out; the generator's value goes into the slot's data (None: nothing does)."""
    if access.kind != Kind.PIO:
        # INVALIDATE is for those who cache mappings of guest memory; this server maps and unmaps.
        return ones(8) if access.read else None
    if not access.size or access.size > 8:
        return None
    parts = pieces(access.port, access.size)
    if access.string:
        if access.read:
            yield from _strings_in(access, parts)
        else:
            yield from _strings_out(access, parts)
        return None
    if access.read:
        return (yield from _read(parts))
    yield from _write(parts, access.data)
    return None


def _read(parts: tuple[Piece, ...]) -> Generator[Step, Brought, int]:
    value = 0
    for piece in parts:
        brought = yield Ask(piece.port, piece.size, read=True) if piece.ours else ReadQemu(piece.port, piece.size)
        part = brought.data if isinstance(brought, Reply) else cast(int, brought)
        value |= (part & ones(piece.size)) << piece.shift
    return value


def _write(parts: tuple[Piece, ...], value: int) -> Generator[Step, Brought, None]:
    for piece in parts:
        part = value >> piece.shift & ones(piece.size)
        if piece.ours:
            reply = cast(Reply, (yield Ask(piece.port, piece.size, data=part)))
            yield from _consequences(piece, part, reply)
        else:
            yield WriteQemu(piece.port, piece.size, part)


def _consequences(piece: Piece, value: int, reply: Reply) -> Generator[Step, Brought, None]:
    """What QEMU has to do before the guest goes on."""
    if reply.absent:
        return
    if reply.data:
        yield WriteQemu(UNPLUG_PORT, 2, reply.data & 0xFFFF)
    elif piece.port == FLAGS_PORT and piece.size == 1:
        yield WriteQemu(FLAGS_PORT, 1, value)


def _strings_out(access: Access, parts: tuple[Piece, ...]) -> Generator[Step, Brought, None]:
    for address, count in blocks(access):
        block = cast(bytes, (yield ReadGuest(address, count * access.size)))
        payload = elements(block, access.size, backwards=access.backwards)
        if len(parts) == 1 and parts[0].ours:
            reply = cast(Reply, (yield Ask(access.port, access.size, count=count, payload=payload)))
            # Of many writes of the platform flags the last one counts.
            yield from _consequences(parts[0], payload[-1], reply)
        else:
            for at in range(0, len(payload), access.size):
                yield from _write(parts, int.from_bytes(payload[at:at + access.size], "little"))


def _strings_in(access: Access, parts: tuple[Piece, ...]) -> Generator[Step, Brought, None]:
    for address, count in blocks(access):
        if len(parts) == 1 and parts[0].ours:
            reply = cast(Reply, (yield Ask(access.port, access.size, read=True, count=count, payload=b"")))
            payload = reply.payload
        else:
            read = bytearray()
            for _ in range(count):
                value = yield from _read(parts)
                read += value.to_bytes(access.size, "little")
            payload = bytes(read)
        yield WriteGuest(address, elements(payload, access.size, backwards=access.backwards))
