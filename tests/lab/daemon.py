"""unplugd as its users run it: a process with a configuration file, seen only from outside.

    daemon = run({"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}})    # the fixture `run`
    with daemon.connect(7) as wire:                        # the device model's end, frames as they are
        assert wire.read(0x10, 2) == 0x49D2
    daemon.value("unplugd_ioreqs_total", kind="magic")     # None where there is no such series
    daemon.kill(); daemon.start()                          # SIGKILL, and the next process with the same files

Whatever the test did, at its end the daemon must still stop as asked (status 0) and have raised nothing.
Nothing here is shared with the daemon but the contract: frames are made by a `struct` of this file.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab.frames import FRAME, RESET, frame, outs

PATIENCE = float(os.environ.get("UNPLUGD_TEST_PATIENCE", "60"))
"""Seconds that something which must happen gets on a slow and busy machine."""

UUID = "4f0e0c5e-0000-4000-8000-{:012d}"

T = TypeVar("T")


def uuid(domid: int) -> str:
    """A domain's uuid in these tests."""
    return UUID.format(domid)


def eventually(get: Callable[[], T], holds: Callable[[T], bool] = bool, *, pause: float = 0.02) -> T:
    """Ask until the answer holds and return it; AssertionError with the last answer after PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not holds(found := get()):
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s in vain; the last answer was {found!r}"
        time.sleep(pause)
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def toml(table: Mapping[str, Any], section: str = "") -> str:
    """A configuration as a file has it."""
    own, below = [], []
    for key, value in table.items():
        name = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
        path = f"{section}.{name}" if section else name
        if isinstance(value, Mapping):
            below.append(f"[{path}]\n{toml(value, path)}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            below += [f"[[{path}]]\n{toml(item, path)}" for item in value]
        else:
            own.append(f"{name} = {json.dumps(value)}\n")
    return "".join([*own, *below])


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, table by table."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


# --- the ioreq socket -------------------------------------------------------------------------------------------------

class Wire:
    """A connection to a domain's socket; every wait has a deadline."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self._unread = b""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.socket.connect(str(path))
                return
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                if time.monotonic() > end:
                    self.socket.close()
                    raise
                time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, count: int) -> bytes:
        """`count` bytes, fewer if the connection ends before."""
        while len(self._unread) < count:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                break
            if not data:
                break
            self._unread += data
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def is_quiet(self, seconds: float) -> bool:
        """Nothing comes for so long, and the connection stays."""
        self.socket.settimeout(seconds)
        try:
            return not self._unread and self.socket.recv(1, socket.MSG_PEEK) == b"never"
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)

    def ask(self, request: bytes) -> int:
        """Send a request and return its response's `data`, with all else checked."""
        self.send(request)
        return self.answer(request)

    def answer(self, request: bytes) -> int:
        """The response to `request`, which was sent before."""
        got = self.take(32)
        assert len(got) == 32, f"closed instead of an answer to {request[:32].hex()}"
        asked, said = FRAME.unpack(request[:32]), FRAME.unpack(got)
        assert said == (asked[0], said[1], *asked[2:6], asked[6] & 0xF0 | 3, asked[7])
        return int(said[1])

    def read(self, addr: int, size: int) -> int:
        return self.ask(frame(addr, size, read=True))

    def write(self, addr: int, size: int, value: int) -> int:
        return self.ask(frame(addr, size, value))

    def reset(self) -> None:
        self.send(RESET)
        assert self.take(32) == RESET

    def log(self, data: bytes) -> None:
        """Guest log as Windows drivers write it."""
        for at in range(0, len(data), 4096):
            assert self.ask(outs(0x12, data[at : at + 4096])) == 0

    def announce(self, product: int, build: int) -> int:
        """Steps 3 to 5; the magic number that the driver then sees."""
        assert self.write(0x12, 2, product) == 0
        assert self.write(0x10, 4, build) == 0
        return self.read(0x10, 2)


# --- the process ------------------------------------------------------------------------------------------------------


class _Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while data := self._socket.recv(65536):
            self.said += data.decode().splitlines()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._thread.join(PATIENCE)
        self._socket.close()

    def status(self) -> str:
        """The last STATUS=."""
        return next((line[7:] for line in reversed(self.said) if line.startswith("STATUS=")), "")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


