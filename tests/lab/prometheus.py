"""The real Prometheus: a server that scrapes every second, its HTTP API, and promtool.

The binaries are those that get-prometheus.sh put into the lab's cache, or the installed ones.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds that a condition gets to come true on a slow and busy machine."""

CONFIGURATION = """\
global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
scrape_configs:
  - job_name: unplugd
    static_configs:
      - targets: {targets}
rule_files: {rules}
"""


def binary(name: str) -> Path:
    """`prometheus` or `promtool`. Skips the test where there is none; on CI that is a failure."""
    cache = Path(os.environ.get("UNPLUGD_LAB_CACHE", _ROOT / ".cache" / "lab"))
    cached = cache / "prometheus" / "usr" / "bin" / name
    if cached.exists():
        return cached
    if installed := shutil.which(name):
        return Path(installed)
    problem = f"there is no {name}: tests/lab/get-prometheus.sh fetches it"
    if os.environ.get("CI"):
        pytest.fail(problem)
    pytest.skip(problem)


def lint(exposition: bytes) -> str:
    """What `promtool check metrics` says of a text, nothing if it is as it should be."""
    done = subprocess.run(
        [binary("promtool"), "check", "metrics"], input=exposition, capture_output=True, timeout=PATIENCE, check=False
    )
    said = (done.stdout + done.stderr).decode()
    return said or ("" if done.returncode == 0 else f"exit status {done.returncode}")


class Prometheus:
    """A server that scrapes these ports of 127.0.0.1, follows the rules, and keeps what it saw in `directory`."""

    def __init__(self, directory: Path, *ports: int, rules: Sequence[Path] = ()) -> None:
        self.directory = directory
        self.targets = [f"127.0.0.1:{port}" for port in ports]
        self._rules = [str(file) for file in rules]
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    def start(self) -> None:
        """Starts it and waits until it answers."""
        configuration = self.directory / "prometheus.yml"
        configuration.write_text(
            CONFIGURATION.format(targets=json.dumps(self.targets), rules=json.dumps(self._rules))
        )
        subprocess.run(
            [binary("promtool"), "check", "config", configuration], check=True, capture_output=True, timeout=PATIENCE
        )
        address = f"127.0.0.1:{_free_port()}"
        self._url = f"http://{address}"
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary("prometheus"),
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={self.directory / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_for(self._is_ready, "Prometheus to be ready")

    def stop(self) -> None:
        """Ends it. Its data stay in `directory`."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def api(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP API, for example `api("targets")`."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=PATIENCE) as answer:
            decoded = json.load(answer)
        assert decoded["status"] == "success", decoded
        return decoded["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and value of each series that an instant query gives now."""
        return [
            (found["metric"], float(found["value"][1])) for found in self.api("query", query=expression)["result"]
        ]

    def value(self, expression: str) -> float | None:
        """The value of the one series that the query gives, None while there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def wait_for_value(self, expression: str, expected: float | None) -> None:
        """Waits until the one series of the query has this value, or with None until it is gone."""
        self.wait_for(lambda: self.value(expression) == expected, f"{expression} to be {expected}")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until the condition is true; fails with what it waited for and the end of the server's log."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self._process is not None
            if time.monotonic() > end or self._process.poll() is not None:
                log = (self.directory / "log").read_text(errors="replace")[-3000:]
                pytest.fail(f"waited in vain for {what}. Prometheus' log ends:\n{log}")
            time.sleep(0.1)

    def target_error(self) -> str:
        """What went wrong at the last scrape of the target; empty if nothing."""
        (target,) = self.api("targets")["activeTargets"]
        return str(target["lastError"])

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=PATIENCE):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[int], Prometheus]]:
    """`prometheus(port)` is a running Prometheus that scrapes that port of 127.0.0.1 every second."""
    started: list[Prometheus] = []

    def start(port: int) -> Prometheus:
        directory = tmp_path / f"prometheus-{len(started)}"
        directory.mkdir()
        server = Prometheus(directory, port)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()
