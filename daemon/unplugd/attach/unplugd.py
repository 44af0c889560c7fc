"""The client of the domain's unplugd socket (contract section 1); requests and answers are in order.

It survives restarts of unplugd: requests without an answer are sent again on the next connection. Without a connection
they wait, for a limited time if the configuration says so. After this time they get the answers of a port without a
device, and an unplug is not carried out.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from unplugd.attach.plan import Ask, Reply, ones
from unplugd.core.ioreq import FRAME_SIZE, State, pio

STALLED_AFTER = 60.0
"""Seconds without a byte while an answer is due, after which the connection is given up. A guest that is held back by
`log.on_limit = "delay"` waits for less: 4096 bytes at 256 bytes/s are 16 s."""
_FIRST_RETRY, _LAST_RETRY = 0.02, 1.0


@dataclass(slots=True)
class _Pending:
    ask: Ask
    frame: bytes
    expected: int
    """Bytes of payload that follow the response."""
    done: Callable[[Reply], None]


def encode(ask: Ask) -> tuple[bytes, int]:
    """The frame (and payload) of a request, and how many bytes of payload its response has."""
    string = ask.payload is not None
    frame = pio(ask.port, size=ask.size, data=ask.data, read=ask.read, count=ask.count, string=string)
    return frame + (ask.payload or b""), ask.count * ask.size if string and ask.read else 0


def absent(ask: Ask) -> Reply:
    """The answer of a port without a device."""
    payload = b"\xff" * (ask.count * ask.size) if ask.payload is not None and ask.read else b""
    return Reply(ones(ask.size) if ask.read else 0, payload, absent=True)


def _nothing() -> None:
    """The default callback."""


class Unplugd(asyncio.Protocol):
    """One domain's socket. `connect` returns a connected socket or raises OSError; run() keeps a connection open."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[socket.socket]],
        *,
        give_up_after: float | None,
        report: Callable[[str], None],
    ) -> None:
        self.answers: Callable[[], None] = _nothing
        """Called when unplugd has answered: it runs and knows the domain."""
        self._connect = connect
        self._give_up_after = give_up_after
        self._report = report
        self._pending: deque[_Pending] = deque()
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()
        self._received = bytearray()
        self._heard = 0.0
        self._heard_since_connected = False
        self._given_up = False
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, ask: Ask, done: Callable[[Reply], None]) -> None:
        """Send a request; `done` is called with its answer, never before this returns."""
        if self._given_up:
            asyncio.get_running_loop().call_soon(done, absent(ask))
            return
        frame, expected = encode(ask)
        if not self._pending:
            self._heard = asyncio.get_running_loop().time()
        self._pending.append(_Pending(ask, frame, expected, done))
        if self._transport is not None:
            self._transport.write(frame)

    async def run(self) -> None:
        """Connect and reconnect until cancelled."""
        loop = asyncio.get_running_loop()
        self._start_clock()
        retry = _FIRST_RETRY
        while True:
            try:
                connection = await self._connect()
            except OSError:
                await asyncio.sleep(retry)
                retry = min(2 * retry, _LAST_RETRY)
                continue
            self._lost.clear()
            await loop.create_connection(lambda: self, sock=connection)
            await self._watch()
            # A server that closes every connection at once must not keep this process busy.
            retry = _FIRST_RETRY if self._heard_since_connected else min(2 * retry, _LAST_RETRY)
            await asyncio.sleep(retry)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(STALLED_AFTER / 4):
                    await self._lost.wait()
                return
            except TimeoutError:
                if self._pending and loop.time() - self._heard > STALLED_AFTER:
                    self._report(f"unplugd has not answered for {STALLED_AFTER:.0f} s: connecting again")
                    if self._transport is not None:
                        self._transport.abort()

    def close(self) -> None:
        """Close the connection, if there is one, and stop the timer. Call it after run() was cancelled."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the requests without an answer again."""
        self._transport = transport = cast(asyncio.Transport, transport)
        self._received.clear()
        self._heard_since_connected = False
        self._heard = asyncio.get_running_loop().time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._given_up:
            self._given_up = False
            self._report("unplugd is back")
        for pending in self._pending:
            transport.write(pending.frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """Requests wait from now on, for a limited time."""
        self._transport = None
        self._start_clock()
        self._lost.set()

    def data_received(self, data: bytes) -> None:
        """Deliver the answers, in the order of the requests."""
        self._heard = asyncio.get_running_loop().time()
        self._heard_since_connected = True
        self.answers()
        received = self._received
        received += data
        while self._pending and len(received) >= FRAME_SIZE + self._pending[0].expected:
            if received[30] & 0x0F != State.RESPONSE:
                self._fault()
                return
            pending = self._pending.popleft()
            end = FRAME_SIZE + pending.expected
            reply = Reply(int.from_bytes(received[8:16], "little"), bytes(received[FRAME_SIZE:end]))
            del received[:end]
            pending.done(reply)
        if received and not self._pending:
            self._fault()

    def _fault(self) -> None:
        self._report("unplugd sent an answer without a request: connecting again")
        self._received.clear()
        if self._transport is not None:
            self._transport.abort()

    def _start_clock(self) -> None:
        if self._give_up_after is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._give_up_after, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self._given_up = True
        self._report("unplugd cannot be reached: the guest finds no unplug protocol until it is back")
        pending, self._pending = self._pending, deque()
        for one in pending:
            one.done(absent(one.ask))
