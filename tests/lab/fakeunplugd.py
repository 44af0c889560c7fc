"""A socket that answers like unplugd, just enough to test the clients without the daemon.

It knows the frames and the protocol's main line; whoever wants a misbehaving server overrides `answer`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.frames import FRAME


class FakeUnplugd:
    """Serves one domain at `path`, one connection after the other, on a thread.

    `closures` says what becomes of the connections to come: each number is how many frames one of them answers
    before it is closed with the next frame unanswered; further connections last.
    """

    def __init__(
        self,
        path: Path,
        *,
        version: int = 1,
        blacklist: frozenset[tuple[int, int]] = frozenset(),
        closures: tuple[int, ...] = (),
    ) -> None:
        self.path = path
        self.version = version
        self.blacklist = blacklist
        self.closures = list(closures)
        self.frames: list[bytes] = []
        self.log = bytearray()
        self.connections = 0
        self.product = 0
        self.blacklisted = False
        self.flags = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._current: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._listener, self._current):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def answer(self, frame: bytes, payload: bytes) -> bytes:
        """The bytes that answer one request."""
        addr, data, count, size, eport, pad, flags, kind = FRAME.unpack(frame)
        if flags & 0xF == 0:
            self.product, self.blacklisted = 0, False
            return frame
        read, string = bool(flags & 0x20), bool(flags & 0x10)
        value = self._read(addr, size) if read else self._write(addr, size, data, payload)
        header = FRAME.pack(
            addr, 0 if read and string else value, count, size, eport, pad, flags & 0xF0 | 3, kind
        )
        return header + (value.to_bytes(size, "little") * count if read and string else b"")

    def _read(self, addr: int, size: int) -> int:
        match addr, size:
            case 0x10, 2:
                return 0xD249 if self.blacklisted else 0x49D2
            case 0x12, 1:
                return self.version
            case 0x10, 1:
                return self.flags
            case _:
                return (1 << 8 * size) - 1

    def _write(self, addr: int, size: int, data: int, payload: bytes) -> int:
        match addr, size:
            case 0x12, 2:
                self.product = data
            case 0x10, 4:
                self.blacklisted |= (self.product, data) in self.blacklist
            case 0x10, 2:
                return data & 0xF
            case 0x10, 1:
                self.flags = data & 1
            case (0x12, 1) | (0x10008, 1):
                self.log += payload or bytes([data & 0xFF])
            case (0x10004, 4) if data == 1:
                return 3
            case (0x10008, 4) if data in (1, 2):
                return data
        return 0

    def _serve(self) -> None:
        while True:
            try:
                self._current, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with self._current, contextlib.suppress(OSError, EOFError):
                self._converse(self._current, self.closures.pop(0) if self.closures else None)

    def _converse(self, connection: socket.socket, answers: int | None) -> None:
        while True:
            frame = _exactly(connection, FRAME.size)
            _, _, count, size, _, _, flags, _ = FRAME.unpack(frame)
            payload = _exactly(connection, count * size) if flags & 0x30 == 0x10 and flags & 0xF else b""
            if answers == 0:
                return
            self.frames.append(frame)
            connection.sendall(self.answer(frame, payload))
            answers = None if answers is None else answers - 1


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := connection.recv(count - len(data))):
            raise EOFError
        data += more
    return data
