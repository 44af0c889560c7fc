"""The transport for /dev/xen/xenbus, the kernel's own connection to xenstored.

A xenstored in its own domain has no socket in dom0. The device (linux/drivers/xen/xenbus/xenbus_dev_frontend.c) can be
read like a socket, but not written like one: poll never reports it as writable, O_NONBLOCK has no effect on writes, and
the write of a WATCH or UNWATCH returns only when xenstored has answered. So a thread writes, one message at a time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from unplugd.xenstore.wire import HEADER

if TYPE_CHECKING:
    from unplugd.xenstore.connection import StoreConnection

MAX_PAYLOAD = 4096 - HEADER.size
"""The kernel takes 4096 bytes with the header."""

_READ = 65536

_BROKEN = frozenset((errno.EIO, errno.ENODEV, errno.ENXIO, errno.EBADF, errno.EPIPE, errno.EFAULT))
"""Errors of a write that concern the device; other errors are xenstored's answer to a WATCH."""


class DeviceTransport:
    """Moves bytes between the device at `path` and `connection`. OSError if it can't be opened.

    What waits to be written is bounded by the connection: as many messages as it has requests outstanding.
    """

    def __init__(self, path: str, connection: StoreConnection) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            # A separate descriptor for the writer, so that it cannot write to another file with a reused number.
            writer_fd = os.dup(self._fd)
            try:
                self._loop.add_reader(self._fd, self._readable)
            except OSError:
                os.close(writer_fd)
                raise
        except OSError:
            os.close(self._fd)
            raise
        # A daemon thread: a write that the kernel never ends must not keep the process from ending.
        self._thread = threading.Thread(
            target=self._write_all, args=(writer_fd,), name="xenbus writer", daemon=True
        )
        self._thread.start()
        connection.connection_made(self)

    def write(self, data: bytes, /) -> None:
        """Send one message."""
        if self._fd >= 0:
            self._queue.put(data)

    def writelines(self, messages: Sequence[bytes], /) -> None:
        """Send messages in order."""
        for message in messages:
            self.write(message)

    def abort(self) -> None:
        """Close; `connection_lost` follows from the loop. The thread closes its descriptor when its write returns."""
        self._close(None)

    def _close(self, error: OSError | None) -> None:
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._queue.put(None)
        self._loop.call_soon(self._connection.connection_lost, error)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._close(error)
            return
        if data:
            self._connection.data_received(data)
        else:
            self._close(None)

    # --- the thread ---

    def _write_all(self, fd: int) -> None:
        try:
            while self._fd >= 0 and (message := self._queue.get()) is not None:
                try:
                    _write_whole(fd, message)
                except OSError as error:
                    self._report(message, error)
        finally:
            os.close(fd)

    def _report(self, message: bytes, error: OSError) -> None:
        code = error.errno or errno.EIO
        try:
            if code in _BROKEN:
                self._loop.call_soon_threadsafe(self._close, error)
            else:
                self._loop.call_soon_threadsafe(
                    self._connection.write_refused, message, errno.errorcode[code]
                )
        except RuntimeError:  # the loop is closed
            pass


def _write_whole(fd: int, message: bytes) -> None:
    # The device takes a whole message. Its replacement in tests may take a part of it, or none yet.
    rest = memoryview(message)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll(1000)
