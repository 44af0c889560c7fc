"""The ioreq page, lent to unplugd while it can use it: it then hears of accesses from Xen itself.

Over the socket an access takes three wake-ups, one after the other: of this process, of unplugd, of this one. While
the page is lent, unplugd alone is woken. It gives us those accesses that are more than an answer: an unplug mask, which
QEMU has to carry out; strings, which are in the guest's memory; the BAR. They go over the socket, as always. When the
connection over which the page was lent ends, whatever the reason, all accesses are ours again.

Where unplugd has no compiled part, nobody takes the page, and nothing else is different. core/pageoffer.py is
what is said.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Container
from typing import Protocol

from unplugd.attach.slots import Access
from unplugd.core.pageoffer import MESSAGE_LIMIT, offer

RETRY = 1.0
"""Seconds until a page that was not taken is offered again, and a guest must be active for that: no timer waits."""


class HasPage(Protocol):
    """server.IoreqServer."""

    id: int

    @property
    def fd(self) -> int:
        """The event channels' descriptor."""

    @property
    def ports(self) -> dict[int, int]:
        """Our end of each vCPU's event channel."""

    def access(self, vcpu: int) -> Access:
        """The access in the slot of a vCPU."""

    def accesses(self) -> list[tuple[int, Access]]:
        """What came since the last call."""

    def left_over(self, busy: Container[int] = ()) -> list[tuple[int, Access]]:
        """What somebody else has not answered."""


class Lender:
    """Has accesses begun with `take`, be the page lent or not; `busy` are the vCPUs whose access has no answer yet."""

    def __init__(
        self,
        server: HasPage,
        privcmd: int,
        connect: Callable[[], Awaitable[socket.socket]],
        take: Callable[[int, Access], None],
        busy: Container[int],
    ) -> None:
        """`privcmd` is a descriptor, restricted to the domain; `connect` brings a socket or raises OSError."""
        self._server = server
        self._privcmd = privcmd
        self._connect = connect
        self._take = take
        self._busy = busy
        self._borrower: socket.socket | None = None
        self._offering: asyncio.Task[None] | None = None
        self._offered_at = -RETRY

    def start(self) -> None:
        """Begin with what a predecessor left, and listen to Xen."""
        self._take_back()

    @property
    def lent(self) -> bool:
        """Whether somebody else hears of accesses first."""
        return self._borrower is not None

    def offer(self) -> None:
        """unplugd has answered, so it is there: lend it the page, unless it has it or did not want it a moment ago."""
        loop = asyncio.get_running_loop()
        if self._borrower is None and self._offering is None and loop.time() - self._offered_at >= RETRY:
            self._offered_at = loop.time()
            self._offering = loop.create_task(self._offer())

    async def _offer(self) -> None:
        try:
            borrower = await self._connect()
        except OSError:
            return
        finally:
            self._offering = None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._server.fd)
        self._borrower = borrower
        loop.add_reader(borrower.fileno(), self._heard)
        try:
            socket.send_fds(borrower, [offer(self._server.id, self._server.ports)], [self._server.fd, self._privcmd])
        except OSError:
            self._take_back()

    def _heard(self) -> None:
        """Accesses that are ours; or the end of the loan, or it was not taken."""
        if self._borrower is None:
            return
        try:
            vcpus = self._borrower.recv(MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            vcpus = b""
        if not vcpus:
            self._take_back()
        for vcpu in vcpus:
            if vcpu in self._server.ports and vcpu not in self._busy:
                self._take(vcpu, self._server.access(vcpu))

    def _take_back(self) -> None:
        loop = asyncio.get_running_loop()
        if self._borrower is not None:
            loop.remove_reader(self._borrower.fileno())
            self._borrower.close()
            self._borrower = None
        for vcpu, access in self._server.left_over(self._busy):
            self._take(vcpu, access)
        loop.add_reader(self._server.fd, self._serve)

    def _serve(self) -> None:
        for vcpu, access in self._server.accesses():
            self._take(vcpu, access)
