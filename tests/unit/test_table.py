"""The table, in Python and compiled: frames that rows answer, and bytes that go where they may and nowhere else."""

from __future__ import annotations

import gc
import struct
import time
from array import array
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.frames import RESET, answers, frame
from tests.lab.portio import BAR
from unplugd.core import answers as rows_of
from unplugd.core.counters import KINDS
from unplugd.core.guestlog import SLOT
from unplugd.core.ioreq import PAYLOAD_LIMIT
from unplugd.core.protocol import Action, Platform, Rules
from unplugd.domains import table as pure

try:
    from unplugd.sockets import _fastpath
except ImportError:
    MODULES: list[ModuleType] = [pure]
else:
    MODULES = [pure, _fastpath]

MAGIC = frame(0x10, 2, read=True)
SIZE, WORD, AT, ROOM = 1024, 8, 256, 200


def byte(value: int) -> bytes:
    return frame(0x12, 1, data=value)


def string(data: bytes) -> bytes:
    return frame(0x12, 1, count=len(data), string=True) + data


def kept(memory: bytearray) -> tuple[int, int]:
    """Generation and length, as the next process reads them."""
    word = struct.unpack_from("<Q", memory, WORD)[0]
    return word >> 16, word & 0xFFFF


class Case(NamedTuple):
    """A table with the rows of a new guest, in memory whose every other byte must stay."""

    module: ModuleType
    table: pure.Table
    memory: bytearray
    counts: array[int]
    woken: list[int]
    rows: pure.Rows

    @property
    def text(self) -> bytes:
        return bytes(self.memory[AT:AT + self.table.text])

    def counted(self) -> dict[str, int]:
        return {kind: count for kind, count in zip(KINDS, self.counts, strict=True) if count}

    def untouched(self) -> bool:
        """All but the area and the word."""
        return (self.memory[:WORD] == b"#" * WORD and self.memory[WORD + 8:AT] == b"#" * (AT - WORD - 8)
                and self.memory[AT + ROOM:] == b"#" * (SIZE - AT - ROOM))


def case(module: ModuleType, woken: Callable[[], object] | None = None) -> Case:
    memory, counts, calls = bytearray(b"#" * SIZE), array("Q", bytes(8 * len(KINDS))), []
    one = module.Table(memory, WORD, woken or (lambda: calls.append(one.text)))
    rows = module.Rows(rows_of.answers(Platform(Rules()), delay=False), counts)
    one.use(rows)
    one.place(1, AT, ROOM, 0)
    one.wake = 1 << 40
    return Case(module, one, memory, counts, calls, rows)


