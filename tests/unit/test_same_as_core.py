"""Table and Python, compiled or not, do what core/ alone does: for any bytes, in any pieces, over several connections.

Answers, records, counters, history and state are compared after each step, and what SIGKILL would leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.corealone import Core, Record, in_order, noted, verdict
from tests.lab.frames import RESET, frame
from tests.lab.host import Host, host, until
from tests.lab.portio import BAR
from unplugd.config.load import Config, LogConfig, PolicyConfig
from unplugd.core.guest import Verdict
from unplugd.core.stream import NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.domains.statefile import StateFile
from unplugd.sinks.records import Event
from unplugd.sockets import loop as eventloop
from unplugd.sockets.connection import Connection

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"pure": asyncio.SelectorEventLoop}
with contextlib.suppress(ImportError):
    from unplugd.sockets._fastpath import Poller

    LOOPS["compiled"] = lambda: eventloop.Loop(Poller)
BOTH = pytest.mark.parametrize("loop", LOOPS)

MAGIC = frame(0x10, 2, read=True)
VERSION = frame(0x12, 1, read=True)


def byte(value: int, addr: int = 0x12, eport: int = 0, high: int = 0) -> bytes:
    return frame(addr, 1, data=value, eport=eport, high=high)


def product(number: int) -> bytes:
    return frame(0x12, 2, data=number)


def build(number: int) -> bytes:
    return frame(0x10, 4, data=number)


def unplug(mask: int) -> bytes:
    return frame(0x10, 2, data=mask)


def text(data: bytes) -> bytes:
    return b"".join(map(byte, data))


def string(data: bytes, addr: int = 0x12) -> bytes:
    return frame(addr, 1, count=len(data), string=True) + data


# --- what is sent


class Send:
    __match_args__ = ("connection", "data")

    def __init__(self, connection: int, data: bytes) -> None:
        self.connection, self.data = connection, data

    def __repr__(self) -> str:
        """Frames repeat themselves: Python of a length that can be read, and run again."""
        return f"Send({self.connection}, zlib.decompress({zlib.compress(self.data)!r}))"


@dataclass(frozen=True)
class Reconnect:
    connection: int


@dataclass(frozen=True)
class Limit:
    unlimited: bool


@dataclass(frozen=True)
class Reload:
    config: Config


class Kill:
    def __repr__(self) -> str:
        return "Kill()"


Step = Send | Reconnect | Limit | Reload | Kill

# No refill: when something comes does not matter then.
CONFIG = Config(log=LogConfig(rate=0, burst=3000, flush_after=1000))
DELAYING = Config(log=LogConfig(rate=0, burst=1 << 30, flush_after=1000, on_limit="delay"))
CONFIGS = (
    CONFIG,
    DELAYING,
    CONFIG._replace(protocol_version=0),
    CONFIG._replace(policy=PolicyConfig(legacy_unplug=True)),
    CONFIG._replace(policy=PolicyConfig(allow_unplug=2)),
)
RELOADED = tuple(config for config in CONFIGS if config is not DELAYING)
"""A reload leaves the balance. What CONFIG leaves would have a delayed guest wait for ever: nothing is refilled."""

LETTERS = st.sampled_from([0x61, 0x62, 0x0D, 0x0A, 0x0A, 0x00, 0xFF, 0x5C])
ADDRESSES = st.sampled_from([0x12, 0x12, BAR + 8])
ENDS = st.sampled_from([b"", b"\n", b"\r\n"])
LINES = st.lists(st.tuples(st.integers(0, 1400), ENDS), min_size=1, max_size=6).map(
    lambda lines: b"".join(b"l" * size + end for size, end in lines)[:4096] or b"\n")
FRAMES = st.one_of(
    st.just(MAGIC),
    st.just(VERSION),
    st.just(frame(0x10, 1, read=True)),
    st.builds(byte, LETTERS, ADDRESSES, st.integers(0, 2**32 - 1), st.sampled_from([0, 0x40, 0x80, 0xC0])),
    st.builds(text, st.binary(min_size=1, max_size=90)),
    st.builds(lambda count, end: text(b"x" * count + end), st.integers(1, 200), ENDS),
    st.builds(string, st.binary(min_size=1, max_size=300), ADDRESSES),
    st.builds(string, LINES, ADDRESSES),
    st.builds(lambda size: string(b"x" * size), st.sampled_from([256, 256, 4094, 4095, 4096])),
    st.just(RESET),
    st.builds(product, st.sampled_from([0, 1, 3])),
    st.builds(build, st.sampled_from([1, 13, 14, 15])),
    st.builds(unplug, st.integers(0, 31)),
    st.builds(lambda value: frame(0x10, 1, data=value), st.integers(0, 3)),
    st.just(frame(0x10, 2, read=True, string=True, count=5)),
    st.builds(
        frame, st.sampled_from([0x10, 0x12, 0x11, BAR, BAR + 4, BAR + 8, BAR + 16]), st.sampled_from([1, 2, 4, 8]),
        data=st.integers(0, 2**64 - 1), read=st.booleans(), eport=st.integers(0, 2**32 - 1),
        pad=st.integers(0, 2**16 - 1), high=st.sampled_from([0, 0, 0x40, 0x80, 0xC0]),
    ),
)  # fmt: skip
FAULTS = st.one_of(
    st.just(frame(0x10, 2, state=2)), st.just(frame(0x10, 2, kind=1)), st.just(frame(0x12, 1, count=2)),
    st.just(frame(0x12, 1, count=0, string=True)), st.just(frame(0x12, 1, count=4097, string=True)),
    st.binary(min_size=40, max_size=400),
)  # fmt: skip


@st.composite
def stories(draw: st.DrawFn) -> list[Step]:
    """What two connections send, cut anywhere, while toolstack, administrator and device models do what they do."""
    streams = [b"".join(draw(st.lists(FRAMES, max_size=25))) for _ in range(2)]
    if draw(st.integers(0, 3)) == 0:
        streams[draw(st.integers(0, 1))] += draw(FAULTS)
    steps: list[Step] = []
    while any(streams):
        number = draw(st.integers(0, 1))
        size = draw(st.one_of(st.integers(1, 4000), st.integers(1, 40_000)))
        piece, streams[number] = streams[number][:size], streams[number][size:]
        if piece:
            steps.append(Send(number, piece))
        match draw(st.integers(0, 15)):
            case 0:
                steps.append(Limit(unlimited=draw(st.booleans())))
            case 1 if not streams[number]:
                steps.append(Reconnect(number))
            case 2:
                steps.append(Reload(draw(st.sampled_from(RELOADED))))
            case 3:
                steps.append(Kill())
    return steps


# --- the daemon's side


def judge(_domain: Domain, need: NeedVerdict, _deadline: float) -> asyncio.Future[Verdict]:
    given = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(given.set_result, verdict(need.build))
    return given


class Daemon:
    """A domain in an event loop, and its device model's ends."""

    def __init__(self, one: Host) -> None:
        self.one = one
        self.domain = one.domain()
        self._clients: dict[int, socket.socket] = {}
        self._served: dict[int, Connection] = {}
        self._open = 0

    def connect(self, number: int) -> None:
        if number in self._clients:
            self._clients.pop(number).close()
            self._served.pop(number).close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        for end in (ours, theirs):  # a piece is found whole at the other end, however many answers wait
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._served[number] = Connection(self.domain, theirs, self.one.poller, judge, lambda _: None)
        self._clients[number] = ours

    async def send(self, number: int, data: bytes, expected: int, *, closed: bool) -> bytes:
        """Send, and receive what is `expected` back, with the end of the connection if that is expected too."""
        client = self._clients[number]
        assert client.send(data) == len(data)
        got = b""
        deadline = time.monotonic() + 20
        while len(got) < expected or closed:
            try:
                piece = client.recv(max(1, expected - len(got)))
            except BlockingIOError:
                piece = None
            except ConnectionResetError:  # closed with bytes behind the fault that were not read
                piece = b""
            got += piece or b""
            if piece == b"":
                assert closed, f"closed after {len(got)} of {expected} bytes"
                break
            assert time.monotonic() < deadline, f"{len(got)} of {expected} bytes came"
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            assert client.recv(1) == b"", "more than is expected"
        return got

    def limit(self, *, unlimited: bool) -> None:
        self.domain.limit(unlimited=unlimited)

    def reload(self, config: Config) -> None:
        self.one.settings.configure(config._replace(runtime_dir=self.one.directory))
        self.domain.configure()

    def killed(self) -> None:
        """The process is gone without a word, and another one finds what it left."""
        state = self.one.directory / "state" / "dom7"
        left = state.with_name("left")
        shutil.copy(state, left)
        self.close()
        left.rename(state)
        self.domain = self.one.domain()

    def close(self) -> None:
        for served in self._served.values():
            served.close()
        for client in self._clients.values():
            client.close()
        self._served.clear()
        self._clients.clear()
        self.domain.stop()

    def records(self) -> list[Record]:
        found = []
        for entry in self.one.journald.read():
            if entry["MESSAGE_ID"] == Event.PROTOCOL_FAULT.message_id:
                continue
            line = entry["MESSAGE_ID"] == Event.GUEST_LINE.message_id
            driver = (entry.get("UNPLUG_PRODUCT", ""), entry.get("UNPLUG_BUILD", "")) if line else ("", "")
            found.append(Record(entry["SYSLOG_IDENTIFIER"] == "unplugd-guest", entry["MESSAGE"], driver))
        return found

    async def seen(self, records: int) -> dict[str, object]:
        with contextlib.suppress(AssertionError):
            await until(lambda: len(self.records()) >= records, 5)
        domain = self.domain
        guest, log = domain.guest, domain.guest.log
        return {
            "guest": guest.snapshot()._replace(balance_at=0.0),
            "partial": bytes(log.partial),
            "dropped": (log.dropped_lines, log.dropped_bytes, log.suppressed),
            "lines": domain.log_lines,
            "frames": dict(self.one.counters.ioreqs),
            "faults": dict(self.one.counters.protocol_errors),
            "history": noted(guest.history.steps) if not guest.history.forgotten else [],
            "records": in_order(self.records()),
        }

    def left(self) -> dict[str, object]:
        """What another process would find: the guest but for its balance, and the text not recorded."""
        directory = self.one.directory / "copy"
        directory.mkdir(exist_ok=True)
        shutil.copy(self.one.directory / "state" / "dom7", directory / "dom7")
        state = StateFile(directory, 7, self.one.settings.boot)
        try:
            assert state.kept is not None
            return {"guest": bare(state.kept._asdict()), "text": state.text(state.length)}
        finally:
            state.close()


