"""Contract section 3: the guest's log in files and in a real journal, past SIGKILL and a journald that is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemon import Daemon, Run, embedded, eventually, merged, running, uuid
from tests.lab.frames import RESET, frame, outs
from tests.lab.journald import Journald, missing

DROPPED = re.compile(r"(\d+) lines \((\d+) bytes\)")


def small(**log: Any) -> dict[str, Any]:
    """Limits that are soon reached and do not refill within a test."""
    return {"log": {"rate": 0.001, "burst": 2000, **log}}


def count(daemon: Daemon, name: str, domid: int, **labels: str) -> float:
    """A domain's counter."""
    found = daemon.value(name, domid=domid, uuid=uuid(domid), **labels)
    assert found is not None
    return found


def lines_of(daemon: Daemon, domid: int, number: int) -> list[str]:
    """A guest's lines in its file, as soon as there are so many."""
    return eventually(lambda: daemon.guest_lines(f"vm{domid}"), lambda lines: len(lines) >= number)


@pytest.fixture(scope="module")
def files() -> Iterator[Daemon]:
    """A daemon that writes files; its guests have their domid as hundreds, so that no two tests share one."""
    with running() as run:
        yield run(embedded(*range(1, 30), log={"sinks": ["file", "stderr"]}))


# --- lines


def test_lines(files: Daemon) -> None:
    long = b"a" * 4095 + b"b" * 4095 + b"c"
    with files.connect(1) as wire:
        wire.log(b"one\ntwo\r\n\n\r\nth\rree\r\r\n")
        wire.log(long + b"\n")
        wire.log(b"d" * 4095 + b"\n" + b"end\n")
        for byte in b"byte by byte\n":
            wire.write(0x12, 1, byte)
        wire.log(b"in ")
        wire.log(b"pieces\n\nlast\n")
    assert lines_of(files, 1, 10) == [
        "one", "two", r"th\rree\r", "a" * 4095, "b" * 4095, "c", "d" * 4095, "end", "byte by byte", "in pieces", "last",
    ]  # fmt: skip
    assert count(files, "unplugd_log_lines_total", 1) == 11
    assert count(files, "unplugd_log_bytes_total", 1) == sum(
        map(len, ["one", "two", "th\rree\r", *["x" * 4095] * 3, "c", "end", "byte by byte", "in pieces", "last"])
    )


def test_a_partial_line_is_flushed_after_a_while(files: Daemon) -> None:
    with files.connect(2) as wire:
        for piece in (b"par", b"ti", b"al"):
            wire.log(piece)
            time.sleep(0.1)  # less than flush_after: each byte begins the time anew
        assert lines_of(files, 2, 1) == ["partial"]
        wire.log(b"next\n")
        assert lines_of(files, 2, 2) == ["partial", "next"]


def test_a_line_of_a_file_has_its_time_and_is_printable(files: Daemon) -> None:
    before = time.time()
    with files.connect(3) as wire:
        wire.log(bytes(range(256)).replace(b"\n", b"") + b"\n")
        wire.log("Grüße \x1b[2J back\\slash\ttab\n".encode())
    lines_of(files, 3, 2)
    first, second = files.guest_file("vm3").read_bytes().decode("ascii").splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [ -~]+", first)
    stamp = datetime.fromisoformat(first.split(" ")[0]).timestamp()
    assert before - 0.01 <= stamp <= time.time()
    printable = "".join(map(chr, range(0x20, 0x7F))).replace("\\", "\\\\")
    low = "".join("\\t" if byte == 9 else "\\r" if byte == 13 else f"\\x{byte:02x}" for byte in range(32) if byte != 10)
    assert first.split(" ", 1)[1] == low + printable + "".join(f"\\x{byte:02x}" for byte in range(0x7F, 0x100))
    assert second.endswith(r" Gr\xc3\xbc\xc3\x9fe \x1b[2J back\\slash\ttab")
    # the same on standard error
    assert r"\x1b[2J back\\slash\ttab" in files.wait_for_record("slash")
    assert "\x1b" not in files.stderr()


