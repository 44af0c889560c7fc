"""What one access of the guest needs, step by step: the wall that QEMU's own unplug stays behind.

serve() is a generator: it yields steps (ask unplugd, write a port of QEMU's, read guest memory, ...), is sent what
they brought, and returns what goes into the slot. It does no I/O, so that every port, size, direction and string
form can be tried without Xen.

The ioreq server owns ports 0x0d-0x16: every access of 1, 2 or 4 bytes that touches the protocol's ports 0x10-0x13
lies within. An access below 0x10 that runs into the protocol's ports is split where QEMU's memory core would split
it (`outl 0x0e` is 2 bytes for the DMA controller and a 2-byte unplug mask at 0x10): the DMA controller's part goes
to QEMU as it is, the protocol's part to unplugd. The only writes that QEMU ever sees at 0x10 are unplugd's order and
the platform flags, whose ROM lock only QEMU can set.

It also owns the platform device's I/O BAR and its configuration space (platform.py), and ports 0xcfa-0xcff: an access
from 0xcfa or 0xcfb into the configuration data port is one that Xen does not know for what it is, and would reach the
configuration space in QEMU. The part below 0xcfc goes to QEMU; the rest finds nothing, as it does while 0xcf8 is not
set (with it set, Xen makes a configuration access of what begins at 0xcfc or later). Port 0xcf9 must stay QEMU's: it
resets the machine, and QEMU tells Xen of a reset only when it was the guest that wrote there. By address, 4 bytes at
0xcf9 end in one byte of configuration data, which could not move the BAR but switch it on. QEMU 7.2 gives them all to
its reset control; platform.py does not rely on that.

Only ports and registers are known here; nothing of processes, sockets or the Xen libraries belongs here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum
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
FIRST_CONFIG, LAST_CONFIG = 0xCFA, 0xCFF
"""The ports around PCI's configuration data that are the server's; neither the address at 0xcf8
nor the reset control at 0xcf9 is within."""
_CONFIG_DATA = 0xCFC
BAR = 0x10000
"""Where the platform device's BAR begins on the socket."""


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
    beside: bool = False
    """True: a port that is the server's only because the BAR was or may come there."""


@dataclass(frozen=True, slots=True)
class ReadQemu:
    """Read a port of QEMU's; brings the value."""

    port: int
    size: int
    beside: bool = False
    """As for WriteQemu."""


@dataclass(frozen=True, slots=True)
class Locate:
    """Where an access lies in the platform device's BAR; brings the offset, or None when it lies elsewhere."""

    port: int
    size: int


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Read the platform device's configuration space; brings the value."""

    register: int
    size: int


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Write the platform device's configuration space; brings None once it is done."""

    register: int
    size: int
    value: int


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


Step = Ask | WriteQemu | ReadQemu | ReadGuest | WriteGuest | Locate | ReadConfig | WriteConfig
Brought = Reply | int | bytes | None
Plan = Generator[Step, Brought, int | None]


class Side(Enum):
    """Who gets a part of an access."""

    UNPLUGD = "unplugd"
    QEMU = "qemu"
    BESIDE = "beside"
    """QEMU, unless the BAR came there meanwhile."""
    CONFIG = "config"
    """The platform device's configuration space; `port` is the register."""
    NOBODY = "nobody"
    """Reads all ones, ignores writes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an access that goes to one side."""

    port: int
    """As the side calls it."""
    size: int
    shift: int
    """Where its bits begin in the value of the whole."""
    side: Side


def ones(size: int) -> int:
    """What a port without a device reads as."""
    return (1 << 8 * size) - 1


def _power(value: int) -> int:
    """The largest power of two that is not above `value`."""
    return 1 << (value.bit_length() - 1)