BALANCE = ("balance", "balance_at", "charged", "unsaid_lines", "unsaid_bytes", "throttled")
"""What dropped lines, which need not be kept, change too."""


def bare(snapshot: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in snapshot.items() if name not in BALANCE}


async def play(steps: list[Step], directory: Path, config: Config) -> None:
    """Do the steps with a daemon and with core/ alone."""
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    async with host(directory, config) as one:
        daemon = Daemon(one)
        core = Core(config, daemon.domain.records.prefix, one.settings.delivery.cost)
        for number in range(2):
            core.connect(number)
            daemon.connect(number)
        try:
            for step in steps:
                reconnect = []
                match step:
                    case Send(number, data):
                        answers, closed = core.send(number, data)
                        assert await daemon.send(number, data, len(answers), closed=closed) == answers
                        reconnect = [number] if closed else []
                    case Reconnect(number):
                        reconnect = [number]
                    case Limit(unlimited):
                        core.limit(unlimited=unlimited)
                        daemon.limit(unlimited=unlimited)
                    case Reload(other):
                        core.reload(other)
                        daemon.reload(other)
                    case Kill():
                        core.killed()
                        daemon.killed()
                        # lines that were dropped after the last commit are dropped, and counted, once more
                        log, again = core.guest.log, daemon.domain.guest.log
                        assert (again.dropped_lines, again.dropped_bytes) <= (log.unsaid_lines, log.unsaid_bytes)
                        log.dropped_lines, log.dropped_bytes = again.dropped_lines, again.dropped_bytes
                        reconnect = [0, 1]
                for number in reconnect:
                    core.connect(number)
                    daemon.connect(number)
                expected = core.seen()
                assert await daemon.seen(len(core.records)) == expected
                kept = daemon.left()
                assert kept["guest"] == bare(core.guest.snapshot()._asdict())
                assert isinstance(kept["text"], bytes)
                assert kept["text"].endswith(core.guest.log.partial)
        finally:
            daemon.close()
    assert failed == []


