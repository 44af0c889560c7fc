"""A domain's turn of the event loop: what one guest causes never keeps the loop from another for long.

A domain may have hundreds of connections, and each can bring work (frames with thousands of log bytes). All of them
together have BUDGET an iteration of the loop; what is beyond waits, in order, for the iterations that follow, and the
other domains are served in between. One connection's share of that is connection.py's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

BUDGET = 0.5e-3
"""Seconds of work for one domain in an iteration of the loop. The last piece of it may take longer: it is not cut."""

MINOR = BUDGET / 8
"""What is not worth a new turn: so little may add up over several iterations."""


class Turns:
    """The turns of one domain. All methods belong to the event loop's thread."""

    __slots__ = ("_queue", "_scheduled", "_spent")

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None]] | None = None  # most domains never have one
        self._scheduled = False
        self._spent = 0.0

    @property
    def over(self) -> bool:
        """Whether the domain must wait for its next turn: its time is spent, or others of its own wait before."""
        return self._spent >= BUDGET or bool(self._queue)

    def charge(self, seconds: float) -> None:
        """The domain was worked for so long."""
        self._spent += seconds
        if self._spent > MINOR and not self._scheduled:
            self._schedule()

    def later(self, work: Callable[[], None]) -> None:
        """Do `work`, which charges for itself, when it is the domain's turn again."""
        if self._queue is None:
            self._queue = deque()
        self._queue.append(work)
        if not self._scheduled:
            self._schedule()

    def next(self, work: Callable[[], None]) -> None:
        """The same, before all that waits already."""
        self.later(work)
        if self._queue is not None:
            self._queue.rotate()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Another iteration of the loop has begun; this comes before what it found ready."""
        self._scheduled = False
        self._spent = 0.0
        while self._queue and self._spent < BUDGET:
            self._queue.popleft()()
        if self._queue:
            if not self._scheduled:
                self._schedule()
        else:
            self._queue = None
