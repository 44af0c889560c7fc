"""A client of the HTTP server: h11 over an asyncio transport, everything bounded and with a deadline.

One HttpConnection serves one client, one request at a time. pages.py makes the answers:

    FRESH, IDLE --bytes--> READING --request--> ANSWERING --answer sent--> IDLE, READING (pipelined) or LINGERING
    READING --no request, deadline--> LINGERING --end of input, deadline--> CLOSED

The cost of a client is bounded: REQUEST_LIMIT bytes for the head of a request and READ_SIZE for data behind it,
WRITE_LIMIT and one piece for an answer that it does not read, and the times in DEADLINES. A listener has at most
CONNECTIONS clients. A further client replaces the one that has waited longest without a request, so idle clients cannot
keep others out.

Sources: RFC 9110, RFC 9112; h11's documentation.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import cast
from urllib.parse import urlsplit

import h11

from unplugd.http.pages import Page, Pages, fault
from unplugd.http.turns import HttpTurns
from unplugd.sockets.access import credentials

CONNECTIONS = 64
"""Clients of one listener at a time."""
SHARE = 16
"""And one in so many descriptors at most; device models' connections have half of them (sockets/listener.py)."""
REQUEST_LIMIT = 8192
"""Bytes after which a request's head must have ended."""
HEAD_LINES = 64
"""Lines that a request's head may have: h11 takes 4 us for one, so 8 KiB of short ones would hold the event loop."""
READ_SIZE = 8192
"""Bytes taken from a client at a time."""
WRITE_LIMIT = 65536
"""Bytes that wait to be read by a client before the making of its answer stops; also the longest page that gets a
Content-Length, longer ones are chunked."""
SEND_SIZE = 32768
"""Bytes of a long answer that are sent at a time."""
LINGER_LIMIT = 1 << 20
"""Bytes read and thrown away so that a client that still sends gets its answer, not a reset."""


class ConnectionState(Enum):
    """What a connection does now."""

    FRESH = "waits for its first request"
    READING = "has a part of a request"
    ANSWERING = "sends an answer"
    IDLE = "waits for another request"
    LINGERING = "has sent its last answer and discards input"
    CLOSED = "is closed"


DEADLINES = {
    ConnectionState.FRESH: 10.0,
    ConnectionState.READING: 10.0,
    ConnectionState.ANSWERING: 30.0,
    ConnectionState.IDLE: 90.0,
    ConnectionState.LINGERING: 5.0,
}
"""Seconds that a connection may be in a state. IDLE outlasts Prometheus' usual interval of a minute."""


class HttpListener:
    """The clients of one listening address. `everything`: whether it is the control socket."""

    def __init__(self, pages: Pages, turns: HttpTurns, denied: Callable[[int, int], None], *, everything: bool) -> None:
        """`denied` is called with pid and uid of a client that may not be served."""
        self.pages = pages
        self.turns = turns
        self.denied = denied
        self.everything = everything
        self.connections: dict[HttpConnection, None] = {}
        """Ordered by their last change of state: the first has been in its state for the longest time."""

    def allows(self, transport: asyncio.BaseTransport) -> bool:
        """Whether a client may be served here; the control socket is root's, whatever its mode."""
        if not self.everything:
            return True
        peer: socket.socket = transport.get_extra_info("socket")
        pid, uid = credentials(peer)
        if uid in (0, os.geteuid()):
            return True
        self.denied(pid, uid)
        return False

    def admit(self, connection: HttpConnection) -> bool:
        """Make room for one more client; False if all present clients are being answered."""
        if len(self.connections) >= min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE):
            idler = next((other for other in self.connections if other.state is not ConnectionState.ANSWERING), None)
            if idler is None:
                return False
            del self.connections[idler]
            idler.abort()
        self.connections[connection] = None
        return True

    def moved(self, connection: HttpConnection) -> None:
        """`connection` has changed its state."""
        if connection in self.connections:
            del self.connections[connection]
            self.connections[connection] = None


