"""The background tasks, and the handling of unplugd's own faults: they are recorded, and serious ones end the process.

systemd then starts it again, with everything that was acknowledged. Faults of guests, device models, xenstore and the
host do not count as faults here; errors.py has the tree.
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
    """The service's tasks. `say` writes a record, `end` ends the service with an exit status."""

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
        """A task that the service needs: if it ends, the service ends, and systemd starts it again."""
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
            # the state in memory may be incomplete: the next process starts with the stored state
            self._say(Event.INTERNAL, f"unplugd ends because of an internal fault: {_traceback(task.exception())}")
            self._end(1)

    def surprised(self, _loop: asyncio.AbstractEventLoop | None, context: dict[str, object]) -> None:
        """An uncaught exception, which is a fault of unplugd. It is recorded, and the service continues."""
        if "accept" in str(context.get("message")):
            self._full(context.get("exception"))
            return
        self._surprises += 1
        if self._surprises <= SURPRISES:
            self._say(Event.INTERNAL, f"{context.get('message')}: {_traceback(context.get('exception'))}")

    def unraisable(self, fault: sys.UnraisableHookArgs) -> None:
        """An exception in the compiled part or in a finalizer, which Python cannot raise (sys.unraisablehook)."""
        message = fault.err_msg or f"exception ignored in {fault.object!r}"
        self.surprised(None, {"message": message, "exception": fault.exc_value})

    def _full(self, error: object) -> None:
        """asyncio could not accept a connection. It reports each one, so the records are limited to one per minute."""
        now = time.monotonic()
        if now >= self._full_until:
            self._full_until = now + FULL_INTERVAL
            self._say(Event.CONNECTION_LIMIT, f"connections wait: they cannot be accepted: {error}")


def _traceback(error: object) -> str:
    """An exception with its place in the code, for a record."""
    lines = traceback.format_exception(error)[-2:] if isinstance(error, BaseException) else [str(error)]
    return " ".join(" ".join(lines).split())[:1000]