def test_release_flushes(run: Run) -> None:
    daemon = run(embedded(7, 8, log={"flush_after": 60}))
    with daemon.connect(7) as wire, daemon.connect(8) as other:
        wire.log(b"cut off by the rel")
        other.log(b"cut off by the reset")
        other.reset()
        assert lines_of(daemon, 8, 1) == ["cut off by the reset"]
        domains = [domain for domain in daemon.config["xenstore"]["domain"] if domain["domid"] != 7]
        daemon.configure({"xenstore": {"domain": domains}})
        daemon.reload()
        assert lines_of(daemon, 7, 1) == ["cut off by the rel"]


# --- limits


def test_whole_lines_are_dropped_and_counted(run: Run) -> None:
    daemon = run(embedded(7, 8, **small()))
    with daemon.connect(7) as wire, daemon.connect(8) as other:
        text = b"x" * 99 + b"\n"
        wire.log(text * 100)
        lines = lines_of(daemon, 7, 19)
        assert lines[:19] == ["x" * 99] * 19
        assert count(daemon, "unplugd_log_lines_total", 7) in (19, 20)
        dropped = count(daemon, "unplugd_log_dropped_lines_total", 7, reason="rate-limit")
        passed = count(daemon, "unplugd_log_lines_total", 7)
        assert passed + dropped == 100
        assert count(daemon, "unplugd_log_dropped_bytes_total", 7, reason="rate-limit") == 99 * dropped
        assert (daemon.domain(7) or {})["log"]["throttled"]
        eventually(lambda: "1 throttled" in daemon.manager.status())
        other.log(b"nobody else waits or loses\n")
        assert lines_of(daemon, 8, 1) == ["nobody else waits or loses"]
        assert count(daemon, "unplugd_log_dropped_lines_total", 8, reason="rate-limit") == 0


def test_short_lines_cost_64(run: Run) -> None:
    daemon = run(embedded(7, **small(burst=6400)))
    with daemon.connect(7) as wire:
        wire.log(b"x\n" * 1000)
    assert count(daemon, "unplugd_log_lines_total", 7) in range(96, 101)


def test_the_dropped_record_comes_before_the_next_line_that_passes(run: Run) -> None:
    daemon = run(embedded(7, log={"rate": 400, "burst": 1000}))
    with daemon.connect(7) as wire:
        wire.log((b"y" * 99 + b"\n") * 60)
        end = time.monotonic() + 20
        while "later" not in daemon.guest_lines("vm7") and time.monotonic() < end:
            wire.log(b"later\n")
            time.sleep(0.1)
    lines = lines_of(daemon, 7, 11)
    at = lines.index("later")
    said = DROPPED.search(lines[at - 1])
    assert said, lines
    dropped = int(said[1])
    assert set(lines[: at - 1]) == {"y" * 99}
    assert dropped >= 60 - (at - 1)
    # what was dropped after that is not said yet, and nothing is missing
    unsaid = sum(int(found[1]) for line in lines if (found := DROPPED.search(line)))
    assert unsaid <= count(daemon, "unplugd_log_dropped_lines_total", 7, reason="rate-limit")


def test_dropping_that_goes_on_is_said_every_10_seconds(run: Run) -> None:
    daemon = run(embedded(7, log={"rate": 100, "burst": 300}))
    begin = time.monotonic()
    with daemon.connect(7) as wire:
        while not any(map(DROPPED.search, daemon.guest_lines("vm7"))):
            wire.log((b"z" * 1000 + b"\n") * 4)  # never passes: longer than the burst
            assert time.monotonic() - begin < 30
            time.sleep(0.2)
        assert time.monotonic() - begin > 9
        wire.log(b"z" * 1000 + b"\n")
        assert len([line for line in daemon.guest_lines("vm7") if DROPPED.search(line)]) == 1


def test_what_a_guest_can_make_dom0_store_is_bounded(run: Run) -> None:
    daemon = run(embedded(7, blacklist={"range": [{"product": "linux", "from": 5}]}, **small(burst=4000)))
    with daemon.connect(7) as wire:
        before = len(daemon.stderr())
        for number in range(300):
            wire.send(frame(0x12, 2, number % 5) + frame(0x10, 4, number) + frame(0x10, 2, 0xFFF0 | number % 16))
            wire.send(frame(0x12, 2, 0) + frame(0x10, 4, number) + RESET + outs(0x12, b"x\n" * 9))
            wire.take(7 * 32)
        stored = len(daemon.stderr()) - before + sum(map(len, daemon.guest_lines("vm7")))
        # Each record has a time (25 bytes) and a prefix in front of what is charged.
        assert stored < 4000 + 4000 / 64 * 40, stored