@pytest.fixture(params=MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def it(request: pytest.FixtureRequest) -> Case:
    return case(request.param)


# --- answers


def test_reads_are_answered_with_constants(it: Case) -> None:
    out, used = it.table.answer(MAGIC + frame(0x12, 1, read=True) + frame(0x10, 1, read=True), 0)
    assert ([answer.data for answer in answers(out)], used) == ([0x49D2, 1, 0], 96)
    assert it.counted() == {"magic": 1, "version": 1, "flags": 1}
    assert it.woken == []


@given(
    eport=st.integers(0, 2**32 - 1), pad=st.integers(0, 2**16 - 1), high=st.sampled_from([0, 0x40, 0x80, 0xC0]),
    data=st.integers(0, 2**64 - 1),
)  # fmt: skip
@pytest.mark.parametrize("module", MODULES)
def test_what_is_opaque_is_echoed(module: ModuleType, eport: int, pad: int, high: int, data: int) -> None:
    it = case(module)
    requests = [
        frame(0x10, 2, read=True, data=data, eport=eport, pad=pad, high=high),
        frame(0x12, 1, data=data, eport=eport, pad=pad, high=high),
        frame(BAR + 8, 1, count=3, string=True, data=data, eport=eport, pad=pad, high=high) + b"abc",
    ]
    out, used = it.table.answer(b"".join(requests), 0)
    assert used == 32 * 3 + 3
    for request, answer in zip(requests, (out[:32], out[32:64], out[64:]), strict=True):
        assert answer[:8] + answer[16:30] + answer[31:] == request[:8] + request[16:30] + request[31:32]
        assert answer[30] == request[30] ^ 1 ^ 3
    assert [answer.data for answer in answers(out)] == [0x49D2, 0, 0]
    assert it.text == bytes((data & 0xFF,)) + b"abc"


def test_frames_are_found_from_an_offset_on_wherever_they_lie(it: Case) -> None:
    data = b"?" * 7 + string(b"odd") + MAGIC + string(b"x") + MAGIC
    out, used = it.table.answer(data, 7)
    assert ([answer.data for answer in answers(out)], used) == ([0, 0x49D2, 0, 0x49D2], len(data) - 7)
    assert it.text == b"oddx"
    assert it.table.answer(data, len(data)) == (b"", 0)
    for offset in range(len(data)):
        it.table.answer(data, offset)
    assert it.untouched()


NO_ROW = {
    "reset": RESET,
    "product": frame(0x12, 2, data=3),
    "build": frame(0x10, 4, data=1),
    "unplug": frame(0x10, 2, data=3),
    "flags": frame(0x10, 1, data=1),
    "another port": frame(0x13, 1, read=True),
    "another size": frame(0x10, 4, read=True),
    "a high address": frame(0x10 | 1 << 32, 2, read=True),
    "string read": frame(0x10, 2, read=True, string=True, count=2),
    "string of words": frame(0x12, 2, string=True, count=2) + b"ab\0\0",
    "two at once": frame(0x12, 1, count=2),
    "none": frame(0x12, 1, count=0),
    "empty string": frame(0x12, 1, count=0, string=True),
    "too long": frame(0x12, 1, count=PAYLOAD_LIMIT + 1, string=True) + bytes(PAYLOAD_LIMIT + 1),
    "very long": frame(0x12, 1, count=2**32 - 1, string=True) + bytes(5000),
    "one that may be a cut line": string(b"x" * SLOT),
    "a response": frame(0x10, 2, read=True, state=3),
    "under way": frame(0x10, 2, read=True, state=2),
    "another type": frame(0x10, 2, read=True, kind=1),
    "a size that wraps": frame(0x12, 1 | 1 << 31, count=1),
}


@pytest.mark.parametrize("name", NO_ROW)
def test_what_has_no_row_ends_it(it: Case, name: str) -> None:
    out, used = it.table.answer(MAGIC + NO_ROW[name] + MAGIC, 0)
    assert (len(out), used) == (32, 32)
    assert it.counted() == {"magic": 1}
    assert (it.text, it.woken) == (b"", [])


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 33, 40])
def test_a_frame_that_is_not_all_there_waits(it: Case, cut: int) -> None:
    whole = string(b"nine byte")
    out, used = it.table.answer(MAGIC + whole[:cut], 0)
    assert (len(out), used, it.text) == (32, 32, b"")
    out, used = it.table.answer(whole, 0)
    assert (len(out), used, it.text) == (32, 41, b"nine byte")


def test_without_rows_nothing_is_answered(it: Case) -> None:
    table = it.module.Table(bytearray(64), 0, lambda: None)
    assert table.answer(MAGIC, 0) == (b"", 0)


def test_other_rows_from_now_on_and_the_same_for_many(it: Case) -> None:
    other = Platform(Rules())
    other.action = Action.REFUSE
    refusing = it.module.Rows(rows_of.answers(other, delay=True), it.counts)
    second = case(it.module)
    for table in (it.table, second.table):
        table.use(refusing)
        out, used = table.answer(MAGIC + byte(0x41), 0)
        assert ([answer.data for answer in answers(out)], used) == ([0xD249], 32)
    it.table.use(it.rows)
    assert answers(it.table.answer(MAGIC, 0)[0])[0].data == 0x49D2
    assert it.counted() == {"magic": 3}, "they count in the counters with which they were made"
    assert second.counted() == {}


# --- the text


def test_bytes_are_appended_and_count_at_once(it: Case) -> None:
    it.table.answer(byte(0x61) + byte(0xFF62) + string(b"cd\0"), 0)
    assert (it.text, kept(it.memory)) == (b"abcd\0", (1, 5))
    assert it.counted() == {"log": 3}, "a string counts once"
    assert it.untouched()


def test_where_there_is_no_room_nothing_is_written_and_python_has_the_frame(it: Case) -> None:
    it.table.place(2, AT, ROOM, ROOM - 3)
    out, used = it.table.answer(string(b"four") + byte(0x61), 0)
    assert (out, used) == (b"", 0)
    assert it.untouched()
    out, used = it.table.answer(byte(0x61) * 5, 0)
    assert (len(out), used) == (96, 96)
    assert kept(it.memory) == (2, ROOM)
    assert it.untouched()
    assert it.counted() == {"log": 3}


