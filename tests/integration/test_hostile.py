"""Hostile device models and local users. Each attack is a test; what is asserted is the bound (docs/security.md)."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.attack import COMPLAINTS, attacked, complaints, resident
from tests.lab.bystander import Bystander
from tests.lab.daemon import Daemon, Run, embedded, eventually, uuid
from tests.lab.frames import frame, outs

MAGIC_READ = frame(0x10, 2, read=True)


def bare(daemon: Daemon, domid: int = 1) -> socket.socket:
    """A connection that does not block."""
    wire = daemon.connect(domid)
    wire.socket.setblocking(False)
    return wire.socket


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def sparse(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, 3 << 30)


@pytest.mark.parametrize("plant", [fifo, sparse])
@pytest.mark.parametrize("name", ["dom1-{uuid}.spool", "dom9.spool", "mirror", "owned", "dom1"])
def test_what_is_read_at_start_is_something_else(run: Run, plant: Callable[[Path], None], name: str) -> None:
    daemon = run(embedded(1, 2))
    daemon.kill()
    planted = daemon.runtime / "state" / name.format(uuid=uuid(1))
    plant(planted)
    before = time.monotonic()
    daemon.start()
    assert time.monotonic() - before < 10
    with daemon.connect(1) as wire:
        assert wire.read(0x10, 2) == 0x49D2
    assert resident(daemon) < 100
    if (name, plant) != ("dom1", sparse):   # that one is cut to its size
        daemon.wait_for_record(f"{planted}.*remove it")
    daemon.kill()
    daemon.start()
    assert daemon.domain(1) is not None


@pytest.mark.parametrize("name", ["", "state", "state/lock", "guests"])
def test_directories_that_lead_elsewhere(run: Run, name: str) -> None:
    daemon = run(embedded(1))
    assert daemon.stop() == 0
    path = daemon.log_directory if name == "guests" else daemon.runtime / name
    moved = daemon.directory / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    ended = subprocess.run(
        [Path(sys.executable).with_name("unplugd"), "--config", daemon.file],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert f"{path}: is a symbolic link: remove it" in ended.stderr


def lazy_clients(port: int) -> None:
    """64 HTTP clients that ask for much and read none of it; new ones when these have what fits."""
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50
    while True:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(64)]
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                with contextlib.suppress(OSError):
                    client.sendall(request)
            time.sleep(0.5)


def test_http_clients_that_do_not_read_cost_guests_50_ms_at_most() -> None:
    daemon = Daemon(embedded(*range(1, 101)))
    daemon.listen()
    with contextlib.closing(daemon):
        daemon.start()
        assert daemon.get("/metrics", tcp=True)[0] == 200  # what is loaded for the first client is loaded
        attacker = multiprocessing.get_context("fork").Process(target=lazy_clients, args=(daemon.port,), daemon=True)
        with Bystander(daemon, 2) as other:
            attacker.start()
            time.sleep(3)
        assert attacker.is_alive()
        attacker.kill()
        attacker.join()
        assert other.longest < 0.05


TRUNCATES = """
import os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for path in sys.argv[1:]:
    for attempt in (lambda: os.truncate(path, 0), lambda: os.open(path, os.O_RDWR), lambda: os.unlink(path)):
        try:
            attempt()
        except PermissionError:
            continue
        raise SystemExit(f"{path} could be changed")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_is_mapped_is_out_of_reach_of_others(run: Run) -> None:
    """A mapped file that somebody truncates is SIGBUS for all."""
    daemon = run(embedded(1))
    with daemon.connect(1) as wire:
        wire.announce(3, 1)
    state = daemon.runtime / "state"
    daemon.kill()
    state.chmod(0o777)  # by mistake
    daemon.start()
    for path in (files := list(state.iterdir())):
        path.chmod(0o666)
    assert "dom1" in {path.name for path in files}
    subprocess.run([sys.executable, "-c", TRUNCATES, *files], check=True, timeout=60)
    with daemon.connect(1) as wire:
        assert wire.read(0x10, 2) == 0x49D2


ASKS_FOR_CONTROL = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for _ in range(100):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(sys.argv[1])
        try:
            client.sendall(b"GET /api/v1/domains HTTP/1.0\\r\\n\\r\\n")
            answer = client.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        assert answer == b"", answer
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_control_socket_is_roots_whatever_its_mode(run: Run) -> None:
    daemon = run(embedded(1))
    control = daemon.runtime / "control.sock"
    control.chmod(0o666)
    subprocess.run([sys.executable, "-c", ASKS_FOR_CONTROL, control], check=True, timeout=60)
    assert daemon.get("/api/v1/domains")[0] == 200
    assert daemon.value("unplugd_denied_connections_total") == 100
    assert 1 <= complaints(daemon, "control socket: connection of uid 65534") <= COMPLAINTS


def test_http_clients_leave_descriptors() -> None:
    daemon = Daemon(embedded(1, 2), command=lambda argv: ["prlimit", "--nofile=128", *argv])
    daemon.listen()
    with contextlib.closing(daemon):
        daemon.start()
        with contextlib.ExitStack() as stack, attacked(daemon):
            for _ in range(80):
                stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(daemon.runtime / "control.sock"))
            for _ in range(15):
                assert stack.enter_context(daemon.connect(1)).read(0x10, 2) == 0x49D2
        assert complaints(daemon, "cannot be accepted|out of system resource") == 0


def test_half_frames_for_ever(run: Run) -> None:
    daemon = run(embedded(1, 2))
    with contextlib.ExitStack() as stack, attacked(daemon) as other:
        for number in range(200):
            wire = stack.enter_context(daemon.connect(1))
            wire.send(outs(0x12, b"x" * 4096)[: 1 + number * 20])
        other.wait()
        eventually(lambda: daemon.value("unplugd_connections") == 201)  # some are accepted in each turn of the loop


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


def test_many_connections_that_flood_the_log(run: Run) -> None:
    """A domain has one turn of the loop, however many connections it spreads its `rep outsb` over."""
    daemon = run(embedded(1, 2))
    data = outs(0x12, b"y\n" * 2048) * 16
    end = time.monotonic() + 2
    with attacked(daemon), contextlib.ExitStack() as stack:
        sockets = {stack.enter_context(bare(daemon)): 0 for _ in range(200)}
        while time.monotonic() < end:
            readable, writable, _ = select.select(list(sockets), list(sockets), [], 1)
            for each in writable:
                with contextlib.suppress(BlockingIOError):
                    sockets[each] = (sockets[each] + each.send(data[sockets[each] :])) % len(data)
            for each in readable:
                each.recv(1 << 18)


def test_connecting_and_going_again_and_again(run: Run) -> None:
    daemon = run(embedded(1, 2))
    end = time.monotonic() + 2
    with attacked(daemon) as other:
        while time.monotonic() < end:
            for _ in range(50):
                with daemon.connect(1) as wire, contextlib.suppress(OSError):
                    wire.send(outs(0x12, b"x" * 4096)[:100])
        other.wait()
        eventually(lambda: daemon.value("unplugd_connections") == 1)
    assert complaints(daemon, "connection") <= COMPLAINTS


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
