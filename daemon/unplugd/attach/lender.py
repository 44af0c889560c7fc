"""Lends the ioreq page to unplugd, so that Xen's signals wake unplugd directly.

Over the socket an access takes three wake-ups, one after the other: this process, unplugd, this process. While the page
is lent, only unplugd is woken. It answers simple accesses in the page and gives the others to this process: an unplug
mask, which QEMU must carry out; strings, which are in guest memory; the BAR. These go over the socket. When the
connection over which the page was lent ends, for any reason, this process serves all accesses again.

Without unplugd's compiled part the page is never lent; everything else is the same. core/pageoffer.py has the messages.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Container
from typing import Protocol

from unplugd.attach.slots import Access
from unplugd.core.pageoffer import MESSAGE_LIMIT, offer

RETRY = 1.0
"""Seconds until a refused page is offered again. The next access of the guest does this; there is no timer."""


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
        """The accesses since the last call."""

    def left_over(self, busy: Container[int] = ()) -> list[tuple[int, Access]]:
        """Accesses that a previous process or unplugd has not answered."""


class Lender:
    """Starts each access with `take`, lent page or not. `busy`: the vCPUs whose access has no answer yet."""

    def __init__(
        self,
        server: HasPage,
        privcmd: int,
        connect: Callable[[], Awaitable[socket.socket]],
        take: Callable[[int, Access], None],
        busy: Container[int],
    ) -> None:
        """`privcmd` is a descriptor restricted to the domain; `connect` returns a socket or raises OSError."""
        self._server = server
        self._privcmd = privcmd
        self._connect = connect
        self._take = take
        self._busy = busy
        self._borrower: socket.socket | None = None
        self._offering: asyncio.Task[None] | None = None
        self._offered_at = -RETRY

    def start(self) -> None:
        """Take the accesses that a previous process left, and listen to Xen's events."""
        self._take_back()

    @property
    def lent(self) -> bool:
        """Whether the page is lent."""
        return self._borrower is not None

    def offer(self) -> None:
        """unplugd has answered, so it runs: offer it the page, unless it has it or refused it within RETRY."""
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
        """unplugd gives accesses to this process, or has ended the loan, or has refused the page."""
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
