"""The compiled part against the Python that it stands in for: same bytes, same pieces, same everything.

Without the compiled part these tests are skipped, but for those of the choice between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unplugd
from tests.lab.frames import RESET, frame
from tests.lab.host import Host, host, until
from unplugd.config.load import Config, LogConfig, PolicyConfig
from unplugd.core.counters import DURATION_BOUNDS
from unplugd.core.guest import ALLOWED, Snapshot, Verdict
from unplugd.core.guestlog import LINE_LIMIT, RECORD_COST
from unplugd.core.history import Did
from unplugd.core.ioreq import PAYLOAD_LIMIT
from unplugd.core.stream import IoreqStream, NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.domains.statefile import SIZE, StateFile
from unplugd.domains.view import published
from unplugd.sinks.records import Event
from unplugd.sockets import loop as eventloop
from unplugd.sockets import pureloop, turns
from unplugd.sockets.access import ConnectionPolicy
from unplugd.sockets.connection import READ_SIZE, Connection, Judge
from unplugd.sockets.listener import Listener

try:
    from unplugd.sockets import _fastpath
except ImportError:
    pytest.skip("the compiled part was not built", allow_module_level=True)

SOURCES = sorted((Path(unplugd.__file__).parents[1] / "fastpath").glob("*.c"))
MAGIC = frame(0x10, 2, read=True)
VERSION = frame(0x12, 1, read=True)
Loops = Callable[[], asyncio.AbstractEventLoop]


def pure() -> asyncio.AbstractEventLoop:
    return pureloop.Loop()


def fast() -> asyncio.AbstractEventLoop:
    return eventloop.Loop(_fastpath.Poller)


def byte(value: int, addr: int = 0x12, eport: int = 0) -> bytes:
    return frame(addr, 1, data=value, eport=eport)


def product(number: int) -> bytes:
    return frame(0x12, 2, data=number)


def build(number: int) -> bytes:
    return frame(0x10, 4, data=number)


def unplug(mask: int) -> bytes:
    return frame(0x10, 2, data=mask)


def text(data: bytes) -> bytes:
    return b"".join(byte(value) for value in data)


def string(data: bytes) -> bytes:
    return frame(0x12, 1, count=len(data), string=True) + data


async def judge(domain: Domain, need: NeedVerdict, deadline: float) -> Verdict:
    await asyncio.sleep(0)
    return Verdict(blacklisted=True, reason="unlucky", source="xenstore") if need.build == 13 else ALLOWED


@dataclass
class Peer:
    """A domain in some event loop, and its device model's ends."""

    one: Host
    domain: Domain
    listener: Listener
    path: Path | None = None
    """The domain's socket, where it has one; else a connection is made without."""
    clients: dict[int, socket.socket] = field(default_factory=dict)

    async def connect(self, number: int) -> None:
        """A connection, in place of the one that has this number."""
        loop = asyncio.get_running_loop()
        before = self.domain.connections - (number in self.clients)
        with contextlib.suppress(KeyError):
            self.clients.pop(number).close()
        await until(lambda: self.domain.connections == before)
        if self.path is not None:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            await loop.sock_connect(client, str(self.path))
            self.clients[number] = client
            await until(lambda: self.domain.connections == before + 1)
            return
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        Connection(self.domain, judge, lambda _: None).serve(theirs)
        self.clients[number] = ours

    async def exchange(self, number: int, data: bytes, expected: int) -> bytes:
        """Send at once what the other end then finds in one piece, and receive what is `expected` back."""
        client = self.clients[number]
        assert client.send(data) == len(data)
        got = b""
        deadline = time.monotonic() + 20
        while len(got) < expected:
            with contextlib.suppress(BlockingIOError):
                got += client.recv(expected - len(got))
            assert time.monotonic() < deadline, f"{len(got)} of {expected} bytes came"
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return got

    @staticmethod
    def answer(request: bytes) -> bytes:
        """That of a driver that may run to the magic number's read."""
        return (0x49D2).to_bytes(8, "little").join((request[:8], request[16:30] + bytes((0x23, 0))))

    def kept(self) -> tuple[Snapshot, bytes] | None:
        """What a process would find if this one died now, without times."""
        found = StateFile(self.one.directory / "state" / f"dom{self.domain.domid}", self.one.settings.boot)
        try:
            if found._kept is None:
                return None
            snapshot, partial = found._kept
            return snapshot._replace(balance_at=0.0), partial
        finally:
            found.close()

    def seen(self) -> dict[str, object]:
        """All that can be seen of it, but the metric's labels: they follow the end of what is served at once."""
        guest, counters = self.domain.guest, self.one.counters
        # which driver a record of unplugd's own names is as of the end of what is served at once: that differs
        driver = {"UNPLUG_PRODUCT", "UNPLUG_PRODUCT_NAME", "UNPLUG_BUILD"}
        return {
            "kept": self.kept(),
            "guest": guest.snapshot()._replace(balance_at=0.0),
            "partial": bytes(guest.log.partial),
            "line": guest.log.line_number,
            "dropped": (self.domain.dropped_lines, self.domain.dropped_bytes),
            "lines": (self.domain.log_lines, self.domain.log_bytes, guest.log.throttled, guest.log.suppressed),
            "ioreqs": dict(counters.ioreqs),
            "published": published(self.domain),
            "history": [(noted.step, noted.times) for noted in guest.history.steps],
            "entries": [
                {
                    name: value for name, value in entry.items() if name != "_SOURCE_REALTIME_TIMESTAMP"
                    and not (name in driver and entry["SYSLOG_IDENTIFIER"] == "unplugd")
                }
                for entry in self.one.journald.read()
            ],
        }


# No refill: what comes when does not matter then.
LOG = LogConfig(rate=0, burst=700, flush_after=1000)


def run(
    loops: Loops, test: Callable[[Peer], Coroutine[Any, Any, None]], log: LogConfig = LOG, *, listening: bool = False,
    policy: PolicyConfig | None = None, judged: Judge = judge, faults: int = 0,
) -> None:
    """A test with one domain in a loop of this kind, in which no callback may fail, but for so many `faults`.

    No domain may settle before it was told what the fast path did: it would keep the older state over the newer one.
    """
    settle = Domain.settle
    untold: list[Domain] = []

    def watched(domain: Domain, now: float) -> None:
        if domain.tail is not None and domain.tail.changed:
            untold.append(domain)
        settle(domain, now)

    async def main() -> None:
        failed: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
        with tempfile.TemporaryDirectory() as directory:
            async with host(Path(directory), Config(log=log, policy=policy or PolicyConfig())) as one:
                domain = one.domain()
                peer = Peer(one, domain, Listener(domain, one.directory, ConnectionPolicy([os.geteuid()]), judged))
                if listening:
                    peer.listener.start(None, {})
                    peer.path = peer.listener.path
                await peer.connect(0)
                await peer.connect(1)
                await test(peer)
                for client in peer.clients.values():
                    client.close()
                await until(lambda: peer.domain.connections == 0)
                peer.listener.close()
                peer.domain.stop()
        assert len(failed) == faults, failed

    with asyncio.Runner(loop_factory=loops) as runner, patch.object(Domain, "settle", watched):
        runner.run(main())
    assert untold == []


