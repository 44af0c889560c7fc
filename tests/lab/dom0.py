"""A dom0 as documentation means it: unplugd where its package puts it, with a real journald and a real xenstored.

    with Dom0(directory) as dom0:
        dom0.run("unplugctl list")          # as an administrator's shell would; what it printed
        dom0.play(7, "linux")               # the simulator's guest, against /run/unplugd/dom7.sock

It is a mount and a network namespace: /run, /etc, /var/log, the journal's catalog and 127.0.0.1 are its own, so that
nothing of the machine is written and default paths and ports hold. There is no systemd in it (tests/lab/systemd.py) and
no Xen. Needs root.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.daemon import PATIENCE, uuid
from tests.lab.journald import Journald
from tests.lab.xenstored import Xenstored, prepared

ROOT = Path(__file__).parents[2]

GUESTS = {7: ("web-01", "linux"), 8: ("win-ts", "xenbus"), 9: ("old-win", "citrix"), 10: ("bsd-gw", "freebsd"),
          11: ("chatty", "chatty")}  # fmt: skip

CONFIGURATION = """\
[[blacklist.entry]]
product = "xensource-windows"
build = 86451
reason = "loses data on resume"
[socket]
device_model_uids = [0]
[log]
sinks = ["journal", "file"]
"""

_FURNISH = """
set -e
lab=$1
mkdir -p "$lab/run/systemd" "$lab/run/log" "$lab/run/xenstored" "$lab/catalogs" "$lab/catalog"
mount --rbind /run/systemd "$lab/run/systemd"
mount --rbind /run/log "$lab/run/log"
mount --bind "$2" "$lab/run/xenstored"
mount --rbind "$lab/run" /run
cp -a /etc "$lab/etc"
cp /etc/machine-id "$lab/etc/machine-id.new" && mv "$lab/etc/machine-id.new" "$lab/etc/machine-id"
rm -rf "$lab/etc/unplugd" && mkdir -p "$lab/etc/unplugd/conf.d" && cp "$lab/unplugd.toml" "$lab/etc/unplugd/"
mount --bind "$lab/etc" /etc
mount -t tmpfs tmpfs /var/log
cp systemd/unplugd.catalog "$lab/catalogs"
mount --bind "$lab/catalogs" /usr/lib/systemd/catalog
mount --bind "$lab/catalog" /var/lib/systemd/catalog
journalctl --update-catalog
"""

_LOOPBACK = """
import fcntl, socket, struct
with socket.socket() as any: fcntl.ioctl(any, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
"""

_TOOLS = ("xenstore-ls", "xenstore-read", "xenstore-write", "xenstore-rm", "xenstore-list", "xenstore-exists")


class Dom0:
    """The host. A context manager: enters with unplugd ready and its guests introduced."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._journald = Journald(directory / "journald", queue=512)
        self._xenstored = Xenstored("c", directory / "xenstored")
        self._unplugd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._xenstored.__enter__()
        try:
            for domid, (name, _) in GUESTS.items():
                self._xenstored.create(domid, name, uuid(domid))
            self._journald.__enter__()
            self._furnish()
            self._unplugd = self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unplugd is not None:
            self._unplugd.terminate()
            self._unplugd.wait(PATIENCE)
        self._journald.__exit__(kind, error, trace)
        self._xenstored.__exit__(kind, error, trace)

    def _furnish(self) -> None:
        lab = self.directory / "host"
        (lab / "bin").mkdir(parents=True)
        (lab / "unplugd.toml").write_text(CONFIGURATION)
        root = prepared() / "root"
        (library,) = root.glob("usr/lib/*/libxenstore.so.4")
        for name in _TOOLS:
            tool = lab / "bin" / name
            tool.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={library.parent} exec {root}/usr/bin/{name} "$@"\n')
            tool.chmod(0o755)
        script = ["sh", "-c", _FURNISH, "sh", str(lab), str(self._xenstored.socket.parent)]
        subprocess.run(self._journald.command(script, cwd=ROOT), check=True, timeout=PATIENCE)
        subprocess.run(self._journald.command([sys.executable, "-S", "-c", _LOOPBACK]), check=True, timeout=PATIENCE)

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.directory / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                self._journald.command(["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "unplugd"]),
                stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while self.call("unplugctl status").returncode != 0:
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise RuntimeError(f"unplugd is not ready: {(self.directory / 'stderr').read_text()}")
            time.sleep(0.1)
        return process

    def call(self, command: str, *, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        """A shell's command line; `typed` is its standard input."""
        path = f"{self.directory}/host/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            self._journald.command(["bash", "-e", "-c", command], cwd=ROOT),
            env={**os.environ, "PATH": path, "XENSTORED_PATH": "/run/xenstored/socket", "PAGER": "cat"},
            input=typed or "", capture_output=True, text=True, timeout=PATIENCE + 30, check=False,
        )  # fmt: skip

    def run(self, command: str, *, status: int = 0) -> str:
        """What a command that ends so printed."""
        done = self.call(command)
        assert done.returncode == status, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def play(self, domid: int, guest: str) -> None:
        """A simulated guest starts its driver. That of one that is blacklisted is no failure."""
        done = self.call(f"python -m unplugd.simulator {domid} {guest} --reset")
        assert done.returncode in (0, 3), done.stderr
