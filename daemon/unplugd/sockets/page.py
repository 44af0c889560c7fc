"""Xen's ioreq pages, lent by unplugd-attach: the compiled part reads accesses where the hypervisor put them.

This room knows who may lend a page, what has to come with it, and when it goes back; the messages are
core/pageoffer.py's, and what is done with a page is daemon/fastpath/page.c's. It changes speed alone: whoever is not
listened to here keeps the page, and talks to the domain's socket like any device model.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unplugd.core.pageoffer import DESCRIPTORS, MESSAGE_LIMIT, SOCKET, greeted, offered
from unplugd.host.runtimedir import listen_for_root
from unplugd.sockets.access import credentials
from unplugd.sockets.listener import ACCEPT_RETRY
from unplugd.sockets.loop import compiled_poller

if TYPE_CHECKING:
    from unplugd.domains.domain import Domain

VISITORS = 64
"""Who may be about to lend a page at the same time. Whoever is one too many asks again a second later (lender.py)."""
PATIENCE = 10.0
"""Seconds that a visitor has to lend one."""


def check_devices(events: int, privcmd: int) -> None:
    """Raises ValueError unless both are devices, and reading events never waits: others have the same file open, and
    unplugd reads it on its event loop. That they are the devices that they should be, their own calls say."""
    if not all(stat.S_ISCHR(os.fstat(descriptor).st_mode) for descriptor in (events, privcmd)):
        raise ValueError("not a device")
    if not fcntl.fcntl(events, fcntl.F_GETFL) & os.O_NONBLOCK:
        raise ValueError("event channels that block")


class IoreqPages:
    """Listens at `<runtime_dir>/pages.sock`, where there is a compiled part. Belongs to the event loop's thread."""

    def __init__(self, directory: Path, domain_of: Callable[[int], Domain | None], *, xen: bool = True) -> None:
        """`xen`: offers come with Xen's own devices. Tests have others in their place."""
        self._path = directory / SOCKET
        self._domain_of = domain_of
        self._xen = xen
        self._listening: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._visitors: dict[socket.socket, asyncio.TimerHandle] = {}
        self._lenders: dict[int, socket.socket] = {}
        """By domid."""

    def start(self) -> None:
        """Listen. Raises HostError."""
        if compiled_poller() is None:
            return
        self._listening = listen_for_root("socket for ioreq pages", self._path, VISITORS, socket.SOCK_SEQPACKET)
        self._listen()

    def _listen(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    def stop(self) -> None:
        """Listen no more, and give all pages back."""
        if self._listening is None:
            return
        if self._retry is not None:
            self._retry.cancel()
        asyncio.get_running_loop().remove_reader(self._listening.fileno())
        self._listening.close()
        self._listening = None
        self._path.unlink(missing_ok=True)
        for visitor in list(self._visitors):
            self._send_away(visitor)
        for domid in list(self._lenders):
            self.give_back(domid)

    def give_back(self, domid: int) -> None:
        """Give a domain's page back, if it is lent."""
        lender = self._lenders.pop(domid, None)
        holder = compiled_poller()
        if lender is not None and holder is not None:
            asyncio.get_running_loop().remove_reader(lender.fileno())
            holder.give_back(lender.fileno())
            lender.close()

    @property
    def lent(self) -> list[int]:
        """The domains whose page is lent."""
        return sorted(self._lenders)

    def _accept(self) -> None:
        if self._listening is None:
            return
        loop = asyncio.get_running_loop()
        try:
            visitor = self._listening.accept()[0]
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no descriptors or no memory: they wait in the queue
            loop.remove_reader(self._listening.fileno())
            self._retry = loop.call_later(ACCEPT_RETRY, self._listen)
            return
        visitor.setblocking(False)
        if not self._may_come(visitor):
            visitor.close()
            return
        self._visitors[visitor] = loop.call_later(PATIENCE, self._send_away, visitor)
        loop.add_reader(visitor.fileno(), self._greeted, visitor)

    def _may_come(self, visitor: socket.socket) -> bool:
        try:
            _pid, uid = credentials(visitor)
        except OSError:
            return False
        return uid in (0, os.geteuid()) and len(self._visitors) < VISITORS

    def _send_away(self, visitor: socket.socket) -> None:
        self._visitors.pop(visitor).cancel()
        asyncio.get_running_loop().remove_reader(visitor.fileno())
        visitor.close()

    def _greeted(self, visitor: socket.socket) -> None:
        try:
            domid = greeted(visitor.recv(MESSAGE_LIMIT))
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._send_away(visitor)
            return
        asyncio.get_running_loop().add_reader(visitor.fileno(), self._offered, visitor, domid)

    def _offered(self, visitor: socket.socket, domid: int) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(
                visitor, MESSAGE_LIMIT + 1, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self._send_away(visitor)
            return
        try:
            self._borrow(visitor, domid, message, descriptors)
        except (OSError, ValueError, MemoryError):
            self._send_away(visitor)
        else:
            self._visitors.pop(visitor).cancel()
            self._lenders[domid] = visitor
            asyncio.get_running_loop().add_reader(visitor.fileno(), self._ended, visitor, domid)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _borrow(self, lender: socket.socket, domid: int, message: bytes, descriptors: list[int]) -> None:
        """Have the compiled part serve a page. Raises OSError, ValueError, MemoryError: it stays the lender's then."""
        holder, domain = compiled_poller(), self._domain_of(domid)
        if holder is None or domain is None or domid in self._lenders:
            raise ValueError("nobody to lend it to")
        if len(descriptors) != DESCRIPTORS:
            raise ValueError("no descriptors")
        events, privcmd = descriptors
        said = offered(message)
        if self._xen:
            check_devices(events, privcmd)
        own = os.dup(events)
        try:
            holder.borrow(own, lender.fileno(), domain.table, privcmd, domid, said.server, said.ports, self._xen)
        except BaseException:
            os.close(own)
            raise

    def _ended(self, lender: socket.socket, domid: int) -> None:
        """The lender has closed his end, or the compiled part gave the page back; he has nothing to say besides."""
        if self._lenders.get(domid) is lender:
            self.give_back(domid)