# --- the same in both


@dataclass(frozen=True)
class Send:
    connection: int
    data: bytes


@dataclass(frozen=True)
class Limit:
    unlimited: bool


@dataclass(frozen=True)
class Reconnect:
    connection: int


Step = Send | Limit | Reconnect

LETTERS = st.sampled_from([0x61, 0x62, 0x0D, 0x0A, 0x0A, 0x00, 0xFF, 0x5C])
FRAMES = st.one_of(
    st.just(MAGIC),
    st.builds(byte, LETTERS, st.sampled_from([0x12, 0x12, 0x10008]), st.integers(0, 2**32 - 1)),
    st.builds(text, st.binary(min_size=1, max_size=90)),
    st.builds(lambda count, end: text(b"x" * count + end), st.integers(1, 200), st.sampled_from([b"", b"\n", b"\r\n"])),
    st.builds(string, st.binary(min_size=1, max_size=300)),
    st.just(RESET),
    st.just(VERSION),
    st.builds(product, st.sampled_from([0, 1, 3])),
    st.builds(build, st.sampled_from([1, 13])),
    st.builds(unplug, st.integers(0, 31)),
    st.builds(
        frame, st.sampled_from([0x10, 0x12, 0x11, 0x10000, 0x10008, 0x10010]), st.sampled_from([1, 2, 4, 8]),
        data=st.integers(0, 2**64 - 1), read=st.booleans(), eport=st.integers(0, 2**32 - 1),
        pad=st.integers(0, 2**16 - 1), high=st.sampled_from([0, 0, 0x40, 0x80, 0xC0]),
    ),
)  # fmt: skip


@st.composite
def stories(draw: st.DrawFn) -> list[Step]:
    """What two connections send, cut anywhere, while the toolstack and the device models do what they do."""
    streams = [b"".join(draw(st.lists(FRAMES, max_size=25))) for _ in range(2)]
    steps: list[Step] = []
    while any(streams):
        number = draw(st.integers(0, 1))
        size = draw(st.integers(1, 4000))
        piece, streams[number] = streams[number][:size], streams[number][size:]
        if piece:
            steps.append(Send(number, piece))
        match draw(st.integers(0, 12)):
            case 0:
                steps.append(Limit(unlimited=draw(st.booleans())))
            case 1 if not streams[number]:
                steps.append(Reconnect(number))
    return steps


def play(loops: Loops, steps: list[Step], answered: list[int], *, listening: bool = False) -> list[object]:
    """What was to be seen after each step; `answered` is how many bytes come back for each, or is filled in."""
    views: list[object] = []

    async def story(peer: Peer) -> None:
        for step, expected in zip(steps, answered, strict=True):
            views.append(step)
            match step:
                case Send(number, data):
                    views.append(await peer.exchange(number, data, expected))
                case Limit(unlimited):
                    peer.domain.limit(unlimited=unlimited)
                case Reconnect(number):
                    await peer.connect(number)
            views.append(peer.seen())

    run(loops, story, listening=listening)
    return views


def expect(steps: list[Step]) -> list[int]:
    """How many bytes are answered to each step, from the frames' sizes alone."""
    rest = {0: b"", 1: b""}
    expected = []
    for step in steps:
        size = 0
        match step:
            case Send(number, data):
                data = rest[number] + data
                while len(data) >= 32:
                    bits, count, element = data[30], int.from_bytes(data[16:20], "little"), data[20]
                    payload = count * element if bits & 0x10 else 0
                    if len(data) < 32 + payload:
                        break
                    size += 32
                    data = data[32 + payload :]
                rest[number] = data
            case Reconnect(number):
                rest[number] = b""
        expected.append(size)
    return expected


@given(stories(), st.booleans())
@settings(max_examples=160)
def test_the_same_bytes_in_the_same_pieces(steps: list[Step], listening: bool) -> None:
    answered = expect(steps)
    slow, quick = (play(loops, steps, answered, listening=listening) for loops in (pure, fast))
    for one, other in zip(slow, quick, strict=True):
        assert one == other


@pytest.mark.parametrize(
    "sent",
    [
        [text(b"a" * 4094), text(b"b"), text(b"c\n")],
        [text(b"a" * 400), text(b"a" * 3694), byte(0x62), MAGIC, byte(0x0A)],
        [text(b"a" * 500), text(b"a" * 500), *[text(b"d" * 500)] * 7, text(b"e\n")],
        [text(b"line\n" * 60), text(b"\n\r\n\n"), text(b"end\r\n"), text(b"\r"), byte(0x0A), text(b"more\n")],
        [text(b"x" * 200 + b"\n") * 2, *[text(b"y" * 200 + b"\n")] * 6, text(b"z" * 300), RESET, text(b"after\n")],
        [text(b"first"), frame(0x12, 2, data=3) + frame(0x10, 4, data=13) + MAGIC * 3, MAGIC, RESET + MAGIC, MAGIC],
        [MAGIC, VERSION, product(3), build(1), MAGIC, unplug(3)],
        [MAGIC + VERSION + product(3) + build(13) + MAGIC + string(b"a\n"), build(1) + build(13) + product(1) + MAGIC],
        [product(5), unplug(31), RESET, MAGIC, product(0), unplug(4), unplug(4) + VERSION * 9],
        [product(1), string(b"1\n"), unplug(1), string(b"2\n"), unplug(2) * 9 + text(b"3\n"), product(2) + text(b"4")],
        [text(b"q\n" * 200), MAGIC * 3 + string(b"1\n2\n3") + MAGIC + text(b"4\n") + MAGIC[:9], MAGIC[9:] + text(b"5")],
    ],
    ids=["4095 at once", "4095 byte by byte", "4095 in drops", "empty lines", "reset", "blacklisted",
         "Linux", "all at once", "BSD", "between lines", "mixed"],
)  # fmt: skip
@pytest.mark.parametrize("listening", [False, True], ids=["attached", "held"])
def test_stories_that_matter(sent: list[bytes], listening: bool) -> None:
    steps: list[Step] = [Send(0, byte(0x73)), Send(0, byte(0x0A)), *(Send(n % 2, data) for n, data in enumerate(sent))]
    answered = expect(steps)
    assert play(pure, steps, answered, listening=listening) == play(fast, steps, answered, listening=listening)