@given(st.lists(st.one_of(st.integers(1, 250), st.just(0)), max_size=30))
@pytest.mark.parametrize("module", MODULES)
def test_whatever_comes_no_byte_is_written_outside(module: ModuleType, sizes: list[int]) -> None:
    """Strings of any size (0: a single byte), answered all at once, as far as there is room."""
    it = case(module)
    expected = b""
    for number, size in enumerate(sizes):
        data = bytes((number,)) * (size or 1)
        if len(expected) + len(data) > ROOM:
            break
        expected += data
    it.table.answer(b"".join(string(bytes((n,)) * size) if size else byte(n) for n, size in enumerate(sizes)), 0)
    assert it.text == expected
    assert kept(it.memory) == (1, len(expected))
    assert it.untouched()


@pytest.mark.parametrize("place", [
    (1, -1, 10, 0), (1, 0, SIZE + 1, 0), (1, SIZE, 1, 0), (1, SIZE - 9, 10, 0), (1, 0, 10, 11), (1, 0, 10, -1),
    (1, 0, -1, 0), (1, 0, 1 << 16, 0), (1, 1 << 62, 1 << 62, 0),
])  # fmt: skip
def test_an_area_must_be_in_the_memory(it: Case, place: tuple[int, int, int, int]) -> None:
    before = bytes(it.memory)
    with pytest.raises(ValueError, match="the area is not in the memory"):
        it.table.place(*place)
    assert it.memory == before
    it.table.answer(byte(0x61), 0)
    assert it.text == b"a", "the one before is still there"


@pytest.mark.parametrize("place", [(7, 0, SIZE, 0), (7, SIZE, 0, 0), (7, SIZE - 4, 4, 4), (7, 512, 0, 0)])
def test_an_area_may_be_anywhere_in_it(it: Case, place: tuple[int, int, int, int]) -> None:
    it.table.place(*place)
    assert kept(it.memory) == (7, place[3])
    assert it.table.text == place[3]


def test_a_generation_has_48_bits(it: Case) -> None:
    it.table.place(1 << 48 | 5, AT, ROOM, 3)
    assert kept(it.memory) == (5, 3)


@pytest.mark.parametrize("word", [-8, SIZE, SIZE - 7, 1 << 62])
def test_the_compiled_word_must_be_in_the_memory_and_aligned(word: int) -> None:
    module = MODULES[-1]
    if module is pure:
        pytest.skip("the compiled part was not built")
    with pytest.raises(ValueError, match="the word is not in the memory, or not aligned"):
        module.Table(bytearray(SIZE), word, lambda: None)


def test_memory_that_cannot_be_written_is_refused() -> None:
    module = MODULES[-1]
    if module is pure:
        pytest.skip("the compiled part was not built")
    with pytest.raises((BufferError, TypeError)):
        module.Table(bytes(SIZE), 0, lambda: None)
    with pytest.raises((BufferError, TypeError)):
        module.Rows((), bytes(72))


@pytest.mark.parametrize(("row", "error"), [
    ((True, 0x10, 2, 1, len(KINDS)), "no counter"), ((False, 0x12, 2, None, 0), "only a write of one byte"),
    ((True, 0x12, 1, None, 0), "only a write of one byte"), ((True, 0x12, 1, -1, 0), "convert"),
    ((True, 0x12, 1, 1 << 64, 0), "too (large|big)"), ([1], "a row is a tuple"), ((1, 2), "row"),
])  # fmt: skip
def test_rows_that_make_no_sense_are_refused(row: object, error: str) -> None:
    module = MODULES[-1]
    if module is pure:
        pytest.skip("the compiled part was not built")
    with pytest.raises((ValueError, TypeError, OverflowError), match=error):
        module.Rows((row,), array("Q", bytes(8 * len(KINDS))))
    with pytest.raises(ValueError, match="too many rows"):
        module.Rows(((True, 1, 1, 1, 1),) * 100, array("Q", bytes(8 * len(KINDS))))


# --- when Python is called


def test_a_newline_calls_before_the_answers_are_given_out(it: Case) -> None:
    it.table.answer(byte(0x61) * 3, 0)
    assert it.woken == []
    it.table.answer(byte(0x0A) + byte(0x62), 0)
    it.table.answer(string(b"c\nd"), 0)
    it.table.answer(string(b"ef"), 0)
    assert it.woken == [5, 8], "once for a batch, with all of its text"


def test_a_length_calls_too(it: Case) -> None:
    it.table.wake = 3
    for _ in range(4):
        it.table.answer(byte(0x61), 0)
    assert it.woken == [3, 4]
    it.table.wake = 10
    it.table.answer(string(b"seven more"), 0)
    assert it.woken == [3, 4, 14]


