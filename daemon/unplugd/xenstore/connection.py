"""One connection to a xenstored: sends requests, matches replies, checks deadlines.

`client` handles watches, transactions and reconnecting.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from unplugd.errors import StoreRefused, StoreUnavailable
from unplugd.xenstore.wire import HEADER, MAX_PAYLOAD, Decoder, Message, Op, WireFault, refusal, request

T = TypeVar("T")

MAX_OUTSTANDING = 16384
"""Maximum number of requests without a reply. An expired request counts until its reply arrives."""

SILENCE = 10.0
"""Seconds without a byte, with outstanding requests, after which the connection is dropped."""

_COARSE = 0.02
"""Minimum seconds between two checks of the deadlines, so that the checks stay cheap with many requests."""


class Pipe(Protocol):
    """The transport of a connection: asyncio's for a socket, `device.DeviceTransport` for the device."""

    def write(self, data: bytes, /) -> None:
        """Send one message; never blocks."""

    def writelines(self, messages: Sequence[bytes], /) -> None:
        """Send messages in order; never blocks."""

    def abort(self) -> None:
        """Close now; the protocol's `connection_lost` follows."""


class _PendingRequest(Generic[T]):
    __slots__ = ("decode", "expires", "future", "late", "op", "path", "refused")

    def __init__(
        self,
        op: int,
        path: str,
        future: asyncio.Future[T],
        expires: float,
        decode: Callable[[bytes], T],
        refused: Callable[[bytes], bool] | None,
        late: Callable[[bytes], object] | None,
    ) -> None:
        self.op = op
        self.path = path
        self.future = future
        self.expires = expires
        self.decode = decode
        self.refused = refused
        self.late = late


