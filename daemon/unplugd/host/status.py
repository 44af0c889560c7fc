"""The status of the service: the status line and the watchdog ping for systemd, and values for /api/v1/status.

service.py makes the text of the line, and systemd.py sends it. service.py also notes each successful or refused reload
here, and http/pages.py shows it.
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
"""Seconds in which changes of the status are combined into one message."""


class StatusLine:
    """`text` returns the line for `systemctl status` ("7 domains, ...")."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._timer: asyncio.TimerHandle | None = None

    @property
    def assignment(self) -> str:
        """The assignment for sd_notify(3), to send it together with another one."""
        return f"STATUS={self._text()}"

    def soon(self) -> None:
        """The status has changed: send it within SOON seconds."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON, self.tell)

    def tell(self) -> None:
        """Send it now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        notify(self.assignment)

    async def ping(self, interval: float) -> None:
        """Send the watchdog ping every `interval` seconds. Only this coroutine does, so it shows that the loop works.
        """
        while True:
            notify("WATCHDOG=1", self.assignment)
            await asyncio.sleep(interval)


class ServiceStatus:
    """The values of /api/v1/status about the process and its configuration. Times are CLOCK_REALTIME, in seconds."""

    def __init__(self, config_path: Path | None = None) -> None:
        self._started = time.time()
        self._reloads = 0
        self._refused: tuple[float, str] | None = None
        self._since = self._started
        try:
            self._files = [str(file) for file in files(config_path)]
        except ConfigError:     # they have changed since they were read
            self._files = []

    def taken(self, files: list[str]) -> None:
        """A reload was successful: these files are in effect from now on."""
        self._reloads += 1
        self._refused = None
        self._since = time.time()
        self._files = files

    @property
    def problem(self) -> str:
        """Why the last reload was refused; "" where it was not."""
        return self._refused[1] if self._refused else ""

    def refused(self, problem: str) -> None:
        """A reload was refused; the previous configuration stays in effect."""
        self._refused = (time.time(), problem)

    def describe(self) -> Mapping[str, object]:
        """These values for JSON (docs/api.md)."""
        refused = None if self._refused is None else {
            "time": round(self._refused[0], 3), "problem": self._refused[1]}
        return {
            "pid": os.getpid(),
            "started": round(self._started, 3),
            "configuration": {
                "files": self._files, "since": round(self._since, 3), "reloads": self._reloads, "refused": refused,
            },
        }
