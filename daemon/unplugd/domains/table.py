"""The table in Python: a guest's rows and its log text, as the compiled part has them (daemon/fastpath/table.c).

It answers the frames at the beginning of what came, as far as rows answer them, and appends log bytes to a text in
mapped memory. It knows no port and no magic number: the rows say all of that (answers.py). The owner looks at the text when
`woken` is called: a line has ended, or the text has `wake` bytes.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable, Sequence

from unplugd.core.answers import Answer
from unplugd.core.ioreq import FRAME_SIZE, PAYLOAD_LIMIT, pio

_FIELDS = struct.Struct("<QB7xIIIHBB")
"""addr, the lowest byte of data, count, size, vp_eport, _pad0, flags, type."""
_BITS = struct.Struct("<Q7x")
_STATE, _STRING = 0x0F, 0x10

READ_SIZE = 16 * 1024
"""Bytes read from a connection at a time: at most 512 accesses, then other guests have their turn."""


class Rows:
    """Rows, ready for look-up. They never change, so that domains share them."""

    __slots__ = ("counts", "single", "string")

    def __init__(self, rows: Sequence[Answer], counts: array[int]) -> None:
        """`counts` are frames by kind."""
        self.counts = counts
        self.single: dict[tuple[int, int, int, int, int], tuple[int | None, int, bytes, bytes]] = {}
        """By addr, count, size, flags and type: value, kind, `data` of the answer, and its last two bytes."""
        self.string: dict[tuple[int, int, int, int], int] = {}
        """Appended strings, by addr, size, flags and type: their kind."""
        for row in rows:
            addr, _, count, size, _, _, flags, kind = _FIELDS.unpack(pio(row.addr, size=row.size, read=row.read))
            # df and the pad bit mean nothing to the server and are echoed
            for echoed in (0x00, 0x40, 0x80, 0xC0):
                bits = flags | echoed
                last = bytes((bits & ~_STATE | 3, kind))
                self.single[addr, count, size, bits, kind] = (
                    row.value, row.kind, (row.value or 0).to_bytes(8, "little"), last)
                if row.value is None:
                    self.string[addr, size, bits | _STRING, kind] = row.kind


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

    def _append(self, data: bytes) -> bool:
        """Add bytes to the text. False, and nothing is written, where they do not all fit."""
        begin, end = self.text, self.text + len(data)
        if end > self._size:
            return False
        self._memory[self._at + begin:self._at + end] = data
        self.text = end
        return True

    def answer(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Answer the frames of `data` from offset `at` on, up to the first that no row answers: answers, bytes used."""
        rows = self._rows
        if rows is None:
            return b"", 0
        single, counts = rows.single, rows.counts
        now = 0.0
        begin, last = at, len(data) - FRAME_SIZE
        out: list[bytes] = []
        due = logged = False
        while at <= last:
            addr, byte, count, size, _, _, flags, kind = _FIELDS.unpack_from(data, at)
            found = single.get((addr, count, size, flags, kind))
            end = at + FRAME_SIZE
            if found is not None:
                value, which, answer, bits = found
                if value is None:
                    if not self._append(data[at + 8:at + 9]):
                        break
                    logged = True
                    due = due or byte == 0x0A
            else:
                string = rows.string.get((addr, size, flags, kind))
                if string is None or not 1 <= count <= PAYLOAD_LIMIT or end + count > len(data):
                    break
                payload = data[end:end + count]
                if not self._append(payload):
                    break
                end += count
                which, answer, bits = string, bytes(8), bytes((flags & ~_STATE | 3, kind))
                logged = True
                due = due or b"\n" in payload
            counts[which] += 1
            if not self.seen >> which & 1:
                self.seen |= 1 << which
                self.seen_at = now = now or time.monotonic()
            out.append(data[at:at + 8])
            out.append(answer)
            out.append(data[at + 16:at + 30])
            out.append(bits)
            at = end
        if logged:
            self.heard = time.monotonic()
            self._publish()
            if (due or self.text >= self.wake) and self._woken is not None:
                self._woken()
        return b"".join(out), at - begin

    def close(self) -> None:
        """Let go of the memory: nothing is answered any more."""
        self._rows = self._woken = None
        self._size = 0
        self._words.release()
        self._memory.release()
