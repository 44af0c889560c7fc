"""Clients that speak to a xenstored of the lab: dom0 by the unix socket, guests through their rings.

They are written apart from unplugd's own client, and as plainly as can be: each waits for its answer.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

DEADLINE = 30.0
"""Seconds that anything in this lab may take: a slow machine is no failure, one that hangs is."""

HEADER = struct.Struct("=IIII")
"""struct xsd_sockmsg: type, req_id, tx_id, len (xen/include/public/io/xs_wire.h)."""

# enum xsd_sockmsg_type
DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, TRANSACTION_START, TRANSACTION_END, INTRODUCE, RELEASE = range(
    1, 10
)
WRITE, MKDIR, RM, SET_PERMS, WATCH_EVENT, ERROR, IS_DOMAIN_INTRODUCED = range(11, 18)

# struct xenstore_domain_interface: two rings, then their indices.
RING_SIZE = 1024
REQUESTS, RESPONSES, INDICES = 0, RING_SIZE, 2 * RING_SIZE
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD = range(4)


class XenstoreError(Exception):
    """xenstored's answer was an error; `code` is its word, as "ENOENT"."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Speaker(ABC):
    """Somebody who speaks to xenstored and waits for each answer."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        """Watch events that came so far: path and token."""
        self._buffer = b""
        self._last_id = 0

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send bytes as they are."""

    @abstractmethod
    def _receive_some(self, timeout: float) -> bytes: ...

    def receive(self, timeout: float = DEADLINE) -> tuple[int, int, bytes]:
        """The next message: type, req_id, payload. TimeoutError."""
        until = time.monotonic() + timeout
        while True:
            if len(self._buffer) >= HEADER.size:
                kind, request_id, _tx, length = HEADER.unpack_from(self._buffer)
                end = HEADER.size + length
                if len(self._buffer) >= end:
                    payload, self._buffer = self._buffer[HEADER.size : end], self._buffer[end:]
                    return kind, request_id, payload
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("xenstored does not answer")
            self._buffer += self._receive_some(left)

    def call(self, kind: int, payload: bytes, tx: int = 0) -> bytes:
        """Send a request and wait for its answer. XenstoreError."""
        (answer,) = self.call_all([(kind, payload)], tx)
        return answer

    def call_all(self, requests: Sequence[tuple[int, bytes]], tx: int = 0) -> list[bytes]:
        """Send requests at once and wait for all answers. XenstoreError for the first that is an error."""
        first = self._last_id + 1
        self._last_id += len(requests)
        numbered = enumerate(requests, first)
        self.send(
            b"".join(HEADER.pack(kind, n, tx, len(payload)) + payload for n, (kind, payload) in numbered)
        )
        answers: list[tuple[int, bytes]] = []
        while len(answers) < len(requests):
            kind, request_id, body = self.receive()
            if kind == WATCH_EVENT:
                self._note(body)
            elif request_id == first + len(
                answers
            ):  # else it answers an earlier request, given up when it was late
                answers.append((kind, body))
        for kind, body in answers:
            if kind == ERROR:
                raise XenstoreError(body.rstrip(b"\0").decode())
        return [body for _, body in answers]

    def next_event(self, timeout: float = DEADLINE) -> tuple[str, str]:
        """The oldest event, waiting for one if there is none. TimeoutError."""
        if not self.events:
            kind, _, body = self.receive(timeout)
            if kind != WATCH_EVENT:
                raise AssertionError(f"a message of type {kind} that nobody asked for")
            self._note(body)
        return self.events.pop(0)

    def _note(self, body: bytes) -> None:
        path, token = body.split(b"\0")[:2]
        self.events.append((path.decode(), token.decode()))

    def read(self, path: str, tx: int = 0) -> bytes:
        """The value of a node."""
        return self.call(READ, path.encode() + b"\0", tx)

    def write(self, path: str, value: bytes, tx: int = 0) -> None:
        """Set the value of a node."""
        self.call(WRITE, path.encode() + b"\0" + value, tx)

    def remove(self, path: str) -> None:
        """Take a node away, with all below it."""
        self.call(RM, path.encode() + b"\0")

    def directory(self, path: str) -> list[str]:
        """The names of a node's children."""
        return [name.decode() for name in self.call(DIRECTORY, path.encode() + b"\0").split(b"\0") if name]

    def permissions(self, path: str) -> list[str]:
        """A node's permissions, as ["n0", "r7"]."""
        return [entry.decode() for entry in self.call(GET_PERMS, path.encode() + b"\0").split(b"\0") if entry]

    def set_permissions(self, path: str, *permissions: str) -> None:
        """Replace a node's permissions."""
        self.call(SET_PERMS, b"".join(text.encode() + b"\0" for text in (path, *permissions)))

    def watch(self, path: str, token: str) -> None:
        """Watch a path."""
        self.call(WATCH, f"{path}\0{token}\0".encode())


class Dom0(Speaker):
    """A client in dom0, by the unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))  # waits: with a timeout it would fail where xenstored's queue is full
        self._socket.settimeout(DEADLINE)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def _receive_some(self, timeout: float) -> bytes:
        self._socket.settimeout(timeout)
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("xenstored closed the connection")
        return data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Guest(Speaker):
    """A guest's kernel: it speaks through its ring, with its domain's permissions and quotas."""

    def __init__(self, domid: int, shim: Path, fire: Callable[[], None]) -> None:
        """`shim` is the shim's directory, `fire` tells xenstored that this ring has changed."""
        super().__init__()
        self._fire = fire
        kicks = shim / "kicks" / str(domid)
        if not kicks.exists():
            os.mkfifo(kicks)
        self._kicks = os.open(kicks, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with (shim / "rings" / str(domid)).open("a+b") as page:
            page.truncate(4096)
            self._page = mmap.mmap(page.fileno(), 4096)

    def _index(self, which: int) -> int:
        return int.from_bytes(self._page[INDICES + 4 * which : INDICES + 4 * which + 4], "little")

    def _advance(self, which: int, count: int) -> None:
        value = (self._index(which) + count) & 0xFFFFFFFF
        self._page[INDICES + 4 * which : INDICES + 4 * which + 4] = value.to_bytes(4, "little")
        self._fire()

    def _wait(self, timeout: float) -> None:
        if not select.select([self._kicks], [], [], timeout)[0]:
            raise TimeoutError("xenstored does not answer the guest")
        os.read(self._kicks, 4096)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        while data:
            produced = self._index(REQ_PROD)
            room = RING_SIZE - ((produced - self._index(REQ_CONS)) & 0xFFFFFFFF)
            if room == 0:
                self._wait(DEADLINE)
                continue
            at = produced % RING_SIZE
            count = min(len(data), room, RING_SIZE - at)
            self._page[REQUESTS + at : REQUESTS + at + count] = data[:count]
            self._advance(REQ_PROD, count)
            data = data[count:]

    def _receive_some(self, timeout: float) -> bytes:
        while True:
            consumed = self._index(RSP_CONS)
            there = (self._index(RSP_PROD) - consumed) & 0xFFFFFFFF
            if there:
                at = consumed % RING_SIZE
                count = min(there, RING_SIZE - at)
                data = self._page[RESPONSES + at : RESPONSES + at + count]
                self._advance(RSP_CONS, count)
                return data
            self._wait(timeout)

    def close(self) -> None:
        """Let the ring go."""
        self._page.close()
        os.close(self._kicks)
