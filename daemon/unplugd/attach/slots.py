"""Xen's page of synchronous ioreqs: 32 bytes for each vCPU, shared between the hypervisor and the device model.

Source: xen/include/public/hvm/ioreq.h (`struct shared_iopage`). Decoding only: server.py
maps the page and notifies the vCPU of an answer, plan.py decides what an access does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

SLOT_SIZE = 32
PAGE_SIZE = 4096

_LAYOUT = struct.Struct("<QQIIIHBB")
_DATA = 8
_EPORT = struct.Struct("<I")
_EPORT_AT = 24
_BITS_AT = 30
_STATE, _DATA_IS_PTR, _DIR, _DF = 0x0F, 0x10, 0x20, 0x40


class SlotState(IntEnum):
    """`state`: which side has the slot now."""

    NONE = 0
    """No access: the vCPU runs."""
    READY = 1
    """The vCPU waits for the device model."""
    IN_PROCESS = 2
    """The device model has seen it."""
    RESPONSE = 3
    """The device model has answered; the vCPU takes it when it is scheduled next."""


class Kind(IntEnum):
    """`type` of an ioreq, where this server can meet it."""

    PIO = 0
    COPY = 1
    PCI_CONFIG = 2
    TIMEOFFSET = 7
    INVALIDATE = 8
    """QEMU's map cache is to be dropped: sent to every server, and has to be answered by every one."""


@dataclass(frozen=True, slots=True)
class Access:
    """One ioreq as the hypervisor put it into the slot of a vCPU."""

    kind: int
    """Of Kind, or one that this server does not know."""
    port: int
    data: int
    """The value of a single write, reduced to its size; for string I/O the guest-physical address of the first
    element."""
    count: int
    """Elements; 1 without string I/O."""
    size: int
    """Bytes of an element."""
    read: bool
    string: bool
    """`data_is_ptr`: elements come from or go to the guest's memory."""
    backwards: bool
    """`df`: each element lies before the one that precedes it."""


class Slots:
    """A view of the page; `page` are 4096 bytes that the hypervisor writes too."""

    def __init__(self, page: memoryview) -> None:
        self._page = page

    def present(self) -> Iterator[tuple[int, int]]:
        """(vCPU, its event channel in the guest's domain) of each vCPU that there is."""
        for vcpu in range(PAGE_SIZE // SLOT_SIZE):
            (eport,) = _EPORT.unpack_from(self._page, vcpu * SLOT_SIZE + _EPORT_AT)
            if eport:
                yield vcpu, eport

    def state(self, vcpu: int) -> int:
        """Of SlotState."""
        return self._page[vcpu * SLOT_SIZE + _BITS_AT] & _STATE

    def take(self, vcpu: int) -> Access:
        """The access in the slot of `vcpu`, which from here on is in process."""
        at = vcpu * SLOT_SIZE
        port, data, count, size, _eport, _pad, bits, kind = _LAYOUT.unpack_from(self._page, at)
        self._page[at + _BITS_AT] = bits & ~_STATE | SlotState.IN_PROCESS
        string, read = bool(bits & _DATA_IS_PTR), bool(bits & _DIR)
        if not (string or read) and kind == Kind.PIO:
            data &= (1 << 8 * size) - 1
        return Access(kind, port, data, count, size, read, string, bool(bits & _DF))

    def answer(self, vcpu: int, data: int | None) -> None:
        """Put the response into the slot; `data` is the value read, None keeps the present value.

        The state is written by a separate store, after all others: x86 keeps their order.
        """
        at = vcpu * SLOT_SIZE
        if data is not None:
            self._page[at + _DATA:at + _DATA + 8] = data.to_bytes(8, "little")
        self._page[at + _BITS_AT] = self._page[at + _BITS_AT] & ~_STATE | SlotState.RESPONSE
