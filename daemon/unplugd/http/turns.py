"""The event loop's time for HTTP: all clients together have one turn in each of its iterations.

Were it a turn for each client, sixty of them would hold up the guests that wait for the loop. Guests whose connections
the compiled part holds are served within a turn too. Where these keep it busy, HTTP still has a tenth of the time: it
comes to its end, however busy guests are. What is done in a turn is client.py's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from unplugd.host.longwork import serve_guests

TURN = 0.5e-3
"""Seconds of a turn. The last piece of work in it may take longer: it is not cut."""

_SHARE = 0.1
"""Of the time that others took, what HTTP has for itself then."""


class HttpTurns:
    """Who has the next turn. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._until = 0.0
        self._mine_until = 0.0
        self._left = 0.0

    async def begin(self) -> None:
        """Wait for a turn; clients have theirs in the order in which they come."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._next)
        self._waiting.append(turn)
        self._left = time.monotonic()
        await turn
        now = time.monotonic()
        self._until = now + TURN
        self._rest(now, now - self._left)

    async def go_on(self) -> None:
        """Between two pieces of work: let guests be served, and others have the loop if the turn is over."""
        began = time.monotonic()
        if began < self._mine_until:
            return
        serve_guests()
        if began >= self._until:
            await self.begin()
        else:
            now = time.monotonic()
            self._rest(now, now - began)

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():     # it is, where its client has gone
                turn.set_result(None)
                break
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)

    def _rest(self, now: float, others: float) -> None:
        self._mine_until = now + others * _SHARE
