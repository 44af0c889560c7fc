"""One domain's ioreq server: create or take over, receive accesses, answer them, hand the ports back.

In any other order a guest could hang or bypass unplugd (docs/attach.md, "Life of a server"):

    create -> keep the id -> map ports and device -> enable -> bind the event channels -> serve
    disable (new accesses go to QEMU) -> answer what is in flight -> wait until each vCPU took its answer -> destroy

The meaning of an access does not belong here (plan.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from errno import EEXIST, EINVAL, ENOENT

from unplugd.attach.slots import Access, Slots, SlotState
from unplugd.attach.xen import EventChannels, ForeignMemory, XenDeviceModel, XenError

LET_GO = 2.0
"""Seconds for unplugd to close the event channels that a previous process lent to it (lender.py)."""


class NotYet(Exception):
    """QEMU has no ioreq server yet. Ours would be older, and QEMU's would get the accesses."""


def _unless(harmless: int, call: Callable[[], None]) -> None:
    """Make a call; the errno `harmless` means that there was nothing to do."""
    try:
        call()
    except XenError as error:
        if error.errno != harmless:
            raise


class IoreqServer:
    """An ioreq server for `ports` of a domain, each (first, last), and for the configuration space of the PCI device
    `device`: bus, slot, function.

    `keep` is called with the id of a new server before it can get an access. `known` is the id of a server of a
    previous process; if it still exists, it is taken over and `taken_over` is true.

    Raises XenError (a PV domain has no ioreq servers: EINVAL or EOPNOTSUPP) and NotYet.
    """

    def __init__(
        self,
        device_model: XenDeviceModel,
        memory: ForeignMemory,
        events: EventChannels,
        ports: Sequence[tuple[int, int]],
        device: tuple[int, int, int],
        keep: Callable[[int], None],
        known: int | None = None,
    ) -> None:
        self._device_model = device_model
        self._events = events
        self.taken_over = False
        page = None
        if known is not None:
            try:
                page = memory.map_ioreq_page(known)
                self.id, self.taken_over = known, True
            except XenError:
                page = None
        if page is None:
            self.id = device_model.create_server()
            if self.id == 0:
                device_model.destroy_server(0)
                raise NotYet
            keep(self.id)
            page = memory.map_ioreq_page(self.id)
        for first, last in ports:
            self.own(first, last)
        _unless(EEXIST, lambda: device_model.map_device(self.id, *device))
        device_model.enable_server(self.id, enabled=True)
        self._slots = Slots(page)
        self.ports: dict[int, int] = {}
        """Our port of each vCPU's event channel."""
        self._vcpus: dict[int, int] = {}
        for vcpu, eport in self._slots.present():
            port = self._bind(eport)
            self.ports[vcpu] = port
            self._vcpus[port] = vcpu
        self._enabled = True

    def _bind(self, eport: int) -> int:
        deadline = time.monotonic() + LET_GO
        while True:
            try:
                return self._events.bind(self._device_model.domid, eport)
            except XenError as error:
                if error.errno != EINVAL or not self.taken_over or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)

    def own(self, first: int, last: int) -> None:
        """Send accesses to these ports to this server; it may have them already. Raises XenError."""
        _unless(EEXIST, lambda: self._device_model.map_ports(self.id, first, last))

    def disown(self, first: int, last: int) -> None:
        """Send accesses to these ports to QEMU again. Raises XenError."""
        _unless(ENOENT, lambda: self._device_model.unmap_ports(self.id, first, last))

    @property
    def fd(self) -> int:
        """Readable when accesses() would return an access."""
        return self._events.fd

    def access(self, vcpu: int) -> Access:
        """The access in the slot of `vcpu`, which unplugd gives to this process."""
        return self._slots.take(vcpu)

    @property
    def vcpus(self) -> int:
        """How many vCPUs the domain has."""
        return len(self.ports)

    def left_over(self, busy: Container[int] = ()) -> list[tuple[int, Access]]:
        """The accesses that a previous process, or unplugd with the lent page, has not answered. The accesses of the
        vCPUs in `busy` were taken already.

        Every other vCPU is also notified once: the previous process may have died between an answer and its
        notification, or before it unmasked an event.
        """
        found = []
        for vcpu, port in self.ports.items():
            self._events.unmask(port)
            if vcpu in busy:
                continue
            if self._slots.state(vcpu) in (SlotState.READY, SlotState.IN_PROCESS):
                found.append((vcpu, self._slots.take(vcpu)))
            else:
                self._events.notify(port)
        return found

    def accesses(self) -> list[tuple[int, Access]]:
        """The accesses since the last call, with their vCPUs."""
        found = []
        while (port := self._events.pending()) is not None:
            self._events.unmask(port)
            vcpu = self._vcpus.get(port)
            if vcpu is not None and self._slots.state(vcpu) == SlotState.READY:
                found.append((vcpu, self._slots.take(vcpu)))
        return found

    def answer(self, vcpu: int, data: int | None) -> None:
        """Answer the access of a vCPU, so that the vCPU continues."""
        self._slots.answer(vcpu, data)
        self._events.notify(self.ports[vcpu])

    def disable(self) -> None:
        """Send further accesses to QEMU. Accesses in flight must still be answered. Raises XenError."""
        self._device_model.enable_server(self.id, enabled=False)
        self._enabled = False

    @property
    def idle(self) -> bool:
        """True when every vCPU has taken its answer."""
        return all(self._slots.state(vcpu) == SlotState.NONE for vcpu in self.ports)

    def destroy(self) -> None:
        """Destroy the server, which must be disabled and idle. Raises XenError."""
        if self._enabled or not self.idle:
            raise RuntimeError("destroying this ioreq server now would hang a vCPU")
        self._device_model.destroy_server(self.id)
