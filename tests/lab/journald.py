"""A real systemd-journald, private to one test: its own /run/systemd and its own journal, in a mount namespace.

It needs root (mount namespaces) and the binaries of systemd and util-linux; where they are missing the fixture skips.
The namespace outlives each journald in it, as a host outlives a restart of its journald: a process that entered it
(`command`) finds whichever journald runs at the fixed path /run/systemd/journal/socket. A process outside reaches the
same socket at `Journald.socket`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

JOURNALD = "/lib/systemd/systemd-journald"
DEADLINE = 30.0
"""Seconds until something that must happen counts as not happening, on a slow and busy machine."""

_CONFIGURATION = """\
[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
ForwardToSyslog=no
ForwardToKMsg=no
ForwardToConsole=no
ForwardToWall=no
RateLimitIntervalSec=0
RuntimeMaxUse=64M
"""

# The holder of the namespace: it makes the mounts, says so, and goes when our end of its standard input does.
_HOLDER = """
set -e
mkdir -p /run/systemd /run/log
mount -t tmpfs -o mode=0755 tmpfs /run/systemd
mkdir /run/systemd/journal /run/systemd/journald.conf.d
cp "$1/journald.conf" /run/systemd/journald.conf.d/zz-lab.conf
mount --bind "$1/journal" /run/systemd/journal
mount --bind "$1/log" /run/log
mount --bind "$1/machine-id" /etc/machine-id
[ -z "$2" ] || echo "$2" >/proc/sys/net/unix/max_dgram_qlen
echo ready
exec cat
"""


class Journald:
    """The private journald. A context manager: enters with journald running."""

    def __init__(self, directory: Path, *, queue: int | None = None) -> None:
        """`queue`: entries that its socket holds unread (None: as many as here), in a network namespace of its own."""
        self.directory = directory
        self._queue = queue
        self.socket = directory / "journal" / "socket"
        self._machine_id = os.urandom(16).hex()
        self._holder: subprocess.Popen[str] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for name in ("journal", "log"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "journald.conf").write_text(_CONFIGURATION)
        (self.directory / "machine-id").write_text(self._machine_id + "\n")
        self._holder = subprocess.Popen(
            [
                "unshare",
                "--mount",
                *([] if self._queue is None else ["--net"]),
                "--propagation",
                "private",
                "sh",
                "-c",
                _HOLDER,
                "sh",
                str(self.directory),
                "" if self._queue is None else str(self._queue),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError("no mount namespace for journald")
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self._holder is not None:
            self._holder.communicate()
            self._holder = None

    @property
    def pid(self) -> int:
        """journald's process."""
        return self._running().pid

    def command(self, argv: Sequence[str], cwd: Path | str = "/") -> list[str]:
        """Return the command line that runs `argv` where this journald is the host's; the process is `argv` itself."""
        assert self._holder is not None
        of = f"/proc/{self._holder.pid}/ns"
        network = [] if self._queue is None else [f"--net={of}/net"]
        return ["nsenter", f"--mount={of}/mnt", *network, f"--wd={cwd}", "--", *argv]

    def start(self) -> None:
        """Start journald (it must not run) and wait until its socket takes entries."""
        assert self._daemon is None
        # journald goes when this process does, however that ends.
        self._daemon = subprocess.Popen(
            self.command(["setpriv", "--pdeathsig", "KILL", JOURNALD]), stderr=subprocess.DEVNULL
        )
        wait_until(self._listens, "journald's socket")

    def suspend(self) -> None:
        """Stop journald where it is (SIGSTOP): what is sent stays in its socket, until that is full."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended journald go on."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill journald: the socket's file stays, and nobody listens. What it had not read is lost."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def restart(self) -> None:
        """Let another journald take the place of this one, with a new socket."""
        self.kill()
        self.start()

    def remove_socket(self) -> None:
        """Remove the file of the socket, as while a host's journald is being restarted."""
        self.socket.unlink(missing_ok=True)

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """Return the entries that match (`FIELD=value`), oldest first, with fields as journalctl's JSON has them.

        A value is a string, or a list of byte values where it is not printable UTF-8.
        """
        files = self.directory / "log" / "journal" / self._machine_id
        if not files.is_dir():
            return []
        text = subprocess.run(
            ["journalctl", "--directory", str(files), "--output=json", "--all", "--quiet", *matches],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=DEADLINE,
            check=False,  # no match at all is no success to journalctl
        ).stdout
        return [json.loads(line) for line in text.splitlines()]

    def times(self, since: float, *matches: str) -> list[float]:
        """When journald stored the entries that match, oldest first: its CLOCK_MONOTONIC, seconds.

        `since` is a POSIX time: earlier entries are left out.
        """
        files = self.directory / "log" / "journal" / self._machine_id
        command = ["journalctl", "--directory", str(files), "--output=export", "--output-fields=PRIORITY", "--quiet"]
        text = subprocess.run(
            [*command, f"--since=@{since:.6f}", *matches], stdout=subprocess.PIPE, timeout=DEADLINE, check=False
        ).stdout
        name = b"__MONOTONIC_TIMESTAMP="
        return [int(line.removeprefix(name)) / 1e6 for line in text.splitlines() if line.startswith(name)]

    def wait_for(self, holds: Callable[[list[dict[str, Any]]], bool], *matches: str) -> list[dict[str, Any]]:
        """Return the entries that match as soon as `holds` is true of them; AssertionError after `DEADLINE`."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = self.entries(*matches)
            return holds(found)

        wait_until(look, lambda: f"the journal has {len(found)} entries: {found[-3:]}", pause=0.1)
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._daemon is not None, "journald does not run"
        return self._daemon

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            return probe.connect_ex(str(self.socket)) == 0


def wait_until(holds: Callable[[], bool], what: str | Callable[[], str], pause: float = 0.01) -> None:
    """Wait until `holds()`; AssertionError that names `what` after `DEADLINE`."""
    end = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"waited {DEADLINE:.0f} s: {what() if callable(what) else what}")
        time.sleep(pause)


def missing() -> str | None:
    """Return what this machine lacks for a private journald, or None."""
    if os.geteuid() != 0:
        return "mount namespaces need root"
    for binary in (JOURNALD, "journalctl", "nsenter", "setpriv", "unshare"):
        if shutil.which(binary) is None:
            return f"{binary} is not installed"
    if not Path("/etc/machine-id").exists():
        return "no /etc/machine-id"
    return None


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    """A private journald that runs."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with Journald(tmp_path / "journald") as daemon:
        yield daemon