def pieces(port: int, size: int) -> tuple[Piece, ...]:
    """Split an access to the fixed ports as QEMU's memory core splits it, between QEMU and what lies above.

    Source: qemu softmmu/physmem.c, memory_access_size(): the largest power of two that fits; at the DMA controller
    also not more than the address is aligned to, while the platform device's ports take unaligned accesses whole.
    """
    if FIRST_CONFIG <= port <= LAST_CONFIG:
        border, upper = _CONFIG_DATA, Side.NOBODY
    else:
        border, upper = WINDOW, Side.UNPLUGD
    if port >= border:
        return (Piece(port, size, 0, upper),)
    result = []
    at, end = port, port + size
    while at < end:
        side = upper if at >= border else Side.QEMU
        left = end - at if at >= border else min(end, border) - at
        part = _power(left) if at >= border else min(_power(left), at & -at)
        result.append(Piece(at, part, 8 * (at - port), side))
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
    if access.kind not in (Kind.PIO, Kind.PCI_CONFIG):
        # INVALIDATE is for those who cache mappings of guest memory; this server maps and unmaps.
        return ones(8) if access.read else None
    if not access.size or access.size > 8:
        return None
    if access.kind == Kind.PCI_CONFIG:
        # Above the register is the device's address: there is only one whose configuration space is ours.
        parts: tuple[Piece, ...] = (Piece(access.port & 0xFFFFFFFF, access.size, 0, Side.CONFIG),)
    elif FIRST_PORT <= access.port <= LAST_PORT or FIRST_CONFIG <= access.port <= LAST_CONFIG:
        parts = pieces(access.port, access.size)
    elif (offset := (yield Locate(access.port, access.size))) is None:
        parts = (Piece(access.port, access.size, 0, Side.BESIDE),)
    else:
        parts = (Piece(BAR + cast(int, offset), access.size, 0, Side.UNPLUGD),)
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
        match piece.side:
            case Side.UNPLUGD:
                part = cast(Reply, (yield Ask(piece.port, piece.size, read=True))).data
            case Side.CONFIG:
                part = cast(int, (yield ReadConfig(piece.port, piece.size)))
            case Side.NOBODY:
                part = ones(piece.size)
            case _:
                part = cast(int, (yield ReadQemu(piece.port, piece.size, piece.side is Side.BESIDE)))
        value |= (part & ones(piece.size)) << piece.shift
    return value


def _write(parts: tuple[Piece, ...], value: int) -> Generator[Step, Brought, None]:
    for piece in parts:
        part = value >> piece.shift & ones(piece.size)
        match piece.side:
            case Side.UNPLUGD:
                reply = cast(Reply, (yield Ask(piece.port, piece.size, data=part)))
                yield from _consequences(piece, part, reply)
            case Side.CONFIG:
                yield WriteConfig(piece.port, piece.size, part)
            case Side.NOBODY:
                pass
            case Side.QEMU | Side.BESIDE:
                yield WriteQemu(piece.port, piece.size, part, piece.side is Side.BESIDE)


def _consequences(piece: Piece, value: int, reply: Reply) -> Generator[Step, Brought, None]:
    """What QEMU has to do before the guest goes on."""
    if reply.absent:
        return
    if reply.data:
        yield WriteQemu(UNPLUG_PORT, 2, reply.data & 0xFFFF)
    elif piece.port in (FLAGS_PORT, BAR) and piece.size == 1:
        yield WriteQemu(FLAGS_PORT, 1, value)


def _strings_out(access: Access, parts: tuple[Piece, ...]) -> Generator[Step, Brought, None]:
    for address, count in blocks(access):
        block = cast(bytes, (yield ReadGuest(address, count * access.size)))
        payload = elements(block, access.size, backwards=access.backwards)
        if len(parts) == 1 and parts[0].side is Side.UNPLUGD:
            reply = cast(Reply, (yield Ask(parts[0].port, access.size, count=count, payload=payload)))
            # Of many writes of the platform flags the last one counts.
            yield from _consequences(parts[0], payload[-1], reply)
        else:
            for at in range(0, len(payload), access.size):
                yield from _write(parts, int.from_bytes(payload[at:at + access.size], "little"))


def _strings_in(access: Access, parts: tuple[Piece, ...]) -> Generator[Step, Brought, None]:
    for address, count in blocks(access):
        if len(parts) == 1 and parts[0].side is Side.UNPLUGD:
            reply = cast(Reply, (yield Ask(parts[0].port, access.size, read=True, count=count, payload=b"")))
            payload = reply.payload
        else:
            read = bytearray()
            for _ in range(count):
                value = yield from _read(parts)
                read += value.to_bytes(access.size, "little")
            payload = bytes(read)
        yield WriteGuest(address, elements(payload, access.size, backwards=access.backwards))