# --- the fast path itself


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What went through Python."""
    data: list[bytes] = []
    receive = IoreqStream.receive

    def watched(self: IoreqStream, piece: bytes, now: float) -> bytes:
        data.append(piece)
        return receive(self, piece, now)

    monkeypatch.setattr(IoreqStream, "receive", watched)
    return data


def numbered(count: int) -> list[str]:
    return [f"line {number}" for number in range(count)]


def test_lines_that_come_quickly_reach_journald_without_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that waits for each answer; nothing else happens, so that only time sends the last lines."""
    ended = Mock()
    lines = numbered(100)

    def guest(client: socket.socket, journald: socket.socket) -> list[str]:
        client.settimeout(20)
        journald.settimeout(20)
        found: list[str] = []
        for at in range(0, 100, 5):     # a kernel's own default holds ten
            for line in lines[at : at + 5]:
                client.sendall(string(line.encode() + b"\n"))
                assert len(client.recv(32)) == 32
            while len(found) < at + 5:
                found.append(journald.recv(1 << 16).split(b"MESSAGE=")[1].decode().rstrip())
        return found

    async def story(peer: Peer) -> None:
        peer.domain.records.own(Event.UNPLUGGED, "the first record connects to journald")
        peer.one.journald.read()
        await peer.exchange(0, string(b"Python's\n"), 32)
        peer.one.journald.read()
        monkeypatch.setattr(peer.domain, "line_ended", ended)
        before = peer.domain.guest.log.bucket.balance
        assert peer.one.journald.socket is not None
        assert await asyncio.to_thread(guest, peer.clients[0], peer.one.journald.socket) == lines
        for end in (peer.clients[0], peer.one.journald.socket):
            end.setblocking(False)
        assert not ended.called
        assert peer.domain.guest.log.bucket.balance == before - RECORD_COST * 100
        assert peer.domain.log_lines == 101
        kept = peer.kept()
        assert kept is not None
        assert (kept[0].balance, kept[1]) == (before - RECORD_COST * 100, b"")

    run(fast, story, LogConfig(rate=0, burst=1 << 20))


def test_another_guest_s_access_comes_behind_the_lines_that_were_answered_before_it() -> None:
    def guests(first: socket.socket, second: socket.socket, journald: socket.socket) -> None:
        for number in range(50):
            for line in (b"one\n", b"two\n", b"three\n"):
                first.sendall(string(line))
                assert len(first.recv(32)) == 32
            second.sendall(MAGIC)
            assert len(second.recv(32)) == 32
            got = [journald.recv(1 << 16).split(b"MESSAGE=")[1] for _ in range(3)]
            assert got == [b"one\n", b"two\n", b"three\n"], number

    async def story(peer: Peer) -> None:
        peer.domain.records.own(Event.UNPLUGGED, "the first record connects to journald")
        await peer.exchange(0, string(b"Python's\n"), 32)
        peer.one.journald.read()
        other = Peer(peer.one, peer.one.domain(8, "other", ""), peer.listener)
        await other.connect(0)
        clients = peer.clients[0], other.clients[0]
        for end in clients:
            end.settimeout(20)
        assert peer.one.journald.socket is not None
        await asyncio.to_thread(guests, *clients, peer.one.journald.socket)
        other.clients[0].close()
        await until(lambda: other.domain.connections == 0)
        other.domain.stop()

    run(fast, story, LogConfig(rate=0, burst=1 << 20))


def test_lines_that_journald_does_not_take_are_python_s() -> None:
    """Ten at a time, more than its socket holds: all are there, in order and charged once, when it reads again."""
    lines = numbered(1200)

    async def story(peer: Peer) -> None:
        peer.domain.records.own(Event.UNPLUGGED, "the first record connects to journald")
        before = peer.domain.guest.log.bucket.balance
        for at in range(0, 1200, 10):
            await peer.exchange(0, string("".join(f"{line}\n" for line in lines[at : at + 10]).encode() + b"ha"), 32)
            await peer.exchange(0, string(b"lf\n"), 32)
        assert len(peer.one.journald.read()) < 1321
        await until(lambda: len(peer.one.journald.lines) >= 1320)
        assert [line for line in peer.one.journald.lines if line != "half"] == lines
        assert peer.domain.guest.log.bucket.balance == before - RECORD_COST * 1320
        assert peer.domain.log_lines == 1320
        assert peer.domain.dropped_lines == {"rate-limit": 0, "sink": 0}

    run(fast, story, LogConfig(rate=0, burst=1 << 20, flush_after=1000))


def test_python_sees_only_what_is_its_own(received: list[bytes]) -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, MAGIC * 100, 3200)
        assert received == []
        await peer.exchange(0, byte(0x61), 32)
        assert received == [byte(0x61)], "the first byte of a line starts the timer that flushes it"
        await peer.exchange(0, text(b"bc"), 64)
        await peer.exchange(1, text(b"de") + MAGIC, 96)
        assert len(received) == 1
        await peer.exchange(0, MAGIC + frame(0x11, 1, read=True) + MAGIC, 96)
        assert received[1:] == [frame(0x11, 1, read=True) + MAGIC]
        await peer.exchange(0, text(b"f\n"), 64)
        assert len(received) == 2, "the first line's end is Python's, its frame is not"
        assert peer.one.journald.lines == ["abcdef"]
        assert peer.one.counters.ioreqs["magic"] == 103
        assert peer.one.counters.ioreqs["log"] == 7
        assert sum(peer.one.counters.duration_counts) >= 5
        assert peer.one.counters.duration_sum > 0

    run(fast, story)