def test_delay_makes_the_guest_wait_and_nobody_else(run: Run) -> None:
    daemon = run(embedded(7, 8, log={"on_limit": "delay", "rate": 4000, "burst": 2000}))
    with daemon.connect(7) as wire, daemon.connect(8) as other:
        begin = time.monotonic()
        request = outs(0x12, (b"d" * 99 + b"\n") * 30)
        wire.send(request * 3 + frame(0x10, 2, read=True))
        for _ in range(20):
            assert other.read(0x10, 2) == 0x49D2
        other.log(b"at once\n")
        for _ in range(3):
            assert wire.answer(request) == 0
        assert wire.answer(frame(0x10, 2, read=True)) == 0x49D2
        took = time.monotonic() - begin
        assert took > (9000 - 2000) / 4000 * 0.9, "9000 bytes cost more than was saved up"
    assert lines_of(daemon, 7, 90) == ["d" * 99] * 90
    assert count(daemon, "unplugd_log_dropped_lines_total", 7, reason="rate-limit") == 0


def test_delay_charges_short_lines_64(run: Run) -> None:
    daemon = run(embedded(7, log={"on_limit": "delay", "rate": 3200, "burst": 640}))
    with daemon.connect(7) as wire:
        begin = time.monotonic()
        wire.log(b"x\n" * 60)
        assert time.monotonic() - begin > (60 * 64 - 640) / 3200 * 0.9
        begin = time.monotonic()
        for byte in b"ab" * 10:
            wire.write(0x12, 1, byte)  # a byte a frame costs a byte
        assert time.monotonic() - begin < 5
    assert eventually(lambda: daemon.guest_lines("vm7"), lambda lines: len(lines) == 61)[:60] == ["x"] * 60


# --- files


def test_names_of_files(run: Run) -> None:
    names = {1: "web.01_+-", 2: "../etc/passwd", 3: "a b", 4: "a b", 5: "ä", 6: "x" * 230, 7: "y" * 199 + "/"}
    names[8] = "A%20b"
    domains = [{"domid": domid, "name": name, "uuid": uuid(domid)} for domid, name in names.items()]
    daemon = run(merged(embedded(), {"xenstore": {"domain": domains}}))
    for domid in names:
        with daemon.connect(domid) as wire:
            wire.log(f"I am {domid}\n".encode())
    expected = {
        1: "web.01_+-", 2: "..%2Fetc%2Fpasswd", 3: "a%20b", 4: "a%20b-4", 5: "%C3%A4",
        6: "x" * 200 + "-6", 7: ("y" * 199 + "%2F")[:200] + "-7", 8: "A%2520b",
    }  # fmt: skip
    for domid, name in expected.items():
        assert eventually(partial(daemon.guest_lines, name)) == [f"I am {domid}"]
    assert {path.name for path in daemon.log_directory.iterdir()} == {f"guest-{name}.log" for name in expected.values()}


def test_rotation(run: Run) -> None:
    daemon = run(embedded(7, log={"max_file_bytes": 8192, "burst": 1 << 20}))
    with daemon.connect(7) as wire:
        for number in range(100):
            wire.log(b"%03d " % number + b"r" * 200 + b"\n")
        lines = eventually(lambda: daemon.guest_lines("vm7"), lambda lines: bool(lines) and lines[-1][:3] == "099")
    path = daemon.guest_file("vm7")
    assert {each.name for each in daemon.log_directory.iterdir()} == {path.name, path.name + ".1"}
    assert all(each.stat().st_size <= 8192 for each in daemon.log_directory.iterdir())
    first = int(lines[0][:3])
    assert [int(line[:3]) for line in lines] == list(range(first, 100))


def test_sighup_reopens(run: Run) -> None:
    daemon = run(embedded(7))
    path, moved = daemon.guest_file("vm7"), daemon.log_directory / "moved"
    with daemon.connect(7) as wire:
        wire.log(b"one\n")
        lines_of(daemon, 7, 1)
        path.rename(moved)
        daemon.reload()
        wire.log(b"two\n")
        assert lines_of(daemon, 7, 1) == ["two"]
        assert moved.read_text().endswith(" one\n")


