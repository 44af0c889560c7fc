"""The table in Python: a guest's rows and its log text, as the compiled part has them (daemon/fastpath/table.c).

It answers the frames at the beginning of what came, as far as rows answer them, and appends log bytes to a text in
mapped memory. It knows no port and no magic number: the rows say all of that (answers.py). The owner looks at the text
when `woken` is called: a line has ended, or the text has `wake` bytes.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable, Mapping, Sequence

from unplugd.core.answers import Answer
from unplugd.core.ioreq import FRAME_SIZE, PAYLOAD_LIMIT, pio

_SHAPE = struct.Struct("<Q8xQ6xBB")
"""addr, count and size in one number, flags, type: what a frame is, but for its data and what is only echoed."""
_STRING, _ECHOED = 0x10, (0x00, 0x40, 0x80, 0xC0)  # df and the pad bit mean nothing to the server
_ANSWERED = 1 ^ 3
"""What differs between the state of a request and that of its response."""

_Shape = tuple[int, int, int, int]
_SIZE_1 = 1 << 32
"""Size 1 in the second number of a shape, whose lower half is the count."""

READ_SIZE = 5 * 1024
"""Bytes read from a connection at a time: at most 160 accesses, then other guests have their turn."""


class Rows:
    """Rows, ready for look-up. They never change, so that domains share them."""

    __slots__ = ("counts", "single", "string")

    def __init__(self, rows: Sequence[Answer], counts: array[int]) -> None:
        """`counts` are frames by kind."""
        self.counts = counts
        self.single: dict[_Shape, tuple[int, int, bool]] = {}
        """By shape: kind, `data` of the answer, and whether the byte is appended."""
        self.string: dict[tuple[int, int, int], tuple[int, int]] = {}
        """Strings that are appended, by addr, flags and type: their kind, and which length is left to the protocol."""
        for row in rows:
            addr, shape, flags, type_ = _SHAPE.unpack(pio(row.addr, size=row.size, read=row.read))
            for echoed in _ECHOED:
                self.single[addr, shape, flags | echoed, type_] = row.kind, row.value or 0, row.value is None
                if row.value is None:
                    self.string[addr, flags | echoed | _STRING, type_] = row.kind, row.left


class Table:
    """A guest's rows and log text. The compiled part has a class with the same members."""

    __slots__ = (
        "_at",
        "_generation",
        "_memory",
        "_rows",
        "_size",
        "_woken",
        "_word",
        "_words",
        "heard",
        "seen",
        "seen_at",
        "text",
        "wake",
    )

    def __init__(self, memory: object, word: int, woken: Callable[[], object]) -> None:
        """`memory` is writable, `word` the offset of the word that says how much text counts.

        `woken` is called without arguments before answers that need it are given out. What it raises passes through
        answer(), and what was answered must not be sent then.
        """
        self._memory = memoryview(memory).cast("B")  # type: ignore[arg-type] # any buffer: typing has no name for it in 3.11
        self._words = self._memory.cast("Q")
        self._word = word // 8
        self._woken: Callable[[], object] | None = woken
        self._rows: Rows | None = None
        self._generation = self._at = self._size = 0
        self.text = 0
        """Bytes of log text."""
        self.wake = 0
        """Length of the text from which on `woken` is called after every frame."""
        self.heard = 0.0
        """When the last log byte came (time.monotonic())."""
        self.seen = 0
        """Kinds of the rows that were used since this was cleared, a bit each."""
        self.seen_at = 0.0
        """When the last bit of `seen` was set."""

    def use(self, rows: Rows) -> None:
        """Answer by these rows from now on."""
        self._rows = rows

    def place(self, generation: int, at: int, size: int, text: int) -> None:
        """The log text goes on in the area of `size` bytes at offset `at`, where `text` bytes are already.

        Raises ValueError if that is not within the memory.
        """
        if self._woken is None or not 0 <= at <= at + size <= len(self._memory) or not 0 <= text <= size <= 0xFFFF:
            raise ValueError("the area is not in the memory")
        self._generation, self._at, self._size, self.text = generation, at, size, text
        self._publish()

    def _publish(self) -> None:
        # one aligned store: it is there or it is not
        self._words[self._word] = self._generation << 16 & 0xFFFFFFFFFFFFFFFF | self.text

    def answer(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Answer the frames of `data` from offset `at` on, up to the first that no row answers: answers, bytes used."""
        rows = self._rows
        if rows is None:
            return b"", 0
        begin, room = at, self._size - self.text
        out, log = bytearray(), bytearray()
        kinds: list[int] = []
        while True:
            answered = _answer_single(rows.single, data, at, room, log, kinds)
            out += answered
            at += len(answered)
            if at == len(data):
                break
            kind, payload = _string(rows.string, data, at)
            if not payload or len(log) + len(payload) > room:
                break
            end = bytes((data[at + 30] ^ _ANSWERED, data[at + 31]))
            out += data[at:at + 8] + bytes(8) + data[at + 16:at + 30] + end
            at += FRAME_SIZE + len(payload)
            log += payload
            kinds.append(kind)
        if kinds:
            self._count(rows, kinds)
        if log:
            self._append(log)
            if self._woken is not None and (self.text >= self.wake or b"\n" in log):
                self._woken()
        return bytes(out), at - begin

    def _count(self, rows: Rows, kinds: list[int]) -> None:
        seen = self.seen
        for kind in {*kinds}:
            rows.counts[kind] += kinds.count(kind)
            seen |= 1 << kind
        if seen != self.seen:
            self.seen = seen
            self.seen_at = time.monotonic()

    def _append(self, log: bytearray) -> None:
        at = self._at + self.text
        self._memory[at:at + len(log)] = log
        self.text += len(log)
        self.heard = time.monotonic()
        self._publish()

    def close(self) -> None:
        """Let go of the memory: nothing is answered any more."""
        self._rows = self._woken = None
        self._size = self.text = 0
        self._words.release()
        self._memory.release()


def _answer_single(
    single: Mapping[_Shape, tuple[int, int, bool]], data: bytes, at: int, room: int, log: bytearray, kinds: list[int]
) -> bytes:
    """Answers to the single accesses from `at` on, up to the first frame of another shape, or while `log` has room."""
    frames = bytearray(data[at:at + (len(data) - at) // FRAME_SIZE * FRAME_SIZE])
    words = memoryview(frames).cast("Q")  # four a frame; the requests become answers in their place
    word = 0
    for shape in _SHAPE.iter_unpack(frames):
        found = single.get(shape)
        if found is None:
            break
        kind, value, appended = found
        if appended:
            if len(log) == room:
                break
            log.append(words[word + 1] & 0xFF)
        kinds.append(kind)
        words[word + 1] = value
        words[word + 3] ^= _ANSWERED << 48
        word += 4
    return bytes(words[:word])


def _string(string: Mapping[tuple[int, int, int], tuple[int, int]], data: bytes, at: int) -> tuple[int, bytes]:
    """Kind and payload of a string at `at` that is appended; no payload for any other or an incomplete frame."""
    begin = at + FRAME_SIZE
    if begin > len(data):
        return 0, b""
    addr, shape, flags, type_ = _SHAPE.unpack_from(data, at)
    found, count = string.get((addr, flags, type_)), shape - _SIZE_1
    if found is None or not 1 <= count <= PAYLOAD_LIMIT or count == found[1] or begin + count > len(data):
        return 0, b""
    return found[0], data[begin:begin + count]