def test_lines_that_pass_go_to_journald_without_python(
    received: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(peer: Peer) -> None:
        peer.domain.records.own(Event.UNPLUGGED, "the first record connects to journald")
        await peer.exchange(0, frame(0x12, 2, data=3) + frame(0x10, 4, data=1), 64)
        await until(lambda: peer.domain.build == 1)
        before, ended = len(received), Mock()
        monkeypatch.setattr(peer.domain, "line_ended", ended)
        balance = peer.domain.guest.log.bucket.balance
        await peer.exchange(0, string(b"one\r\ntwo\n") + MAGIC + string(b"x" * 100 + b"\n") + text(b"\n"), 128)
        assert peer.one.journald.lines == ["one", "two", "x" * 100]
        assert (ended.called, len(received)) == (False, before)
        entry = peer.one.journald.entries[-1]
        assert (entry["UNPLUG_PRODUCT_NAME"], entry["UNPLUG_BUILD"], entry["XEN_DOMID"]) == ("linux", "1", "7")
        assert peer.domain.guest.log.bucket.balance == balance - 64 - 64 - 100
        assert (peer.domain.log_lines, peer.domain.log_bytes) == (3, 106)
        assert peer.domain.guest.log.line_number == 4
        kept = peer.kept()
        assert kept is not None
        assert (kept[0].balance, kept[1]) == (balance - 228, b"")
        counted = peer.one.counters.ioreqs
        assert (counted["log"], counted["magic"]) == (3, 1)

    run(fast, story, LogConfig(rate=0, burst=1000))


@pytest.mark.parametrize(
    "line", [b"back\\slash", b"\xc3\xa4", b"a\tb", b"y" * 300], ids=["\\", "UTF-8", "tab", "too dear"]
)
def test_a_line_that_is_not_so_simple_is_pythons(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, string(b"first\n"), 32)
        ended = Mock(side_effect=peer.domain.line_ended)
        monkeypatch.setattr(peer.domain, "line_ended", ended)
        await peer.exchange(0, string(b"plain\n") + string(line + b"\n") + string(b"plain\n"), 96)
        assert ended.call_count == 2, "and what comes behind it in the same read"
        lines, dropped = peer.domain.log_lines, peer.domain.dropped_lines["rate-limit"]
        assert (lines, dropped) == ((3, 1) if len(line) == 300 else (4, 0))

    run(fast, story, LogConfig(rate=0, burst=600 if len(line) < 300 else 420))


def test_a_line_that_journald_does_not_take_is_kept_in_order() -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, string(b"first\n"), 32)
        await peer.exchange(0, string(b"second\n"), 32)
        peer.one.journald.stop()
        for line in (b"third", b"fourth"):
            await peer.exchange(0, string(line + b"\n"), 32)
        peer.one.journald.start()
        await peer.exchange(0, string(b"fifth\n"), 32)
        await until(lambda: len(peer.one.journald.lines) >= 5)
        await peer.exchange(0, string(b"sixth\n"), 32)
        expected = ["first", "second", "third", "fourth", "fifth", "sixth"]
        await until(lambda: peer.one.journald.lines == expected)
        assert peer.domain.log_lines == 6

    run(fast, story, LogConfig())


def test_other_sinks_are_pythons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def story(peer: Peer) -> None:
        ended = Mock(side_effect=peer.domain.line_ended)
        monkeypatch.setattr(peer.domain, "line_ended", ended)
        for _ in range(3):
            await peer.exchange(0, string(b"line\n"), 32)
        assert ended.call_count == 3

    run(fast, story, LogConfig(sinks=("journal", "file"), directory=tmp_path))


def test_a_string_that_is_not_all_there_is_pythons(received: list[bytes]) -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, string(b"first\n"), 32)
        received.clear()
        data = MAGIC + string(b"in two pieces\n")
        await peer.exchange(0, data[:70], 32)
        await peer.exchange(0, data[70:], 32)
        assert received == [data[32:70], data[70:]]
        await peer.exchange(0, string(b"in one\n"), 32)
        assert len(received) == 2
        assert peer.one.journald.lines == ["first", "in two pieces", "in one"]

    run(fast, story, LogConfig())


def test_lines_have_the_name_that_the_domain_has_now() -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, string(b"first\n"), 32)
        await peer.exchange(0, string(b"second\n"), 32)
        peer.domain.rename("db-01")
        await peer.exchange(0, string(b"third\n"), 32)
        await peer.exchange(0, frame(0x12, 2, data=3) + frame(0x10, 4, data=1) + string(b"fourth\n"), 96)
        entries = [entry for entry in peer.one.journald.read() if entry["SYSLOG_IDENTIFIER"] == "unplugd-guest"]
        seen = [(entry["MESSAGE"], entry["XEN_DOMAIN_NAME"], entry.get("UNPLUG_BUILD")) for entry in entries]
        assert seen == [
            ("first", "web-01", None), ("second", "web-01", None), ("third", "db-01", None), ("fourth", "db-01", "1"),
        ]  # fmt: skip

    run(fast, story, LogConfig())


def test_lines_that_cannot_pass_are_dropped_without_python(
    received: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, text(b"x" * 100 + b"\n") * 5, 505 * 32)
        await peer.exchange(0, text(b"x" * 100 + b"\n") * 5, 505 * 32)
        assert peer.domain.throttled
        await peer.exchange(0, byte(0x79), 32)
        dropped, before, ended = peer.domain.dropped_lines["rate-limit"], len(received), Mock()
        monkeypatch.setattr(peer.domain, "line_ended", ended)
        await peer.exchange(0, text(b"y" * 100 + b"\n") * 5, 505 * 32)
        assert peer.domain.dropped_lines["rate-limit"] == dropped + 5
        assert (ended.called, len(received)) == (False, before)
        snapshot, _ = peer.kept() or (None, None)
        assert snapshot is not None
        assert snapshot.unsaid_lines == dropped + 5

    run(fast, story)


def test_a_partial_line_is_flushed_after_its_last_byte() -> None:
    async def story(peer: Peer) -> None:
        since = time.monotonic()
        while time.monotonic() < since + 1.5:
            await peer.exchange(0, byte(0x61), 32)
            await asyncio.sleep(0.05)
        assert peer.one.journald.lines == [], "bytes went on coming"
        await until(lambda: peer.one.journald.lines)
        assert peer.domain.guest.log.partial == b""

    run(fast, story, LogConfig(flush_after=1.0))


def test_the_limit_ends(received: list[bytes]) -> None:
    async def story(peer: Peer) -> None:
        for _ in range(4):
            await peer.exchange(0, text(b"x" * 100 + b"\n"), 101 * 32)
        assert peer.domain.dropped_lines["rate-limit"] > 0

        async def passed() -> bool:
            await peer.exchange(0, text(b"y" * 100 + b"\n"), 101 * 32)
            return "y" * 100 in peer.one.journald.lines

        deadline = time.monotonic() + 20
        while not await passed():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert peer.domain.log_lines + peer.domain.dropped_lines["rate-limit"] == peer.domain.guest.log.line_number

    run(fast, story, LogConfig(rate=400, burst=300))


