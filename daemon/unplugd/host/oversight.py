"""What runs in the background, and what becomes of unplugd's own faults: they are recorded, and the worst end it.

systemd starts it anew then, and what was acknowledged is kept. Faults of guests, device models, xenstore and the host
are no faults here; errors.py has the tree.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Callable, Coroutine

from unplugd.sinks.records import Event

SURPRISES = 100
"""Uncaught exceptions that are recorded; the rest would only fill the journal."""

FULL_INTERVAL = 60.0
"""Seconds between two records about connections that cannot be accepted."""


class Oversight:
    """The service's tasks. `say` records, `end` ends the service with an exit status."""

    def __init__(self, say: Callable[[Event, str], None], end: Callable[[int], None]) -> None:
        self._say = say
        self._end = end
        self._tasks: set[asyncio.Task[None]] = set()
        self._surprises = 0
        self._full_until = 0.0

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run it in the background. An exception that it raises ends the service."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def keep_running(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """A task that the service cannot do without: if it ends, so does the service, and systemd starts it anew."""
        task = self.spawn(work)
        task.add_done_callback(self._missed)
        return task

    async def cancel(self, but: set[asyncio.Task[None]]) -> None:
        """End all tasks but these, and wait until they have."""
        ending = self._tasks - but
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _missed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._end(1)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # nobody knows what was left undone: the next process begins with what is kept
            self._say(Event.INTERNAL, f"unplugd ends because of a fault of its own: {_traceback(task.exception())}")
            self._end(1)

    def surprised(self, _loop: asyncio.AbstractEventLoop | None, context: dict[str, object]) -> None:
        """An exception that nobody caught: unplugd's own fault. It is recorded, and the service goes on."""
        if "accept" in str(context.get("message")):
            self._full(context.get("exception"))
            return
        self._surprises += 1
        if self._surprises <= SURPRISES:
            self._say(Event.INTERNAL, f"{context.get('message')}: {_traceback(context.get('exception'))}")

    def unraisable(self, fault: sys.UnraisableHookArgs) -> None:
        """An exception in the compiled part, or where an object ends, that nobody could have caught (sys)."""
        message = fault.err_msg or f"exception ignored in {fault.object!r}"
        self.surprised(None, {"message": message, "exception": fault.exc_value})

    def _full(self, error: object) -> None:
        """asyncio could not accept a connection, and says so for each of them: one record a minute is enough."""
        now = time.monotonic()
        if now >= self._full_until:
            self._full_until = now + FULL_INTERVAL
            self._say(Event.CONNECTION_LIMIT, f"connections wait: they cannot be accepted: {error}")


def _traceback(error: object) -> str:
    """An exception with the place that it comes from, for a record."""
    lines = traceback.format_exception(error)[-2:] if isinstance(error, BaseException) else [str(error)]
    return " ".join(" ".join(lines).split())[:1000]
