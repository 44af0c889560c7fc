"""Reads of one node of xenstore by many at once: a thousand guests that boot together ask about the same driver build.

xenstored answers one request of a connection at a time, and with a thousand domains it takes its time for each. So
while a read of a path is under way, all who ask for that path wait for the next one, which is sent as soon as that is
answered. Nobody gets what was read before he asked: what was in xenstore by then counts for him. What an answer means
is verdict.py's.
"""

from __future__ import annotations

import asyncio
from functools import partial

from unplugd.errors import StoreError
from unplugd.xenstore.store import Store

Answer = bytes | StoreError
"""A node's value, or why there is none (NoSuchNode, or xenstored's fault)."""


class SharedReads:
    """Reads through one store. All methods belong to the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way: dict[str, list[asyncio.Future[Answer]]] = {}
        """Who gets the answer to the read of a path that xenstored has."""
        self._next: dict[str, list[asyncio.Future[Answer]]] = {}
        """Who asked since."""

    def read(self, path: str) -> asyncio.Future[Answer]:
        """The node as it is now, or as it becomes later; never an exception. Whoever has waited enough cancels it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if all(asked.done() for asked in self._under_way.get(path, ())):
            # what else is under way was given up by all who asked for it: whoever asks now does not wait for that
            self._send(path, [*self._next.pop(path, ()), future])
        else:
            self._next.setdefault(path, []).append(future)
        return future

    def _send(self, path: str, asked: list[asyncio.Future[Answer]]) -> None:
        self._under_way[path] = asked
        reply = asyncio.ensure_future(self._store.read(path))
        reply.add_done_callback(partial(self._answered, path, asked))

    def _answered(self, path: str, asked: list[asyncio.Future[Answer]], reply: asyncio.Future[bytes]) -> None:
        if self._under_way.get(path) is asked:
            del self._under_way[path]
            waiting = [future for future in self._next.pop(path, ()) if not future.done()]
            if waiting:
                self._send(path, waiting)
        answer: Answer
        try:
            answer = reply.result()
        except StoreError as error:
            answer = error
        for future in asked:
            if not future.done():
                future.set_result(answer)
