"""A device model's socket in the event loop: read when its connection may be, written to at once, closed in the end.

It does for connection.py what an asyncio transport would, and nothing else: no task to begin with, and few calls
between the loop and the bytes. What the kernel does not take of what is written waits here, and pause_writing() says
when that is enough. Which bytes mean what is core/stream.py's.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from unplugd.sockets.pureloop import readers

HIGH = 64 * 1024
"""Unsent bytes past which its connection must not write more."""
LOW = 16 * 1024
"""Unsent bytes down to which it may again."""


class Owner(Protocol):
    """Whose socket it is. What one of these raises closes the socket, after it was said if it is no OSError."""

    window: int
    """Bytes to read at a time."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""

    def eof_received(self) -> bool:
        """The client sends no more; True where it has more to be told."""

    def pause_writing(self) -> None:
        """More than HIGH bytes are unsent."""

    def resume_writing(self) -> None:
        """No more than LOW bytes are unsent."""

    def connection_lost(self) -> None:
        """The end: the socket will be closed when this returns."""


class Wire:
    """One accepted socket. All methods belong to the event loop's thread."""

    __slots__ = (
        "_closing", "_full", "_loop", "_lost", "_owner", "_peer", "_readers", "_reading", "_recv", "_send",
        "_unsent", "descriptor",
    )

    def __init__(self, peer: socket.socket, owner: Owner) -> None:
        """Nothing is read before resume_reading(). Raises OSError."""
        peer.setblocking(False)
        self.descriptor = peer.fileno()
        self._loop = asyncio.get_running_loop()
        self._readers = readers()
        self._owner = owner
        self._peer = peer
        self._recv, self._send = peer.recv, peer.send
        self._unsent = bytearray()
        self._full = False
        """pause_writing() was said last."""
        self._reading = False
        self._closing = False
        """Nothing is read any more."""
        self._lost = False
        """Nothing is written any more either, and connection_lost() comes."""

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the kernel has not taken."""
        return len(self._unsent)

    # --- reading

    def resume_reading(self) -> None:
        """Read what comes. Raises OSError where it cannot be watched: there is no memory for that, tried twice."""
        if self._reading or self._closing:
            return
        try:
            self._loop.add_reader(self.descriptor, self._readable)
        except OSError:
            self._loop.add_reader(self.descriptor, self._readable)
        self._reading = True
        if self._readers is not None:
            self._readers[self.descriptor] = self._readable

    def pause_reading(self) -> None:
        """Leave what comes to the kernel."""
        if self._reading:
            self._reading = False
            if self._readers is not None:
                del self._readers[self.descriptor]
            self._loop.remove_reader(self.descriptor)

    def _readable(self) -> None:
        try:
            try:
                data = self._recv(self._owner.window)
            except (BlockingIOError, InterruptedError):
                return
            if data:
                self._owner.data_received(data)
            elif self._owner.eof_received():
                self.pause_reading()
            else:
                self.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, one connection is not served and no other suffers
            self._fail(error)

    # --- writing

    def write(self, data: bytes) -> None:
        """Send this behind what is unsent. After the connection's end it is dropped."""
        if self._lost:
            return
        if not self._unsent:
            try:
                sent = self._send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.abort()
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._loop.add_writer(self.descriptor, self._writable)
        self._unsent += data
        if len(self._unsent) > HIGH and not self._full:
            self._full = True
            self._owner.pause_writing()

    def _writable(self) -> None:
        try:
            try:
                sent = self._send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return
            del self._unsent[:sent]
            if self._full and len(self._unsent) <= LOW:
                self._full = False
                self._owner.resume_writing()  # which may write more
        except Exception as error:  # noqa: BLE001 - as in _readable()
            self._fail(error)
        if not self._unsent and not self._lost:
            self._loop.remove_writer(self.descriptor)
            if self._closing:
                self._lose()

    # --- the end

    def close(self) -> None:
        """Read no more, and close when all is sent."""
        if not self._closing:
            self._closing = True
            self.pause_reading()
            if not self._unsent:
                self._lose()

    def abort(self) -> None:
        """Close, whatever is unsent."""
        if not self._lost:
            self._closing = True
            self.pause_reading()
            self._loop.remove_writer(self.descriptor)
            self._unsent.clear()
            self._lose()

    def _lose(self) -> None:
        self._lost = True
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        try:
            self._owner.connection_lost()
        finally:
            self._peer.close()

    def _fail(self, error: Exception) -> None:
        """The client has gone, or a fault of unplugd's own."""
        if not isinstance(error, OSError):
            message = "a connection cannot go on and is closed"
            self._loop.call_exception_handler({"message": message, "exception": error})
        self.abort()
