"""unplugd's neighbours fail: journald, xenstored, file systems, the descriptor table, the clock. Guests don't wait.

Each test is one failure of the real component. What is asserted is the bound of docs/operations.md: everybody is
answered within a second (a build number within `lookup_timeout`), nothing acknowledged vanishes up to the bound of what
is kept, what is beyond is counted, and afterwards everything works again by itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab import xenstored as xen
from tests.lab.bystander import Bystander
from tests.lab.daemon import Daemon, Wire, embedded, eventually, merged, uuid
from tests.lab.frames import frame
from tests.lab.journald import Journald
from tests.lab.xenspeak import XenstoreError
from tests.lab.xenstored import Kind, Xenstored
from unplugd.sinks.delivery import QUEUE_LIMIT_MOST
from unplugd.sinks.outbox import OVERHEAD

NOW = 1.0
"""Seconds within which everybody must be answered, whatever happens."""

KEPT = QUEUE_LIMIT_MOST // (40 + OVERHEAD)
"""Lines of 40 bytes that are kept of one domain with a large burst while its sink takes none (docs/operations.md)."""

MAGIC_READ = frame(0x10, 2, read=True)

STORES: list[Kind] = ["c", "ocaml"]


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under systemd, STATUS= is told with each ping of the watchdog."""
    monkeypatch.setenv("WATCHDOG_USEC", "500000")


@pytest.fixture
def launch() -> Iterator[Callable[..., Daemon]]:
    """`launch(config, command)` is a daemon that is ready, its command line made by `command`."""
    with contextlib.ExitStack() as stack:

        def start(config: dict[str, Any], command: Callable[[Sequence[str]], list[str]] = list) -> Daemon:
            daemon = Daemon(config, command=command)
            stack.callback(daemon.close)
            return daemon.start()

        yield start


Launch = Callable[..., Daemon]


def say(wire: Wire, begin: int, end: int) -> None:
    """Lines of 40 bytes, each with its number."""
    for at in range(begin, end, 50):
        wire.log(b"".join(b"%06d %s\n" % (number, b"x" * 32) for number in range(at, min(at + 50, end))))


def numbers(messages: Sequence[str]) -> list[int]:
    return [int(text[:6]) for text in messages if re.match(r"\d{6} x", text)]


# --- journald


JOURNAL = embedded(1, 2, log={"sinks": ["journal"], "burst": 1 << 22})


def in_journal(journald: Journald) -> list[int]:
    entries = journald.entries("SYSLOG_IDENTIFIER=unplugd-guest", "XEN_DOMID=1")
    return numbers([str(entry["MESSAGE"]) for entry in entries])


def sink_drops(daemon: Daemon) -> int:
    return int(daemon.value("unplugd_log_dropped_lines_total", domid=1, uuid=uuid(1), reason="sink") or 0)


def test_journald_is_stopped(launch: Launch, journald: Journald) -> None:
    daemon = launch(JOURNAL, journald.command)
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        say(wire, 0, 50)
        journald.wait_for(lambda _: len(in_journal(journald)) == 50)
        journald.suspend()
        # journald's own queue takes some (net.unix.max_dgram_qlen), unplugd keeps the rest.
        say(wire, 50, 450)
        eventually(lambda: "journal" in daemon.manager.status())
        journald.resume()
        eventually(lambda: in_journal(journald), lambda found: found == list(range(450)))
    assert sink_drops(daemon) == 0
    assert other.longest < NOW


def test_journald_is_stopped_for_longer_than_what_is_kept(launch: Launch, journald: Journald) -> None:
    daemon = launch(JOURNAL, journald.command)
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        journald.suspend()
        say(wire, 0, KEPT + 1000)
        dropped = eventually(lambda: sink_drops(daemon))
        journald.resume()
        found = eventually(lambda: in_journal(journald), lambda found: len(found) == KEPT + 1000 - dropped)
    # What came is what was said first, in order and complete up to the bound; each line that did not come was counted.
    assert found == sorted(set(found))
    assert found[:KEPT] == list(range(KEPT))
    assert other.longest < NOW


