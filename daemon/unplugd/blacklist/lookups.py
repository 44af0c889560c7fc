"""Shared reads of xenstore: a thousand guests that boot together look up the same driver build.

xenstored answers one request of a connection at a time, and is slow with a thousand domains. So while a read of a path
is in flight, all further lookups of this path wait for the next read, which is sent when the first is answered. A
lookup never gets a value that was read before it began. verdicts.py interprets the value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from unplugd.errors import StoreError, StoreUnavailable
from unplugd.xenstore.store import Store

Answer = bytes | StoreError
"""A node's value, or why there is none (NoSuchNode, or xenstored's fault)."""


class _Asker(NamedTuple):
    deadline: float
    answered: Callable[[Answer], None]


class SharedReads:
    """Reads through one store. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way: dict[str, list[_Asker]] = {}
        """The lookups that get the answer of the read in flight."""
        self._next: dict[str, list[_Asker]] = {}
        """Who asked since."""
        self._timer: asyncio.TimerHandle | None = None
        """One for all: a thousand guests that ask at once have nearly the same deadline."""

    def read(self, path: str, deadline: float, answered: Callable[[Answer], None]) -> None:
        """Call `answered` with the node as it is now or later.

        It is called with StoreUnavailable if there is no answer by `deadline` (the event loop's time()). It must not
        raise.
        """
        asker = _Asker(deadline, answered)
        if self._under_way.get(path):
            self._next.setdefault(path, []).append(asker)
        else:   # all lookups of the reads in flight have expired: a new lookup does not wait for them
            self._send(path, [*self._next.pop(path, ()), asker])
        if self._timer is None or deadline < self._timer.when():
            self._wake_at(deadline)

    def _send(self, path: str, asked: list[_Asker]) -> None:
        self._under_way[path] = asked
        reply = asyncio.ensure_future(self._store.read(path))
        reply.add_done_callback(partial(self._answered, path, asked))

    def _answered(self, path: str, asked: list[_Asker], reply: asyncio.Future[bytes]) -> None:
        answer: Answer
        try:
            answer = reply.result()
        except StoreError as error:
            answer = error
        for asker in asked:     # should one fail, or the reply above, the others still have their deadline
            asker.answered(answer)
        if self._under_way.get(path) is asked:
            del self._under_way[path]
            if path in self._next:
                self._send(path, self._next.pop(path))
        if self._timer is not None and not self._under_way:
            self._timer.cancel()
            self._timer = None

    # --- expired lookups

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        late = [asker for asked in (*self._under_way.values(), *self._next.values())
                for asker in _taken_out(asked, now)]
        for path in [path for path, asked in self._next.items() if not asked]:
            del self._next[path]
        waiting = [asker.deadline for asked in (*self._under_way.values(), *self._next.values()) for asker in asked]
        if waiting:
            self._wake_at(min(waiting))
        for asker in late:
            asker.answered(StoreUnavailable("no answer in time"))


def _taken_out(asked: list[_Asker], now: float) -> list[_Asker]:
    """The lookups whose deadline has passed; they are removed."""
    late = [asker for asker in asked if asker.deadline <= now]
    if late:
        asked[:] = [asker for asker in asked if asker.deadline > now]
    return late
