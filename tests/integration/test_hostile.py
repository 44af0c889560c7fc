"""Hostile device models, local users and guests. Each attack is a test; what is asserted is the bound.

Bounds that all share: everybody else is answered within NOW seconds, and the daemon's memory grows by at most MEMORY.
Domain 1 attacks, domain 2 is the bystander.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lab import xenstored as xen
from tests.lab.bystander import Bystander
from tests.lab.daemon import RESET, Daemon, Run, embedded, eventually, frame, outs, uuid
from tests.lab.journald import Journald
from tests.lab.xenstored import LabError, Xenstored

NOW = 1.0
"""Seconds within which everybody else must be answered."""
MEMORY = 24
"""MiB that an attack may cost."""
COMPLAINTS = 20 + 3
"""Records that the device models of one domain can cause at once, and what comes on top while a test runs."""
BURST, RATE = 131072, 256
"""The contract's figures for a guest's log: bytes at once, bytes a second."""

MAGIC_READ = frame(0x10, 2, read=True)


def resident(daemon: Daemon) -> float:
    """The daemon's memory in MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextlib.contextmanager
def attacked(daemon: Daemon) -> Iterator[Bystander]:
    """What happens inside costs the others nothing."""
    with daemon.connect(1) as wire:
        wire.log(b"first\n")  # what is loaded when first used is loaded
    before = resident(daemon)
    with Bystander(daemon, 2) as other:
        yield other
    assert other.longest < NOW
    assert resident(daemon) - before < MEMORY


def bare(daemon: Daemon, domid: int = 1) -> socket.socket:
    """A connection that does not block."""
    wire = daemon.connect(domid)
    wire.socket.setblocking(False)
    return wire.socket


def complaints(daemon: Daemon, text: str) -> int:
    return len(re.findall(text, daemon.stderr()))


# --- device models


def test_half_frames_for_ever(run: Run) -> None:
    daemon = run(embedded(1, 2))
    with contextlib.ExitStack() as stack, attacked(daemon) as other:
        for number in range(200):
            wire = stack.enter_context(daemon.connect(1))
            wire.send(outs(0x12, b"x" * 4096)[: 1 + number * 20])
        other.wait()
        assert daemon.value("unplugd_connections") == 201


def test_one_byte_at_a_time(run: Run) -> None:
    daemon = run(embedded(1, 2))
    request = outs(0x12, b"slow but right\n" + b"y" * 1000 + b"\n") + MAGIC_READ
    with attacked(daemon), daemon.connect(1) as wire:
        for at in range(len(request)):
            wire.send(request[at : at + 1])
        assert wire.answer(request) == 0
        assert wire.answer(MAGIC_READ) == 0x49D2
    eventually(lambda: daemon.guest_lines("vm1"), ["first", "slow but right", "y" * 1000].__eq__)


@pytest.mark.parametrize(
    "request_", [MAGIC_READ, outs(0x12, b"x" * 4096), frame(0x10, 2, read=True, count=2048, string=True)],
    ids=["accesses", "payload", "string reads"],
)  # fmt: skip
def test_clients_that_never_read(run: Run, request_: bytes) -> None:
    """Back-pressure: whoever does not take answers is not read from, so neither side's memory grows."""
    daemon = run(embedded(1, 2))
    data = request_ * (1 + 65536 // len(request_))
    with contextlib.ExitStack() as stack, attacked(daemon) as other:
        sockets = {stack.enter_context(bare(daemon)): 0 for _ in range(50)}
        end = time.monotonic() + 4
        quiet = 0
        # Until nobody takes any more for a while, or it has been tried long enough.
        while quiet < 10 and time.monotonic() < end:
            quiet += 1
            for each, sent in sockets.items():
                with contextlib.suppress(BlockingIOError):
                    sockets[each] = (sent + each.send(data[sent:])) % len(data)
                    quiet = 0
            other.wait()


def test_a_flood_that_is_read_takes_turns_with_the_others(run: Run) -> None:
    daemon = run(embedded(1, 2))
    data = MAGIC_READ * 2048
    end = time.monotonic() + 2
    with attacked(daemon), contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(bare(daemon)) for _ in range(8)]
        while time.monotonic() < end:
            readable, writable, _ = select.select(sockets, sockets, [], 1)
            for each in writable:
                with contextlib.suppress(BlockingIOError):
                    each.send(data)
            for each in readable:
                each.recv(1 << 18)


