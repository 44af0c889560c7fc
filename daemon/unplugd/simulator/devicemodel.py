"""The device model's end of a domain's socket, for the simulator and the tests.

It needs only Python's standard library and shares no code with the daemon: it is a second implementation of the same
specification (docs/protocol.md), from the client's side. drivers.py has the drivers as data; cli.py runs them. It
blocks on purpose, as a guest's vCPU stands still during an access.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from unplugd.errors import UnplugdError

FRAME_BYTES = 32
MAX_PAYLOAD = 4096
"""Payload bytes that one frame of string I/O may carry."""

_FRAME = struct.Struct("<QQIIIHBB")  # addr, data, count, size, vp_eport, _pad0, flags, type
_NONE, _READY, _RESPONSE = 0, 1, 3  # bits 0-3 of the flags: STATE_IOREQ_NONE, _READY, STATE_IORESP_READY
_DATA_IS_PTR, _DIR_READ = 0x10, 0x20
_SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}
_WINDOW = 64 * 1024
"""Bytes under way at most: both directions always fit a socket's buffers, so nothing deadlocks."""
_REFUSALS = 3
"""An unanswered frame that one process closes its connection over this often is what it objects to."""
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class DeviceModelError(UnplugdError):
    """Base of what can go wrong between a device model and unplugd."""


class NotReachable(DeviceModelError):
    """The socket at `path` takes no connection: `why`."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path}: {why}")


class ConnectionClosed(DeviceModelError):
    """unplugd closed the connection instead of answering."""


class NoAnswer(DeviceModelError):
    """No answer came within the timeout."""


class WrongAnswer(DeviceModelError):
    """An answer that breaks the protocol: a bug of the server."""


@dataclass(frozen=True, slots=True)
class PortAccess:
    """One access of a guest, as Xen hands it to the device model.

    `data` is what a single write writes; string I/O (`string`) moves `count` elements of `size` bytes and, in
    a write, carries them in `payload`. Nothing is checked here: a test can send what no device model may.
    """

    port: int
    size: int
    read: bool
    data: int = 0
    count: int = 1
    string: bool = False
    payload: bytes = b""

    def __str__(self) -> str:
        suffix = _SUFFIX.get(self.size, f"<{self.size}>")
        verb = ("in" if self.read else "out") + ("s" if self.string else "") + suffix
        if self.string:
            return f"rep {verb} {self.port:#x} {self.count} elements"
        return (
            f"{verb} {self.port:#x}"
            if self.read
            else f"{verb} {self.port:#x} {hexadecimal(self.data, self.size)}"
        )


def hexadecimal(value: int, size: int) -> str:
    """A value of `size` bytes with all its digits: 0x0003."""
    return f"{value:#0{2 + 2 * size}x}"


@dataclass(frozen=True, slots=True)
class Answer:
    """unplugd's answer to an access."""

    data: int
    """The value read or, for a write, the unplug order."""
    payload: bytes = b""
    """What a string read returned."""


def encode(access: PortAccess, *, vp_eport: int = 0, pad: int = 0) -> bytes:
    """The request for an access: 32 bytes (`struct ioreq`) and, for a string write, its payload."""
    flags = _READY | (_DATA_IS_PTR if access.string else 0) | (_DIR_READ if access.read else 0)
    header = _FRAME.pack(access.port, access.data, access.count, access.size, vp_eport, pad, flags, 0)
    return header + access.payload


