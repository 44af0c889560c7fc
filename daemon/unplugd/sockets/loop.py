"""The event loop with the compiled part in it: unplugd.sockets._fastpath, where it was built, else pureloop.py's.

The compiled part changes speed alone. It stands where the loop waits: while it waits, it accepts device models, answers
what a driver's start and its log are made of, and hands everything else over (held.py; sources: daemon/fastpath).
UNPLUGD_PURE=1 in the environment does without it.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from unplugd.core.counters import DURATION_BOUNDS
from unplugd.core.protocol import Effect
from unplugd.sockets import pureloop

if TYPE_CHECKING:
    from unplugd.domains.domain import Domain
    from unplugd.sockets._fastpath import Poller, Tail

STEPS = {1: Effect.MAGIC, 4: Effect.VERSION, 5: Effect.PRODUCT, 6: Effect.UNPLUG, 7: Effect.BUILD}
"""What the compiled part calls the steps of a driver that comes up (fastpath/frame.h)."""

Handed = Callable[[int, bytes, bytes | None], None]
"""Takes a connection over: its descriptor, responses that could not be sent, and bytes from a frame on that is not the
fast path's; None in their place for somebody who has just connected."""


class Selector(selectors.EpollSelector):
    """asyncio's selector, which serves connections while it waits."""

    def __init__(self, poller: Callable[[int, tuple[float, ...]], Poller]) -> None:
        super().__init__()
        self.poller = poller(self.fileno(), DURATION_BOUNDS)
        self.hand: Callable[[Handed, int, bytes, bytes | None], object] = _at_once
        """Has a connection taken over soon, before anything that select() returns."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for what is Python's, at most `timeout` seconds."""
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
        """Close the epoll, and what the Poller has in it."""
        self.poller.close()
        super().close()


def _at_once(callback: Handed, descriptor: int, unsent: bytes, data: bytes | None) -> None:
    callback(descriptor, unsent, data)


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a Poller in its selector."""

    def __init__(self, poller: Callable[[int, tuple[float, ...]], Poller]) -> None:
        selector = Selector(poller)
        self.poller = selector.poller
        super().__init__(selector)
        selector.hand = self.call_soon


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop that there is here."""
    if not os.environ.get("UNPLUGD_PURE"):
        try:
            from unplugd.sockets._fastpath import Poller
        except ImportError:
            pass
        else:
            return Loop(Poller)
    return pureloop.Loop()


def poller() -> Poller | None:
    """The running loop's Poller, if it has one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop.poller if isinstance(loop, Loop) else None


def serve_guests() -> bool:
    """Serve guests that wait: for whoever makes something long, between two pieces of it, with every domain settled.

    True where the loop is to turn: there is something for others than these guests, or it is another kind of loop.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, Loop):
        return loop.poller.serve()
    return not isinstance(loop, pureloop.Loop) or loop.selector.serve()


def tell(domains: int) -> Iterator[None]:
    """Have so many domains told what was served for them, those first who wait longest, a slice at a time."""
    holder = poller()
    for _ in range(domains):    # a slice is one domain at least; those that come meanwhile are not waited for
        if holder is None or not holder.tell():
            return
        yield


def tail_of(domain: Domain) -> Tail | None:
    """What of `domain` may change outside of Python, where there is a Poller."""
    if poller() is None:
        return None
    from unplugd.sockets._fastpath import Tail

    return Tail(domain, domain.guest.log.partial, domain.state.mapping)
