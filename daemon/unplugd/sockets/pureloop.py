"""The event loop of pure Python: asyncio's, which reads from connections where it waits.

What asyncio does to call one callback (a handle, a queue, a look at the timers) costs more than most accesses. So, as
in the compiled part (loop.py), a connection that has something to be read, and nothing else to be said of it, is
served where the loop waits, and the loop turns for all other things: what call_soon() and call_at() were asked for,
timers, other descriptors.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import time
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple, Unpack

_Arguments = TypeVarTuple("_Arguments")

_EVENTS = 256
"""Descriptors looked at in one round; the kernel begins the next one with the others."""


class Selector(selectors.EpollSelector):
    """asyncio's selector, which calls `readers` itself as long as the loop has nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        # the same epoll: where nothing but readers is ready, nobody needs what select() makes of it
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        self.readers: dict[int, Callable[[], None]] = {}
        """What to call for a descriptor that is readable. It must not raise, and it is the loop's reader as well
        (add_reader()), since the loop calls it when it is busy."""
        self.wanted = False
        """Whether the loop was given something to do since select() was called."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for what is the loop's, at most `timeout` seconds."""
        if timeout is not None and timeout <= 0:
            return super().select(0)  # the loop has something to do, and that comes before what is ready now
        self.wanted = False
        deadline = 0.0 if timeout is None else time.monotonic() + timeout
        poll, readers = self._epoll.poll, self.readers
        while True:
            others = False
            ready = poll(timeout, _EVENTS)
            for descriptor, event in ready:
                reader = readers.get(descriptor)
                if reader is None or event != select.EPOLLIN:
                    others = True
                else:
                    reader()
            if others:
                return super().select(0)
            if self.wanted or not ready:
                return []
            if timeout is not None:
                timeout = deadline - time.monotonic()
                if timeout <= 0:
                    return []

    def serve(self) -> bool:
        """Call the readers that are ready; whether there is something for the loop."""
        self.wanted = False
        for descriptor, event in self._epoll.poll(0, _EVENTS):
            reader = self.readers.get(descriptor)
            if reader is None or event != select.EPOLLIN:
                self.wanted = True
            else:
                reader()
        return self.wanted

    def close(self) -> None:
        """Close it."""
        self._epoll.close()
        super().close()


class Loop(asyncio.SelectorEventLoop):
    """An event loop with such a selector, which it tells when it is wanted."""

    def __init__(self) -> None:
        self.selector = Selector()
        super().__init__(self.selector)

    def call_soon(self, callback: Callable[[Unpack[_Arguments]], object], *args: *_Arguments,
                  context: Context | None = None) -> asyncio.Handle:
        """As any loop's."""
        self.selector.wanted = True
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[[Unpack[_Arguments]], object], *args: *_Arguments,
                context: Context | None = None) -> asyncio.TimerHandle:
        """As any loop's."""
        self.selector.wanted = True
        return super().call_at(when, callback, *args, context=context)

    def stop(self) -> None:
        """As any loop's."""
        self.selector.wanted = True
        super().stop()


def readers() -> dict[int, Callable[[], None]] | None:
    """The running loop's `Selector.readers`, if it is such a loop."""
    loop = asyncio.get_running_loop()
    return loop.selector.readers if isinstance(loop, Loop) else None