def test_thousands_of_connections(run: Run) -> None:
    daemon = run(embedded(1, 2))
    with contextlib.ExitStack() as stack, attacked(daemon):
        for _ in range(2000):
            stack.enter_context(daemon.connect(1))
        # 256 of them are served, the rest closed, the bystander's is one more.
        eventually(lambda: daemon.value("unplugd_connections"), lambda count: count == 257)
        with daemon.connect(1) as wire:
            with contextlib.suppress(BrokenPipeError):
                wire.send(MAGIC_READ)
            assert wire.take(32) == b""
    assert 1 <= complaints(daemon, "connection refused: the domain has") <= COMPLAINTS
    assert daemon.value("unplugd_denied_connections_total") == 2000 - 256 + 1
    eventually(lambda: daemon.value("unplugd_connections") == 0)
    with daemon.connect(1) as wire:
        assert wire.read(0x10, 2) == 0x49D2


def test_all_domains_together_leave_descriptors(run: Run) -> None:
    """A limit in all: what xenstored, the HTTP sockets and new guests need is not there for the taking."""
    attackers = range(3, 9)
    daemon = Daemon(embedded(1, 2, *attackers), command=lambda argv: ["prlimit", "--nofile=600", *argv])
    with contextlib.closing(daemon):
        daemon.start()
        with contextlib.ExitStack() as stack, attacked(daemon):
            for _ in range(60):
                for domid in attackers:
                    stack.enter_context(daemon.connect(domid))
            eventually(lambda: daemon.value("unplugd_connections"), lambda count: count == 300)
            assert daemon.value("unplugd_denied_connections_total") == 60 * len(attackers) - 299
        assert 1 <= complaints(daemon, "all domains have 300 already") <= COMPLAINTS * len(attackers)
        assert complaints(daemon, "out of system resource") == 0


STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for _ in range(500):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(sys.argv[1])
        try:
            client.sendall(b"x" * 32)
            assert client.recv(1) == b""
        except OSError:
            pass
