"""What the service manager is told while the service runs: the status line and the watchdog's ping.

What the line says is the service's business; how it is sent is systemd.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from unplugd.systemd import notify

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
