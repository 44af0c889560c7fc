"""The event loop with the compiled part in it: unplugd.sockets._fastpath, where it was built.

The compiled part changes speed alone. It stands where the loop waits: while it waits, it answers what rows answer, and
hands everything else over. UNPLUGD_PURE=1 in the environment does without it: then the loop is asyncio's own, and
poller.py reads the connections.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
from array import array
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, TypeVarTuple, Unpack

from unplugd.core.counters import DURATION_BOUNDS, Counters
from unplugd.domains import table
from unplugd.sockets import poller

if TYPE_CHECKING:
    from unplugd.sockets._fastpath import Poller

_Arguments = TypeVarTuple("_Arguments")


class Selector(selectors.EpollSelector):
    """asyncio's selector, which serves connections while it waits."""

    def __init__(self, poller_type: type[Poller], durations: array[int]) -> None:
        super().__init__()
        self.poller = poller_type(self.fileno(), DURATION_BOUNDS, durations)
        self.hand: Callable[..., object]
        """Has a connection taken over soon, before anything that select() returns."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for what the loop has to do, at most `timeout` seconds."""
        events, handed = self.poller.poll(timeout)
        for item in handed:
            self.hand(*item)
        if not events:
            return []
        keys = self.get_map()
        ready = []
        for descriptor, event in events:
            key = keys.get(descriptor)
            if key is not None:
                mask = (event & ~select.EPOLLIN and selectors.EVENT_WRITE) | (
                    event & ~select.EPOLLOUT and selectors.EVENT_READ)
                ready.append((key, mask & key.events))
        return ready

    def close(self) -> None:
        """Close the epoll, and the Poller's timer in it."""
        self.poller.close()
        super().close()


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a Poller in its selector. What is scheduled while the Poller serves makes it return."""

    def __init__(self, poller_type: type[Poller]) -> None:
        self.durations = Counters().durations
        selector = Selector(poller_type, self.durations)
        self.poller = selector.poller
        super().__init__(selector)
        selector.hand = self.call_soon

    def call_soon(
        self, callback: Callable[[Unpack[_Arguments]], object], *args: *_Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's."""
        self.poller.called = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[_Arguments]], object], *args: *_Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        self.poller.called = True
        return super().call_at(when, callback, *args, context=context)

    def serve_guests(self) -> bool:
        """Serve guests that wait, in the middle of long work. True if the loop must turn: it has something to do."""
        return self.poller.serve()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop that there is here."""
    if not os.environ.get("UNPLUGD_PURE"):
        try:
            from unplugd.sockets._fastpath import Poller
        except ImportError:
            pass
        else:
            return Loop(Poller)
    return asyncio.SelectorEventLoop()


def compiled_poller() -> Poller | None:
    """The running loop's compiled Poller, if it has one."""
    loop = asyncio.get_running_loop()
    return loop.poller if isinstance(loop, Loop) else None


def open_poller(counters: Counters) -> poller.ReadsConnections:
    """What serves connections on the running loop. `counters` has its durations from now on."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, Loop):
        counters.durations = loop.durations
        return loop.poller
    return poller.Poller(counters)


def table_types() -> tuple[type[table.Table], type[table.Rows]]:
    """The Table, with its Rows, that the running loop's Poller serves."""
    if compiled_poller() is None:
        return table.Table, table.Rows
    from unplugd.sockets._fastpath import Rows, Table

    return Table, Rows