class HttpConnection(asyncio.BufferedProtocol):
    """One client."""

    def __init__(self, listener: HttpListener) -> None:
        self.state = ConnectionState.FRESH
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_LIMIT)
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._thrown_away = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        """There is one while the client has to read before more may be written."""

    # --- called by the transport ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.BufferedProtocol."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT)
        if not self._listener.allows(transport):
            self.state = ConnectionState.CLOSED
            self._transport.abort()
            return
        if self._listener.admit(self):
            self._enter(ConnectionState.FRESH)
        else:
            self._transport.write(_plain_answer(fault(503, "Too many connections.")))
            self._transport.close()
            self.state = ConnectionState.CLOSED

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.BufferedProtocol."""
        self._enter(ConnectionState.CLOSED)
        self._listener.connections.pop(self, None)
        if self._answering is not None:
            self._answering.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Part of asyncio.BufferedProtocol."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Part of asyncio.BufferedProtocol."""
        match self.state:
            case ConnectionState.LINGERING:
                self._thrown_away += nbytes
                if self._thrown_away > LINGER_LIMIT:
                    self.abort()
            case ConnectionState.FRESH | ConnectionState.READING | ConnectionState.IDLE:
                self._http.receive_data(bytes(self._buffer[:nbytes]))
                if self.state is not ConnectionState.READING:
                    self._enter(ConnectionState.READING)
                self._read_on()

    def eof_received(self) -> bool:
        """Part of asyncio.BufferedProtocol. The transport closes, once all is written, if this returns False."""
        if self.state in (ConnectionState.FRESH, ConnectionState.READING, ConnectionState.IDLE):
            self._http.receive_data(b"")
            self._enter(ConnectionState.READING)
            self._read_on()
        return self._answering is not None

    def pause_writing(self) -> None:
        """Part of asyncio.BufferedProtocol."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """Part of asyncio.BufferedProtocol."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- requests -------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Close at once; unsent data is lost."""
        self._transport.abort()
        self._enter(ConnectionState.CLOSED)

    def _enter(self, state: ConnectionState) -> None:
        self.state = state
        self._listener.moved(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if state is not ConnectionState.CLOSED:
            self._deadline = self._loop.call_later(DEADLINES[state], self._too_late)

    def _too_late(self) -> None:
        if self.state is ConnectionState.READING:
            self._refuse(408, "The request did not come in time.")
        else:
            self.abort()

    def _read_on(self) -> None:
        """Looks for a request when it is this client's turn; until then nothing more is read from it."""
        self._transport.pause_reading()
        self._answering = self._loop.create_task(self._serve())
        self._answering.add_done_callback(self._answered)

    async def _serve(self) -> None:
        await self._listener.turns.begin()
        if self.state is ConnectionState.READING and (request := self._next_request()) is not None:
            self._enter(ConnectionState.ANSWERING)
            await self._answer(request)

    def _next_request(self) -> h11.Request | None:
        """The request whose head is here; None where it is not here yet, or is none, which is answered."""
        received, _ = self._http.trailing_data
        if received.count(b"\n", 0, received.find(b"\r\n\r\n")) > HEAD_LINES:
            self._refuse(431, "The request's head has too many lines.")
            return None
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            text = "The request's head is too long." if error.error_status_hint == 431 else "This is no HTTP request."
            self._refuse(error.error_status_hint, text)
            return None
        if isinstance(event, h11.ConnectionClosed):
            self._transport.close()
        if not isinstance(event, h11.Request):
            return None
        if event.http_version not in (b"1.0", b"1.1"):
            self._refuse(505, "HTTP/1.1 is served here.")
            return None
        left, _ = self._http.trailing_data
        if _is_ambiguous(received[:len(received) - len(left)]):
            self._refuse(400, "Where this request ends is not clear.")
            return None
        # The request ends here; if it has a body, it is answered all the same, and the connection then closed.
        with suppress(h11.RemoteProtocolError):
            self._http.next_event()
        return event

    def _refuse(self, status: int, text: str) -> None:
        """Answer an invalid request, or one without another answer, with an error, and close."""
        self._transport.write(_plain_answer(fault(status, text)))
        self._linger()

    def _linger(self) -> None:
        self._enter(ConnectionState.LINGERING)
        self._transport.write_eof()
        self._transport.resume_reading()

    # --- answers --------------------------------------------------------------------------------------

    async def _answer(self, request: h11.Request) -> None:
        def field(wanted: bytes) -> str:
            return ",".join(value.decode("latin-1") for name, value in request.headers if name == wanted)

        page = self._listener.pages.answer(request.method.decode("ascii"), _path(request.target), field(b"accept"),
                                           everything=self._listener.everything)
        # The first pieces are made before anything is sent, so that an error in them gives a 500 and not half a page.
        body = page.body if page.pending is None else await page.pending
        pieces = iter((body,)) if isinstance(body, bytes) else body
        headers = _headers(page)
        if _takes_gzip(field(b"accept-encoding")):
            pieces = _compressed(pieces)
            headers.append(("Content-Encoding", "gzip"))
        beginning, complete = b"", False
        while not complete and len(beginning) <= WRITE_LIMIT:
            piece = next(pieces, None)
            complete = piece is None
            beginning += piece or b""
            await self._let_others()
        if complete:
            headers.append(("Content-Length", str(len(beginning))))
        if self._http.their_state is not h11.DONE:
            headers.append(("Connection", "close"))
        reason = HTTPStatus(page.status).phrase
        self._send(h11.Response(status_code=page.status, headers=headers, reason=reason.encode()))
        if request.method != b"HEAD":
            self._send(h11.Data(data=beginning))
            # Pieces are small, so that guests do not wait for one. Several of them are sent at a time.
            waiting, size = [], 0
            for piece in pieces:
                waiting.append(piece)
                size += len(piece)
                if size >= SEND_SIZE:
                    await self._let_others()
                    self._send(h11.Data(data=b"".join(waiting)))
                    waiting, size = [], 0
                await self._let_others()
            self._send(h11.Data(data=b"".join(waiting)))
        self._send(h11.EndOfMessage())
        await self._let_others()

    def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self._transport.write(data)

    async def _let_others(self) -> None:
        """Between two pieces: serve guests, let the event loop run, and wait until the client has read enough."""
        if self._writable is not None:
            await self._writable
        await self._listener.turns.go_on()

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering = None
        if task.cancelled() or self.state in (ConnectionState.CLOSED, ConnectionState.LINGERING):
            return
        if error := task.exception():
            self._loop.call_exception_handler({"message": "an HTTP answer could not be made", "exception": error})
            if self._http.our_state is h11.SEND_RESPONSE:
                self._refuse(500, "This page could not be made; see unplugd's log.")
            else:
                self.abort()
        elif self.state is ConnectionState.READING:   # more of the request is to come
            self._transport.resume_reading()
        elif self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            if self._http.trailing_data[0]:
                self._enter(ConnectionState.READING)
                self._read_on()
            else:
                self._enter(ConnectionState.IDLE)
                self._transport.resume_reading()
        else:
            self._linger()


def _is_ambiguous(head: bytes) -> bool:
    """Whether another server may see other fields, or another end, in a request that h11 takes (RFC 9112 section 11).

    Both framings or one of them twice, lines that are folded, or that end with less than CR and LF.
    """
    lines = head.split(b"\r\n")
    names = [line.partition(b":")[0].lower() for line in lines]
    return (names.count(b"content-length") + names.count(b"transfer-encoding") > 1
            or any(b"\n" in line or line[:1] in (b" ", b"\t") for line in lines))


def _path(target: bytes) -> str:
    """The path of a request's target, without the query, also of the absolute form (RFC 9112 section 3.2.2)."""
    text = target.decode("latin-1")
    if text[:7].lower() == "http://":
        try:
            return urlsplit(text).path or "/"
        except ValueError:
            return ""
    return text.partition("?")[0]


def _headers(page: Page) -> list[tuple[str, str]]:
    return [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", page.type),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Vary", page.vary),
        *page.headers,
    ]


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding header takes gzip (RFC 9110 section 12.5.3)."""
    quality = {}
    for item in accepted.lower().split(",", 32)[:32]:
        coding, _, parameter = item.replace(" ", "").partition(";q=")
        quality[coding.strip()] = parameter.strip("0.") != "" or not parameter
    return quality.get("gzip", quality.get("x-gzip", quality.get("*", False)))


def _compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces of one gzip stream. Quick, and with 32 KiB of memory, for there may be many clients."""
    squeezed = zlib.compressobj(1, zlib.DEFLATED, 16 + 12, 5)
    for piece in pieces:
        yield squeezed.compress(piece)
    yield squeezed.flush()


def _plain_answer(page: Page) -> bytes:
    """A short answer without h11, for a client whose request h11 could not parse."""
    assert isinstance(page.body, bytes)  # noqa: S101 (faults are bytes)
    headers = [*_headers(page), ("Content-Length", str(len(page.body))), ("Connection", "close")]
    status = f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}"
    return "\r\n".join([status, *(f"{name}: {value}" for name, value in headers), "", ""]).encode() + page.body