def test_a_directory_that_cannot_be_written_loses_nothing(run: Run) -> None:
    daemon = run(embedded(7))
    path = daemon.guest_file("vm7")
    path.mkdir()  # nobody can append to that, root neither
    with daemon.connect(7) as wire:
        wire.log(b"one\ntwo\n")
        daemon.wait_for_record("guest log of vm7")
        daemon.kill()  # acknowledged, and kept beside the sockets
        path.rmdir()
        daemon.start()
    assert lines_of(daemon, 7, 2) == ["one", "two"]


# --- the journal


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journald]:
    """A real journald for all tests of this module."""
    if reason := missing():
        pytest.skip(reason)
    with Journald(tmp_path_factory.mktemp("journald")) as journald:
        yield journald


@pytest.fixture
def logged(journal: Journald) -> Iterator[Callable[..., Daemon]]:
    """`logged(config)` is a daemon where this journald is the host's."""
    daemons: list[Daemon] = []

    def start(config: dict[str, Any]) -> Daemon:
        daemon = Daemon(
            merged({"log": {"sinks": ["journal"]}}, config), command=lambda argv: journal.command(argv, Path.cwd())
        )
        daemons.append(daemon)
        return daemon.start()

    yield start
    for daemon in daemons:
        daemon.close()


Logged = Callable[..., Daemon]

GUEST, OWN = "SYSLOG_IDENTIFIER=unplugd-guest", "SYSLOG_IDENTIFIER=unplugd"


def guest_messages(journal: Journald, domid: int) -> list[str]:
    """The journal's lines of a guest."""
    return [str(entry["MESSAGE"]) for entry in journal.entries(GUEST, f"XEN_DOMID={domid}")]


def test_fields_of_a_guest_line(journal: Journald, logged: Logged) -> None:
    daemon = logged(embedded(101))
    with daemon.connect(101) as wire:
        wire.log(b"before the driver\n")
        wire.announce(1, 86451)
        wire.log("XENBUS|Gr\u00fc\u00dfe \x1b[2J C:\\temp \xff\n".encode() + b"\xff\xfe\nA=B\nPRIORITY=0\n")
    entries = journal.wait_for(lambda found: len(found) == 5, GUEST, "XEN_DOMID=101")
    assert [entry["MESSAGE"] for entry in entries] == [
        "before the driver", "XENBUS|Grüße \\x1b[2J C:\\temp ÿ", r"\xff\xfe", "A=B", "PRIORITY=0",
    ]  # fmt: skip
    common = {"XEN_DOMID": "101", "XEN_DOMAIN_UUID": uuid(101), "XEN_DOMAIN_NAME": "vm101"}
    for entry in entries:
        assert common.items() <= entry.items()
        assert re.fullmatch("[0-9a-f]{32}", entry["MESSAGE_ID"])
        assert entry["PRIORITY"] in "567"
    assert "UNPLUG_PRODUCT" not in entries[0]
    driver = {"UNPLUG_PRODUCT": "1", "UNPLUG_PRODUCT_NAME": "xensource-windows", "UNPLUG_BUILD": "86451"}
    assert driver.items() <= entries[1].items()
    assert len({entry["MESSAGE_ID"] for entry in entries}) == 1


def test_each_kind_of_own_record_has_its_message_id(journal: Journald, logged: Logged) -> None:
    changes = {
        "blacklist": {"range": [{"product": "linux", "from": 5, "reason": "old"}]},
        "policy": {"allow_unplug": ["nics"]},
        "log": {"rate": 2000, "burst": 2000},
    }
    daemon = logged(embedded(102, **changes))
    with daemon.connect(102) as wire:
        wire.write(0x10, 4, 1)
        wire.write(0x10, 2, 0x12)
        wire.write(0x10, 2, 1)
        wire.announce(3, 4)
        wire.announce(3, 5)
        wire.log((b"x" * 99 + b"\n") * 40)
        time.sleep(1.2)
        wire.log(b"passes\n")
        wire.reset()
        wire.send(frame(state=7))
        assert wire.take(1) == b""
        kinds = {
            "announced": "build 4: allowed", "blacklisted": "build 5 is blacklisted", "unplugged": "unplugs nics",
            "undefined": "undefined bits", "early build": "no product", "denied": "refused by policy",
            "throttled": "over its rate limit", "resumed": "within its rate limit", "reset": "device reset",
            "fault": "connection closed",
        }  # fmt: skip

        def complete(found: list[dict[str, Any]]) -> bool:
            texts = "\n".join(str(entry["MESSAGE"]) for entry in found)
            return all(text in texts for text in kinds.values())

        entries = journal.wait_for(complete, OWN, "XEN_DOMID=102")
    by_kind = {
        kind: next(entry["MESSAGE_ID"] for entry in entries if text in entry["MESSAGE"]) for kind, text in kinds.items()
    }
    assert len(set(by_kind.values())) == len(kinds), by_kind
    common = {"XEN_DOMID": "102", "XEN_DOMAIN_UUID": uuid(102), "XEN_DOMAIN_NAME": "vm102"}
    assert all(common.items() <= entry.items() for entry in entries)
    (dropped,) = (entry for entry in journal.entries(GUEST, "XEN_DOMID=102") if DROPPED.search(entry["MESSAGE"]))
    assert dropped["MESSAGE_ID"] not in by_kind.values()


