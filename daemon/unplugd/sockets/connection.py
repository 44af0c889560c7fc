"""One connection of a device model: what its table does not answer is answered here, and it is closed in the end.

A Poller reads the connection and answers by the domain's table (poller.py, or the compiled part). What comes to
_handed() begins with a frame that no row answers. Framing and protocol are in core/stream.py; what an access leaves
behind is in Domain.settle().
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial

from unplugd.core.guest import Verdict
from unplugd.core.stream import IoreqStream, NeedTokens, NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.errors import ClientFault
from unplugd.sinks.records import Event
from unplugd.sockets.poller import ReadsConnections

CLOSE_TIMEOUT = 5.0
"""Seconds that a client has to read its last responses before its connection is closed all the same."""

LONGEST_WAIT = 1.0
"""Seconds after which a response that waits for tokens is looked at again."""

Judge = Callable[[Domain, NeedVerdict, float], asyncio.Future[Verdict]]
"""Looks a build number up; the float is the time.monotonic() at which the frame's lookups must be over."""


class Connection:
    """One accepted connection to a domain's socket. All methods belong to the event loop's thread."""

    __slots__ = (
        "_closed", "_closing", "_data", "_deadline", "_descriptor", "_domain", "_judge", "_out", "_peer", "_poller",
        "_since", "_stream", "_timer", "_verdict", "_writing",
    )

    def __init__(self, domain: Domain, peer: socket.socket, poller: ReadsConnections, judge: Judge,
                 closed: Callable[[Connection], None]) -> None:
        """Serve a client that may connect. `closed` is called at its end. Raises OSError and MemoryError."""
        peer.setblocking(False)
        self._domain = domain
        self._peer = peer
        self._descriptor = peer.fileno()
        self._poller = poller
        self._judge = judge
        self._closed = closed
        self._stream = IoreqStream(domain.guest, domain.settings.counters, domain)
        self._out = b""
        """Answers that are not sent."""
        self._data = b""
        """Bytes that were read and are not served."""
        self._writing = False
        """The loop says when the socket takes more."""
        self._closing = False
        """Nothing is served any more."""
        self._since = 0.0
        self._deadline = 0.0
        self._verdict: asyncio.Future[Verdict] | None = None
        self._timer: asyncio.TimerHandle | None = None
        poller.attach(self._descriptor, domain.table, self._handed)

    # --- what the Poller hands over

    def _handed(self, unsent: bytes, data: bytes | None) -> None:
        if self._closing:
            return
        if data is None:  # the client is gone
            self._end()
            return
        self._out, self._data = unsent, data
        self._since = time.monotonic()
        if data:
            self._when_it_is_its_turn(self._serve)
        else:
            self._send()

    def _when_it_is_its_turn(self, work: Callable[[], None]) -> None:
        if self._domain.turns.over:
            self._domain.turns.later(work)
        else:
            work()

    def _serve(self) -> None:
        """Answer what was read, as far as it goes."""
        if not self._closing:
            self._answer(self._receive)

    def _receive(self, now: float) -> bytes:
        answers, used = self._stream.receive(self._data, now)
        self._data = self._data[used:]
        return answers

    def _answer(self, take: Callable[[float], bytes]) -> None:
        """Send what `take` answers, given the time, once its consequences are recorded and kept."""
        domain = self._domain
        now = time.monotonic()
        try:
            domain.catch_up()
            self._out += take(now)
            domain.settle(now)
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection is not served and no other suffers
            self._fail(error)
            return
        domain.turns.charge(time.monotonic() - now)
        match self._stream.waiting:
            case NeedVerdict() as need:
                self._ask(need)
            case NeedTokens(seconds):
                # limits may change meanwhile: see how it stands now and then
                self._timer = asyncio.get_running_loop().call_later(min(seconds, LONGEST_WAIT), self._resume, None)
            case None:
                domain.settings.counters.observe(time.monotonic() - self._since)
                self._since = now
                self._send()

    # --- what a frame waits for

    def _ask(self, need: NeedVerdict) -> None:
        if need.first:
            self._deadline = time.monotonic() + self._domain.settings.config.blacklist.lookup_timeout
        try:
            self._verdict = self._judge(self._domain, need, self._deadline)
        except Exception as error:  # noqa: BLE001 - as in _answer()
            self._fail(error)
            return
        self._verdict.add_done_callback(self._judged)

    def _judged(self, verdict: asyncio.Future[Verdict]) -> None:
        self._verdict = None
        if verdict.cancelled() or self._closing:
            return
        error = verdict.exception()
        if isinstance(error, Exception):
            self._fail(error)
        else:
            self._resume(verdict.result())

    def _resume(self, verdict: Verdict | None) -> None:
        """Go on with what waited for a verdict or for tokens, when it is the domain's turn."""
        self._timer = None
        self._when_it_is_its_turn(partial(self._resume_now, verdict))

    def _resume_now(self, verdict: Verdict | None) -> None:
        if not self._closing:
            self._answer(partial(self._go_on, verdict))

    def _go_on(self, verdict: Verdict | None, now: float) -> bytes:
        answers = self._stream.resume(verdict, now)
        return answers if self._stream.waiting is not None else answers + self._receive(now)

    # --- the way back

    def _send(self) -> None:
        """Send the answers; then there is more to be served, or the Poller has the connection again, or it ends."""
        stream = self._stream
        try:
            if self._out:
                self._out = self._out[self._poller.send(self._descriptor, self._out):]
            if self._out:
                asyncio.get_running_loop().add_writer(self._descriptor, self._writable)
                self._writing = True
            elif self._closing:
                self._end()
            elif stream.fault is not None:
                self._refuse(stream.fault)
            elif stream.stopped:
                asyncio.get_running_loop().call_soon(self._when_it_is_its_turn, self._serve)
            else:
                rest, self._data = self._data, b""
                self._poller.resume(self._descriptor, rest)
        except (OSError, MemoryError) as error:
            self._fail(error)

    def _writable(self) -> None:
        self._stop_writing()
        self._send()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            asyncio.get_running_loop().remove_writer(self._descriptor)

    # --- the end

    def _fail(self, error: Exception) -> None:
        """No memory, or a fault of unplugd's own: the client gets no answer, so it must see that none will come."""
        asyncio.get_running_loop().call_exception_handler({
            "message": f"a connection of domain {self._domain.domid} cannot be served and is closed",
            "exception": error,
        })
        self._end()

    def _refuse(self, fault: ClientFault) -> None:
        self._domain.settings.counters.protocol_errors[fault.reason] += 1
        self._domain.records.complain(Event.PROTOCOL_FAULT, f"connection closed: its device model sent {fault.detail}"
                                                            f" ({fault.reason})")
        self._end()

    def close(self) -> None:
        """Close once the client has taken what was answered, at the latest after CLOSE_TIMEOUT."""
        if self._closing:
            return
        self._stop_waiting()
        self._closing = True
        self._timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self._end)
        self._send()

    def _stop_waiting(self) -> None:
        if self._verdict is not None:
            self._verdict.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        if self._peer.fileno() < 0:
            return
        self._closing = True
        self._stop_waiting()
        self._stop_writing()
        self._poller.detach(self._descriptor)
        self._peer.close()
        self._closed(self)
