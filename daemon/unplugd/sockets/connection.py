"""One connection of a device model: reads what came, answers it with one write, and stops reading when it must.

The path of an access that needs nobody else's word is data_received() from begin to end: no task, no await. Framing
and protocol are core/stream.py's; what an access leaves behind is Domain.settle()'s; the socket is wire.py's.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial

from unplugd.core.guest import Verdict
from unplugd.core.stream import IoreqStream, NeedTokens, NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.errors import ClientFault
from unplugd.sinks.records import Event
from unplugd.sockets.loop import poller
from unplugd.sockets.wire import Wire

READ_SIZE = 16 * 1024
"""Bytes taken at a time: at most 512 accesses before other guests have their turn."""

LEAST_READ = 1024
SLOW = 200e-6
"""Where answers take longer than SLOW seconds (a flood of log lines), less is taken next time: others wait for it."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a client has to read its last responses before its connection is cut."""

Judge = Callable[[Domain, NeedVerdict, float], Awaitable[Verdict]]
"""Looks a build number up; the float is the time.monotonic() at which the frame's lookups must be over."""


class Connection:
    """One accepted connection to a domain's socket."""

    def __init__(self, domain: Domain, judge: Judge, closed: Callable[[Connection], None],
                 stream: IoreqStream | None = None, begin: Callable[[Connection], None] | None = None) -> None:
        """`stream` is where somebody else got to with it, and `begin` is called once it has its socket."""
        self.domain = domain
        self.window = READ_SIZE
        """Bytes to read at a time."""
        self._judge = judge
        self._closed = closed
        self._counters = domain.settings.counters
        self._stream = stream or IoreqStream(domain.guest, domain.settings.dispatch, self._counters.ioreqs)
        self._begin = begin
        self._wire: Wire | None = None
        self._full = False
        self._paused = False
        self._ended = False
        self._closing = False
        self._since = 0.0
        self._late = b""
        """Read, and not looked at yet: the domain's turn of the loop was over (turns.py)."""
        self._deadline = 0.0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._poller = poller()
        self._descriptor = -1

        self._attached = False
        if stream is not None:
            self._attach()  # it was counted as somebody else's until now

    def _attach(self) -> None:
        if not self._attached:
            self._attached = True
            self.domain.attached += 1

    def detach(self) -> None:
        """It is none of the domain's connections any more."""
        if self._attached:
            self._attached = False
            self.domain.attached -= 1

    # --- its socket (wire.Owner)

    def serve(self, peer: socket.socket) -> None:
        """A client that may connect has connected. Raises OSError and MemoryError, and then closes it."""
        wire = None
        try:
            wire = Wire(peer, self)
            self.connection_made(wire)
            if not self._paused:
                wire.resume_reading()
        except (OSError, MemoryError):
            if wire is not None:
                wire.abort()
            else:
                peer.close()
                self.connection_lost()
            raise

    def connection_made(self, wire: Wire) -> None:
        """From now on it has its socket."""
        self._wire = wire
        self._attach()
        if self._poller is not None and self.domain.tail is not None:
            self._descriptor = wire.descriptor
            self._poller.attach(self._descriptor, self.domain.tail, self._handed)
        self._share()
        begin, self._begin = self._begin, None
        if begin is not None:
            begin(self)

    def connection_lost(self) -> None:
        """The client is gone. The domain's state stays as it is."""
        self.detach()
        self._wire = None
        if self._poller is not None:
            self._poller.detach(self._descriptor)
            self._poller = None
        if self._task is not None:
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._closed(self)

    def eof_received(self) -> bool:
        """The client sends no more; what it sent before is still answered."""
        self._ended = True
        self._share()
        return self._stream.waiting is not None or self._stream.stopped or bool(self._late)

    def pause_writing(self) -> None:
        """The client does not read: neither do we."""
        self._full = True
        self._read_or_not()

    def resume_writing(self) -> None:
        """The client has read."""
        self._full = False
        self._go_on()

    # --- the fast path

    def _share(self) -> None:
        """Let the fast path serve what comes next, or not: it must find a frame's begin, and nobody that is waited for.

        To be called whenever that changes; what it cannot serve comes to _handed().
        """
        if self._poller is not None:
            ready = self._wire is not None and self._stream.idle and not (
                self._full or self._paused or self._ended or self._closing or self._late
                or self._wire.unsent)
            self._poller.arm(self._descriptor, self.window if ready else 0)

    def _handed(self, _descriptor: int, unsent: bytes, data: bytes | None) -> None:
        """The fast path has read `data` and goes no further; `unsent` is what was answered before and did not fit."""
        self.begin(unsent, data or b"")

    def begin(self, unsent: bytes, data: bytes) -> None:
        """Go on with what was answered before and not sent, and what was read and not looked at."""
        if self._wire is None or self._closing:
            return
        if unsent:
            self._wire.write(unsent)
        self.data_received(data)

    def go_on(self, out: bytes, since: float) -> None:
        """Go on with what the stream has answered; it was read at `since`."""
        self._since = since
        self._answer(out, time.monotonic())

    # --- answers

    def data_received(self, data: bytes) -> None:
        """Answer what is complete in `data`; when it is the domain's turn, if that is over."""
        if self.domain.turns.over:
            self._late = data
            self._read_or_not()
            self.domain.turns.later(self._catch_up)
            return
        self.domain.catch_up()
        self._since = now = time.monotonic()
        try:
            self._answer(self._stream.receive(data, now), now)
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection is not served and no other suffers
            self._fail(error)

    def _catch_up(self) -> None:
        late, self._late = self._late, b""
        self._go_on_with(partial(self._stream.receive, late))

    def _go_on_with(self, take: Callable[[float], bytes], *, fresh: bool = True) -> None:
        """Answer what `take` returns, given the time; `fresh` where the time that this takes counts from now on."""
        if self._wire is None or self._closing:
            return
        self.domain.catch_up()
        now = time.monotonic()
        if fresh:
            self._since = now
        try:
            self._answer(take(now), now)
        except Exception as error:  # noqa: BLE001 - as in data_received()
            self._fail(error)

    def _answer(self, out: bytes, now: float) -> None:
        if self._closing:
            return
        self.domain.settle(now)
        done = time.monotonic()
        took = done - now
        self.domain.turns.charge(took)
        if out:
            self._counters.observe(done - self._since)
            if took > SLOW:
                self.window = max(LEAST_READ, self.window // 2)
            elif self.window < READ_SIZE:
                self.window *= 2
            if self._wire is not None:
                self._wire.write(out)
        stream = self._stream
        if stream.waiting is None and stream.fault is None and not stream.stopped:
            if self._paused or self._ended:
                self._read_or_not()
        else:
            self._hold()
        self._share()

    def _hold(self) -> None:
        """Something else must come first: a verdict, tokens, room for responses, or the end."""
        stream = self._stream
        match stream.waiting:
            case NeedVerdict() as need:
                if need.first:
                    self._deadline = time.monotonic() + self.domain.settings.config.blacklist.lookup_timeout
                self._task = asyncio.get_running_loop().create_task(self._await_verdict(need))
            case NeedTokens(seconds):
                self._timer = asyncio.get_running_loop().call_later(seconds, self._tokens)
            case None if stream.fault is not None:
                self._refuse(stream.fault)
                return
            case None if not self._full:
                asyncio.get_running_loop().call_soon(self._go_on)
        self._read_or_not()

    def _read_or_not(self) -> None:
        stream = self._stream
        blocked = self._full or stream.waiting is not None or stream.stopped or bool(self._late)
        wire = self._wire
        if wire is None or self._closing:
            return
        if self._ended and not blocked:
            self.close()
        elif blocked != self._paused:
            self._paused = blocked
            if blocked:
                wire.pause_reading()
            else:
                wire.resume_reading()
        self._share()

    def _go_on(self) -> None:
        if self._stream.stopped and not self._full and not self._closing:
            if self.domain.turns.over:
                self.domain.turns.later(self._proceed)
            else:
                self._proceed()
        else:
            self._read_or_not()

    def _proceed(self) -> None:
        if self._stream.stopped and not self._full:
            self._go_on_with(self._stream.proceed)

    async def _await_verdict(self, need: NeedVerdict) -> None:
        try:
            verdict = await self._judge(self.domain, need, self._deadline)
        except Exception as error:  # noqa: BLE001 - as in data_received()
            self._fail(error)
            return
        self._task = None
        self._resume(verdict)

    def _tokens(self) -> None:
        self._timer = None
        self._resume(None)

    def _resume(self, verdict: Verdict | None) -> None:
        """Go on with what waited for a verdict or for tokens, when it is the domain's turn."""
        if self.domain.turns.over:
            self.domain.turns.later(partial(self._resume_now, verdict))
        else:
            self._resume_now(verdict)

    def _resume_now(self, verdict: Verdict | None) -> None:
        self._go_on_with(partial(self._stream.resume, verdict), fresh=False)

    def _fail(self, error: Exception) -> None:
        """No memory, or a fault of unplugd's own: the client gets no answer, so it must see that none will come."""
        asyncio.get_running_loop().call_exception_handler({
            "message": f"a connection of domain {self.domain.domid} cannot be served and is closed", "exception": error,
        })
        self._closing = True
        if self._wire is not None:
            self._wire.abort()

    def _refuse(self, fault: ClientFault) -> None:
        self._counters.protocol_errors[fault.reason] += 1
        self.domain.records.complain(Event.PROTOCOL_FAULT, f"connection closed: its device model sent {fault.detail}"
                                                   f" ({fault.reason})")
        self.close()

    def close(self) -> None:
        """Close once the client has read what was answered, at the latest after CLOSE_TIMEOUT."""
        if self._closing:
            return
        self._closing = True
        wire = self._wire
        if wire is not None:
            self._share()
            if self._task is not None:
                self._task.cancel()
            if self._timer is not None:
                self._timer.cancel()
            wire.close()
            self._timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, wire.abort)

    def configure(self) -> None:
        """Follow a reload, from the next frame on."""
        self._stream.use(self.domain.settings.dispatch)