def test_a_journald_that_hangs_stalls_nobody_and_loses_nothing(journal: Journald, logged: Logged) -> None:
    daemon = logged(embedded(103, log={"burst": 1 << 20}))
    with daemon.connect(103) as wire:
        journal.suspend()
        try:
            for number in range(900):  # more than its socket takes
                wire.log(b"line %d\n" % number)
            assert wire.read(0x10, 2) == 0x49D2
            assert daemon.get("/-/healthy")[0] == 200
            daemon.kill()
        finally:
            journal.resume()
        daemon.start()
    journal.wait_for(lambda found: len(found) >= 900, GUEST, "XEN_DOMID=103")
    assert sorted(set(guest_messages(journal, 103))) == sorted(f"line {number}" for number in range(900))
    assert count(daemon, "unplugd_log_dropped_lines_total", 103, reason="sink") == 0


def test_a_whole_burst_waits_for_journald(journal: Journald, logged: Logged) -> None:
    """What the default limits let pass at once, in the shortest lines that cost no more than they must."""
    daemon = logged(embedded(108, log={"sinks": ["journal", "file"]}))
    with daemon.connect(108) as wire:
        journal.suspend()
        try:
            for number in range(2000):
                wire.log(b"a line of some thirty bytes %04d\n" % number)
            assert count(daemon, "unplugd_log_lines_total", 108) == 2000
        finally:
            journal.resume()
    assert count(daemon, "unplugd_log_dropped_lines_total", 108, reason="sink") == 0
    expected = [f"a line of some thirty bytes {number:04}" for number in range(2000)]
    journal.wait_for(lambda found: len(found) >= 2000, GUEST, "XEN_DOMID=108")
    assert guest_messages(journal, 108) == expected
    assert lines_of(daemon, 108, 2000) == expected


def test_a_journald_that_is_absent_loses_nothing(journal: Journald, logged: Logged) -> None:
    daemon = logged(embedded(104, 105, log={"burst": 1 << 20, "sinks": ["journal", "file"]}))
    with daemon.connect(104) as wire:
        wire.log(b"before\n")
        journal.wait_for(lambda found: len(found) == 1, GUEST, "XEN_DOMID=104")
        journal.kill()
        wire.log(b"killed\n")
        journal.remove_socket()
        for number in range(300):
            wire.log(b"absent %d\n" % number)
        lines_of(daemon, 104, 302)  # the other sink is not held up
        assert wire.read(0x10, 2) == 0x49D2
        journal.start()
        expected = ["before", "killed", *(f"absent {number}" for number in range(300))]
        journal.wait_for(lambda found: len(found) >= len(expected), GUEST, "XEN_DOMID=104")
    assert guest_messages(journal, 104) == expected


def test_neither_restarts_nor_a_release_lose_what_waits_for_journald(journal: Journald, logged: Logged) -> None:
    journal.kill()
    journal.remove_socket()
    daemon = logged(embedded(107, log={"sinks": ["journal", "file"], "flush_after": 60}))
    with daemon.connect(107) as wire:
        wire.log(b"one\n")
        daemon.kill()
        daemon.start()
    with daemon.connect(107) as wire:
        wire.log(b"two\n")
        assert daemon.stop() == 0
        daemon.start()
    with daemon.connect(107) as wire:
        wire.log(b"three\npartial")
        daemon.configure({"xenstore": {"domain": []}})
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        assert wire.take(1) == b""
    eventually(lambda: daemon.domain(107) is None)
    daemon.kill()
    daemon.start()
    journal.start()
    expected = ["one", "two", "three", "partial"]
    journal.wait_for(lambda found: len(found) >= 4, GUEST, "XEN_DOMID=107")
    assert guest_messages(journal, 107) == expected
    assert lines_of(daemon, 107, 4) == expected
    own = journal.wait_for(lambda found: any("started" in str(entry["MESSAGE"]) for entry in found), OWN)
    assert all(entry["MESSAGE_ID"] for entry in own)


