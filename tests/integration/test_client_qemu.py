"""clients/qemu/unplugd.c, the device for QEMU, against the daemon: the file itself, in a fake of QEMU (lab/fakeqemu.c).

A fake platform device says which writes would make the real one unplug, or lock the ROM. Real QEMU, on real Xen, is in
tests/xen (`builtin`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.daemon import PATIENCE, Daemon, Run, embedded, eventually, merged

PROJECT = Path(__file__).parents[2]
DEVICE = PROJECT / "clients/qemu/unplugd.c"
HEADERS = (
    "qemu/osdep.h", "qapi/error.h", "qemu/error-report.h", "qemu/module.h", "hw/pci/pci.h", "hw/qdev-properties.h",
    "hw/xen/xen.h", "monitor/monitor.h", "sysemu/reset.h",
)  # fmt: skip
FLAGS = (
    "-std=gnu11 -g -Wall -Wextra -Wno-unused-parameter -Werror "
    "-fsanitize=address,undefined -fno-sanitize-recover=all"
)

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def fakeqemu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qemu")
    for header in HEADERS:
        (directory / header).parent.mkdir(parents=True, exist_ok=True)
        (directory / header).touch()
    command: list[str | Path] = ["gcc", *FLAGS.split(), f"-I{directory}", f"-I{PROJECT / 'clients'}",
                                 f'-DFAKEQEMU_DEVICE="{DEVICE}"', PROJECT / "tests/lab/fakeqemu.c", "-o",
                                 directory / "fakeqemu"]
    subprocess.run(command, check=True)
    return directory / "fakeqemu"


class Machine:
    """A QEMU with the device; `said` is what it answered to its start."""

    def __init__(self, binary: Path, *arguments: str | Path) -> None:
        self._process = subprocess.Popen([binary, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, text=True, bufsize=1)
        self.said = self.answer()

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.answer()

    def end(self) -> tuple[int, str]:
        """Its status and its log."""
        _, log = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, log


Start = Callable[..., Machine]


@pytest.fixture
def start(fakeqemu: Path) -> Iterator[Start]:
    """Starts machines, which must end well: a sanitizer that finds something ends them otherwise."""
    with ExitStack() as stack:

        def make(*arguments: str | Path) -> Machine:
            machine = Machine(fakeqemu, *arguments)
            stack.callback(check, machine)
            return machine

        def check(machine: Machine) -> None:
            if not machine._process.stdin or not machine._process.stdin.closed:
                status, log = machine.end()
                assert status == 0, log

        yield make


@pytest.fixture
def daemon(run: Run) -> Daemon:
    blacklist = {"entry": [{"product": "gplpv-windows", "build": 9}]}
    return run(merged(embedded(7), {"blacklist": blacklist, "policy": {"allow_unplug": ["ide-disks", "nics"]}}))


def test_a_drivers_sequence(daemon: Daemon, start: Start) -> None:
    machine = start(daemon.socket(7), "10000")
    assert machine.said == "realized"
    assert machine.ask("r 0x10 2") == "0x49d2"
    assert machine.ask("r 0x12 1") == "0x1"
    assert machine.ask("r 0x10 4") == "0xffffffff"
    assert machine.ask("w 0x12 2 3") == "ok"
    assert machine.ask("w 0x10 4 1") == "ok"
    assert machine.ask("r 0x10 2") == "0x49d2"
    # the order reaches the platform device, once, before the guest goes on
    assert machine.ask("w 0x10 2 3") == "ok [0 2 3]"
    assert machine.ask("w 0x12 1 10") == "ok"
    assert machine.ask("r 0x11 1") == "0xff"
    assert machine.ask("connected") == "yes"
    assert machine.end() == (0, "")
    # QEMU resets its devices when it starts, which is no news
    assert daemon.value("unplugd_ioreqs_total", kind="reset") == 0


def test_only_what_unplugd_orders_reaches_the_platform_device(daemon: Daemon, start: Start) -> None:
    machine = start(daemon.socket(7), "10000")
    assert machine.ask("w 0x10 2 12") == "ok"  # policy has neither
    assert machine.ask("w 0x10 2 15") == "ok [0 2 3]"
    assert machine.ask("w 0x10 2 0xfff0") == "ok"
    # every size and offset of the BAR's old registers: off by default
    for size in (1, 2, 4):
        for offset in range(12):
            if (offset, size) != (0, 1):
                for value in (1, 2, 0x01010101):
                    assert machine.ask(f"w {0x10000 + offset:#x} {size} {value}") == "ok", (offset, size, value)


def test_the_bars_registers_where_policy_has_them(run: Run, start: Start) -> None:
    daemon = run(merged(embedded(7), {"policy": {"legacy_unplug": True}}))
    machine = start(daemon.socket(7), "10000")
    assert machine.ask("w 0x10008 4 2") == "ok [0 2 2]"
    assert machine.ask("w 0x10004 4 1") == "ok [0 2 3]"


def test_flags_lock_the_rom(daemon: Daemon, start: Start) -> None:
    machine = start(daemon.socket(7), "10000")
    assert machine.ask("w 0x10 1 1") == "ok [0 1 1]"
    assert machine.ask("r 0x10000 1") == "0x1"
    assert machine.ask("w 0x10000 1 0") == "ok [0 1 0]"
    assert machine.ask("r 0x10 1") == "0x0"


def test_a_blacklisted_driver_until_reset(daemon: Daemon, start: Start) -> None:
    machine = start(daemon.socket(7), "10000")
    for line in ("w 0x12 2 2", "w 0x10 4 9"):
        assert machine.ask(line) == "ok"
    assert machine.ask("r 0x10 2") == "0xd249"
    assert machine.ask("reset") == "ok"
    assert machine.ask("r 0x10 2") == "0x49d2"
    assert daemon.value("unplugd_ioreqs_total", kind="reset") == 1


def test_an_access_outlives_unplugd(daemon: Daemon, start: Start) -> None:
    machine = start(daemon.socket(7), "60000")
    assert machine.ask("w 0x12 2 2") == "ok"
    daemon.kill()
    machine.send("w 0x10 4 9")
    time.sleep(0.2)
    daemon.start()
    assert machine.answer() == "ok"
    assert machine.ask("r 0x10 2") == "0xd249"  # the product number was not forgotten
    os.kill(daemon.pid, signal.SIGSTOP)
    machine.send("w 0x10 2 2")  # sent, and perhaps carried out: sent again to the next one
    time.sleep(0.2)
    daemon.kill()
    daemon.start()
    assert machine.answer() == "ok [0 2 2]"
    assert machine.end() == (0, "")


def test_unplugd_away_is_a_port_without_a_device(daemon: Daemon, start: Start) -> None:
    machine = start(daemon.socket(7), "300")
    assert machine.ask("w 0x12 2 3") == "ok"
    daemon.kill()
    begin = time.monotonic()
    assert machine.ask("r 0x10 2") == "0xffff"
    assert time.monotonic() - begin >= 0.3
    assert machine.ask("w 0x10 2 3") == "ok"
    assert machine.ask("w 0x10 1 1") == "ok"
    assert machine.ask("connected") == "no"
    daemon.start()
    assert eventually(lambda: machine.ask("r 0x10 2"), lambda answer: answer == "0x49d2")
    assert machine.ask("w 0x10 2 3") == "ok [0 2 3]"
    status, log = machine.end()
    assert status == 0
    # one record for the change, not one for each access
    assert [line.split(":")[0] for line in log.splitlines()] == ["warning", "info"], log


def test_a_stopped_unplugd_holds_nobody(daemon: Daemon, start: Start) -> None:
    machine = start(daemon.socket(7), "500")
    assert machine.ask("r 0x12 1") == "0x1"
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        # a log line as Windows drivers write it: QEMU carries out all of it before anything else runs
        for _ in range(4096):
            assert machine.ask("w 0x12 1 97") == "ok"
        assert 0.5 <= time.monotonic() - begin < PATIENCE / 2
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert eventually(lambda: machine.ask("r 0x10 2"), lambda answer: answer == "0x49d2")


def test_a_reset_that_nobody_heard_comes_first(daemon: Daemon, start: Start) -> None:
    machine = start(daemon.socket(7), "100")
    for line in ("w 0x12 2 2", "w 0x10 4 9"):
        assert machine.ask(line) == "ok"
    assert machine.ask("r 0x10 2") == "0xd249"
    daemon.kill()
    assert machine.ask("reset") == "ok"
    daemon.start()
    assert eventually(lambda: machine.ask("r 0x10 2"), lambda answer: answer != "0xffff") == "0x49d2"


def test_a_confined_qemu_takes_a_socket_from_its_monitor(daemon: Daemon, start: Start) -> None:
    machine = start("-restrict", daemon.socket(7), "60000")
    for line in ("w 0x12 2 2", "w 0x10 4 9"):
        assert machine.ask(line) == "ok"
    daemon.kill()
    begin = time.monotonic()
    assert machine.ask("r 0x10 2") == "0xffff"
    assert time.monotonic() - begin < 30  # the monitor, which would bring the next socket, must run
    assert machine.ask("connected") == "no"
    daemon.start()
    assert machine.ask("r 0x10 2") == "0xffff"  # it has no path any more
    assert machine.ask("fd") == "unplugd: passed is not a connected unix socket"
    assert machine.ask("fd /nowhere") == "File descriptor named 'passed' has not been found"
    eventually(lambda: machine.ask(f"fd {daemon.socket(7)}"), lambda answer: answer == "ok")
    assert machine.ask("connected") == "yes"
    assert machine.ask("r 0x10 2") == "0xd249"
    assert machine.ask("w 0x10 2 3") == "ok [0 2 3]"
    status, log = machine.end()
    assert status == 0
    assert "getfd" in log
    assert "answers again" in log


def test_qemu_starts_without_unplugd(daemon: Daemon, start: Start) -> None:
    daemon.kill()
    machine = start(daemon.socket(7), "100")
    assert machine.said == "realized"
    assert machine.ask("r 0x10 2") == "0xffff"
    daemon.start()
    assert eventually(lambda: machine.ask("r 0x10 2"), lambda answer: answer == "0x49d2")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-bare", "x", "1000"), "unplugd: this machine has no xen-platform (in xl.cfg: xen_platform_pci = 1)"),
        (("-twice", "x", "1000"), "unplugd: this machine has one already"),
        (("x", "99"), "unplugd: wait must be from 100 to 60000 milliseconds"),
        (("x", "60001"), "unplugd: wait must be from 100 to 60000 milliseconds"),
        (("/" + "x" * 200, "100"), f"unplugd: /{'x' * 200} is too long for a socket's path"),
    ],
)
def test_what_it_refuses(fakeqemu: Path, arguments: tuple[str, ...], text: str) -> None:
    machine = Machine(fakeqemu, *arguments)
    assert machine.said == f"error: {text}"
    assert machine.end()[0] == 1


def test_the_path_is_the_domains_own(start: Start) -> None:
    machine = start("", "100")
    assert machine.ask("r 0x10 2") == "0xffff"
    assert "no answer at /run/unplugd/dom7.sock" in machine.end()[1]
