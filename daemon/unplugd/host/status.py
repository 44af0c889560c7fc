"""The status of the service: the line and the watchdog's ping for the service manager, and what /api/v1/status shows.

What the line says is the service's business; how it is sent is systemd.py's. Since when the service runs, which
configuration holds and which one was refused last is noted by service.py at start and at each reload, and shown by
http/pages.py. Nothing here judges a configuration.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from unplugd.config.load import files
from unplugd.errors import ConfigError
from unplugd.host.systemd import notify

SOON = 0.25
"""Seconds in which changes of the status are told together."""


class StatusLine:
    """`text` gives what `systemctl status` is to show ("7 domains, ...")."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._timer: asyncio.TimerHandle | None = None

    @property
    def assignment(self) -> str:
        """For sd_notify(3), to send with something else."""
        return f"STATUS={self._text()}"

    def soon(self) -> None:
        """Tell it within SOON seconds: something changed."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON, self.tell)

    def tell(self) -> None:
        """Tell it now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        notify(self.assignment)

    async def ping(self, interval: float) -> None:
        """Tell the watchdog that the event loop turns, every `interval` seconds; nobody else does."""
        while True:
            notify("WATCHDOG=1", self.assignment)
            await asyncio.sleep(interval)


class ServiceStatus:
    """What /api/v1/status says of the process and its configuration. Times are CLOCK_REALTIME, in seconds."""

    def __init__(self, config_path: Path | None = None) -> None:
        self._config_path = config_path
        self._started = time.time()
        self._reloads = 0
        self._refused: tuple[float, str] | None = None
        self._since = self._started
        self._files = self._read()

    def taken(self) -> None:
        """A reload was taken: what the files say holds from now on."""
        self._reloads += 1
        self._refused = None
        self._since = time.time()
        self._files = self._read()

    def refused(self, problem: str) -> None:
        """A reload was refused; what held before goes on."""
        self._refused = (time.time(), problem)

    def _read(self) -> list[str]:
        try:
            return [str(file) for file in files(self._config_path)]
        except ConfigError:     # gone since it was read
            return []

    def describe(self) -> Mapping[str, object]:
        """JSON's part (docs/api.md)."""
        refused = None if self._refused is None else {
            "time": round(self._refused[0], 3), "problem": self._refused[1]}
        return {
            "pid": os.getpid(),
            "started": round(self._started, 3),
            "configuration": {
                "files": self._files, "since": round(self._since, 3), "reloads": self._reloads, "refused": refused,
            },
        }