def test_what_a_sink_cannot_take_is_bounded_and_counted(journal: Journald, logged: Logged) -> None:
    daemon = logged(embedded(106, log={"burst": 1 << 24}))
    with daemon.connect(106) as wire:
        journal.kill()
        line = b"s" * 1023 + b"\n"
        for _ in range(500):
            wire.log(line * 4)
        lost = count(daemon, "unplugd_log_dropped_lines_total", 106, reason="sink")
        assert 1000 < lost < 2000
        assert count(daemon, "unplugd_log_dropped_bytes_total", 106, reason="sink") == lost * 1023
        journal.start()
        journal.wait_for(lambda found: len(found) == 2000 - lost, GUEST, "XEN_DOMID=106")


# --- SIGKILL


class Persistent(threading.Thread):
    """A device model that logs numbered lines, reconnects, and sends again what was not answered."""

    def __init__(self, daemon: Daemon, domid: int) -> None:
        super().__init__()
        self.daemon_under_test = daemon
        self.domid = domid
        self.acknowledged: list[bytes] = []
        self.enough = threading.Event()

    def run(self) -> None:
        waiting: list[bytes] = []
        number = 0
        while not (self.enough.is_set() and not waiting):
            with self.daemon_under_test.connect(self.domid) as wire:
                try:
                    wire.send(b"".join(outs(0x12, line) for line in waiting))
                    while True:
                        while len(waiting) < 8 and not self.enough.is_set():
                            waiting.append(b"guest %d says %d\n" % (self.domid, number))
                            number += 1
                            wire.send(outs(0x12, waiting[-1]))
                        if not waiting:
                            return
                        if len(wire.take(32)) < 32:
                            break
                        self.acknowledged.append(waiting.pop(0))
                        time.sleep(0.003)  # what a busy machine's disk keeps up with: beyond, lines are dropped
                except OSError:
                    pass


def have_said(guests: Sequence[Persistent], goals: Sequence[int]) -> bool:
    """Whether each guest has got so many lines acknowledged."""
    return all(len(guest.acknowledged) >= goal for guest, goal in zip(guests, goals, strict=True))


@pytest.mark.parametrize("sinks", [["file"], ["journal", "file"]], ids="-".join)
def test_every_acknowledged_line_survives_kill_9(journal: Journald, logged: Logged, sinks: list[str]) -> None:
    domids = range(110, 114) if len(sinks) == 1 else range(120, 124)
    daemon = logged(embedded(*domids, log={"sinks": sinks, "burst": 1 << 30, "max_file_bytes": 1 << 26}))
    guests = [Persistent(daemon, domid) for domid in domids]
    for guest in guests:
        guest.start()
    try:
        for _ in range(3):
            goals = [len(guest.acknowledged) + 100 for guest in guests]
            eventually(partial(have_said, guests, goals))
            daemon.kill()
            daemon.start()
    finally:
        for guest in guests:
            guest.enough.set()
    for guest in guests:
        guest.join(60)
        assert not guest.is_alive()
    for guest in guests:
        said = [line.decode().rstrip() for line in guest.acknowledged]
        for sink in sinks:
            look = partial(daemon.guest_lines, f"vm{guest.domid}")
            if sink == "journal":
                look = partial(guest_messages, journal, guest.domid)
            lines = eventually(look, set(said).issubset, pause=0.2)
            # Nothing but what was said; repeated is what was under way at a kill, to the daemon or to the sink.
            assert set(lines) <= {f"guest {guest.domid} says {number}" for number in range(len(said) + 8)}
            assert max(Counter(lines).values()) <= 4
            first = list(dict.fromkeys(lines))
            assert first == sorted(first, key=lambda line: int(line.rsplit(" ", 1)[1]))


