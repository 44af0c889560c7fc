"""The real xenstored (C) and oxenstored (OCaml) from the Xen of this machine's Debian, without Xen.

    with running("c") as xenstored:                 # or "ocaml"; a new and empty store
        xenstored.create(7, "web-01", UUID)         # as a toolstack does: nodes, introduction
        xenstored.dom0.write("/a", b"1")            # another client, in dom0
        xenstored.guest(7).read("name")             # the guest speaks, through its ring, with its permissions
        xenstored.pause()                           # it hangs (SIGSTOP) until `resume`
        xenstored.kill(); xenstored.start()         # it crashed, and comes back empty at the same path
        xenstored.destroy(7)

Wire protocol, watches, transactions, quotas and rings are theirs; the hypervisor is tests/lab/xenshim.c. Everything
here blocks, with a deadline. Needs root: oxenstored's socket has a fixed path, which gets its own mount namespace.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import pytest

from tests.lab.xenspeak import DEADLINE, INTRODUCE, RELEASE, SET_PERMS, WRITE, Dom0, Guest

Kind = Literal["c", "ocaml"]
KINDS: tuple[Kind, ...] = ("c", "ocaml")

# As in xenshim.c.
PORT_DOM_EXC = 1
PORT_RING = 1000
DOMIDS = 0x7FF0


class LabError(Exception):
    """The lab itself does not work here."""


@cache
def _prepare() -> Path | str:
    """What `prepared` gives, or in one line why there is nothing: one try, also where it fails."""
    script = Path(__file__).with_name("get-xen.sh")
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"{script.name}: status {done.returncode}"])[-1]
    return Path(done.stdout.strip())


def prepared() -> Path:
    """The directory with the unpacked packages ("root") and xenshim.so. LabError if it can't be had."""
    result = _prepare()
    if isinstance(result, str):
        raise LabError(result)
    return result


def needed() -> None:
    """For fixtures: skip the test where there can be no xenstored; on CI, where one must be, that is a failure."""
    if os.geteuid() != 0:
        pytest.skip("needs root: oxenstored's socket has a fixed path, which a mount namespace of its own gives it")
    try:
        prepared()
    except LabError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(f"no xenstored here: {error}")


