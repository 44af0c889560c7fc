"""The steps of one access of the guest. They keep the guest away from QEMU's own unplug.

serve() is a generator: it yields steps (ask unplugd, write a port of QEMU, read guest memory, ...), receives their
results, and returns the value for the slot. It does no I/O, so that every port, size, direction and string form can be
tested without Xen.

The ioreq server has the ports 0x0d-0x16. This range contains every access of 1, 2 or 4 bytes that touches the
protocol's ports 0x10-0x13. An access below 0x10 that reaches them is split as QEMU's memory core splits it (`outl 0x0e`
is 2 bytes for the DMA controller and a 2-byte unplug mask at 0x10): the part for the DMA controller goes to QEMU, the
other part to unplugd. The only writes that QEMU gets at 0x10 are unplugd's orders and the platform flags, because only
QEMU can set the ROM lock.

The server also has the platform device's I/O BAR and its configuration space (platform.py), and the ports 0xcfa-0xcff.
Xen does not treat an access from 0xcfa or 0xcfb into the configuration data port as a configuration access, so it would
reach the configuration space in QEMU. Its part below 0xcfc goes to QEMU. The rest is ignored, as it is while 0xcf8 is
not set (if it is set, Xen treats an access from 0xcfc on as a configuration access). Port 0xcf9 must stay with QEMU: it
resets the machine, and QEMU reports a reset to Xen only if the guest wrote the port. By its address, a write of 4 bytes
at 0xcf9 reaches one byte of configuration data, which could enable the BAR but not move it. QEMU 7.2 treats all four
bytes as reset control; platform.py does not depend on that.

Only ports and registers belong here; no processes, no sockets, no Xen libraries.
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
"""The protocol's ports begin here; the ports below belong to the DMA controller (0x08-0x0f)."""
UNPLUG_PORT = 0x10
FLAGS_PORT = 0x10
FIRST_CONFIG, LAST_CONFIG = 0xCFA, 0xCFF
"""The server's ports around PCI's configuration data. The address port 0xcf8 and the reset control 0xcf9 are not
among them."""
_CONFIG_DATA = 0xCFC
BAR = 0x10000
"""Where the platform device's BAR begins on the socket."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send an access to the domain's unplugd socket; the result is a Reply."""

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
    """True: unplugd could not be reached; the values are those of a port without a device."""


@dataclass(frozen=True, slots=True)
class WriteQemu:
    """Write a port of QEMU; the result is None, after QEMU has done it."""

    port: int
    size: int
    value: int
    beside: bool = False
    """True: the server has this port only because the BAR was there or may come there."""


@dataclass(frozen=True, slots=True)
class ReadQemu:
    """Read a port of QEMU; the result is the value."""

    port: int
    size: int
    beside: bool = False
    """As for WriteQemu."""


@dataclass(frozen=True, slots=True)
class Locate:
    """Find an access in the platform device's BAR; the result is the offset, or None if it is elsewhere."""

    port: int
    size: int


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Read the platform device's configuration space; the result is the value."""

    register: int
    size: int


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Write the platform device's configuration space; the result is None, after it is done."""

    register: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class ReadGuest:
    """Read `length` bytes of guest-physical memory; the result are the bytes."""

    address: int
    length: int


@dataclass(frozen=True, slots=True)
class WriteGuest:
    """Write guest-physical memory; the result is None."""

    address: int
    data: bytes


Step = Ask | WriteQemu | ReadQemu | ReadGuest | WriteGuest | Locate | ReadConfig | WriteConfig
Brought = Reply | int | bytes | None
Plan = Generator[Step, Brought, int | None]


class Side(Enum):
    """The receiver of a part of an access."""

    UNPLUGD = "unplugd"
    QEMU = "qemu"
    BESIDE = "beside"
    """QEMU, unless the BAR has moved there since."""
    CONFIG = "config"
    """The platform device's configuration space; `port` is the register."""
    NOBODY = "nobody"
    """Reads all ones, ignores writes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an access that goes to one side."""

    port: int
    """The port, as this side numbers it."""
    size: int
    shift: int
    """Position of its lowest bit in the value of the whole access."""
    side: Side


def ones(size: int) -> int:
    """The value that a port without a device reads as."""
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
    """Convert a block of memory to the order of string I/O, or back: with `df` set, the last element comes first."""
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
    """Carry out one access. The generator returns the value for the slot's data (None: no value)."""
    if access.kind not in (Kind.PIO, Kind.PCI_CONFIG):
        # INVALIDATE is for servers that cache mappings of guest memory; this one does not.
        return ones(8) if access.read else None
    if not access.size or access.size > 8:
        return None
    if access.kind == Kind.PCI_CONFIG:
        # The bits above the register are the device's address; the server has only one device.
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
    """The work of QEMU before the guest continues."""
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
