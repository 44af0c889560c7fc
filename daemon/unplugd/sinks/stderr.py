"""Standard error: writes whole lines and never waits for the reader.

O_NONBLOCK belongs to the open file description, which unplugd shares with the shell or service manager that started it,
so it is never set there. Each kind of file has another way not to block:

- socket (a unit's standard error is a stream to journald): MSG_DONTWAIT;
- pipe, FIFO, terminal, device: a description of our own, by opening /proc/self/fd/2 again;
- regular file: a write does not wait for a reader.

If a pipe or terminal cannot be opened again (another user's terminal), poll(2) is used before small writes.
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
_PIECE = 256  # poll(2) may guarantee only this much room on a terminal


class StandardError:
    """Lines for the file behind the descriptor `fd`.

    `problem` is the reason why the last line was refused, or None. Call all methods in the thread of the event loop.
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
        """Whether the end of an accepted line is not written yet, because the reader is slow."""
        return bool(self._rest)

    def write_line(self, text: bytes) -> bool:
        """Write one escaped line, with a newline if `text` has none. Returns True if it was accepted, False if not now.

        If only a part could be written, the line is accepted, and its rest is written before anything else. Raises
        OSError (EPIPE, EBADF, EIO, ...) if it can never be written; the rest of the previous line is discarded then.
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
            # The rest of the line must not wait for the next line.
            self._finish_later()
        return True

    def when_writable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, from the running event loop, when another `write_line` makes sense."""
        if callback not in self._waiting:
            self._waiting.append(callback)
            self._arm(asyncio.get_running_loop())

    def close(self) -> None:
        """Remove the waiting callbacks and the unfinished line; the given descriptor stays open."""
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
            # The copy shares the file description, so it must stay blocking; each call uses MSG_DONTWAIT.
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
        except OSError:  # a regular file, /dev/null or an invalid descriptor: epoll accepts none of them
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
            finished = True  # the waiting callers get the error from their own write_line
        if not finished:
            self._finish_later()
            return
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
