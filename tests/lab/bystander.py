"""The other guest: it is well-behaved, and notices when somebody else's trouble makes it wait.

    with Bystander(daemon, 2) as other:
        ...                                  # whatever happens to domain 1 or to unplugd's neighbours
    assert other.longest < 1

What the machine makes everybody wait for, a free CPU, is not counted: the kernel knows it of the daemon and of us.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.daemon import Daemon, eventually

PAUSE = 0.02
"""Seconds between two accesses."""


class Bystander:
    """A guest that reads the magic number again and again; a context manager."""

    def __init__(self, daemon: Daemon, domid: int) -> None:
        self.longest = 0.0
        """Seconds of the longest wait for an answer, without the time that daemon or guest waited for a CPU."""
        self.answers = 0
        self._daemon = daemon
        self._domid = domid
        self._error: BaseException | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(AssertionError):
            self.wait()  # also after what was done there are answers
        self._end.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def wait(self) -> None:
        """Wait until it was answered a few more times."""
        least = self.answers + 5
        eventually(lambda: self.answers >= least or self._error is not None)

    def _run(self) -> None:
        try:
            with self._daemon.connect(self._domid) as wire:
                while not self._end.is_set():
                    begin, starved = time.monotonic(), self._starved()
                    assert wire.read(0x10, 2) == 0x49D2
                    waited = time.monotonic() - begin
                    self.longest = max(self.longest, waited - (self._starved() - starved))
                    self.answers += 1
                    self._end.wait(PAUSE)
        except BaseException as error:  # noqa: BLE001 - __exit__ raises it in the test's own thread
            self._error = error

    def _starved(self) -> float:
        """Seconds that the daemon's loop and this thread were ready to run but had no CPU."""
        paths = Path(f"/proc/{self._daemon.pid}/schedstat"), Path("/proc/thread-self/schedstat")
        return sum(int(path.read_text().split()[1]) for path in paths) / 1e9
