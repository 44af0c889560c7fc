"""A domain's connections that the compiled part holds: it accepts, reads, answers and closes them (fastpath/held.c).

A frame that is not ordinary comes here as an errand: Python answers it, the connection stays where it is. What an
errand cannot bring to its end, since half a frame is left, or the client does not read, or has sent what it may not,
becomes a Connection, which has all of that.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial

from unplugd._fastpath import Poller, Tail
from unplugd.connection import Connection, Judge
from unplugd.core.guest import Verdict
from unplugd.core.stream import IoreqStream, NeedVerdict
from unplugd.domain import Domain

Begin = Callable[[Connection], None]
"""What a connection begins with."""


class Errand:
    """What Python does for a held connection until it is answered; nothing is read from it meanwhile."""

    __slots__ = ("deadline", "descriptor", "out", "since", "stream")

    def __init__(self, descriptor: int, stream: IoreqStream) -> None:
        self.descriptor = descriptor
        self.stream = stream
        self.out = b""
        """Answers that are not sent yet."""
        self.since = time.monotonic()
        self.deadline = 0.0
        """When a frame's lookups must be over (time.monotonic())."""


class Held:
    """The held connections of one domain. All methods belong to the event loop's thread."""

    def __init__(self, domain: Domain, poller: Poller, tail: Tail, judge: Judge,
                 admit: Callable[[socket.socket], None], become: Callable[[socket.socket, IoreqStream, Begin], None],
                 ) -> None:
        """`admit` decides on a client whom the compiled part did not accept; `become` makes one a Connection."""
        self._domain = domain
        self._poller = poller
        self._tail = tail
        self._judge = judge
        self._admit = admit
        self._become = become
        self._waiting: dict[int, asyncio.Future[Verdict]] = {}
        """What errands wait for, by descriptor."""
        self._closed = False

    def listen(self, descriptor: int, uid: int | None, most: int, in_all: int) -> None:
        """Accept at this socket root and `uid`, up to `most` connections of the domain and `in_all` of all."""
        self._poller.listen(descriptor, self._tail, self._handed, -1 if uid is None else uid, most, in_all)

    def close(self, listening: int | None) -> None:
        """Close them all, and accept no more at `listening`."""
        self._closed = True
        if listening is not None:
            self._poller.detach(listening)
        self._poller.hang_up(self._tail)
        for waiting in self._waiting.values():
            waiting.cancel()

    def _handed(self, descriptor: int, unsent: bytes, data: bytes | None) -> None:
        if data is None:
            self._admit(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor))
        elif self._closed:
            return  # it was closed between being handed over and now
        elif unsent or self._domain.turns.over:
            self._take_over(descriptor, self._stream(), lambda connection: connection.begin(unsent, data))
        else:
            errand = Errand(descriptor, self._stream())
            self._serve(errand, partial(errand.stream.receive, data))

    def _stream(self) -> IoreqStream:
        settings = self._domain.settings
        return IoreqStream(self._domain.guest, settings.dispatch, settings.counters.ioreqs)

    def _serve(self, errand: Errand, take: Callable[[float], bytes]) -> None:
        """Answer what `take` returns, behind what was answered before."""
        domain, stream = self._domain, errand.stream
        now = time.monotonic()
        try:
            errand.out += take(now)
            if domain.guest.changed or domain.guest.grew or domain.guest.events:
                domain.settle(now)
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection is not served and no other suffers
            self._fail(errand.descriptor, error)
            return
        done = time.monotonic()
        domain.turns.charge(done - now)
        if stream.idle:
            domain.settings.counters.observe(done - errand.since)
            self._answer(errand)
        elif isinstance(stream.waiting, NeedVerdict):
            if stream.waiting.first:
                errand.deadline = now + domain.settings.config.blacklist.lookup_timeout
            self._ask(errand, stream.waiting)
        else:
            self._take_over(errand.descriptor, stream, lambda connection: connection.go_on(errand.out, errand.since))

    def _answer(self, errand: Errand) -> None:
        try:
            sent = self._poller.answer(errand.descriptor, errand.out)
        except OSError as error:
            self._fail(errand.descriptor, error)
            return
        if sent < len(errand.out):
            unsent = errand.out[sent:]
            self._take_over(errand.descriptor, errand.stream, lambda connection: connection.begin(unsent, b""))

    def _ask(self, errand: Errand, need: NeedVerdict) -> None:
        try:
            verdict = asyncio.ensure_future(self._judge(self._domain, need, errand.deadline))
        except Exception as error:  # noqa: BLE001 - as in _serve()
            self._fail(errand.descriptor, error)
            return
        self._waiting[errand.descriptor] = verdict
        verdict.add_done_callback(partial(self._judged, errand))

    def _judged(self, errand: Errand, verdict: asyncio.Future[Verdict]) -> None:
        if verdict.cancelled():
            return  # close() did that
        error = verdict.exception()
        if isinstance(error, Exception):
            del self._waiting[errand.descriptor]
            self._fail(errand.descriptor, error)
        elif self._domain.turns.over:
            self._domain.turns.later(partial(self._resume, errand, verdict.result()))
        else:
            self._resume(errand, verdict.result())

    def _resume(self, errand: Errand, verdict: Verdict) -> None:
        if not self._closed:
            del self._waiting[errand.descriptor]
            self._serve(errand, partial(errand.stream.resume, verdict))

    def _take_over(self, descriptor: int, stream: IoreqStream, begin: Begin) -> None:
        self._poller.take(descriptor)
        self._become(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor), stream, begin)

    def _fail(self, descriptor: int, error: Exception) -> None:
        """As Connection._fail(): the client must see that no answer will come."""
        message = f"a connection of domain {self._domain.domid} cannot be served and is closed"
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
        self._poller.cut(descriptor)
