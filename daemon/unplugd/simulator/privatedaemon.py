"""A private daemon: unplugd as a separate process in its own directory, for the demo and the benchmarks.

It is started as a service manager does it: `unplugd --config FILE` with a NOTIFY_SOCKET for READY=1. This module starts
it, waits until it is ready, sends HTTP requests and stops it.
"""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from unplugd.errors import HostError

_FROM_A_SERVICE_MANAGER = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")


class PrivateDaemon:
    """One daemon under `directory`, which exists: its configuration, its log (`unplugd.log`), its notify socket.

    `wrapper` is a command that runs it, for example a profiler. As a context manager it starts the daemon, waits until
    it is ready, and always stops it at the end. Raises HostError if the daemon ends or is not ready within `patience`
    seconds, with the end of its log.
    """

    def __init__(
        self, directory: Path, configuration: str, *, patience: float = 30.0, wrapper: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.wrapper = tuple(wrapper)
        self.patience = patience
        self.configuration = directory / "unplugd.toml"
        self.configuration.write_text(configuration)
        self.log = directory / "unplugd.log"
        self.ready_after = 0.0
        """Seconds from the start of the process to READY=1."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        path = self.directory / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.bind(str(path))
            begin = time.monotonic()
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 # this interpreter, this package
                    [*self.wrapper, sys.executable, "-m", "unplugd", "--config", str(self.configuration)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment({"NOTIFY_SOCKET": str(path)}),
                    process_group=0,  # Ctrl-C must reach only the caller, which then sends SIGTERM to the daemon
                )
            try:
                self._await_ready(notify, self._process, begin + self.patience)
            except BaseException:
                self._kill()
                raise
            self.ready_after = time.monotonic() - begin
        path.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    @property
    def pid(self) -> int:
        """The daemon's process. Raises RuntimeError where none was started."""
        if self._process is None:
            raise RuntimeError("the daemon was not started")
        return self._process.pid

    def stop(self) -> int:
        """SIGTERM, as `systemctl stop`; returns the exit status. Raises HostError when it does not end."""
        if self._process is None:
            raise RuntimeError("the daemon was not started")
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(self.patience)
        except subprocess.TimeoutExpired:
            raise HostError(
                "unplugd", f"process {self.pid}", "did not end after SIGTERM" + self._tail()
            ) from None

    def _await_ready(self, notify: socket.socket, process: subprocess.Popen[bytes], deadline: float) -> None:
        while time.monotonic() < deadline:
            if select.select([notify], [], [], 0.05)[0]:
                if b"READY=1" in notify.recv(65536).split(b"\n"):
                    return
            elif process.poll() is not None:
                raise HostError(
                    "unplugd", str(self.configuration), f"exit status {process.returncode}{self._tail()}"
                )
        raise HostError(
            "unplugd", str(self.configuration), f"not ready after {self.patience:g} s{self._tail()}"
        )

    def _tail(self) -> str:
        """The end of the daemon's log, for an error message."""
        lines = self.log.read_text(errors="backslashreplace").splitlines()[-12:]
        return "".join(f"\n    {line}" for line in lines) or "\n    (its log is empty)"

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _environment(additions: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that a service manager set for this process only."""
    kept = {name: value for name, value in os.environ.items() if name not in _FROM_A_SERVICE_MANAGER}
    return kept | dict(additions)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        """Connect to the path instead of to a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def fetch(address: Path | tuple[str, int], path: str, *, timeout: float = 20.0) -> tuple[int, str]:
    """GET `path` from a unix socket or from (host, port): status and text. Raises OSError."""
    connection = (
        _UnixConnection(address, timeout)
        if isinstance(address, Path)
        else http.client.HTTPConnection(*address, timeout=timeout)
    )
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except http.client.HTTPException as error:
        raise OSError(f"{path}: {error!r}") from error
    finally:
        connection.close()
