"""Standard error: whole lines, without ever waiting for whoever reads them.

O_NONBLOCK belongs to the open file description, which standard error shares with the shell or service manager that
started us, so it is never set there. Each kind of file has another way not to block:

- socket (a unit's standard error is a stream to journald): MSG_DONTWAIT;
- pipe, FIFO, terminal, device: a description of our own, by opening /proc/self/fd/2 again;
- regular file: a write to it waits for nobody.

A pipe or terminal that may not be opened again (another user's terminal) is asked with poll(2) and gets small writes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import stat
from collections.abc import Callable

RETRY = 0.5
"""Seconds until a file that cannot be polled (a full disk) is tried again."""
_PASSING = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT})
_PIECE = 256  # what poll(2) may promise room for on a terminal


class StandardError:
    """Lines for the file behind the descriptor `fd`.

    `problem` says why the last line was not taken, and is None while lines are taken. All methods belong to the
    thread of the event loop.
    """

    def __init__(self, fd: int = 2) -> None:
        self.problem: str | None = None
        self._given = fd
        self._fd = fd
        self._owned = False
        self._polled = False
        self._socket: socket.socket | None = None
        self._rest = b""
        self._waiting: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writer: tuple[asyncio.AbstractEventLoop, int] | None = None
        try:
            self._open()
        except OSError as error:  # standard error is closed: every line will raise
            self.problem = error.strerror

    @property
    def pending(self) -> bool:
        """Whether the end of a line that was taken is still to be written: the reader is slower than we are."""
        return bool(self._rest)

    def write_line(self, text: bytes) -> bool:
        """Write one escaped line, with a newline if `text` has none: True if it was taken, False if not now.

        A line of which only a part fitted counts as taken; its rest is written before anything else. Raises OSError
        (EPIPE, EBADF, EIO, ...) when nobody can ever read it; the rest of the line before is forgotten then.
        """
        if not text.endswith(b"\n"):
            text += b"\n"
        if not self._flush():
            return False
        written = self._write(text)
        if not written:
            return False
        self._rest = text[written:]
        if self._rest:
            # A line half of which is on the terminal must not wait for the next one to be finished.
            self._finish_later()
        return True

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, from the running event loop, when another `write_line` makes sense."""
        if callback not in self._waiting:
            self._waiting.append(callback)
            self._arm(asyncio.get_running_loop())

    def close(self) -> None:
        """Forget who waits and what is unfinished; the descriptor that was given stays open."""
        self._disarm()
        self._waiting.clear()
        self._rest = b""
        if self._socket is not None:
            self._socket.close()
        elif self._owned:
            os.close(self._fd)
        self._socket, self._owned, self._fd = None, False, self._given

    def _open(self) -> None:
        mode = os.fstat(self._given).st_mode
        if stat.S_ISSOCK(mode):
            # The copy shares the description, so it must stay as it is: blocking, with MSG_DONTWAIT at each call.
            self._socket = socket.socket(fileno=os.dup(self._given))
            self._fd = self._socket.fileno()
        elif not stat.S_ISREG(mode):
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self._fd = os.open(f"/proc/self/fd/{self._given}", flags)
                self._owned = True
            except OSError:
                self._polled = True

    def _write(self, data: bytes) -> int:
        """Write what fits and return how many bytes that was."""
        try:
            if self._socket is not None:
                written = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            elif self._polled:
                written = self._write_polled(data)
            else:
                written = os.write(self._fd, data)
        except OSError as error:
            self.problem = error.strerror
            if error.errno in _PASSING:
                return 0
            self._rest = b""
            raise
        self.problem = None
        return written

    def _write_polled(self, data: bytes) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        written = 0
        while written < len(data) and poll.poll(0):
            written += os.write(self._fd, data[written : written + _PIECE])
        if not written:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return written

    def _flush(self) -> bool:
        while self._rest:
            written = self._write(self._rest)
            if not written:
                return False
            self._rest = self._rest[written:]
        return True

    def _finish_later(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # before the loop runs; the next line finishes this one
        self._arm(loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._writer is not None or self._timer is not None:
            return
        try:
            loop.add_writer(self._fd, self._wake)
            self._writer = (loop, self._fd)
        except OSError:  # a regular file, /dev/null, or nothing at all: epoll takes none of them
            self._timer = loop.call_later(RETRY if self.problem else 0, self._wake)

    def _disarm(self) -> None:
        if self._writer is not None:
            loop, descriptor = self._writer
            loop.remove_writer(descriptor)
            self._writer = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._disarm()
        try:
            finished = self._flush()
        except OSError:
            finished = True  # those who wait hear of it from their own write_line
        if not finished:
            self._finish_later()
            return
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
