"""How the service stands: since when it runs, which configuration holds and since when, which one was refused last.

Told by service.py at start and at each reload, shown by /api/v1/status (http/pages.py). It judges no configuration.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from unplugd.config import files
from unplugd.errors import ConfigError


class Standing:
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