def test_delay_is_pythons(received: list[bytes]) -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, byte(0x61), 32)
        await peer.exchange(0, text(b"bcd") + MAGIC, 128)
        assert b"".join(received) == text(b"abcd") + MAGIC
        await peer.exchange(0, MAGIC, 32)
        assert b"".join(received) == text(b"abcd") + MAGIC

    run(fast, story, LogConfig(on_limit="delay", rate=1000))


def test_who_does_not_read_is_not_read() -> None:
    async def story(peer: Peer) -> None:
        client = peer.clients[0]
        sent = 0
        deadline = time.monotonic() + 20
        quiet = 0
        while quiet < 50:
            assert time.monotonic() < deadline
            try:
                sent += client.send((MAGIC * 512)[sent % 32 :])
                quiet = 0
            except BlockingIOError:
                quiet += 1
                await asyncio.sleep(0.005)
        assert sent < 8 << 20
        assert await peer.exchange(1, MAGIC, 32), "another connection is served"
        got = b""
        while len(got) < sent - sent % 32:
            with contextlib.suppress(BlockingIOError):
                got += client.recv(1 << 20)
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        assert got == frame(0x10, 2, read=True, state=3, data=0x49D2) * (sent // 32)
        await until(lambda: peer.one.counters.ioreqs["magic"] == sent // 32 + 1)

    run(fast, story)


def test_timers_and_others_have_their_turn_beside_a_flood() -> None:
    async def story(peer: Peer) -> None:
        stop = asyncio.Event()

        def flood() -> None:
            client = socket.socket(fileno=os.dup(peer.clients[0].fileno()))
            client.setblocking(True)
            while not stop.is_set():
                client.sendall(MAGIC * 256)
                left = 8192
                while left:
                    left -= len(client.recv(left))
            client.close()

        peer.clients[0].setblocking(True)
        flooding = asyncio.get_running_loop().run_in_executor(None, flood)
        try:
            for _ in range(20):
                await asyncio.sleep(0.005)
                await peer.exchange(1, frame(0x12, 1, read=True), 32)
        finally:
            stop.set()
            await flooding
            peer.clients[0].setblocking(False)

    run(fast, story)


def test_signals_arrive_while_it_serves() -> None:
    async def story(peer: Peer) -> None:
        arrived = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, arrived.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(arrived.wait(), 20)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    run(fast, story)


def test_a_fault_of_our_own_cuts_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", said.append)

    async def story(peer: Peer) -> None:
        await peer.exchange(0, text(b"abc"), 96)

        def broken(now: float) -> None:
            raise ValueError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(peer.domain, "settle", broken)
            peer.clients[0].send(text(b"d\n") + MAGIC)
            await until(lambda: peer.domain.connections == 1)
        assert len(said) == 1
        assert peer.clients[0].recv(100) == b"", "nothing is acknowledged"
        peer.clients.pop(0)
        peer.domain.settle(time.monotonic())
        await peer.exchange(1, text(b"e\n") + MAGIC, 96)
        assert peer.one.journald.lines == ["abcd", "e"]

    run(fast, story)


def test_a_domain_that_goes_leaves_its_connections_to_python(received: list[bytes]) -> None:
    async def story(peer: Peer) -> None:
        assert peer.domain.tail is not None
        peer.domain.tail.close()
        await peer.exchange(0, MAGIC * 2, 64)
        assert received == [MAGIC * 2]

    run(fast, story)


def test_what_is_kept_follows_a_uuid_that_comes_late() -> None:
    async def story(peer: Peer) -> None:
        late = Peer(peer.one, peer.one.domain(domid=9, uuid=""), peer.listener)
        await late.connect(0)
        await late.exchange(0, text(b"ab"), 64)
        assert late.domain.identify("4f0e0c5e-0000-4000-8000-000000000009")
        await late.exchange(0, text(b"cd"), 64)
        kept = late.kept()
        assert kept is not None
        assert kept[1] == b"abcd"
        late.clients.pop(0).close()
        await until(lambda: late.domain.connections == 0)
        late.domain.stop()

    run(fast, story)


def test_a_commit_that_was_not_offered_is_noticed(received: list[bytes]) -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, text(b"ab"), 64)
        peer.domain.state.commit(peer.domain.guest)
        received.clear()
        await peer.exchange(0, MAGIC + text(b"cd"), 96)
        assert received == [text(b"cd")]
        kept = peer.kept()
        assert kept is not None
        assert kept[1] == b"abcd"

    run(fast, story)


def test_of_a_drivers_start_only_the_verdict_is_pythons(received: list[bytes]) -> None:
    async def story(peer: Peer) -> None:
        assert peer.domain.tail is not None
        for access in (MAGIC, VERSION, product(3), build(1), MAGIC):
            await peer.exchange(0, access, 32)
        assert (await peer.exchange(0, unplug(3), 32))[8] == 3
        assert received == []
        assert (peer.domain.tail.held, peer.domain.attached) == (2, 0)
        await until(lambda: [entry["MESSAGE"] for entry in peer.one.journald.read()] == [
            "web-01 (domain 7): PV driver linux (3) build 1: allowed", "web-01 (domain 7): unplugs ide-disks, nics"])
        assert [noted.step.did.value for noted in peer.domain.guest.history.steps] == [
            "magic", "version", "product", "build", "unplug"]
        assert published(peer.domain) == {
            "product": "3", "product-name": "linux", "build": "1", "blacklisted": "0", "unplugged": "3"}
        assert (peer.one.counters.ioreqs["build"], sum(peer.one.counters.duration_counts)) == (1, 6)

    run(fast, story, listening=True)


@dataclass
class Verdicts:
    """Gives the verdicts that a test decides, when it does."""

    asked: list[tuple[int, int]] = field(default_factory=list)
    futures: list[asyncio.Future[Verdict]] = field(default_factory=list)

    def judge(self, domain: Domain, need: NeedVerdict, deadline: float) -> asyncio.Future[Verdict]:
        self.asked.append((need.product, need.build))
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    async def ask(self, peer: Peer, connection: int, data: bytes) -> None:
        """Send what ends in a build number, and see that it is asked about."""
        before = len(self.asked)
        peer.clients[connection].send(data)
        await until(lambda: len(self.asked) > before)


FALLBACK = Verdict(blacklisted=False, source="mirror", fallback="no answer in time; what xenstore had last decided")


@pytest.mark.parametrize(
    "verdict", [ALLOWED, Verdict(blacklisted=True, reason="unlucky", source="xenstore"), FALLBACK],
    ids=["allowed", "blacklisted", "fallback"],
)
def test_a_build_number_is_asked_about_once(verdict: Verdict, received: list[bytes]) -> None:
    verdicts = Verdicts()

    async def story(peer: Peer) -> None:
        await verdicts.ask(peer, 0, product(3) + MAGIC + build(7))
        assert len(await peer.exchange(0, b"", 64)) == 64, "what came before does not wait"
        await peer.exchange(1, MAGIC + text(b"meanwhile"), 320)
        peer.clients[0].send(MAGIC)
        await asyncio.sleep(0.02)
        with pytest.raises(BlockingIOError):
            peer.clients[0].recv(1)
        verdicts.futures[0].set_result(verdict)
        answer, magic = (await peer.exchange(0, b"", 32)), (await peer.exchange(0, b"", 32))
        assert answer == frame(0x10, 4, data=0, state=3)
        assert magic[8:10] == (b"\x49\xd2" if verdict.blacklisted else b"\xd2\x49")
        assert (verdicts.asked, peer.domain.build) == ([(3, 7)], 7)
        step = next(noted.step for noted in peer.domain.guest.history.steps if noted.step.did is Did.BUILD)
        assert (step.blacklisted, step.source) == (verdict.blacklisted, verdict.source)
        assert len(peer.one.journald.of(Event.VERDICT_FALLBACK)) == bool(verdict.fallback)
        kept = peer.kept()
        assert kept is not None
        assert (kept[0].product, kept[0].build, kept[0].blacklisted) == (3, 7, verdict.blacklisted)
        assert received == [text(b"meanwhile"), *([] if verdict is ALLOWED else [build(7), b""])]

    run(fast, story, listening=True, judged=verdicts.judge)


def test_a_verdict_from_before_a_reset_counts_no_more() -> None:
    verdicts = Verdicts()

    async def story(peer: Peer) -> None:
        await verdicts.ask(peer, 0, product(3) + build(7))
        await peer.exchange(1, RESET + product(3), 64)
        verdicts.futures[0].set_result(ALLOWED)
        await until(lambda: len(verdicts.asked) == 2)
        assert peer.domain.guest.platform.build is None
        verdicts.futures[1].set_result(Verdict(blacklisted=True))
        await peer.exchange(0, b"", 64)
        assert (peer.domain.build, peer.domain.blacklisted) == (7, True)

    run(fast, story, listening=True, judged=verdicts.judge)


def test_a_verdict_on_another_product_counts_no_more() -> None:
    verdicts = Verdicts()

    async def story(peer: Peer) -> None:
        await verdicts.ask(peer, 0, product(3) + build(7))
        await peer.exchange(1, product(1), 32)
        verdicts.futures[0].set_result(ALLOWED)
        await until(lambda: len(verdicts.asked) == 2)
        verdicts.futures[1].set_result(ALLOWED)
        await peer.exchange(0, b"", 64)
        assert (verdicts.asked, peer.domain.product, peer.domain.build) == ([(3, 7), (1, 7)], 1, 7)

    run(fast, story, listening=True, judged=verdicts.judge)


def test_a_fault_of_our_own_behind_a_verdict_cuts_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = Verdicts()

    async def story(peer: Peer) -> None:
        await verdicts.ask(peer, 0, product(3) + build(7))
        with monkeypatch.context() as patch:
            patch.setattr("unplugd.sockets.held.Errand", Mock(side_effect=MemoryError))
            verdicts.futures[0].set_result(FALLBACK)
            await until(lambda: peer.domain.connections == 1)
        peer.clients[0].setblocking(True)
        assert (len(peer.clients[0].recv(100)), peer.clients[0].recv(100)) == (32, b"")

    run(fast, story, listening=True, judged=verdicts.judge, faults=1)


def test_what_others_did_meanwhile_comes_before_the_verdict() -> None:
    verdicts = Verdicts()

    async def story(peer: Peer) -> None:
        await verdicts.ask(peer, 0, product(1) + build(7) + MAGIC)
        await peer.exchange(1, product(3), 32)
        verdicts.futures[0].set_result(ALLOWED)
        await peer.exchange(0, b"", 96)
        assert (peer.domain.product, peer.domain.build) == (3, 7)

    run(fast, story, listening=True, judged=verdicts.judge)


@pytest.mark.parametrize("listening", [False, True], ids=["attached", "held"])
def test_a_magic_read_behind_a_flood_keeps_the_line_that_begins(listening: bool) -> None:
    async def story(peer: Peer) -> None:
        await peer.exchange(0, text(b"first") + frame(0x11, 1, read=True), 192)
        await peer.exchange(0, text(b"y" * 80 + b"\n") * 3 + MAGIC + text(b"kept"), 0)
        await until(lambda: peer.domain.guest.log.partial == b"kept")
        kept = peer.kept()
        assert kept is not None
        assert kept[1] == b"kept"

    run(fast, story, LogConfig(rate=0, burst=100, flush_after=1000), listening=listening)


def test_who_cannot_ask_is_cut() -> None:
    def broken(domain: Domain, need: NeedVerdict, deadline: float) -> asyncio.Future[Verdict]:
        raise MemoryError

    async def story(peer: Peer) -> None:
        peer.clients[0].send(product(3) + build(7))
        await until(lambda: peer.domain.connections == 1)

    run(fast, story, listening=True, judged=broken, faults=1)


def test_what_a_driver_did_is_told_soon_however_busy_others_are() -> None:
    async def story(peer: Peer) -> None:
        busy = asyncio.get_running_loop().create_task(flood(peer))
        try:
            await peer.exchange(0, product(3) + unplug(3), 64)
            for _ in range(100):
                if peer.one.journald.of(Event.UNPLUGGED):
                    break
                await asyncio.sleep(0.01)
            assert peer.one.journald.of(Event.UNPLUGGED), "nobody asked for it"
        finally:
            busy.cancel()

    async def flood(peer: Peer) -> None:
        while True:
            peer.clients[1].send(MAGIC * 100)
            await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                peer.clients[1].recv(1 << 20)

    run(fast, story, listening=True)


def test_what_a_driver_did_is_recorded_before_what_comes_after_it() -> None:
    async def story(peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        seen: list[int] = []

        def comes_after() -> None:
            ours.recv(1)
            seen.append(len(peer.one.journald.of(Event.UNPLUGGED)))

        loop.add_reader(ours.fileno(), comes_after)
        peer.clients[0].setblocking(True)

        def access_and_then() -> None:
            peer.clients[0].sendall(product(3) + unplug(3))
            peer.clients[0].recv(64, socket.MSG_WAITALL)
            theirs.send(b"x")

        await loop.run_in_executor(None, access_and_then)
        await until(lambda: seen)
        assert seen == [1]
        loop.remove_reader(ours.fileno())
        ours.close()
        theirs.close()

    run(fast, story, listening=True)


def test_a_domain_that_goes_has_told_all() -> None:
    async def story(peer: Peer) -> None:
        peer.clients[0].send(product(3) + unplug(3))
        peer.clients[0].setblocking(True)
        assert peer.domain.tail is not None
        while not peer.domain.tail.changed:
            await asyncio.sleep(0)
        peer.domain.stop()
        assert peer.one.journald.of(Event.UNPLUGGED)
        assert peer.one.settings.counters.ioreqs["unplug"] == 1
        peer.domain = peer.one.domain()
        assert peer.domain.unplugged == 3

    run(fast, story, listening=True)


@pytest.mark.parametrize("obeyed", [True, False])
def test_policy_holds_for_what_is_answered_without_python(obeyed: bool) -> None:
    policy = PolicyConfig(allow_unplug=3, blacklisted_unplug="allow" if obeyed else "deny")

    async def story(peer: Peer) -> None:
        await peer.exchange(0, product(3), 32)
        assert (await peer.exchange(0, unplug(5), 32))[8] == 1
        await peer.exchange(0, build(13), 32)
        assert (await peer.exchange(0, unplug(2), 32))[8] == (2 if obeyed else 0)
        assert peer.domain.unplugged == (3 if obeyed else 1)

    run(fast, story, listening=True, policy=policy)


def test_what_a_reload_changes_holds_from_the_next_frame_on() -> None:
    async def story(peer: Peer) -> None:
        assert (await peer.exchange(0, VERSION, 32))[8] == 1
        peer.one.settings.configure(peer.one.settings.config._replace(protocol_version=0))
        peer.domain.configure()
        assert (await peer.exchange(0, VERSION + product(3), 64))[8] == 0
        assert peer.domain.product is None

    run(fast, story, listening=True)


def test_half_a_frame_makes_it_pythons_for_good() -> None:
    async def story(peer: Peer) -> None:
        assert peer.domain.tail is not None
        await peer.exchange(0, MAGIC + MAGIC[:5], 32)
        await until(lambda: (peer.domain.tail and peer.domain.tail.held, peer.domain.attached) == (1, 1))
        await peer.exchange(0, MAGIC[5:] + build(1), 64)
        await peer.exchange(1, MAGIC, 32)
        assert peer.domain.connections == 2

    run(fast, story, listening=True)


def test_a_fault_of_the_client_closes_it() -> None:
    async def story(peer: Peer) -> None:
        peer.clients[0].send(MAGIC + frame(0x10, 2, state=2))
        await until(lambda: peer.domain.connections == 1)
        assert peer.one.counters.protocol_errors["bad-state"] == 1
        assert len(peer.clients[0].recv(100)) == 32, "what came before is answered"

    run(fast, story, listening=True)


def test_who_goes_while_a_verdict_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict: list[asyncio.Future[Verdict]] = []

    def late(domain: Domain, need: NeedVerdict, deadline: float) -> asyncio.Future[Verdict]:
        verdict.append(asyncio.get_running_loop().create_future())
        return verdict[-1]

    async def story(peer: Peer) -> None:
        await peer.exchange(0, product(3), 32)
        peer.clients[0].send(build(13))
        await until(lambda: verdict)
        peer.clients.pop(0).close()
        await asyncio.sleep(0.05)
        assert peer.domain.connections == 2, "it is at an errand"
        verdict[0].set_result(Verdict(blacklisted=True))
        await until(lambda: peer.domain.connections == 1)
        assert (await peer.exchange(1, MAGIC, 32))[8:10] == b"\x49\xd2", "it counts all the same"
        peer.clients[1].send(build(1) + MAGIC)
        await until(lambda: len(verdict) == 2)
        verdict[1].set_exception(ValueError("a bug"))
        await until(lambda: peer.domain.connections == 0)
        assert peer.clients[1].recv(100) == b""

    run(fast, story, listening=True, judged=late, faults=1)


def test_a_domain_that_goes_hangs_up() -> None:
    asked: list[int] = []

    async def never(domain: Domain, need: NeedVerdict, deadline: float) -> Verdict:
        asked.append(need.build)
        await asyncio.sleep(1000)
        raise AssertionError

    async def story(peer: Peer) -> None:
        await peer.exchange(0, product(3), 32)
        peer.clients[0].send(build(1))
        await until(lambda: asked)
        peer.listener.close()
        assert peer.domain.connections == 0
        assert [client.recv(100) for client in peer.clients.values()] == [b"", b""]

    run(fast, story, listening=True, judged=never)


def test_who_does_not_read_is_taken_over() -> None:
    async def story(peer: Peer) -> None:
        client = peer.clients[0]
        sent = 0
        while peer.domain.attached == 0:
            with contextlib.suppress(BlockingIOError):
                sent += client.send((MAGIC * 512)[sent % 32 :])
            await asyncio.sleep(0)
        got = b""
        deadline = time.monotonic() + 20
        while len(got) < sent - sent % 32:
            with contextlib.suppress(BlockingIOError):
                got += client.recv(1 << 20)
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        assert got == frame(0x10, 2, read=True, state=3, data=0x49D2) * (sent // 32)

    run(fast, story, listening=True)


def test_the_limit_of_connections_holds_for_those_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unplugd.sockets.listener.CONNECTIONS_A_DOMAIN", 3)

    async def story(peer: Peer) -> None:
        await peer.exchange(0, MAGIC + MAGIC[:5], 32)
        await until(lambda: peer.domain.attached == 1)
        await peer.connect(2)
        refused = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        refused.connect(str(peer.path))
        await until(lambda: peer.one.counters.denied_connections == 1)
        assert refused.recv(1) == b""
        refused.close()
        peer.clients.pop(1).close()
        await until(lambda: peer.domain.connections == 2)
        await peer.connect(1)
        await peer.exchange(1, MAGIC, 32)

    run(fast, story, listening=True)


def test_nonsense_is_refused() -> None:
    poller = _fastpath.Poller(-1, DURATION_BOUNDS)
    with pytest.raises(OSError, match="Bad file descriptor"):
        poller.poll(0.0)
    with pytest.raises(ValueError, match="not a descriptor"):
        poller.attach(-1, _fastpath.Tail.__new__(_fastpath.Tail), lambda fd, unsent, data: None)
    with pytest.raises(ValueError, match="not the mapping of a state"):
        _fastpath.Tail(object(), bytearray(), bytearray(SIZE + 4096))  # type: ignore[arg-type] # that is what is tried
    with pytest.raises(ValueError, match="too many bounds"):
        _fastpath.Poller(0, tuple(map(float, range(100))))
    poller.arm(100000, READ_SIZE)
    poller.detach(100000)
    for call in (poller.take, poller.cut):
        with pytest.raises(ValueError, match="not a connection that is held"):
            call(5)
    with pytest.raises(ValueError, match="not a connection that is held"):
        poller.answer(-7, b"")
    with pytest.raises(TypeError, match="not a Tail"):
        poller.hang_up(None)  # type: ignore[arg-type] # as above


# --- time


def test_timers_are_in_time_while_guests_keep_coming_and_when_they_become_others() -> None:
    def guest(client: socket.socket, stop: threading.Event) -> None:
        client.settimeout(20)
        while not stop.is_set():
            client.sendall(MAGIC)
            assert len(client.recv(32)) == 32

    async def story(peer: Peer) -> None:
        loop, stop = asyncio.get_running_loop(), threading.Event()
        talking = asyncio.ensure_future(asyncio.to_thread(guest, peer.clients[0], stop))
        for quiet in (False, True):
            earlier = loop.call_later(0.01, lambda: None)
            for seconds in (0.2, 0.03, 0.001, 0.05):  # later and earlier than what the wait was to end at
                begin = loop.time()
                called: asyncio.Future[None] = loop.create_future()
                loop.call_later(seconds, called.set_result, None)
                earlier.cancel()
                await asyncio.wait_for(called, 20)
                assert seconds <= loop.time() - begin < seconds + 10
                earlier = loop.call_later(seconds / 2, lambda: None)
            if not quiet:
                stop.set()
                await talking
        peer.clients[0].setblocking(False)

    run(fast, story)


def test_it_does_not_wake_up_for_timers_that_were_due(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    select_ = eventloop.Selector.select

    def counted(self: eventloop.Selector, timeout: float | None = None) -> list[Any]:
        nonlocal turns
        turns += 1
        return select_(self, timeout)

    monkeypatch.setattr(eventloop.Selector, "select", counted)

    async def main() -> None:
        await asyncio.sleep(0.05)
        before = turns
        await asyncio.sleep(0.3)
        assert turns - before < 10

    with asyncio.Runner(loop_factory=fast) as runner:
        runner.run(main())


def test_without_descriptors_for_timers_it_waits_all_the_same() -> None:
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with select.epoll() as epoll:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            poller = _fastpath.Poller(epoll.fileno(), DURATION_BOUNDS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        begin = time.monotonic()
        assert poller.poll(0.03) == ([], [])
        assert time.monotonic() - begin >= 0.03


# --- between two pieces of something long


@pytest.mark.parametrize("listening", [False, True], ids=["attached", "held"])
@pytest.mark.parametrize("loops", [pure, fast], ids=["pure", "fast"])
def test_guests_are_served_without_a_turn_of_the_loop(loops: Loops, listening: bool) -> None:
    async def story(peer: Peer) -> None:
        peer.domain.records.own(Event.UNPLUGGED, "the first record connects to journald")
        await peer.exchange(0, string(b"Python's\n"), 32)
        before = len(peer.one.journald.read())
        await until(lambda: not eventloop.serve_guests())
        for number in range(20):
            for client in peer.clients.values():
                client.send(MAGIC + string(f"{number}\n".encode()))
                wanted = eventloop.serve_guests()
                assert len(client.recv(100)) == 64
                if wanted:
                    assert loops is pure, "it is Python that does it there, and whose turn ends"
                    await asyncio.sleep(0)
            assert len(peer.one.journald.read()) == before + 2 * (number + 1)

    run(loops, story, LogConfig(rate=0, burst=1 << 20), listening=listening)


@pytest.mark.parametrize("listening", [False, True], ids=["attached", "held"])
def test_what_is_python_s_wants_a_turn_of_the_loop_and_keeps_its_order(listening: bool) -> None:
    async def story(peer: Peer) -> None:
        await until(lambda: not eventloop.serve_guests())
        one, other = peer.clients[0], peer.clients[1]
        one.send(product(3) + unplug(3) + RESET + MAGIC)
        other.send(MAGIC)
        assert eventloop.serve_guests()
        assert eventloop.serve_guests(), "as long as it has not turned"
        assert (len(one.recv(1000)), len(other.recv(1000))) == (64, 32)
        other.send(RESET)
        assert eventloop.serve_guests()
        assert await peer.exchange(0, MAGIC, 96) == RESET + peer.answer(MAGIC) * 2
        assert await peer.exchange(1, MAGIC, 64) == RESET + peer.answer(MAGIC)
        await until(lambda: not eventloop.serve_guests())

    run(fast, story, listening=listening)


@pytest.mark.parametrize("loops", [pure, fast], ids=["pure", "fast"])
def test_another_descriptor_wants_a_turn_of_the_loop(loops: Loops) -> None:
    async def story(peer: Peer) -> None:
        await until(lambda: not eventloop.serve_guests())
        called = Mock()
        ours, theirs = socket.socketpair()
        asyncio.get_running_loop().add_reader(ours, called)
        theirs.send(b"x")
        peer.clients[0].send(MAGIC)
        assert eventloop.serve_guests()
        assert len(peer.clients[0].recv(100)) == 32
        assert not called.called
        await until(lambda: called.called)
        asyncio.get_running_loop().remove_reader(ours)
        ours.close()
        theirs.close()

    run(loops, story)


def test_any_other_loop_is_to_turn() -> None:
    async def test() -> None:
        assert eventloop.serve_guests()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(test())


# --- what both must agree on, and which is used


def test_constants_are_the_same() -> None:
    assert (_fastpath.STATE_SIZE, _fastpath.READ_SIZE, _fastpath.LINE_LIMIT) == (SIZE, READ_SIZE, LINE_LIMIT)
    assert (_fastpath.RECORD_COST, _fastpath.PAYLOAD_LIMIT) == (RECORD_COST, PAYLOAD_LIMIT)
    assert round(turns.BUDGET * 1e6) == _fastpath.BUDGET


def test_which_loop_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNPLUGD_PURE", raising=False)
    with contextlib.closing(eventloop.new_event_loop()) as loop:
        assert isinstance(loop, eventloop.Loop)
    monkeypatch.setenv("UNPLUGD_PURE", "1")
    with contextlib.closing(eventloop.new_event_loop()) as loop:
        assert isinstance(loop, pureloop.Loop)
    assert eventloop.poller() is None


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_it_compiles_without_a_warning(source: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    include = sysconfig.get_path("include")
    if compiler is None or not (Path(include) / "Python.h").exists():
        pytest.skip("no compiler, or no Python.h")
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-I", include, "-c"]
    command += [str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