"""


def test_a_wrong_uid(run: Run) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    daemon = run(embedded(1, 2))
    daemon.socket(1).chmod(0o666)  # the path decides nothing
    with attacked(daemon):
        subprocess.run([sys.executable, "-I", "-c", STRANGER, str(daemon.socket(1))], check=True, timeout=60)
        assert daemon.value("unplugd_denied_connections_total") == 500
    assert 1 <= complaints(daemon, "connection of uid 65534") <= COMPLAINTS
    assert daemon.value("unplugd_ioreqs_total", kind="other") == 0


def test_faults_again_and_again(run: Run) -> None:
    daemon = run(embedded(1, 2))
    with attacked(daemon):
        for _ in range(500):
            with daemon.connect(1) as wire:
                with contextlib.suppress(BrokenPipeError):
                    wire.send(frame(state=5))
                assert wire.take(1) == b""
        assert daemon.total("unplugd_protocol_errors_total") == 500
    assert 1 <= complaints(daemon, "connection closed: its device model sent") <= COMPLAINTS


def test_a_domid_that_is_used_again_while_the_old_client_is_there(run: Run) -> None:
    daemon = run(embedded(1, 2))
    with daemon.connect(1) as old, attacked(daemon):
        old.announce(3, 1)
        old.write(0x10, 2, 3)
        old.send(outs(0x12, b"half")[:-2])
        successor = {"domid": 1, "name": "successor", "uuid": uuid(9)}
        daemon.configure({"xenstore": {"domain": [daemon.config["xenstore"]["domain"][1]]}})
        daemon.reload()
        daemon.configure({"xenstore": {"domain": [*daemon.config["xenstore"]["domain"], successor]}})
        daemon.reload()
        with daemon.connect(1) as new:
            assert new.read(0x10, 2) == 0x49D2
            # The old client has been hung up; what it still sends reaches nobody.
            with contextlib.suppress(OSError):
                old.send(b"lf" + frame(0x10, 2, 1))
            assert old.take(1 << 10) == b""
            domain = daemon.domain(1)
            assert domain is not None
            assert (domain["name"], domain["product"], domain["unplugged_mask"]) == ("successor", None, 0)
            new.log(b"mine\n")
    eventually(lambda: daemon.guest_lines("successor"), ["mine"].__eq__)


# --- guests


def stored(daemon: Daemon) -> int:
    """Bytes that the guest made dom0 store, as the contract charges them: its file and the records about it."""
    charged = sum(max(64, len(line)) for line in daemon.guest_lines("vm1"))
    about = [line.split("unplugd: ", 1)[-1] for line in daemon.stderr().splitlines() if "vm1 (domain 1)" in line]
    return charged + sum(max(64, len(line)) for line in about)


@pytest.mark.parametrize(
    "data", [b"x" * 63 + b"\n", b"y\n", b"\n", b"\x1b[2J" * 16, b"a\nb\n\n\x00\xff\n"],
    ids=["lines", "one byte", "empty", "no end, escapes", "mixed"],
)  # fmt: skip
def test_floods_of_log(run: Run, data: bytes) -> None:
    daemon = run(embedded(1, 2, log={"max_file_bytes": 1 << 24}))
    payload = data * (4096 // len(data))
    begin = time.monotonic()
    with attacked(daemon), daemon.connect(1) as wire:
        request = outs(0x12, payload)
        while time.monotonic() - begin < 1.5:
            for _ in range(8):
                wire.send(request)
            for _ in range(8):
                assert wire.answer(request) == 0
    daemon.stop()
    seconds = time.monotonic() - begin
    # What is said before the guest can do anything is not its doing: three records.
    assert stored(daemon) <= BURST + RATE * seconds + 3 * 128
    daemon.start()


def test_floods_of_single_log_bytes(run: Run) -> None:
    daemon = run(embedded(1, 2))
    begin = time.monotonic()
    with attacked(daemon), daemon.connect(1) as wire:
        request = b"".join(frame(0x12, 1, byte) for byte in b"q\n" * 256)
        while time.monotonic() - begin < 1.5:
            wire.send(request)
            assert len(wire.take(len(request))) == len(request)
    daemon.stop()
    assert stored(daemon) <= BURST + RATE * (time.monotonic() - begin) + 3 * 128
    daemon.start()


def test_endless_loops_of_announcing_unplugging_and_resetting(run: Run) -> None:
    daemon = run(embedded(1, 2))
    begin = time.monotonic()
    loop = [frame(0x12, 2, 3), frame(0x10, 4, 1), frame(0x10, 2, 0xFFF3), RESET, frame(0x10, 4, 9), frame(0x10, 2, 1)]
    with attacked(daemon), daemon.connect(1) as wire:
        while time.monotonic() - begin < 2:
            wire.send(b"".join(loop) * 8)
            assert len(wire.take(32 * len(loop) * 8)) == 32 * len(loop) * 8
    daemon.stop()
    assert stored(daemon) <= BURST + RATE * (time.monotonic() - begin) + 3 * 128
    daemon.start()


def test_a_scan_of_build_numbers(run: Run) -> None:
    daemon = run(embedded(1, 2))
    series = len(daemon.metrics())
    begin = time.monotonic()
    with attacked(daemon), daemon.connect(1) as wire:
        wire.write(0x12, 2, 3)
        for first in range(0, 4000, 1000):
            numbers = b"".join(build.to_bytes(4, "little") for build in range(first, first + 1000))
            assert wire.ask(outs(0x10, numbers, 4)) == 0
        wire.write(0x12, 2, 5)
        for build in range(200):
            wire.write(0x10, 4, build)
        # domain_info is one series, and its product and build stopped following long ago.
        assert len(daemon.metrics()) == series
        labels = next(each for each in daemon.samples("unplugd_domain_info") if ("domid", "1") in each)
        assert {("product", "other"), ("build", "other")} <= labels
        assert wire.read(0x10, 2) == 0x49D2
    daemon.stop()
    assert stored(daemon) <= BURST + RATE * (time.monotonic() - begin) + 3 * 128
    daemon.start()


UGLY = [
    b"\x1b[31mred\x1b[0m \x07\x08",
    b"\xff\xfe\xc3\x28 not UTF-8 \xed\xa0\x80",
    b"NUL \x00 in it",
    b"line\x0bwith\x0cfeeds\x85and\xe2\x80\xa8separators",
    b"rtl \xe2\x80\xae override",
    b"\\x41 backslash",
]


def test_what_is_ugly_arrives_legible(run: Run, journald: Journald) -> None:
    daemon = Daemon(embedded(1, 2, log={"sinks": ["journal", "file"]}), command=journald.command)
    with contextlib.closing(daemon):
        daemon.start()
        with attacked(daemon), daemon.connect(1) as wire:
            # A newline begins a line of its own: no field of the journal can be made with it.
            forged = b"harmless\nPRIORITY=0\n_UID=0\nMESSAGE\n\x05\0\0\0\0\0\0\0FORGED=1\n"
            wire.log(b"\n".join(UGLY) + b"\n" + forged)
        entries = journald.wait_for(
            lambda found: any("FORGED=1" in str(entry["MESSAGE"]) for entry in found), "SYSLOG_IDENTIFIER=unplugd-guest"
        )
        for entry in entries:
            assert isinstance(entry["MESSAGE"], str), "journalctl gives what is not printable as numbers"
            assert entry["PRIORITY"] == "6"
            assert entry["_UID"] == str(os.geteuid())
            assert "FORGED" not in entry
            assert entry["XEN_DOMID"] == "1"
            assert re.search(r"[\x00-\x1f\x7f\x80-\x9f]", entry["MESSAGE"]) is None
        assert len(entries) == 1 + len(UGLY) + 5
        eventually(lambda: len(daemon.guest_lines("vm1")) == len(entries))
        text = daemon.guest_file("vm1").read_bytes()
        assert set(text) <= set(range(32, 127)) | {10}


NAMES = {
    1: "attacker",
    2: "bystander",
    3: "../../../../etc/cron.d/evil",
    4: "..",
    5: "a/b",
    6: "a%2Fb",
    7: "twin",
    8: "twin",
    9: "n" * 300,
    10: "n" * 299 + "m",
    11: "-rf",
    12: "\x1b]0;title\x07",
    13: "twin.log.1",
    14: "é\u202e",
}


@pytest.fixture
def xenstored() -> Iterator[Xenstored]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        xen.prepared()
    except LabError as error:
        pytest.skip(f"no xenstored here: {error}")
    with xen.running("c") as store:
        yield store


def test_names_that_climb_or_collide(xenstored: Xenstored, run: Run) -> None:
    for domid, name in NAMES.items():
        xenstored.create(domid, name, uuid(domid))
    daemon = run({"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}})
    with attacked(daemon):
        for domid in NAMES:
            with daemon.connect(domid) as wire:
                wire.log(b"I am %d\n" % domid)
        eventually(lambda: len(list(daemon.log_directory.iterdir())) >= len(NAMES))
        eventually(partial(all_said, daemon))
    files = {path.name: path.read_text() for path in daemon.log_directory.iterdir()}
    assert all(re.fullmatch(r"guest-[A-Za-z0-9._+%-]+\.log", name) and len(name) <= 255 for name in files)
    # Everybody has a file of their own.
    assert sorted(text.count("I am") for text in files.values()) == [1] * len(NAMES)
    # And nothing was written elsewhere.
    assert {path.name for path in daemon.directory.iterdir()} == {
        "run", "guests", "stderr", "notify", "unplugd.toml"
    }  # fmt: skip
    assert "\x1b" not in daemon.stderr()


def all_said(daemon: Daemon) -> bool:
    return sum(path.read_text().count("I am") for path in daemon.log_directory.iterdir()) == len(NAMES)
