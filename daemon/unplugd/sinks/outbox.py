"""The waiting records of one domain: a queue for each sink, and the spool that survives the process.

An entry with several sinks counts once, and is removed when the last of them has it. delivery.py decides which sinks
there are, when they are tried and how much may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable

from unplugd.sinks.files import format_line
from unplugd.sinks.records import Entry
from unplugd.sinks.spool import Append, Begun, Spool

OVERHEAD = 256
"""What an entry counts beside its message: fields and objects."""

_BATCH = 64 * 1024  # bytes of one append to a file


class Kept:
    """An entry that is on its way, in the queue of each of its sinks."""

    __slots__ = ("entry", "offset", "sinks")

    def __init__(self, entry: Entry, offset: int, sinks: int) -> None:
        self.entry = entry
        self.offset = offset
        """Where it ends in the spool; 0 where it is in memory alone."""
        self.sinks = sinks
        """How many sinks have not taken it yet."""

    @property
    def size(self) -> int:
        """What it counts, in bytes."""
        return len(self.entry.message) + OVERHEAD

    def line(self) -> bytes:
        """It as a line of a text log."""
        return format_line(self.entry.time, self.entry.message)


class Outbox:
    """What one domain (or unplugd itself, without a spool) has on its way."""

    __slots__ = ("_counted", "_lost", "domid", "in_flight", "name", "pending", "queues", "spool", "task")

    def __init__(self, domid: int, name: str, spool: Spool | None, lost: Callable[[int, int], None],
                 counted: Callable[[int], None]) -> None:
        """`lost` is called with the dropped lines and bytes, `counted` with each change of `pending`."""
        self.domid = domid
        self.name = name
        self.spool = spool
        self.queues: dict[str, deque[Kept]] = {}
        self.pending = 0
        """Bytes on their way, as Kept.size counts them."""
        self.task: asyncio.Task[None] | None = None
        """What writes the sink `file`."""
        self.in_flight = 0
        """Records at the head of the queue of the sink `file` that a thread is writing now."""
        self._lost = lost
        self._counted = counted

    def keep(self, entry: Entry, sinks: list[str]) -> None:
        """Queue an entry for sinks, in the spool first."""
        offset = 0
        if self.spool is not None:
            # without room on tmpfs, the record is only in memory
            with contextlib.suppress(OSError):
                offset = self.spool.append(entry, sinks)
        self._queue(entry, sinks, offset)

    def take_over(self, left: list[tuple[Entry, list[str]]], begun: Begun | None) -> None:
        """Queue what an earlier process left, in the file from `begun` on. It stays in the spool until it arrived."""
        offsets = [0] * len(left)
        if left and self.spool is not None:
            self.spool.begun = begun
            with contextlib.suppress(OSError):
                offsets = self.spool.rewrite(left)
        for (entry, sinks), offset in zip(left, offsets, strict=True):
            self._queue(entry, sinks, offset)
        self._tidy()

    def _queue(self, entry: Entry, sinks: Iterable[str], offset: int) -> None:
        kept = Kept(entry, offset, 0)
        for sink in sinks:
            kept.sinks += 1
            self.queues.setdefault(sink, deque()).append(kept)
        if kept.sinks:
            self.pending += kept.size
            self._counted(kept.size)

    def compact(self, limit: int) -> None:
        """A spool that is never empty also grows by delivered records: over `limit` bytes, rewrite it without them."""
        if self.spool is None or self.spool.size < limit or self.in_flight:
            return
        where: dict[Kept, list[str]] = {}
        for sink, queue in self.queues.items():
            for kept in queue:
                if kept.offset:
                    where.setdefault(kept, []).append(sink)
        in_order = sorted(where, key=lambda kept: kept.offset)
        with contextlib.suppress(OSError):
            offsets = self.spool.rewrite([(kept.entry, where[kept]) for kept in in_order])
            for kept, offset in zip(in_order, offsets, strict=True):
                kept.offset = offset

    def done(self, sink: str, count: int) -> None:
        """The first `count` entries of a queue have reached their sink."""
        offset = 0
        for _ in range(count):
            kept = self._leave(sink)
            offset = kept.offset
        if self.spool is not None and offset and self.pending and sink != "file":  # noted where it was written
            with contextlib.suppress(OSError):
                self.spool.done(sink, offset)
        self._tidy()

    def forget(self, sink: str, count: int) -> None:
        """The first `count` entries of a queue will never reach their sink."""
        size = sum(len(self._leave(sink).entry.message) for _ in range(count))
        if count:
            self._lost(count, size)
        self._tidy()

    def refuse(self, entry: Entry) -> None:
        """An entry that cannot be kept, or that its sink can never take."""
        self._lost(1, len(entry.message))

    def _leave(self, sink: str) -> Kept:
        kept = self.queues[sink].popleft()
        kept.sinks -= 1
        if not kept.sinks:
            self.pending -= kept.size
            self._counted(-kept.size)
        return kept

    def _tidy(self) -> None:
        if not self.pending and self.spool is not None:
            self.spool.clear()

    def waiting(self, sink: str) -> deque[Kept]:
        """What waits for a sink, oldest first."""
        return self.queues.setdefault(sink, deque())

    def ledger(self, count: int) -> Append | None:
        """What notes an append to the file of the first `count` records that wait for it."""
        queue = self.waiting("file")
        return Append(self.spool, queue[count - 1].offset) if self.spool is not None and count else None

    def batch(self) -> list[bytes]:
        """The first records for the sink `file` as lines, about 64 KiB of them."""
        lines: list[bytes] = []
        size = 0
        for kept in self.waiting("file"):
            lines.append(kept.line())
            size += len(lines[-1])
            if size >= _BATCH:
                break
        return lines