@pytest.mark.parametrize("socket_gone", [False, True], ids=["killed", "socket removed"])
def test_journald_is_killed(launch: Launch, journald: Journald, socket_gone: bool) -> None:
    daemon = launch(JOURNAL, journald.command)
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        say(wire, 0, 50)
        journald.wait_for(lambda _: len(in_journal(journald)) == 50)
        journald.kill()
        if socket_gone:
            journald.remove_socket()
        say(wire, 50, 250)
        eventually(lambda: "journal" in daemon.manager.status())
        journald.start()
        eventually(lambda: in_journal(journald), lambda found: found == list(range(250)))
        eventually(lambda: "journal" not in daemon.manager.status())
    assert sink_drops(daemon) == 0
    assert other.longest < NOW


def test_unplugd_is_killed_while_journald_is_away(launch: Launch, journald: Journald) -> None:
    daemon = launch(JOURNAL, journald.command)
    journald.kill()
    with daemon.connect(1) as wire:
        say(wire, 0, 200)
    daemon.kill()
    daemon.start()
    with daemon.connect(1) as wire:
        say(wire, 200, 250)
    journald.start()
    found = eventually(lambda: in_journal(journald), lambda found: len(found) >= 250 and found[-1] == 249)
    # Nothing is lost, and all is in order. The line that was being recorded at SIGKILL may come twice (contract 1).
    assert list(dict.fromkeys(found)) == list(range(250))
    assert len(found) <= 251


# --- xenstored


@pytest.fixture(params=STORES)
def xenstored(request: pytest.FixtureRequest) -> Iterator[Xenstored]:
    xen.needed()
    kind: Kind = request.param
    with xen.running(kind) as store:
        yield store


ENTRY = [{"product": "linux", "build": 666, "reason": "a test"}]


def store(xenstored: Xenstored, **changes: Any) -> dict[str, Any]:
    for domid in (1, 2):
        xenstored.create(domid, f"vm{domid}", uuid(domid))
    return merged(
        {
            "xenstore": {"backend": "socket", "socket": str(xenstored.socket)},
            "blacklist": {"entry": ENTRY, "lookup_timeout": 0.5},
        },
        changes,
    )


def test_xenstored_is_killed_and_comes_back_empty(xenstored: Xenstored, launch: Launch) -> None:
    daemon = launch(store(xenstored))
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        wire.write(0x12, 2, 3)
        xenstored.kill()
        eventually(lambda: daemon.value("unplugd_xenstore_up") == 0)
        begin = time.monotonic()
        assert wire.announce(3, 666) == 0xD249  # from the mirror
        assert time.monotonic() - begin < 0.5 + NOW
        xenstored.start()
        eventually(lambda: daemon.value("unplugd_xenstore_up") == 1)
        # An empty store is not the news that the guests are gone, and it gets the blacklist again.
        eventually(lambda: read(xenstored, "/mh/driver-blacklist/linux/666") is not None)
        assert wire.read(0x10, 2) == 0xD249
        assert daemon.value("unplugd_domains") == 2
        assert (daemon.value("unplugd_xenstore_reconnects_total") or 0) >= 1
    assert other.longest < NOW


def read(xenstored: Xenstored, path: str) -> bytes | None:
    try:
        return xenstored.dom0.read(path)
    except XenstoreError:
        return None


def test_xenstored_hangs(xenstored: Xenstored, launch: Launch) -> None:
    daemon = launch(store(xenstored))
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        wire.write(0x12, 2, 3)
        xenstored.pause()
        begin = time.monotonic()
        wire.write(0x10, 4, 666)
        waited = time.monotonic() - begin
        assert wire.read(0x10, 2) == 0xD249  # from the mirror
        assert daemon.value("unplugd_blacklist_lookups_total", result="fallback") == 1
        xenstored.resume()
        wire.reset()
        assert wire.announce(3, 666) == 0xD249
        eventually(lambda: daemon.get("/-/ready")[0] == 200)
    # lookup_timeout, and what a busy machine adds
    assert 0.4 < waited < 0.5 + NOW
    assert other.longest < NOW


