"""SIGKILL after every store: nothing acknowledged is lost, and at most one line's or access's entries come twice.

The state's memory notes what it holds after each 8-byte store. A domain is made from each of these, as the next process
makes it, and compared with core/ alone, which was never killed. The order in which a copy stores its words is drawn: no
one promises it.
"""

from __future__ import annotations

import asyncio
import mmap
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.corealone import Core, verdict
from tests.lab.frames import RESET, frame
from tests.lab.host import UUID, host
from tests.unit.test_same_as_core import (
    CONFIG,
    DELAYING,
    MAGIC,
    VERSION,
    build,
    byte,
    product,
    string,
    unplug,
)
from unplugd.config.load import Config, LogConfig
from unplugd.core.events import Event, Line
from unplugd.core.guest import Snapshot
from unplugd.core.stream import IoreqStream, NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.domains.settings import Settings
from unplugd.domains.statefile import StateFile, boot_id
from unplugd.domains.table import Table
from unplugd.sinks.delivery import Delivery

DROPPING = Config(log=LogConfig(rate=0, burst=700, flush_after=1000))
WORD = 8
MOST_OF_ONE = 4
"""The entries of one line or access: a fallback, announced, blacklisted, and the line that a reset ends."""
LOOKS = 80
"""How often a look is taken at most while something is copied: all stores of a header, some of a long text."""

stored: Callable[[bytes], object] = len
"""Called with the memory's content after each store."""
order: Callable[[list[int]], object] = list
"""Brings the words of one copy into the order in which they are stored."""


