"""Hostile guests. Each attack is a test; what is asserted is the bound (docs/security.md)."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lab import xenstored as xen
from tests.lab.attack import BEFORE, BURST, RATE, attacked, stored
from tests.lab.daemon import Daemon, Run, embedded, eventually, uuid
from tests.lab.frames import RESET, frame, outs
from tests.lab.journald import Journald
from tests.lab.xenspeak import XenstoreError
from tests.lab.xenstored import Xenstored


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
    assert stored(daemon) <= BURST + RATE * seconds + BEFORE
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
    assert stored(daemon) <= BURST + RATE * (time.monotonic() - begin) + BEFORE
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
    assert stored(daemon) <= BURST + RATE * (time.monotonic() - begin) + BEFORE
    daemon.start()


def test_a_scan_of_build_numbers(run: Run) -> None:
    daemon = run(embedded(1, 2))
    series = len(daemon.metrics()) + 1  # and the one that says what the verdict is
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
    assert stored(daemon) <= BURST + RATE * (time.monotonic() - begin) + BEFORE
    daemon.start()


UGLY = [
    b"\x1b[31mred\x1b[0m \x07\x08",
    b"\xff\xfe\xc3\x28 not UTF-8 \xed\xa0\x80",
    b"NUL \x00 in it",
    b"line\x0bwith\x0cfeeds\x85and\xe2\x80\xa8separators",
    b"rtl \xe2\x80\xae override",
    b"\\x41 backslash",
    "tag \U000e0041 filler \u3164 shy \xad selector \ufe0f joiner \u200d annotation \ufff9".encode(),
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
            hidden = r"[\x00-\x1f\x7f\x80-\x9f\xad\u200d\u3164\ufe0f\ufff9\U000e0041]"
            assert re.search(hidden, entry["MESSAGE"]) is None
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
    xen.needed()
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


def wakeups(daemon: Daemon) -> int:
    """How often the daemon has gone to sleep."""
    found = re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_what_a_guest_writes_into_xenstore_wakes_nobody(xenstored: Xenstored, run: Run) -> None:
    """No watch is on what a guest can write; what unplugd reads and publishes it can neither write nor read."""
    for domid in (1, 2):
        xenstored.create(domid, f"vm{domid}", uuid(domid))
    daemon = run({"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}})
    with daemon.connect(1) as wire:
        wire.announce(3, 1)
        eventually(partial(published, xenstored))
        guest = xenstored.guest(1)
        for node in ("name", "vm", "log-throttling", "unplug/build", "image/device-model-kill-uid"):
            with pytest.raises(XenstoreError, match="EACCES"):
                guest.write(node, b"mine")
        with pytest.raises(XenstoreError, match="EACCES"):
            guest.read("unplug/build")
        before, begin = wakeups(daemon), time.monotonic()
        for number in range(2000):
            guest.write(f"data/{number % 50}", b"%d" % number)
        # It wakes by itself now and then, for its timers and for xenstored's own; not twice a write.
        assert wakeups(daemon) - before < 200 + 20 * (time.monotonic() - begin)
        assert wire.read(0x10, 2) == 0x49D2


def published(xenstored: Xenstored) -> bool:
    with contextlib.suppress(XenstoreError):
        return xenstored.dom0.read("/local/domain/1/unplug/build") == b"1"
    return False


def test_undefined_bits_and_refused_masks_for_ever(run: Run) -> None:
    daemon = run(embedded(1, 2, policy={"allow_unplug": ["nics"]}))
    begin = time.monotonic()
    turn = (frame(0x10, 2, 0xFFFF) + frame(0x10, 2, 1)) * 256
    with attacked(daemon), daemon.connect(1) as wire:
        while time.monotonic() - begin < 1.5:
            wire.send(turn)
            assert len(wire.take(len(turn))) == len(turn)
    daemon.stop()
    assert stored(daemon) <= BURST + RATE * (time.monotonic() - begin) + BEFORE
    daemon.start()