class StoreConnection(asyncio.Protocol):
    """The protocol object of one transport. It cannot be used after `lost` is done.

    `on_event(path, token)` is called for every watch event. It must not raise.
    """

    def __init__(self, on_event: Callable[[str, str], None], max_payload: int = MAX_PAYLOAD) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done, with the reason, once the transport is closed."""
        self._on_event = on_event
        self._max_payload = max_payload
        self._decoder = Decoder()
        self._pipe: Pipe | None = None
        self._pending: dict[int, _PendingRequest[Any]] = {}
        self._last_id = 0
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._outbox: list[bytes] = []
        self._reason = ""

    # --- the transport's side ---

    def connection_made(self, transport: asyncio.BaseTransport | Pipe) -> None:
        """asyncio.Protocol."""
        self._pipe = transport  # type: ignore[assignment] # Protocol's signature; a socket's transport is a Pipe

    def data_received(self, data: bytes) -> None:
        """asyncio.Protocol."""
        self._heard = self._loop.time()
        try:
            for message in self._decoder.feed(data):
                self._dispatch(message)
                if self._reason:
                    return
        except (WireFault, ValueError) as fault:
            self.drop(f"xenstored broke its protocol: {fault}")

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio.Protocol."""
        self.drop(str(exc) if exc else "xenstored closed the connection")
        if not self.lost.done():
            self.lost.set_result(self._reason)

    def write_refused(self, message: bytes, code: str) -> None:
        """The device refused this request (`write` failed with the errno `code`); this is its answer."""
        request_id = HEADER.unpack_from(message)[1]
        if request_id in self._pending:
            self._dispatch(Message(Op.ERROR, request_id, code.encode()))

    # --- the client's side ---

    @property
    def dropped(self) -> str:
        """Why the connection was dropped; empty while it is open."""
        return self._reason

    def drop(self, reason: str) -> None:
        """Drop the connection: outstanding requests end in StoreUnavailable(reason). The first reason counts."""
        if self._reason:
            return
        self._reason = reason
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._outbox.clear()
        pending, self._pending = self._pending, {}
        for entry in pending.values():
            if not entry.future.done():
                entry.future.set_exception(StoreUnavailable(reason))
        if self._pipe:
            self._pipe.abort()

    def request(
        self,
        op: int,
        path: str,
        payload: bytes,
        decode: Callable[[bytes], T],
        *,
        tx: int = 0,
        deadline: float = math.inf,
        future: asyncio.Future[T] | None = None,
        refused: Callable[[bytes], bool] | None = None,
        late: Callable[[bytes], object] | None = None,
    ) -> asyncio.Future[T]:
        """Send a request; the future (a new one, or the one given) gets `decode(reply's payload)`.

        `path` is for errors. `refused(code)` may take over an error answer, and the future with it, by returning True.
        `late(payload)` is called with a reply that arrives after the deadline or after the future was cancelled.
        """
        if future is None:
            future = self._loop.create_future()
        if self._reason or self._pipe is None:
            future.set_exception(StoreUnavailable(self._reason or "not connected"))
        elif len(self._pending) >= MAX_OUTSTANDING:
            future.set_exception(StoreUnavailable(f"{MAX_OUTSTANDING} requests without an answer"))
        elif len(payload) > self._max_payload:
            future.set_exception(StoreRefused(path, "E2BIG"))
        else:
            now = self._loop.time()
            if not self._pending:
                self._heard = now  # there was nothing to answer before: silence counts from now
            request_id = self._new_id()
            expires = now + deadline
            self._pending[request_id] = _PendingRequest(op, path, future, expires, decode, refused, late)
            self._wake_by(min(expires, self._heard + SILENCE))
            self._send(request(op, request_id, tx, payload))
        return future

    def _new_id(self) -> int:
        # The 32-bit number wraps around after days; a number that still waits for its reply is skipped.
        while True:
            self._last_id = self._last_id % 0xFFFFFFFF + 1
            if self._last_id not in self._pending:
                return self._last_id

    def _send(self, message: bytes) -> None:
        # A single request is sent at once. Further ones of the same loop iteration share a system call.
        if self._outbox:
            self._outbox.append(message)
        elif len(self._pending) > 1:
            self._outbox.append(message)
            self._loop.call_soon(self._flush)
        elif self._pipe:
            self._pipe.write(message)

    def _flush(self) -> None:
        if self._pipe and self._outbox:
            outbox, self._outbox = self._outbox, []
            self._pipe.writelines(outbox)

    def _dispatch(self, message: Message) -> None:
        op, request_id, payload = message
        if op == Op.WATCH_EVENT:
            path, token = payload.split(b"\0")[:2]
            self._on_event(path.decode("ascii"), token.decode("ascii", "replace"))
            return
        entry = self._pending.get(request_id)
        if entry is None or op not in (entry.op, Op.ERROR):
            self.drop(f"xenstored broke its protocol: an answer of type {op} without a request")
            return
        del self._pending[request_id]
        future = entry.future
        if future.done():
            if entry.late and op != Op.ERROR:
                entry.late(payload)
        elif op != Op.ERROR:
            try:
                future.set_result(entry.decode(payload))
            except ValueError as fault:  # UnicodeDecodeError is one
                future.set_exception(StoreUnavailable(f"xenstored's answer for {entry.path} is invalid"))
                self.drop(f"xenstored broke its protocol: {fault}")
        elif not (entry.refused and entry.refused(payload)):
            future.set_exception(refusal(entry.path, payload))

    # --- deadlines: one timer, however many requests ---

    def _wake_by(self, when: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(when, self._look)
        elif when < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._pending:
            return
        now = self._loop.time()
        if now >= self._heard + SILENCE:
            self.drop(f"xenstored has not answered for {SILENCE:g} s")
            return
        next_look = self._heard + SILENCE
        for entry in self._pending.values():
            if entry.expires <= now:
                entry.expires = math.inf
                if not entry.future.done():
                    entry.future.set_exception(
                        StoreUnavailable(f"no answer from xenstored in time for {entry.path}")
                    )
            elif entry.expires < next_look:
                next_look = entry.expires
        self._wake_by(max(next_look, now + _COARSE))