def run(loop: str, steps: list[Step], config: Config = CONFIG) -> None:
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(play(steps, Path(directory), config))


@BOTH
@given(steps=stories(), config=st.sampled_from(CONFIGS))
@settings(max_examples=60)
def test_any_bytes_in_any_pieces(loop: str, steps: list[Step], config: Config) -> None:
    run(loop, steps, config)


STORIES: dict[str, list[bytes]] = {
    "4095 at once": [text(b"a" * 4094), text(b"b"), text(b"c\n")],
    "4095 and more in strings": [string(b"a" * 4095), string(b"b" * 4096), string(b"c" * 2000), string(b"\n")],
    "empty lines": [text(b"line\n" * 60), text(b"\n\r\n\n"), text(b"end\r\n\r"), byte(0x0A), text(b"more\n")],
    "dropped in the middle of a string": [
        string(b"x" * 1000 + b"\n") * 2, string(b"y" * 900 + b"\n1\n2\n3\n4\n5"), text(b"\n")],
    "reset in a line": [text(b"x" * 200 + b"\n") * 2, text(b"z" * 300), RESET, text(b"after\n")],
    "blacklisted": [text(b"first"), product(3) + build(13) + MAGIC * 3, MAGIC, RESET + MAGIC, MAGIC],
    "Linux": [MAGIC, VERSION, product(3), build(1), MAGIC, unplug(3)],
    "all at once": [MAGIC + VERSION + product(3) + build(13) + MAGIC + string(b"a\n"), build(1) + build(13)],
    "BSD": [product(5), unplug(31), RESET, MAGIC, product(0), unplug(4), unplug(4) + VERSION * 9],
    "between lines": [product(1), string(b"1\n"), unplug(1), string(b"2\n"), unplug(2) * 9 + text(b"3\n"), product(2)],
    "mixed": [
        text(b"q\n" * 200), MAGIC * 3 + string(b"1\n2\n3") + MAGIC + text(b"4\n") + MAGIC[:9], MAGIC[9:] + text(b"5")],
    "a read of 16 KiB cuts a frame": [string(b"x" * 3000) * 7, (MAGIC + string(b"y" * 100 + b"\n")) * 150],
    "cut lines": [string(b"x" * 256), string(b"y" * 256) * 2 + text(b"z"), string(b"a" * 256), string(b"\n")],
    "each action": [(product(3) + build(number) + MAGIC + unplug(3) + RESET) * 2 for number in (13, 14, 15)],
    "issue 18, one send": [string(b"a\n") + string(b"b" * 3000) + string(b"x\n" + b"y" * 4094)],
    "issue 18, two sends": [string(b"a\n" + b"b" * 3000), string(b"x\n" + b"y" * 4094), text(b"\n")],
    "hundreds of builds and masks": [(product(1) + build(1) + unplug(1)) * 100],
}


@BOTH
@pytest.mark.parametrize("config", [CONFIG, DELAYING], ids=["drop", "delay"])
@pytest.mark.parametrize("story", STORIES)
def test_stories_that_matter(loop: str, story: str, config: Config) -> None:
    run(loop, [Send(number % 2, data) for number, data in enumerate(STORIES[story])], config)


@BOTH
@pytest.mark.parametrize("story", STORIES)
def test_killed_after_each_piece(loop: str, story: str) -> None:
    steps: list[Step] = []
    for data in STORIES[story]:
        steps += [Send(0, data), Kill()]
    run(loop, steps)