def test_lines_that_come_quickly_survive_kill_9(journal: Journald, logged: Logged) -> None:
    """Killed right after an answer, while lines are on their way to journald in a row: each comes, in order."""
    daemon = logged(embedded(130, log={"sinks": ["journal"], "rate": 0.001, "burst": 1 << 24}))
    said: list[str] = []
    for kill in range(8):
        with daemon.connect(130) as wire:
            for number in range(40 + 3 * kill):
                said.append(f"before kill {kill}: {number}")
                wire.log(said[-1].encode() + b"\n")
            daemon.kill()
        daemon.start()
    found = eventually(partial(guest_messages, journal, 130), lambda lines: set(said) <= set(lines), pause=0.2)
    assert list(dict.fromkeys(found)) == said
    assert len(found) <= len(said) + 8, "one that was under way may come twice"
    domain = daemon.domain(130)
    assert domain is not None
    assert abs((1 << 24) - 64 * len(found) - domain["log"]["balance"]) < 64 * 8 + 1, "each is charged"


def test_state_survives_kill_9(run: Run) -> None:
    entries = [{"product": "linux", "build": 5}]
    daemon = run(embedded(7, log={"rate": 0.001, "burst": 5000, "flush_after": 60}, blacklist={"entry": entries}))
    with daemon.connect(7) as wire:
        assert wire.announce(3, 5) == 0xD249
        assert wire.write(0x10, 2, 5) == 5
        wire.write(0x10, 1, 1)
        wire.log((b"x" * 999 + b"\n") * 3)
        wire.log(b"a partial ")
        balance = (daemon.domain(7) or {})["log"]["balance"]
        daemon.kill()
    daemon.start()
    with daemon.connect(7) as wire:
        state = daemon.domain(7) or {}
        assert (state["product"], state["build"], state["blacklisted"], state["unplugged_mask"]) == (3, 5, True, 5)
        assert abs(state["log"]["balance"] - balance) < 5
        assert (wire.read(0x10, 2), wire.read(0x10, 1)) == (0xD249, 1)
        wire.log(b"line\n")
        assert "a partial line" in lines_of(daemon, 7, 4)
        wire.log((b"y" * 999 + b"\n") * 3)
        assert count(daemon, "unplugd_log_dropped_lines_total", 7, reason="rate-limit") >= 2
        wire.log(b"kept over SIGTERM too")
        assert daemon.stop() == 0
    daemon.configure({"log": {"flush_after": 0.5}})
    daemon.start()
    eventually(lambda: "kept over SIGTERM too" in daemon.guest_lines("vm7"))
    labels = {"domid": 7, "uuid": uuid(7)}
    assert daemon.value("unplugd_domain_info", name="vm7", product=3, build=5, **labels) == 1
    assert daemon.value("unplugd_domain_unplugged", device="aux-ide-disks", **labels) == 1
    assert daemon.value("unplugd_domain_blacklisted", **labels) == 1


def test_each_byte_that_was_answered_survives(run: Run) -> None:
    daemon = run(embedded(7, log={"flush_after": 60}))
    text = b"every byte in a frame of its own, with a kill in between\n"
    wire = daemon.connect(7)
    for at, byte in enumerate(text):
        if at in (1, 17, len(text) - 1):
            daemon.kill()
            wire.close()
            daemon.start()
            wire = daemon.connect(7)
        wire.write(0x12, 1, byte)
    wire.close()
    assert lines_of(daemon, 7, 1) == [text.decode().rstrip()]


def test_standard_error_that_nobody_reads_stalls_nobody() -> None:
    """The sink `stderr` is a pipe whose reader sleeps."""
    daemon = Daemon(embedded(7, log={"sinks": ["stderr"], "burst": 1 << 24}))
    reader, writer = os.pipe()
    try:
        executable = Path(sys.executable).with_name("unplugd")
        daemon.process = subprocess.Popen([str(executable), "--config", str(daemon.file)], stderr=writer)
        os.close(writer)
        with daemon.connect(7) as wire:
            for _ in range(350):
                wire.log((b"p" * 999 + b"\n") * 4)
            assert wire.read(0x10, 2) == 0x49D2
            lost = count(daemon, "unplugd_log_dropped_lines_total", 7, reason="sink")
            assert lost > 0
            taken = b""
            while taken.count(b"p" * 999) < 1400 - lost:
                taken += os.read(reader, 65536)
        assert set(re.findall(rb"p+\n", taken)) == {b"p" * 999 + b"\n"}
    finally:
        os.close(reader)
        daemon.close()