class Daemon:
    """One unplugd: its files, its process, and the ways to look at it."""

    def __init__(
        self, config: Mapping[str, Any], *, command: Callable[[Sequence[str]], list[str]] = list
    ) -> None:
        """`config` is added to what every test wants; `command` makes another command line of the daemon's."""
        # A unix socket's path is at most 107 bytes: not pytest's tmp_path.
        self.directory = Path(tempfile.mkdtemp(prefix="u-"))
        self.directory.chmod(0o755)
        self.runtime = self.directory / "run"
        self.file = self.directory / "unplugd.toml"
        self.log_directory = self.directory / "guests"
        self.manager = _Manager(self.directory / "notify")
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._command = command
        self._stderr = self.directory / "stderr"
        self.config: dict[str, Any] = {
            "runtime_dir": str(self.runtime),
            "log": {"sinks": ["file"], "directory": str(self.log_directory), "flush_after": 0.3},
            "http": {"listen": ""},
        }
        self.configure(config)

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Write the configuration file anew, with these changes. Takes effect at `start` or `reload`."""
        self.config = merged(self.config, changes)
        self.file.write_text(toml(self.config))

    def listen(self) -> None:
        """Have the TCP listener, at a free port."""
        self.port = free_port()
        self.configure({"http": {"listen": f"127.0.0.1:{self.port}"}})

    def start(self, *, ready: bool = True) -> Self:
        """Start the process; with `ready`, wait until it says so."""
        said = self.manager.said.count("READY=1")
        environment = os.environ | {"NOTIFY_SOCKET": str(self.manager.path), "PYTHONWARNINGS": "error"}
        executable = Path(sys.executable).with_name("unplugd")
        with self._stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                self._command([str(executable), "--config", str(self.file)]),
                env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            )  # fmt: skip
        if ready:
            eventually(lambda: self._alive() and self.manager.said.count("READY=1") > said)
            assert self.get("/-/ready")[0] == 200
        return self

    def _alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.stderr()}"
        return True

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        self.process = None
        return status

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)
        self.process = None

    def reload(self, *, applied: bool = True) -> None:
        """SIGHUP, and wait until it was applied (or with `applied` False: refused)."""
        text = "configuration reloaded" if applied else "configuration not reloaded"
        before = self.stderr().count(text)
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: self._alive() and self.stderr().count(text) > before)

    def close(self) -> None:
        """End it and check that it never raised."""
        status = 0
        if self.process is not None and self.process.poll() is None:
            status = self.stop()
        self.manager.close()
        said = self.stderr()
        shutil.rmtree(self.directory)
        assert "Traceback" not in said, said
        assert "Exception ignored" not in said, said
        assert status == 0, said

    # --- what it says

    def stderr(self) -> str:
        """All that was said on standard error: unplugd's own records where the journal is not among the sinks."""
        return self._stderr.read_text() if self._stderr.exists() else ""

    def wait_for_record(self, pattern: str) -> str:
        """The line of standard error that has this pattern, as soon as there is one."""
        eventually(lambda: re.search(pattern, self.stderr()))
        return next(line for line in self.stderr().splitlines() if re.search(pattern, line))

    def guest_file(self, name: str) -> Path:
        """Where the guest of this (plain) name has its log."""
        return self.log_directory / f"guest-{name}.log"

    def guest_lines(self, name: str) -> list[str]:
        """What the guest's file has, the older generation first, without the times."""
        path = self.guest_file(name)
        lines: list[str] = []
        for each in (path.with_name(path.name + ".1"), path):
            with contextlib.suppress(FileNotFoundError):
                lines += [line.split(" ", 1)[1] for line in each.read_text().splitlines()]
        return lines

    # --- HTTP

    def get(
        self, path: str, *, tcp: bool = False, method: str = "GET", accept: str | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Ask the control socket (or the TCP listener): status, headers, body."""
        connection: http.client.HTTPConnection
        if tcp:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        else:
            connection = _UnixConnection(self.runtime / "control.sock")
        with contextlib.closing(connection):
            connection.request(method, path, headers={} if accept is None else {"Accept": accept})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples, by name and labels."""
        return _samples(self._exposition())

    def _exposition(self) -> str:
        status, _, body = self.get("/metrics")
        assert status == 200
        return body.decode()

    def value(self, metric: str, /, **labels: object) -> float | None:
        """One sample, None where there is none."""
        return self.samples(metric).get(frozenset((key, str(value)) for key, value in labels.items()))

    def samples(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """The samples of one name, by labels."""
        # The parser takes its time, and a thousand domains have many series: it gets only what is asked for.
        own = "".join(re.findall(rf"^{name}[ {{].*\n", self._exposition(), re.MULTILINE))
        return {labels: value for (_, labels), value in _samples(own).items()}

    def total(self, name: str) -> float:
        """The sum of all samples of a name."""
        return sum(self.samples(name).values())

    def domain(self, domid: int) -> dict[str, Any] | None:
        """A domain as the API shows it, None if it is not known."""
        status, _, body = self.get(f"/api/v1/domains/{domid}")
        return dict(json.loads(body)) if status == 200 else None

    # --- the device model's side

    def socket(self, domid: int) -> Path:
        """The path of a domain's socket."""
        return self.runtime / f"dom{domid}.sock"

    def connect(self, domid: int) -> Wire:
        """A connection to a domain's socket, as soon as it is there."""
        return Wire(self.socket(domid))


def embedded(*domids: int, **changes: Any) -> dict[str, Any]:
    """A configuration with the embedded store and these domains, `vm<domid>` each."""
    domains = [{"domid": domid, "name": f"vm{domid}", "uuid": uuid(domid)} for domid in domids]
    return merged({"xenstore": {"backend": "embedded", "domain": domains}}, changes)


def _samples(exposition: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


Run = Callable[[Mapping[str, Any]], Daemon]


@pytest.fixture
def run() -> Iterator[Run]:
    """`run(config)` is a daemon that is ready."""
    with running() as start:
        yield start


@contextlib.contextmanager
def running() -> Iterator[Run]:
    """What the fixture `run` gives, for fixtures of other scopes."""
    with contextlib.ExitStack() as stack:

        def start(config: Mapping[str, Any]) -> Daemon:
            daemon = Daemon(config)
            stack.callback(daemon.close)
            return daemon.start()

        yield start
