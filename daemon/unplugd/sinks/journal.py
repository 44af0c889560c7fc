"""The journal: entries as datagrams in journald's native protocol (systemd.io, "Native Journal Protocol").

This module encodes an entry as a datagram, and knows when journald's socket can accept it. systemd-python's
`journal.send()` is not used: it holds the GIL while journald is stopped or its queue is full, and loses the entry
without an error if the socket does not exist.

An entry that `send` has accepted is in journald's socket and survives the end of this process. Nothing is queued here.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from unplugd.core.escape import escape_journal

if TYPE_CHECKING:
    from unplugd.sinks.records import Entry

SOCKET = "/run/systemd/journal/socket"
LATE = 1.0
"""An entry that is older than this when it is sent, in seconds, also carries the time of its event."""
FIRST_RETRY, LAST_RETRY = 0.05, 1.0
"""Seconds until an unreachable socket is tried again: doubled from the first to the last."""

_SEND_BUFFER = 8 * 1024 * 1024
"""Bytes that may wait for journald, if the kernel allows it; the same value as in sd_journal_send(3)."""

_FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
_GONE = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.EDESTADDRREQ})


@lru_cache(maxsize=1024)  # the fields of a guest's lines change only when its driver announces itself
def encode_fields(fields: tuple[tuple[str, str], ...]) -> bytes:
    r"""Encode journal fields: `NAME=value\n`, or name, 64-bit little-endian length and value if it has a newline."""
    parts = []
    for name, text in fields:
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            parts.append(b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), value))
    return b"".join(parts)


def encode(entry: Entry, now: float) -> bytes:
    """Encode `entry` as one datagram.

    journald stores the arrival time of an entry. So an entry that waited longer than `LATE` has the field
    UNPLUG_TIMESTAMP with the time of its event (RFC 3339, UTC, milliseconds). `now` is CLOCK_REALTIME.
    """
    # The escaped message has no newline, so the short form is always right for it.
    data = encode_fields(entry.fields) + b"MESSAGE=" + escape_journal(entry.message) + b"\n"
    if now - entry.time > LATE:
        said = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds")
        data += b"UNPLUG_TIMESTAMP=%sZ\n" % said.removesuffix("+00:00").encode()
    return data


class Journal:
    """One non-blocking datagram socket to the journald that listens at `path`.

    `problem` is the reason why the last `send` failed, or None if it was successful. Call all methods in the thread of
    the event loop.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self.problem: str | None = None
        self._path = path
        self._socket: socket.socket | None = None
        self._file: tuple[int, int, int] | None = None
        self._full = False
        self._delay = FIRST_RETRY
        self._waiting: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writer: tuple[asyncio.AbstractEventLoop, int] | None = None

    def send(self, entry: Entry) -> bool:
        """Send `entry` to journald. Returns True if it is in journald's socket, False if that is not possible now.

        Never blocks. Raises OSError (EMSGSIZE) for an entry that is too big for any datagram: it can never be sent.
        """
        data = encode(entry, time.time())
        # The connected socket may belong to a journald that has ended: try one new connection, then report the error.
        for again in (True, False):
            try:
                if self._socket is None:
                    self._socket = self._connect()
                self._socket.send(data)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    raise
                if self._socket is not None and error.errno in _GONE and again:
                    self._disconnect()
                    continue
                self._refused(error)
                return False
            break
        self.problem = None
        self._full = False
        self._delay = FIRST_RETRY
        return True

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, from the running event loop, when another `send` makes sense.

        This is when the full socket has room, when a retry is due, or soon if the last `send` succeeded. A callback
        that already waits is not added again.
        """
        if callback in self._waiting:
            return
        self._waiting.append(callback)
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if self.problem is None:
            self._timer = loop.call_later(0, self._wake)
        elif self._full and self._socket is not None:
            self._writer = (loop, self._socket.fileno())
            loop.add_writer(self._writer[1], self._wake)
            self._timer = loop.call_later(LAST_RETRY, self._look_for_another)
        else:
            self._timer = loop.call_later(self._delay, self._wake)
            self._delay = min(self._delay * 2, LAST_RETRY)

    def close(self) -> None:
        """Close the socket and remove the waiting callbacks."""
        self._waiting.clear()
        self._disconnect()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._file = self._file_now()
            # the default has room for about 160 entries; journald's side has room for 512 and reports when it is full
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        self._stop_writer()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _refused(self, error: OSError) -> None:
        self._full = error.errno in _FULL
        self.problem = f"{self._path}: {error.strerror}"
        if not self._full:
            self._disconnect()

    def _file_now(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns  # inode numbers are reused

    def _look_for_another(self) -> None:
        # A full socket without a reader can stay open after journald has created a new one at the path.
        there = self._file_now()
        if there is not None and there != self._file:
            self._disconnect()
        self._wake()

    def _stop_writer(self) -> None:
        if self._writer is not None:
            loop, descriptor = self._writer
            loop.remove_writer(descriptor)
            self._writer = None

    def _wake(self) -> None:
        self._stop_writer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
