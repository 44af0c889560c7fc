"""Connections read in Python, where there is no compiled part: the same methods, on a plain asyncio loop.

A connection is read while it is armed. A frame that no row of its table answers, and all behind it, is handed to the
connection's owner in order, until the owner resumes it. The beginning of a frame waits here for the rest of it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Protocol

from unplugd.core.counters import Counters
from unplugd.domains.table import READ_SIZE, Table
from unplugd.domains.turns import BUDGET, MINOR

Handed = Callable[[bytes, bytes | None], None]
"""Takes a connection over: answers that could not be sent, and bytes from a frame on that no row answers; None in their
place where the client is gone."""


class ReadsConnections(Protocol):
    """What a connection needs of a Poller, compiled or not. All descriptors are sockets that never block."""

    def attach(self, fd: int, table: Table, handed: Handed, /) -> None:
        """Serve a connection by `table`. Raises OSError, MemoryError."""
    def send(self, fd: int, answers: bytes, /) -> int:
        """Send answers on a connection that was handed over; how many bytes. The rest can be sent when the loop says
        that the socket takes more (loop.add_writer()).

        Raises OSError.
        """
    def resume(self, fd: int, rest: bytes, /) -> None:
        """Serve a connection on that was handed over, with `rest` (the beginning of a frame) before what comes.

        Raises OSError, MemoryError.
        """
    def detach(self, fd: int, /) -> None:
        """The connection is gone."""


class _Link:
    """A connection: what serves it, and the beginning of a frame."""

    __slots__ = ("handed", "rest", "table")

    def __init__(self, table: Table, handed: Handed) -> None:
        self.table = table
        self.handed = handed
        self.rest = b""


class Poller:
    """The connections of all domains. All methods belong to the event loop's thread."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._links: dict[int, _Link] = {}
        self._spent: dict[Table, float] = {}
        """Seconds that domains took in this iteration of the loop, or in several where that is little."""
        self._clears = False

    def attach(self, fd: int, table: Table, handed: Handed, /) -> None:
        """See ReadsConnections."""
        self._links[fd] = _Link(table, handed)
        self._loop.add_reader(fd, self._readable, fd)

    def detach(self, fd: int, /) -> None:
        """See ReadsConnections."""
        link = self._links.pop(fd, None)
        if link is not None:
            self._loop.remove_reader(fd)

    def send(self, fd: int, answers: bytes, /) -> int:
        """See ReadsConnections."""
        return _send(fd, answers)

    def resume(self, fd: int, rest: bytes, /) -> None:
        """See ReadsConnections."""
        self._links[fd].rest = rest
        self._loop.add_reader(fd, self._readable, fd)

    def _readable(self, fd: int) -> None:
        link = self._links[fd]
        if self._spent.get(link.table, 0.0) >= BUDGET:
            return  # what is left is still there in the next iteration, after the others
        try:
            data = os.read(fd, READ_SIZE - len(link.rest))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._hand_over(fd, b"", None)
            return
        if link.rest:
            data, link.rest = link.rest + data, b""
        began = time.monotonic()
        try:
            answers, used = link.table.answer(data, 0)
            if used:  # else the frame is counted where it is served
                self._charge(link.table, time.monotonic() - began)
            if self._links.get(fd) is not link:
                return  # the domain went meanwhile
            sent = _send(fd, answers)
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection ends and no other suffers
            self._loop.call_exception_handler({"message": "a connection ends", "exception": error})
            if self._links.get(fd) is link:
                self._hand_over(fd, b"", None)
            return
        if used < len(data) or sent < len(answers):
            self._hand_over(fd, answers[sent:], data[used:])

    def _charge(self, table: Table, seconds: float) -> None:
        self._counters.observe(seconds)
        spent = self._spent[table] = self._spent.get(table, 0.0) + seconds
        if spent > MINOR and not self._clears:
            self._clears = True
            self._loop.call_soon(self._clear)

    def _clear(self) -> None:
        """Another iteration of the loop has begun."""
        self._clears = False
        self._spent.clear()

    def _hand_over(self, fd: int, unsent: bytes, data: bytes | None) -> None:
        self._loop.remove_reader(fd)
        self._links[fd].handed(unsent, data)


def _send(fd: int, answers: bytes) -> int:
    """How many bytes the kernel took. A client that is gone is noticed when its connection is read.

    Raises OSError where the kernel has no memory: the answers are lost.
    """
    try:
        return os.write(fd, answers) if answers else 0
    except (BlockingIOError, InterruptedError):
        return 0
    except (BrokenPipeError, ConnectionResetError):
        return len(answers)
