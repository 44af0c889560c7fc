"""PCI configuration space, as far as the I/O BAR of QEMU's platform device needs it. Sans I/O.

The platform device (xen-platform: vendor 0x5853) has an I/O BAR of 256 ports, at a place that the guest chooses. QEMU
unplugs when a byte is written there: 1 at +4 (disks and NICs), 1 or 2 at +8 (disks, NICs).
Source: qemu hw/i386/xen/xen_platform.c, xen_platform_ioport_writeb(). platform.py maps the ports of the BAR.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ADDRESS_PORT = 0xCF8
"""Which register, written in one piece of 4 bytes (PCI Local Bus Specification 3.0, 3.2.2.3.2)."""
DATA_PORT = 0xCFC
SPACE_SIZE = 256
"""Bytes of the configuration space of a device of QEMU's `pc` machine."""
BAR_SIZE = 0x100
VENDOR_XEN = 0x5853


@dataclass(frozen=True, slots=True)
class PlatformDevice:
    """The platform device: where it is, and where QEMU has its I/O BAR now."""

    bus: int
    slot: int
    function: int
    bar: int | None
    """The first port; None while QEMU has it nowhere (not placed yet, or I/O decoding is off)."""

    def address(self, register: int) -> int:
        """The value of port 0xcf8 that selects the 4 bytes of `register`."""
        return 0x80000000 | self.bus << 16 | self.slot << 11 | self.function << 8 | register & 0xFC


def platform_device(buses: Any) -> PlatformDevice | None:
    """The platform device in QMP's answer to `query-pci`, or None. Raises ValueError if the answer is invalid."""
    try:
        for bus in buses:
            for device in bus["devices"]:
                if device["id"]["vendor"] != VENDOR_XEN:
                    continue
                for region in device["regions"]:
                    if (region["bar"], region["type"], region["size"]) == (0, "io", BAR_SIZE):
                        at = int(region["address"])
                        return PlatformDevice(
                            int(device["bus"]), int(device["slot"]), int(device["function"]),
                            at if 0 < at < 0x10000 else None,
                        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"query-pci: no {error}") from error
    return None


def words(register: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut an access where it leaves a word of 4 bytes: (register, bytes, where its bits begin in the whole)."""
    at, end = register, register + size
    while at < end:
        part = min(end, (at & ~3) + 4) - at
        part = 2 if part == 3 else part  # ports are accessed by 1, 2 or 4 bytes
        yield at, part, 8 * (at - register)
        at += part


def may_become(register: int, size: int, value: int) -> int | None:
    """Where the I/O BAR may be after `value` is written; None if this write cannot move it.

    `register` and `size` come from words(). Only the position within the word counts, not the register: another vCPU
    may change QEMU's address register at this moment, so that a write to another register changes the BAR.
    """
    lane = register & 3
    if lane > 1 or lane + size < 2:
        return None  # bits 8 to 15, which are the BAR's place, stay
    return (value << 8 * lane & 0xFF00) or None


def unplugs(bar: int, port: int, size: int, value: int) -> bool:
    """Whether QEMU would unplug on this write, were its BAR at `bar`."""
    for at, byte in enumerate((value & (1 << 8 * size) - 1).to_bytes(size, "little"), port - bar):
        if (at, byte) in ((4, 1), (8, 1), (8, 2)):
            return True
    return False