class Stores(mmap.mmap):
    """Mapped memory that is written word by word, with a look at it in between."""

    def __setitem__(self, where: int | slice, what: bytes) -> None:  # type: ignore[override] # as StateFile uses it
        assert isinstance(where, slice)
        begin, end, _ = where.indices(len(self))
        assert end - begin == len(what), "a mapping has one size"
        cuts = [begin, *range(begin // WORD * WORD + WORD, end, WORD)]
        order(cuts)
        step = 1 + len(cuts) // LOOKS
        for number, at in enumerate(cuts):
            to = min(end, at // WORD * WORD + WORD)
            super().__setitem__(slice(at, to), what[at - begin:to - begin])
            if number % step == 0 or number == len(cuts) - 1:
                stored(self[:])


class _Bytes:
    """The memory as Python's Table writes it."""

    def __init__(self, memory: Stores) -> None:
        self._memory = memory

    def __len__(self) -> int:
        return len(self._memory)

    def __setitem__(self, where: slice, what: bytes) -> None:
        self._memory[where] = bytes(what)

    def release(self) -> None:
        """Nothing is held."""


class _Words(_Bytes):
    """The same by words: one store each."""

    def __setitem__(self, where: int, what: int) -> None:  # type: ignore[override] # a word of it
        self._memory[where * WORD:where * WORD + WORD] = what.to_bytes(WORD, "little")


class WatchedTable(Table):
    """Python's table, over such memory."""

    __slots__ = ()

    def __init__(self, memory: object, word: int, woken: Callable[[], object]) -> None:
        super().__init__(memory, word, woken)
        assert isinstance(memory, Stores)
        self._memory, self._words = _Bytes(memory), _Words(memory)  # type: ignore[assignment] # what is used of them


class WatchedDomain(Domain):
    """A domain that notes what it records."""

    told: list[Event]

    def _tell(self, event: Event) -> None:
        self.told.append(event)
        super()._tell(event)


class Point(NamedTuple):
    """What there is at some moment."""

    content: bytes
    answered: int
    """How many frames were."""
    told: int
    """How many events were recorded."""
    between: bool
    """Another frame is being answered."""


@dataclass
class After:
    """What core/ alone is after so many frames."""

    guest: Snapshot
    partial: bytes
    events: list[Event]


def comparable(snapshot: Snapshot, *, paid: bool = True) -> Snapshot:
    """With `delay`, the bytes of a frame that is not answered yet may be there and not be paid for."""
    return snapshot._replace(balance_at=0.0) if paid else snapshot._replace(balance_at=0.0, balance=0.0, charged=0)


def afters(frames: list[bytes], config: Config, domain: Domain) -> list[After]:
    """What core/ alone is, after none of the frames, one, and so on."""
    core = Core(config, domain.records.prefix, domain.settings.delivery.cost)
    core.connect(0)
    found = []
    for data in [b"", *frames]:
        _, closed = core.send(0, data)
        assert not closed
        found.append(After(core.guest.snapshot(), bytes(core.guest.log.partial), core.events[:]))
    return found


def answer(domain: Domain, data: bytes) -> None:
    """One frame, as a connection has it answered."""
    _, used = domain.table.answer(data, 0)
    stream = IoreqStream(domain.guest, domain.settings.counters, domain)
    while used < len(data):
        domain.catch_up()
        used += stream.receive(data[used:], 0.0)[1]
        domain.settle(0.0)
        while isinstance(stream.waiting, NeedVerdict):
            domain.catch_up()
            stream.resume(verdict(stream.waiting.build), 0.0)
            domain.settle(0.0)


def points(frames: list[bytes], settings_: Settings, seed: int) -> tuple[list[Point], list[Event], Domain]:
    """All moments of a domain that answers these frames."""
    global stored, order
    found: list[Point] = []
    told: list[Event] = []
    answered = 0
    between = True
    WatchedDomain.told = told

    def note(content: bytes) -> None:
        found.append(Point(content, answered, len(told), between))

    stored, order = note, random.Random(seed).shuffle if seed else list
    try:
        domain = WatchedDomain(7, "web-01", UUID, settings_)
        for data in frames:
            between = True
            answer(domain, data)
            answered += 1
            between = False
            note(domain.state.memory[:])
    finally:
        stored, order = len, list
    return found, told, domain


def check(point: Point, told: list[Event], core: list[After], settings_: Settings) -> None:
    """Make a domain from what there was."""
    path = settings_.state_directory / "dom7"
    path.write_bytes(point.content)
    again: list[Event] = []
    WatchedDomain.told = again
    domain = WatchedDomain(7, "web-01", UUID, settings_)
    try:
        paid = not (point.between and domain.guest.log.limits.delay)
        now = comparable(domain.guest.snapshot(), paid=paid), bytes(domain.guest.log.partial)
        # the frame that was not answered yet counts or does not: its client sends it again
        candidates = core[point.answered:point.answered + 2]
        everything = candidates[-1].events
        assert told[:point.told] == everything[:point.told]
        wrong = [
            "another state" if now != (comparable(expected.guest, paid=paid), expected.partial)
            else compare(expected.events, again, point.told, everything)
            for expected in candidates
        ]
        assert "" in wrong, (wrong, now, again, candidates)
    finally:
        domain.stop()


def compare(expected: list[Event], again: list[Event], before: int, everything: list[Event]) -> str:
    """What is wrong with the events that were recorded `before` the kill and `again` after it."""
    begin = len(expected) - len(again)
    twice = everything[max(0, begin):before]
    if expected[begin:] != again:
        return "other entries"
    if begin > before:
        return "an entry is lost"
    if sum(isinstance(event, Line) for event in twice) > 1 or len(twice) > MOST_OF_ONE:
        return "the entries of more than one line or access come twice"
    return ""


def run(frames: list[bytes], config: Config, seed: int, most: int) -> None:
    """`most` of the moments are tried."""

    async def main(directory: Path) -> None:
        async with host(directory, config) as one:
            one.settings.table_type, one.settings.rows_type = WatchedTable, Settings.rows_type
            found, told, domain = points(frames, one.settings, seed)
            core = afters(frames, config, domain)
            assert told == core[-1].events
            (directory / "crashed").mkdir()
            others = replace(one.settings, state_directory=directory / "crashed")
            tried: set[object] = set()
            for point in random.Random(seed).sample(found, min(most, len(found))):
                what = point[1:], left(point.content, directory)
                if what not in tried:
                    tried.add(what)
                    check(point, told, core, others)
            domain.stop()

    with (
        tempfile.TemporaryDirectory() as directory,
        patch("unplugd.domains.statefile.mmap.mmap", Stores),
        patch.object(Delivery, "put"),
        patch.object(Delivery, "record"),
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
    ):
        runner.run(main(Path(directory)))


def left(content: bytes, directory: Path) -> object:
    """What the next process reads: equal for most moments within a copy."""
    (directory / "dom9").write_bytes(content)
    state = StateFile(directory, 9, boot_id())
    try:
        return state.kept, state.text(state.length)
    finally:
        state.close()


LINES = st.lists(
    st.tuples(st.sampled_from([0, 1, 40, 300, 1400, 4000]), st.sampled_from([b"", b"\n", b"\r\n"])),
    min_size=1, max_size=6,
).map(lambda lines: b"".join(b"l" * size + end for size, end in lines)[:4096] or b"\n")  # fmt: skip
FRAMES = st.one_of(
    st.just(MAGIC), st.just(VERSION), st.just(RESET),
    st.builds(byte, st.sampled_from([0x61, 0x62, 0x0A])),
    st.builds(product, st.sampled_from([0, 1, 3])),
    st.builds(build, st.sampled_from([1, 13, 14, 15])),
    st.builds(unplug, st.integers(0, 31)),
    st.builds(lambda value: frame(0x10, 1, data=value), st.integers(0, 1)),
    st.builds(string, st.binary(min_size=1, max_size=40)),
    LINES.map(string),
)  # fmt: skip

STORIES = {
    "a driver": [MAGIC, VERSION, product(3), build(1), MAGIC, unplug(3), string(b"hello\nworld"), byte(0x0A)],
    "refused": [product(1), build(13), unplug(1), RESET, product(3), build(1)],
    "compaction": [string(b"x" * 4000), byte(0x0A), string(b"y" * 4000), string(b"\n" + b"z" * 3000), string(b"\n")],
    "compaction, with an open line": [string(b"1\n2\n3\n" + b"x" * 4000), string(b"y" * 4096), string(b"z" * 4096)],
    "strings of lines": [string(b"a\nb\n\nc\r\nd"), string(b"\n"), string(b"e\n" * 30)],
    "dropped": [string(b"x" * 600 + b"\n"), string(b"y\n" * 4 + b"open"), byte(0x0A), string(b"z" * 4096), RESET],
    "reset in a line": [string(b"begin"), RESET, string(b"end\n")],
    "flags": [frame(0x10, 1, data=1), string(b"a\n"), frame(0x10, 1, data=0)],
}


@pytest.mark.parametrize("config", [CONFIG, DELAYING, DROPPING], ids=["pass", "delay", "drop"])
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_after_every_store(story: str, config: Config, seed: int) -> None:
    run(STORIES[story], config, seed, 1 << 30)


@given(
    frames=st.lists(FRAMES, max_size=10), config=st.sampled_from([CONFIG, DELAYING, DROPPING]), seed=st.integers(0, 99)
)
@settings(max_examples=50)
def test_killed_after_any_store(frames: list[bytes], config: Config, seed: int) -> None:
    run(frames, config, seed, 100)
