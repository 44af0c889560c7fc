"""The guest's memory by guest-physical address, for string I/O.

Pages are mapped for each access and then unmapped, because a balloon driver or Xen could remove a page, and string I/O
is rare. plan.py interprets the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from unplugd.attach.slots import PAGE_SIZE
from unplugd.attach.xen import XenError


class MapsPages(Protocol):
    """What xen.ForeignMemory offers of one page."""

    def read(self, frame: int, offset: int, length: int) -> bytes:
        """Bytes of one page. Raises XenError."""

    def write(self, frame: int, offset: int, data: bytes) -> None:
        """Write into one page. Raises XenError."""


def spans(address: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut a piece of memory at page boundaries: (frame, offset in it, bytes)."""
    while length > 0:
        offset = address % PAGE_SIZE
        size = min(length, PAGE_SIZE - offset)
        yield address // PAGE_SIZE, offset, size
        address += size
        length -= size


class GuestMemory:
    """One domain's memory. A page that cannot be mapped reads as all ones and takes no writes, like absent memory."""

    def __init__(self, pages: MapsPages) -> None:
        self._pages = pages

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes from `address`."""
        result = bytearray()
        for frame, offset, size in spans(address, length):
            try:
                result += self._pages.read(frame, offset, size)
            except XenError:
                result += b"\xff" * size
        return bytes(result)

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address`."""
        at = 0
        for frame, offset, size in spans(address, len(data)):
            try:
                self._pages.write(frame, offset, data[at:at + size])
            except XenError:
                pass
            at += size