def test_reads_never_call(it: Case) -> None:
    it.table.answer(byte(0x61), 0)
    it.table.wake = 0
    it.table.answer(MAGIC, 0)
    assert it.woken == []


def test_when_the_last_byte_came_and_what_was_seen(it: Case) -> None:
    table = it.table
    assert (table.heard, table.seen, table.seen_at) == (0.0, 0, 0.0)
    begin = time.monotonic()
    table.answer(MAGIC, 0)
    magic, log = (1 << KINDS.index(kind) for kind in ("magic", "log"))
    assert (table.heard, table.seen) == (0.0, magic)
    seen_at = table.seen_at
    assert begin <= seen_at <= time.monotonic()
    table.answer(MAGIC, 0)
    assert table.seen_at == seen_at, "only a new one sets it"
    table.answer(byte(0x61), 0)
    assert table.seen == magic | log
    assert seen_at <= table.heard <= time.monotonic()
    assert seen_at <= table.seen_at
    table.seen = 0
    table.answer(MAGIC, 0)
    assert table.seen == magic


def test_what_the_callback_raises_passes_through_and_the_text_is_kept(it: Case) -> None:
    def woken() -> None:
        raise MemoryError("here")

    one = case(it.module, woken)
    with pytest.raises(MemoryError, match="here"):
        one.table.answer(string(b"line\n"), 0)
    assert (one.text, kept(one.memory)) == (b"line\n", (1, 5))
    assert one.table.answer(MAGIC, 0)[1] == 32


def test_the_callback_may_make_room(it: Case) -> None:
    generations = iter(range(2, 100))

    def woken() -> None:
        one.table.place(next(generations), AT, ROOM, 0)

    one = case(it.module, woken)
    for _ in range(10):
        data, at = string(b"x" * (ROOM - 1) + b"\n") * 3, 0
        while at < len(data):
            _, used = one.table.answer(data, at)
            at += used
            assert used
    assert kept(one.memory) == (31, 0)
    assert one.untouched()


# --- the end


def test_once_closed_nothing_is_answered_or_written(it: Case) -> None:
    it.table.answer(string(b"text"), 0)
    it.table.close()
    it.table.close()
    before = bytes(it.memory)
    assert it.table.answer(MAGIC + string(b"more\n"), 0) == (b"", 0)
    with pytest.raises(ValueError, match="the area is not in the memory"):
        it.table.place(1, AT, ROOM, 0)
    it.table.use(it.rows)
    assert it.table.answer(string(b"more\n") + MAGIC, 0) == (b"", 0)
    assert (bytes(it.memory), it.table.text) == (before, 0)
    assert it.woken == []
    it.memory.append(0)  # nothing holds it any more


def test_the_callback_may_close_it(it: Case) -> None:
    def woken() -> None:
        one.table.close()

    one = case(it.module, woken)
    out, used = one.table.answer(MAGIC + string(b"line\n") + MAGIC, 0)
    assert (len(out), used) == (96, 32 * 3 + 5), "what was answered was kept before"
    assert bytes(one.memory[AT:AT + 5]) == b"line\n"
    assert one.table.answer(MAGIC, 0) == (b"", 0)


def test_a_cycle_through_the_callback_is_collected(it: Case) -> None:
    class Owner:
        gone = 0

        def __init__(self, module: ModuleType) -> None:
            self.table = module.Table(bytearray(64), 0, self.woken)

        def woken(self) -> None:
            """Nothing to do."""

        def __del__(self) -> None:
            Owner.gone += 1

    Owner(it.module)
    gc.collect()
    assert Owner.gone == 1


# --- both


@given(st.lists(st.one_of(
    st.just(MAGIC), st.builds(byte, st.integers(0, 255)), st.builds(string, st.binary(min_size=1, max_size=60)),
    st.sampled_from(sorted(NO_ROW.values())), st.binary(max_size=70),
), max_size=20), st.integers(0, 40))  # fmt: skip
def test_both_do_the_same(frames: list[bytes], wake: int) -> None:
    seen = []
    for module in MODULES:
        it = case(module)
        it.table.wake = wake
        data, at, out = b"".join(frames), 0, []
        for _ in range(len(frames) + 1):
            answered, used = it.table.answer(data, at)
            at += used + 32
            out.append((answered, used))
        seen.append((out, it.memory, it.counted(), it.woken, it.table.seen, it.table.text))
    assert seen[0] == seen[-1]
