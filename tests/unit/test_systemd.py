"""unplugd.host.systemd: what reaches the service manager, and what comes from it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import unplugd.host.systemd as service_manager


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's notification socket, and $NOTIFY_SOCKET set to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_assignments_arrive_in_one_datagram(manager: socket.socket) -> None:
    assert service_manager.notify("READY=1", "STATUS=7 domains, xenstore connected")
    assert manager.recv(4096) == b"READY=1\nSTATUS=7 domains, xenstore connected"


def test_an_assignment_cannot_smuggle_in_another(manager: socket.socket) -> None:
    assert service_manager.notify("STATUS=web\nMAINPID=1")
    assert manager.recv(4096) == b"STATUS=web MAINPID=1"


def test_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"unplugd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert service_manager.notify("WATCHDOG=1")
        assert listener.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", [None, "", "relative", "/no/such/socket", "@no-such-socket", "/" + 200 * "x"])
def test_no_manager_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert service_manager.notify("READY=1") is False


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    # Far more than any queue holds: it must come back with False, the test's timeout says if it hangs.
    assert not all(service_manager.notify("WATCHDOG=1") for _ in range(5000))


class Manager(threading.Thread):
    """A service manager that keeps descriptors, or refuses them as systemd does: without a word."""

    def __init__(self, listener: socket.socket, *, keeps: bool) -> None:
        super().__init__(daemon=True)
        self.listener = listener
        self.keeps = keeps
        self.kept: dict[str, int] = {}

    def run(self) -> None:
        while (message := socket.recv_fds(self.listener, 4096, 8))[0] != b"END":
            data, descriptors, _, _ = message
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTOREREMOVE" in fields and fields["FDNAME"] in self.kept:
                os.close(self.kept.pop(fields["FDNAME"]))
            for descriptor in descriptors:
                if "FDSTORE" in fields and self.keeps:
                    self.kept[fields["FDNAME"]] = descriptor
                else:
                    os.close(descriptor)

    def end(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"END", self.listener.getsockname())
        self.join(10)
        for descriptor in self.kept.values():
            os.close(descriptor)


def test_a_descriptor_is_stored_and_forgotten(manager: socket.socket) -> None:
    store = Manager(manager, keeps=True)
    reading, writing = os.pipe()
    assert service_manager.store_fd("dom7", writing)
    os.close(writing)
    store.start()
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):  # the other end is still open: the manager has it
        os.read(reading, 1)
    assert service_manager.forget_fd("dom7")
    store.end()
    assert os.read(reading, 1) == b""
    os.close(reading)


@pytest.mark.parametrize("keeps", [True, False])
def test_whether_descriptors_are_kept_is_found_out(manager: socket.socket, *, keeps: bool) -> None:
    store = Manager(manager, keeps=keeps)
    store.start()
    assert asyncio.run(service_manager.fd_store_works(30.0)) is keeps
    store.end()
    assert store.kept == {}


@pytest.mark.usefixtures("manager")
def test_a_manager_that_says_nothing_keeps_nothing() -> None:
    assert asyncio.run(service_manager.fd_store_works(0.05)) is False


def test_nothing_is_kept_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert asyncio.run(service_manager.fd_store_works(30.0)) is False


def test_watchdog_interval_is_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert service_manager.watchdog_interval() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert service_manager.watchdog_interval() == 15.0


@pytest.mark.parametrize(
    ("microseconds", "pid"),
    [(None, None), ("0", None), ("-1", None), ("soon", None), ("30000000", "1")],
)
def test_no_watchdog(monkeypatch: pytest.MonkeyPatch, microseconds: str | None, pid: str | None) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert service_manager.watchdog_interval() is None


def test_no_sockets_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    assert service_manager.listen_fds() == {}
    monkeypatch.setenv("LISTEN_FDS", "2")  # for our parent: not ours
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    assert service_manager.listen_fds() == {}


RECEIVER = """
import json, os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
if os.environ["LIBRARY"] == "0":
    sys.modules["systemd"] = sys.modules["systemd.daemon"] = None
import unplugd.host.systemd as service_manager
from unplugd.errors import HostError
try:
    got = service_manager.listen_fds()
except HostError as error:
    sys.exit(str(error))
again = service_manager.listen_fds()
print(json.dumps({
    "names": {name: [s.getsockname() for s in sockets] for name, sockets in got.items()},
    "blocking": [s.getblocking() for sockets in got.values() for s in sockets],
    "inheritable": [s.get_inheritable() for sockets in got.values() for s in sockets],
    "again": again,
}))
"""


def receive(
    fds: list[int], names: str | None, *, library: bool = True, number: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A process that gets `fds` as 3, 4, ... and says what `listen_fds` makes of them."""
    if library:
        pytest.importorskip("systemd.daemon", reason="systemd-python is not installed", exc_type=ImportError)
    # The shell lays them where systemd would: subprocess cannot, since it has fd 3 and 4 in use itself.
    moves = " ".join(f"{3 + n}<&{fd}" for n, fd in enumerate(fds))
    environment = {**os.environ, "LISTEN_FDS": number or str(len(fds)), "LIBRARY": str(int(library))}
    environment["PYTHONPATH"] = str(Path(service_manager.__file__).parents[2])
    if names is not None:
        environment["LISTEN_FDNAMES"] = names
    return subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {moves}', sys.executable, RECEIVER],
        env=environment, pass_fds=fds, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_sockets_passed_by_name(tmp_path: Path) -> None:
    listeners = []
    try:
        for n in range(3):
            listener = socket.socket(socket.AF_UNIX)
            listeners.append(listener)
            # High numbers, so that moving one to 3 does not overwrite another.
            os.dup2(listener.fileno(), 200 + n)
            listener.bind(str(tmp_path / str(n)))
            listener.listen()
        done = receive([200, 201, 202], "http:other:http")
    finally:
        for n, listener in enumerate(listeners):
            listener.close()
            os.close(200 + n)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "names": {"http": [str(tmp_path / "0"), str(tmp_path / "2")], "other": [str(tmp_path / "1")]},
        "blocking": [False] * 3,
        "inheritable": [False] * 3,
        "again": {},
    }


def test_a_probe_that_was_left_is_put_aside() -> None:
    reading, writing = os.pipe()
    os.dup2(writing, 200)
    try:
        done = receive([200], "probe")
    finally:
        for fd in (reading, writing, 200):
            os.close(fd)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["names"] == {}


def test_what_is_passed_must_be_a_socket(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        os.dup2(file.fileno(), 200)
        try:
            done = receive([200], "http")
        finally:
            os.close(200)
    assert done.returncode == 1
    assert "http (fd 3)" in done.stderr


def test_passed_sockets_are_not_left_without_systemd_python() -> None:
    done = receive([0], "http", library=False)
    assert done.returncode == 1
    assert done.stderr == (
        "sockets passed by systemd: LISTEN_FDS=1: systemd-python is not installed:"
        " apt-get install python3-systemd, or pip install systemd-python\n"
    )


@pytest.mark.parametrize("number", ["-1", "x", "1"])
def test_what_is_passed_must_be_there(number: str) -> None:
    done = receive([], "http", number=number)
    assert done.returncode == 1
    assert done.stderr.startswith(f"sockets passed by systemd: LISTEN_FDS={number}: ")
