"""A domain's connections that the compiled part holds: it accepts, reads, answers and closes them (fastpath/held.c).

A build number is asked about here; where xenstore has no such entry, the compiled part goes on by itself. Any other
frame that is not ordinary comes as an errand: Python answers it, the connection stays where it is. What an errand
cannot bring to its end, since half a frame is left, or the client does not read, or has sent what it may not,
becomes a Connection, which has all of that.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial

from unplugd.core.guest import ALLOWED, Verdict
from unplugd.core.stream import IoreqStream, NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.sockets._fastpath import Poller, Tail
from unplugd.sockets.connection import Connection, Judge

Begin = Callable[[Connection], None]
"""What a connection begins with."""


class Errand:
    """What Python does for a held connection until it is answered; nothing is read from it meanwhile."""

    __slots__ = ("deadline", "descriptor", "known", "out", "since", "stream")

    def __init__(self, descriptor: int, stream: IoreqStream) -> None:
        self.descriptor = descriptor
        self.stream = stream
        self.out = b""
        """Answers that are not sent yet."""
        self.since = time.monotonic()
        self.deadline = 0.0
        """When a frame's lookups must be over (time.monotonic())."""
        self.known: tuple[NeedVerdict, Verdict] | None = None
        """A verdict that is there before the frame has come to need it."""


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
        self._poller.listen(descriptor, self._tail, self._handed, self._asked, -1 if uid is None else uid, most, in_all)

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

    def _asked(self, descriptor: int, product: int, build: int) -> bool:
        """A connection waits for a build number's verdict. False: take the frame as an errand."""
        if self._closed or self._domain.turns.over:
            return False
        need = NeedVerdict(product, build, first=True)
        deadline = time.monotonic() + self._domain.settings.config.blacklist.lookup_timeout
        self._look_up(descriptor, need, deadline, partial(self._said, descriptor, need, self._domain.resets))
        return True

    def _said(self, descriptor: int, need: NeedVerdict, resets: int, verdict: Verdict) -> None:
        """The verdict on what was asked when the guest had been reset so often."""
        same = resets == self._domain.resets
        if same and verdict is ALLOWED:
            unsent = self._poller.allow(descriptor)
            if unsent == b"":
                return
            if unsent is not None:
                self._take_over(descriptor, self._stream(), lambda connection: connection.begin(unsent, b""))
                return
        errand = Errand(descriptor, self._stream())
        if same:
            errand.known = need, verdict
        self._serve(errand, partial(errand.stream.receive, self._poller.question(descriptor)))

    def _stream(self) -> IoreqStream:
        settings = self._domain.settings
        return IoreqStream(self._domain.guest, settings.dispatch, settings.counters.ioreqs)

    def _serve(self, errand: Errand, take: Callable[[float], bytes]) -> None:
        """Answer what `take` returns, behind what was answered before."""
        domain, stream = self._domain, errand.stream
        domain.catch_up()   # other connections went on meanwhile
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
        if errand.known is not None and errand.known[0] == need:
            self._serve(errand, partial(errand.stream.resume, errand.known[1]))
        else:
            self._look_up(errand.descriptor, need, errand.deadline,
                          lambda verdict: self._serve(errand, partial(errand.stream.resume, verdict)))

    def _look_up(self, descriptor: int, need: NeedVerdict, deadline: float, go_on: Callable[[Verdict], None]) -> None:
        """Go on with the verdict, when it is there and it is the domain's turn."""
        try:
            verdict = asyncio.ensure_future(self._judge(self._domain, need, deadline))
        except Exception as error:  # noqa: BLE001 - as in _serve()
            self._fail(descriptor, error)
            return
        self._waiting[descriptor] = verdict
        verdict.add_done_callback(partial(self._judged, descriptor, go_on))

    def _judged(self, descriptor: int, go_on: Callable[[Verdict], None], verdict: asyncio.Future[Verdict]) -> None:
        if verdict.cancelled():
            return  # close() did that
        error = verdict.exception()
        if isinstance(error, Exception):
            del self._waiting[descriptor]
            self._fail(descriptor, error)
        elif self._domain.turns.over:
            self._domain.turns.later(partial(self._go_on, descriptor, go_on, verdict.result()))
        else:
            self._go_on(descriptor, go_on, verdict.result())

    def _go_on(self, descriptor: int, go_on: Callable[[Verdict], None], verdict: Verdict) -> None:
        if self._closed:
            return
        del self._waiting[descriptor]
        try:
            go_on(verdict)
        except Exception as error:  # noqa: BLE001 - as in _serve()
            self._fail(descriptor, error)

    def _take_over(self, descriptor: int, stream: IoreqStream, begin: Begin) -> None:
        self._poller.take(descriptor)
        self._become(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor), stream, begin)

    def _fail(self, descriptor: int, error: Exception) -> None:
        """As Connection._fail(): the client must see that no answer will come."""
        message = f"a connection of domain {self._domain.domid} cannot be served and is closed"
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
        self._poller.cut(descriptor)
