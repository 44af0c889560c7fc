"""A stand-in for /dev/xen/xenbus: a pseudo-terminal, bridged to a real xenstored's unix socket.

It gives what the client relies on: a device that is opened by its path, read without blocking, and whose requests are
answered by a xenstored; closing it ends its watches and transactions. What only the kernel's driver does (a WATCH that
is answered by the write itself, no end of file when xenstored is gone) it does not show, except the latter.
"""

from __future__ import annotations

import os
import pty
import select
import socket
import threading
import tty
from pathlib import Path
from types import TracebackType
from typing import Self


class XenbusStandIn:
    """`path` is the device while the context lasts."""

    def __init__(self, xenstored: Path) -> None:
        self._xenstored = str(xenstored)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._bridge, name="xenbus stand-in")

    def __enter__(self) -> Self:
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        os.close(slave)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._master)

    def _bridge(self) -> None:
        while not self._ended.is_set():
            # A terminal that nobody has open hangs up: then there is nothing to bridge.
            if self._poll(self._master) & select.POLLHUP:
                self._ended.wait(0.01)
                continue
            self._serve()

    def _serve(self) -> None:
        """One opening of the device: bytes both ways until it is closed."""
        with socket.socket(socket.AF_UNIX) as store:
            store.connect(self._xenstored)
            alive = True
            while not self._ended.is_set():
                try:
                    if self._poll(self._master) & select.POLLIN:
                        store.sendall(os.read(self._master, 65536))
                    elif self._poll(self._master) & select.POLLHUP:
                        return
                    if alive and self._poll(store.fileno()):
                        data = memoryview(store.recv(65536))
                        alive = bool(data)
                        while data and not self._ended.is_set():
                            if self._poll(self._master) & select.POLLHUP:
                                return
                            data = data[os.write(self._master, data[:1024]) :]
                    elif not self._poll(self._master):
                        self._ended.wait(0.001)
                except BrokenPipeError:
                    alive = False
                except OSError:  # EIO: closed meanwhile
                    return

    @staticmethod
    def _poll(fd: int) -> int:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return dict(poller.poll(0)).get(fd, 0)
