"""No memory for one connection: in the kernel, where it is accepted or watched, and in unplugd, where it is served.

That connection is closed (or waits, where it could not even be accepted), it is said and counted, and everybody else is
answered as always. Whose connection it was connects again and is served.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import daemon as lab
from tests.lab.bystander import Bystander
from tests.lab.daemon import Daemon, embedded, eventually
from tests.lab.frames import frame

NOW = 1.0
"""Seconds within which everybody else must be answered."""

MAGIC_READ = frame(0x10, 2, read=True)
MARK = 0x6D656D21
PRODUCT = frame(0x12, 2, 3)
BUILD = frame(0x10, 4, 1, eport=MARK)
"""A request that the injection below knows, and that is not the fast path's."""

# In the running daemon, one call of one function finds no memory: the first one for domain 1 after FLAG was made.
INJECTION = """
import os, sys
from unplugd.cli import main
from unplugd.sockets import connection, listener

place, flag = sys.argv[1:3]
owner, name, concerns = {
    "construction": (connection.Connection, "__init__", lambda self, domain, *rest: domain.domid == 1),
    "framing": (connection.IoreqStream, "receive", lambda self, data, *rest: (MARK).to_bytes(4, "little") in data),
    "keeping": (connection.Domain, "settle", lambda self, *rest: self.domid == 1),
    "recording": (connection.Domain, "_woken", lambda self, *rest: self.domid == 1),
}[place]
function = getattr(owner, name)

def call(*arguments, **named):
    if os.path.exists(flag) and concerns(*arguments):
        os.unlink(flag)
        raise MemoryError
    return function(*arguments, **named)

setattr(owner, name, call)
sys.exit(main(sys.argv[3:]))
""".replace("MARK", str(MARK))


def served(daemon: Daemon, domid: int = 1) -> None:
    """A new connection of the domain is answered."""
    with daemon.connect(domid) as wire:
        assert wire.read(0x10, 2) == 0x49D2


def denied(daemon: Daemon) -> float | None:
    return daemon.value("unplugd_denied_connections_total")


# --- the kernel's

Fail = Callable[[str, int, int], None]


@pytest.fixture
def short(tmp_path: Path) -> Iterator[tuple[Daemon, Fail]]:
    """A daemon, and how to make the next so many calls of "accept", "watch" or "answer" fail with an errno."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    shim, orders = tmp_path / "failshim.so", tmp_path / "orders"
    source = Path(lab.__file__).with_name("failshim.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    orders.write_bytes(bytes(24))

    def fail(call: str, error: int, times: int) -> None:
        with orders.open("r+b") as file:
            file.seek({"accept": 0, "watch": 8, "answer": 16}[call])
            file.write(struct.pack("=ii", error, times))

    daemon = Daemon(embedded(1, 2), command=lambda argv: ["env", f"LD_PRELOAD={shim}", f"FAILSHIM={orders}", *argv])
    with contextlib.closing(daemon):
        yield daemon.start(), fail


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOBUFS, errno.EMFILE], ids=errno.errorcode.get)
def test_no_memory_to_accept_a_connection(short: tuple[Daemon, Fail], error: int) -> None:
    daemon, fail = short
    with Bystander(daemon, 2) as other:
        fail("accept", error, 2)
        served(daemon)  # it waited in the queue, for a second or two
    assert other.longest < NOW
    assert "connections wait" in daemon.wait_for_record("cannot be accepted")
    served(daemon)


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOSPC], ids=errno.errorcode.get)
def test_no_memory_to_watch_a_connection(short: tuple[Daemon, Fail], error: int) -> None:
    daemon, fail = short
    with Bystander(daemon, 2) as other:
        served(daemon)
        # its arrival, and HTTP's own connections, must not meet what is meant for the next one
        eventually(lambda: daemon.value("unplugd_connections") == 1)
        other.wait()
        fail("watch", error, 1)
        with daemon.connect(1) as wire:
            assert wire.take(1) == b""  # closed, not left to wait for ever
        served(daemon)
    assert other.longest < NOW
    assert denied(daemon) == 1
    daemon.wait_for_record("connection closed: there is no memory for it")


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOBUFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("request_", [
    frame(0x10, 2, read=True, eport=MARK), frame(0x12, 2, 3, eport=MARK),
], ids=["by a row", "in Python"])  # fmt: skip
def test_no_memory_to_send_an_answer(short: tuple[Daemon, Fail], error: int, request_: bytes) -> None:
    daemon, fail = short
    with Bystander(daemon, 2) as other:
        fail("answer", error, 1)
        with daemon.connect(1) as wire:
            wire.send(request_)
            assert wire.take(1) == b""  # closed, not left to wait for ever
        with daemon.connect(1) as wire:
            wire.ask(request_)
    assert other.longest < NOW
    daemon.wait_for_record(os.strerror(error))


# --- unplugd's own


@pytest.mark.parametrize("place", ["construction", "framing", "keeping"])
def test_no_memory_to_serve_a_connection(place: str, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    daemon = Daemon(
        embedded(1, 2), command=lambda argv: [sys.executable, "-c", INJECTION, place, str(flag), *argv[1:]]
    )
    with contextlib.closing(daemon):
        daemon.start()
        served(daemon)
        with Bystander(daemon, 2) as other:
            flag.touch()
            with daemon.connect(1) as wire:
                with contextlib.suppress(BrokenPipeError):
                    wire.send(BUILD)
                assert wire.take(1) == b""  # closed without an answer
            assert not flag.exists()
            served(daemon)
        assert other.longest < NOW
        daemon.wait_for_record("MemoryError|no memory")
        eventually(lambda: daemon.value("unplugd_connections") == 0)
        if place == "construction":
            assert denied(daemon) == 1


def test_no_memory_to_record_a_line(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    daemon = Daemon(
        embedded(1, 2), command=lambda argv: [sys.executable, "-c", INJECTION, "recording", str(flag), *argv[1:]]
    )
    with contextlib.closing(daemon):
        daemon.start()
        served(daemon)
        with Bystander(daemon, 2) as other:
            flag.touch()
            with daemon.connect(1) as wire:
                with contextlib.suppress(BrokenPipeError):
                    wire.send(frame(0x12, 1, count=9, string=True) + b"one line\n")
                assert wire.take(1) == b""  # closed without an answer
            assert not flag.exists()
            with daemon.connect(1) as wire:
                wire.log(b"another\n")
        assert other.longest < NOW
        daemon.wait_for_record("MemoryError|no memory")
        eventually(lambda: daemon.guest_lines("vm1")[-1:] == ["another"])