class Xenstored:
    """A xenstored in a directory of its own; `socket` is where it listens."""

    def __init__(self, kind: Kind, directory: Path) -> None:
        self.kind: Kind = kind
        self.directory = directory
        self.shim = directory / "shim"
        self._run = directory / "run"
        self.socket = self._run / "socket"
        self._root = prepared() / "root"
        self._process: subprocess.Popen[bytes] | None = None
        self._events = -1
        self._dom0: Dom0 | None = None
        self._guests: dict[int, Guest] = {}
        for each in (self._run, self.shim / "rings", self.shim / "kicks"):
            each.mkdir(parents=True)
        (self.shim / "domains").write_bytes(bytes(DOMIDS))
        self.set_state(0, "r")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    # --- the process ---

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        if self._process is None:
            raise LabError("xenstored does not run")
        return self._process.pid

    def start(self) -> Self:
        """Start it, empty, and wait until it listens. LabError."""
        if self._process:
            raise LabError("xenstored runs already")
        self.socket.unlink(missing_ok=True)
        (self.shim / "events").unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            # It ends with the thread that starts it: a test run that is killed leaves no daemon.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._command()],
                env=self._environment(),
                cwd=self._run,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + DEADLINE
        # The shim makes the FIFO after the socket is there.
        while not (self.shim / "events").exists() or not self._listens():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise LabError(
                    f"xenstored does not start: {(self.directory / 'log').read_text(errors='replace')}"
                )
            time.sleep(0.002)
        self._events = os.open(self.shim / "events", os.O_RDWR | os.O_CLOEXEC)
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _environment(self) -> dict[str, str]:
        (library,) = self._root.glob("usr/lib/*/libxenstore.so.4")
        return os.environ | {
            "LD_LIBRARY_PATH": str(library.parent),
            "XENSHIM_DIR": str(self.shim),
            "XENSHIM_ROOT": str(self._root),
            "XENSTORED_PATH": str(self.socket),
            "XENSTORED_RUNDIR": str(self._run),
        }

    def _command(self) -> list[str]:
        (xenstored,) = self._root.glob("usr/lib/xen-*/bin/xenstored")
        preload = f"LD_PRELOAD={self._root.parent}/xenshim.so"
        if self.kind == "c":
            pid_file = str(self.directory / "pid")
            return ["env", preload, str(xenstored), "--no-fork", "--pid-file", pid_file]
        # oxenstored listens below /var/run, whatever it is told: it gets one of its own, where our directory is that.
        shipped = (self._root / "etc/xen/oxenstored.conf").read_text()
        configuration = self.directory / "oxenstored.conf"
        pid_file_line = "pid-file = /var/run/xen/xenstored.pid"
        if pid_file_line not in shipped:
            raise LabError("oxenstored.conf is not the one we know")
        configuration.write_text(
            shipped.replace(pid_file_line, f"pid-file = {self.directory}/pid")
            + f"\nxenstored-log-file = {self.directory}/oxenstored.log\n"
        )
        script = (
            'run=$(readlink -f /var/run) && mount -t tmpfs tmpfs "$run" && mkdir "$run/xen" "$run/xenstored" &&'
            ' mount --bind . "$run/xenstored" && exec env "$@"'
        )
        oxenstored = [
            str(xenstored.with_name("oxenstored")),
            "--no-fork",
            "--no-access-log",
            "--config-file",
            str(configuration),
        ]
        return [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
            preload,
            *oxenstored,
        ]

    def kill(self) -> None:
        """SIGKILL, as a crash; does nothing if it does not run. `start` brings it back, empty, at the same path."""
        for speaker in (self._dom0, *self._guests.values()):
            if speaker:
                speaker.close()
        self._dom0 = None
        self._guests.clear()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1
        if self._process:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: it hangs, and its socket takes connections and requests all the same."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    # --- the hypervisor ---

    def fire(self, port: int) -> None:
        """Fire an event channel port in xenstored."""
        os.write(self._events, struct.pack("=I", port))

    def set_state(self, domid: int, state: Literal["r", "s", "c", "d"] | None) -> None:
        """The hypervisor's domain: running, shut down, crashed, dying, or none. xenstored hears of all but "r"."""
        with (self.shim / "domains").open("r+b") as states:
            states.seek(domid)
            states.write(state.encode() if state else b"\0")
        if state is None:
            (self.shim / "rings" / str(domid)).unlink(missing_ok=True)
        if state != "r":
            self.fire(PORT_DOM_EXC)

    # --- dom0 ---

    @property
    def dom0(self) -> Dom0:
        """A client in dom0, connected when first used."""
        if self._dom0 is None:
            self._dom0 = Dom0(self.socket)
        return self._dom0

    def introduce(self, domid: int) -> None:
        """A domain comes into being and is introduced: @introduceDomain."""
        self.set_state(domid, "r")
        self.dom0.call(INTRODUCE, b"%d\0%d\0%d\0" % (domid, 1, 1))

    def release(self, domid: int) -> None:
        """A domain is released and ceases to be: @releaseDomain."""
        if guest := self._guests.pop(domid, None):
            guest.close()
        self.dom0.call(RELEASE, b"%d\0" % domid)
        self.set_state(domid, None)

    def create(self, domid: int, name: str, uuid: str) -> None:
        """What libxl does for a new domain: its nodes, with their permissions, and the introduction."""
        base = f"/local/domain/{domid}"
        self.set_state(domid, "r")  # first: xenstored gives nothing to a domain that is not there
        values = {
            f"/vm/{uuid}/uuid": uuid,
            f"/vm/{uuid}/name": name,
            f"{base}/vm": f"/vm/{uuid}",
            f"{base}/name": name,
            f"{base}/domid": str(domid),
            f"{base}/data": "",
        }
        readable = (f"/vm/{uuid}", base, f"{base}/vm", f"{base}/name", f"{base}/domid")
        self.dom0.call_all(
            [(WRITE, f"{path}\0{value}".encode()) for path, value in values.items()]
            + [(SET_PERMS, f"{path}\0n0\0r{domid}\0".encode()) for path in readable]
            + [(SET_PERMS, f"{base}/data\0n{domid}\0".encode())]
        )
        self.introduce(domid)

    def destroy(self, domid: int) -> None:
        """What libxl does at the end of a domain: its nodes, the release, the domain itself."""
        dom0, base = self.dom0, f"/local/domain/{domid}"
        vm = dom0.read(f"{base}/vm").decode()
        dom0.remove(base)
        dom0.remove(vm)
        self.release(domid)

    def guest(self, domid: int) -> Guest:
        """The guest's kernel. The domain must have been introduced."""
        if domid not in self._guests:
            self._guests[domid] = Guest(domid, self.shim, lambda: self.fire(PORT_RING + domid))
        return self._guests[domid]


@contextmanager
def running(kind: Kind) -> Iterator[Xenstored]:
    """A new and empty xenstored; gone with all its files at the end. LabError."""
    # Not pytest's tmp_path: a unix socket's path is at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="xenstored-"))
    try:
        with Xenstored(kind, directory) as xenstored:
            yield xenstored
    finally:
        shutil.rmtree(directory)
