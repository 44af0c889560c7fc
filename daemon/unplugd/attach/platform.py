"""Tracks the I/O BAR of QEMU's platform device, so that the guest reaches unplugd there and not QEMU.

The ioreq server has the device's configuration space, so every move of the BAR passes here. It is made in QEMU, and the
guest's access completes only after the port ranges are updated. So QEMU never has the BAR at ports that Xen sends to
QEMU: the server gets a range before anything is written that could put the BAR there, and gives it up only after QEMU
has reported (query-pci) that the BAR is at another range of the server.

plan.py decides what an access to the BAR does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from unplugd.attach import pci
from unplugd.attach.pci import PlatformDevice

_PLACES = 32
"""How many places may be ours at once; a guest that needs more without ever using one is playing."""


class Ports(Protocol):
    """server.IoreqServer, which owns the ports in Xen."""

    def own(self, first: int, last: int) -> None:
        """Send accesses to these ports to the ioreq server."""

    def disown(self, first: int, last: int) -> None:
        """Send accesses to these ports to QEMU again."""


class QueriesQemu(Protocol):
    """qemu.Monitor."""

    async def write(self, port: int, size: int, value: int) -> None:
        """Write a port of QEMU; returns when QEMU has done it."""

    async def read(self, port: int, size: int) -> int:
        """Read a port of QEMU."""

    async def query(self, command: str) -> Any:
        """The answer to a QMP command."""


async def find(qemu: QueriesQemu) -> PlatformDevice | None:
    """The platform device of a QEMU; None: it has none, so there is no unplug protocol in this domain."""
    return pci.platform_device(await qemu.query("query-pci"))


class PlatformBar:
    """The platform device `device`; the ioreq server already has its configuration space."""

    def __init__(
        self, device: PlatformDevice, qemu: QueriesQemu, ports: Ports, report: Callable[[str], None]
    ) -> None:
        self._device = device
        self._qemu = qemu
        self._ports = ports
        self._report = report
        self._lock = asyncio.Lock()
        self._places: set[int] = set()
        self._full = False

    async def look(self) -> None:
        """Have the ports where QEMU has the BAR now; called once before the first access is served."""
        async with self._lock:
            await self._look()

    def locate(self, port: int, size: int) -> int | None:
        """The offset of an access in the BAR; None when it lies elsewhere."""
        bar = self._device.bar
        return port - bar if bar is not None and bar <= port and port + size <= bar + pci.BAR_SIZE else None

    async def read(self, port: int, size: int) -> int:
        """Read a port that the server has only because the BAR was or may come there: read QEMU's device there."""
        async with self._lock:
            return (1 << 8 * size) - 1 if self._touches(port, size) else await self._qemu.read(port, size)

    async def write(self, port: int, size: int, value: int) -> None:
        """Write such a port, unless the BAR has moved there.

        4 bytes at port 0xcf9 might enable the BAR without our knowledge (plan.py). So a write that would unplug in this
        case is not done either.
        """
        async with self._lock:
            danger = any(pci.unplugs(place, port, size, value) for place in self._places)
            if not danger and not self._touches(port, size):
                await self._qemu.write(port, size, value)

    async def config_read(self, register: int, size: int) -> int:
        """Read the device's configuration space."""
        if register + size > pci.SPACE_SIZE:
            return (1 << 8 * size) - 1
        value = 0
        async with self._lock:
            before = await self._qemu.read(pci.ADDRESS_PORT, 4)
            selected = before
            for at, part, shift in pci.words(register, size):
                selected = await self._select(at, selected)
                value |= await self._qemu.read(pci.DATA_PORT + (at & 3), part) << shift
            await self._restore(before, selected)
        return value

    async def config_write(self, register: int, size: int, value: int) -> None:
        """Write the device's configuration space, and follow the BAR if that moved it."""
        if register + size > pci.SPACE_SIZE:
            return
        pieces = [
            (at, part, value >> shift & (1 << 8 * part) - 1) for at, part, shift in pci.words(register, size)
        ]
        async with self._lock:
            places = {place for piece in pieces if (place := pci.may_become(*piece)) is not None}
            if len(self._places | places) > _PLACES:
                if not self._full:
                    self._full = True
                    self._report("the guest moves the platform device's BAR without using it: not moved any more")
                return
            for place in places:
                self._own(place)
            before = await self._qemu.read(pci.ADDRESS_PORT, 4)
            selected = before
            for at, part, piece in pieces:
                selected = await self._select(at, selected)
                await self._qemu.write(pci.DATA_PORT + (at & 3), part, piece)
            await self._restore(before, selected)
            await self._look()

    def _touches(self, port: int, size: int) -> bool:
        bar = self._device.bar
        return bar is not None and bar < port + size and port < bar + pci.BAR_SIZE

    async def _select(self, register: int, selected: int) -> int:
        """Make QEMU's address register point at `register`; the guest has usually done that itself."""
        address = self._device.address(register)
        if selected != address:
            await self._qemu.write(pci.ADDRESS_PORT, 4, address)
        return address

    async def _restore(self, before: int, selected: int) -> None:
        if selected != before:
            await self._qemu.write(pci.ADDRESS_PORT, 4, before)

    async def _look(self) -> None:
        device = await find(self._qemu)
        if device is None:
            return  # the device was hot-unplugged; the server keeps its ports, and no device has them
        self._device = device
        if device.bar is None:
            return  # the BAR is disabled, and its next place is unknown: keep all ranges
        self._own(device.bar)
        for place in self._places - {device.bar}:
            self._places.discard(place)
            self._ports.disown(place, place + pci.BAR_SIZE - 1)

    def _own(self, place: int) -> None:
        if place not in self._places:
            self._ports.own(place, place + pci.BAR_SIZE - 1)
            self._places.add(place)