def test_a_guest_fills_xenstored_to_its_quota(xenstored: Xenstored, launch: Launch) -> None:
    daemon = launch(store(xenstored))
    guest = xenstored.guest(1)
    with contextlib.suppress(XenstoreError):
        for number in range(20_000):
            guest.write(f"data/{number}", b"x" * 16)
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        assert wire.announce(3, 1) == 0x49D2
        assert wire.write(0x10, 2, 3) == 3
        eventually(lambda: read(xenstored, "/local/domain/1/unplug/unplugged") == b"3")
    assert other.longest < NOW


# --- file systems

TMPFS = 'mount -t tmpfs -o mode=755,size="$1" lab "$2" && shift 2 && exec "$@"'


class Namespaced(Daemon):
    """A daemon whose runtime directory is seen through its own mount namespace."""

    @property
    def runtime(self) -> Path:
        """Where the sockets are, for us."""
        inside = self.directory / "run"
        return inside if self.process is None else Path(f"/proc/{self.pid}/root{inside}")

    @runtime.setter
    def runtime(self, path: Path) -> None:
        assert path == self.directory / "run"


class Disk:
    """A daemon with one directory on a small disk."""

    def __init__(self, size: str, config: dict[str, Any], place: str) -> None:
        self.daemon = Namespaced(config, command=self._command)
        self.directory = self.daemon.directory / place
        self._size = size

    def _command(self, argv: Sequence[str]) -> list[str]:
        """The daemon's command where the directory is a disk that only it sees."""
        self.directory.mkdir(exist_ok=True)
        return ["unshare", "--mount", "--propagation", "private",
                "sh", "-ec", TMPFS, "sh", self._size, str(self.directory), *argv]  # fmt: skip

    def path(self, name: str) -> Path:
        """A file on the disk, seen from outside."""
        return Path(f"/proc/{self.daemon.pid}/root{self.directory}/{name}")

    def remount(self, options: str) -> None:
        subprocess.run(
            ["nsenter", f"--mount=/proc/{self.daemon.pid}/ns/mnt", "mount", "-o", f"remount,{options}",
             str(self.directory)], check=True,
        )  # fmt: skip

    def fill(self) -> Path:
        """Leave no byte free."""
        filler = self.path("filler")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        return filler

    def lines(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            text = self.path("guest-vm1.log").read_text()
            return numbers([line.split(" ", 1)[-1] for line in text.splitlines()])
        return []


@pytest.fixture
def log_disk() -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    disk = Disk("128k", embedded(1, 2, log={"sinks": ["file"], "burst": 1 << 22}), "guests")
    with contextlib.closing(disk.daemon):
        disk.daemon.start()
        yield disk


def test_the_disk_of_the_guests_files_is_full(log_disk: Disk) -> None:
    daemon = log_disk.daemon
    filler = log_disk.fill()
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        say(wire, 0, 300)
        assert "No space" in daemon.wait_for_record("guest log of vm1.*lines are kept")
        assert "cannot be written" in eventually(daemon.manager.status, lambda status: "files:" in status)
        filler.unlink()
        eventually(log_disk.lines, list(range(300)).__eq__)
        daemon.wait_for_record("guest log of vm1: written again")
    assert sink_drops(daemon) == 0
    assert other.longest < NOW


def test_the_disk_stays_full_for_longer_than_what_is_kept(log_disk: Disk) -> None:
    daemon = log_disk.daemon
    filler = log_disk.fill()
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        say(wire, 0, KEPT + 500)
        dropped = eventually(lambda: sink_drops(daemon))
        filler.unlink()
        log_disk.remount("size=2m")
        found = eventually(log_disk.lines, lambda found: len(found) == KEPT + 500 - dropped)
    assert found == list(range(KEPT + 500 - dropped))
    assert len(found) >= KEPT
    assert other.longest < NOW


def test_the_disk_becomes_read_only(log_disk: Disk) -> None:
    daemon = log_disk.daemon
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        say(wire, 0, 50)
        eventually(log_disk.lines, list(range(50)).__eq__)
        log_disk.remount("ro")
        say(wire, 50, 100)
        assert "Read-only" in daemon.wait_for_record("guest log of vm1.*lines are kept")
        log_disk.remount("rw")
        eventually(log_disk.lines, list(range(100)).__eq__)
    assert other.longest < NOW


def test_the_disk_of_the_state_is_full() -> None:
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    disk = Disk("256k", embedded(1, 2), "run")
    daemon = disk.daemon
    with contextlib.closing(daemon):
        daemon.start()
        filler = disk.fill()
        domains = [*daemon.config["xenstore"]["domain"], {"domid": 3, "name": "vm3", "uuid": uuid(3)}]
        daemon.configure({"xenstore": {"domain": domains}})
        with Bystander(daemon, 2) as other:
            daemon.reload()
            assert "will not survive a restart" in daemon.wait_for_record("vm3")
            # It is served all the same, and so is who was there before.
            for domid in (1, 3):
                with daemon.connect(domid) as wire:
                    assert wire.announce(3, 1) == 0x49D2
                    assert wire.write(0x10, 2, 3) == 3
                    say(wire, 0, 50)
                eventually(partial(file_has, daemon, f"vm{domid}", 50))
            filler.unlink()
        assert other.longest < NOW


# --- the process itself


def is_served(daemon: Daemon) -> bool:
    with daemon.connect(1) as wire, contextlib.suppress(BrokenPipeError):
        wire.send(MAGIC_READ)
        return len(wire.take(32)) == 32
    return False


def test_descriptors_are_few(launch: Launch) -> None:
    limit = 100
    daemon = launch(embedded(1, 2), lambda argv: ["prlimit", f"--nofile={limit}", *argv])
    with contextlib.ExitStack() as stack, Bystander(daemon, 2) as other:
        wires = [stack.enter_context(daemon.connect(1)) for _ in range(2 * limit)]
        served = wires[0]
        for _ in range(20):
            assert served.read(0x10, 2) == 0x49D2
            time.sleep(0.05)
        for wire in wires[1:]:
            wire.close()
        # Whoever comes now is served, at the latest when those who have gone are out of the queue.
        eventually(partial(is_served, daemon))
    assert other.longest < NOW
    # Connections are limited to what the descriptors allow; what is refused is on record, up to a bound.
    assert 1 <= len(re.findall("connection refused", daemon.stderr())) <= 25
    assert len(re.findall("out of system resource", daemon.stderr())) <= 100


def file_has(daemon: Daemon, name: str, count: int) -> bool:
    return numbers(daemon.guest_lines(name)) == list(range(count))


def stored(daemon: Daemon) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return daemon.guest_file("vm1").read_text().splitlines()
    return []


def test_the_clock_jumps(launch: Launch, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    shim, offset = tmp_path / "clockshim.so", tmp_path / "offset"
    source = Path(xen.__file__).with_name("clockshim.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    offset.write_bytes(struct.pack("=q", 0))
    config = embedded(1, 2, log={"flush_after": 1.0, "burst": 4096, "rate": 100})
    daemon = launch(config, lambda argv: ["env", f"LD_PRELOAD={shim}", f"CLOCKSHIM={offset}", *argv])
    year = 365 * 86400
    this_year = time.gmtime().tm_year
    with daemon.connect(1) as wire, Bystander(daemon, 2) as other:
        for number, years in enumerate((0, 10, -10, 0)):
            with offset.open("r+b") as file:
                file.write(struct.pack("=q", years * year))
            # A partial line is still recorded after its second, by the clock that does not jump.
            wire.log(b"%06d x" % number)
            eventually(partial(file_has, daemon, "vm1", number + 1))
            assert abs(int(stored(daemon)[-1][:4]) - this_year - years) <= 1
            balance = daemon.domain(1)
            assert balance is not None
            # Ten years at 100 bytes a second were not credited, nor taken away.
            assert 0 < balance["log"]["balance"] <= 4096
    assert other.longest < NOW