class DeviceModel:
    """The device model's end of one domain's socket.

    `timeout` is the number of seconds for an answer (None: no limit). If the connection breaks, as in a restart of the
    daemon, the client reconnects for up to `reconnect` seconds (0: never) and sends unanswered requests again. Every
    answer is checked against its request: echoed fields, state, order.

    Raises NotReachable if no process listens, ConnectionClosed, NoAnswer, WrongAnswer.
    """

    def __init__(self, path: str | Path, *, timeout: float | None = 10.0, reconnect: float = 5.0) -> None:
        self.path = str(path)
        self.timeout = timeout
        self.reconnect = reconnect
        self.reconnects = 0
        self._serial = 0
        self._unread = bytearray()
        self._socket: socket.socket | None = self._connect(timeout or 10.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; unplugd keeps the domain's state. The next access connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._unread.clear()

    # What a driver does.

    def inb(self, port: int) -> int:
        """Read one byte and return the value."""
        return self.access(PortAccess(port, 1, read=True)).data

    def inw(self, port: int) -> int:
        """Read two bytes and return the value."""
        return self.access(PortAccess(port, 2, read=True)).data

    def inl(self, port: int) -> int:
        """Read four bytes and return the value."""
        return self.access(PortAccess(port, 4, read=True)).data

    def outb(self, port: int, value: int) -> int:
        """Write one byte and return the unplug order (0 unless this was an accepted unplug)."""
        return self.access(PortAccess(port, 1, read=False, data=value)).data

    def outw(self, port: int, value: int) -> int:
        """Write two bytes and return the unplug order."""
        return self.access(PortAccess(port, 2, read=False, data=value)).data

    def outl(self, port: int, value: int) -> int:
        """Write four bytes and return the unplug order."""
        return self.access(PortAccess(port, 4, read=False, data=value)).data

    def outsb(self, port: int, data: bytes, *, size: int = 1) -> int:
        """`rep outs`: write `data` as elements of `size` bytes and return the union of the orders.

        Split into frames of at most 4096 payload bytes. `data` must contain whole elements.
        """
        if len(data) % size:
            raise ValueError(f"{len(data)} bytes are not a whole number of {size}-byte elements")
        order = 0
        for answer in self.exchange(
            PortAccess(port, size, read=False, count=len(part) // size, string=True, payload=part)
            for part in (data[at : at + MAX_PAYLOAD] for at in range(0, len(data), MAX_PAYLOAD))
        ):
            order |= answer.data
        return order

    # What a device model does.

    def reset(self) -> None:
        """Report that the platform device came out of reset: unplugd forgets the domain's protocol state."""
        self._round([(_reset_frame(self._next_serial()), None)])

    def access(self, access: PortAccess) -> Answer:
        """One access and its answer."""
        return self.exchange([access])[0]

    def exchange(self, accesses: Iterable[PortAccess]) -> list[Answer]:
        """Many accesses, pipelined, and their answers in the same order."""
        answers: list[Answer] = []
        batch: list[tuple[bytes, PortAccess | None]] = []
        weight = 0
        for access in accesses:
            serial = self._next_serial()
            frame = encode(access, vp_eport=serial, pad=serial & 0xFFFF)
            heavier = (
                max(len(frame), FRAME_BYTES + access.count * access.size) if access.string else FRAME_BYTES
            )
            if batch and weight + heavier > _WINDOW:
                answers += self._round(batch)
                batch, weight = [], 0
            batch.append((frame, access))
            weight += heavier
        return answers + self._round(batch)

    # How it is done.

    def _next_serial(self) -> int:
        self._serial = (self._serial + 1) & 0xFFFFFFFF
        return self._serial

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = self._connect(self.timeout or 10.0)
        return self._socket

    def _peer(self) -> int:
        """The process id of the server."""
        if self._socket is None:
            return 0
        pid: int = _PEER.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        return pid

    def _receive(self) -> bytes:
        try:
            return self._connected().recv(_WINDOW)
        except TimeoutError as error:
            self.close()  # a late answer would be taken for that of the next access
            raise NoAnswer(
                f"{self.path}: no answer within {self.timeout:g} s"
                ' (a guest that logs too much is made to wait with log.on_limit = "delay")'
            ) from error

    def _connect(self, patience: float, *, retry: bool = False) -> socket.socket:
        """Connect; with `retry` wait up to `patience` seconds for a socket that does not exist yet."""
        deadline = time.monotonic() + patience
        pause = 0.02
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(self.timeout)
                connection.connect(self.path)
            except OSError as error:
                connection.close()
                # EAGAIN: the listener's queue is full, where a blocking connect would wait.
                if not (
                    isinstance(error, BlockingIOError) or (retry and not isinstance(error, PermissionError))
                ):
                    raise NotReachable(self.path, _why(error)) from error
                if time.monotonic() + pause > deadline:
                    raise NotReachable(self.path, f"{_why(error)} (tried for {patience:g} s)") from error
                time.sleep(pause)
                pause = min(2 * pause, 0.25)
            else:
                return connection

    def _round(self, batch: list[tuple[bytes, PortAccess | None]]) -> list[Answer]:
        """Send requests and receive their answers, over as many connections as it takes."""
        unanswered = deque(batch)
        answers: list[Answer] = []
        losses = last_peer = 0
        resend = True
        while unanswered:
            try:
                if resend:
                    resend = False
                    # A refused send means only that the server has stopped reading: its answers can still be read.
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        self._connected().sendall(b"".join(frame for frame, _ in unanswered))
                answers.append(self._answer(*unanswered[0]))
                unanswered.popleft()
                losses = 0
            except TimeoutError as error:
                self.close()
                raise NoAnswer(f"{self.path}: the server reads no more") from error
            except (ConnectionResetError, EOFError) as error:
                peer = self._peer()
                losses = losses + 1 if peer == last_peer else 1  # another process: unplugd was started again
                last_peer = peer
                self.close()
                if self.reconnect <= 0 or losses >= _REFUSALS:
                    raise ConnectionClosed(
                        f"{self.path}: unplugd closed the connection without an answer: this user may not"
                        f" connect for this domain, or the frame is invalid (see unplugd's log)"
                    ) from error
                self._socket = self._connect(self.reconnect, retry=True)
                self.reconnects += 1
                resend = True
        return answers

    def _answer(self, frame: bytes, access: PortAccess | None) -> Answer:
        """Receive and check the answer to one request (`access` None: a reset)."""
        answer = self._take(FRAME_BYTES)
        sent, got = _FRAME.unpack_from(frame), _FRAME.unpack(answer)
        expected = sent
        if access is not None:
            expected = (sent[0], got[1], *sent[2:6], (sent[6] & 0xF0) | _RESPONSE, sent[7])
        if got != expected:
            self.close()
            raise WrongAnswer(f"sent {frame[:FRAME_BYTES].hex()}, but the answer was {answer.hex()}")
        if access is not None and access.read and access.string:
            return Answer(got[1], self._take(access.count * access.size))
        return Answer(got[1])

    def _take(self, count: int) -> bytes:
        while len(self._unread) < count:
            if not (data := self._receive()):
                raise EOFError
            self._unread += data
        taken = bytes(self._unread[:count])
        del self._unread[:count]
        return taken


def _reset_frame(serial: int) -> bytes:
    return _FRAME.pack(0, 0, 0, 0, serial, 0, _NONE, 0)


def _why(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "no such socket: is unplugd running, and has the domain been introduced?"
        case PermissionError():
            return (
                "permission denied: only root and the user of the device model may connect"
            )
        case ConnectionRefusedError():
            return "no process listens there: unplugd does not run, or this is not its socket"
        case _:
            return error.strerror or str(error)
