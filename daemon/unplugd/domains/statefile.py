"""What is remembered of a domain where SIGKILL does not reach it: one small mapped file a domain, on tmpfs.

A response is sent only after what it acknowledges is here (contract section 1, "Acknowledged"). The kernel keeps what
was stored into the mapping whatever becomes of the process, so keeping costs a few memory copies and no system call.

    page 0    two slots, written in turn: header with sequence number, snapshot of the guest, checksum. The valid one
              with the higher number counts; a slot that was being written when the process died is not valid, the other
              one is. Then the word: generation and length of the log text. Then what xenstore said of the domain (see
              note()).
    areas     two of AREA bytes for the log text; the one of the header's generation counts. Text is only ever added at
              its end (by the domain's table), and then counts by the word. The header says up to where it has been
              recorded: the open line, and whatever an earlier process did not come to record, is behind that position.
    compact() moves the open line into the other area: first the text, then the header with the next generation, then
              the word. Until the new word is there, the header's own length counts.

The file belongs to a boot of dom0, a domid and a uuid: anything else in it is another domain's and is discarded.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unplugd.core.guest import Guest, Snapshot
from unplugd.core.guestlog import LINE_LIMIT
from unplugd.core.ioreq import PAYLOAD_LIMIT
from unplugd.core.protocol import Action
from unplugd.domains import oldstate
from unplugd.host.ownfiles import open_file

_PAGE = 4096
AREA = 2 * _PAGE
"""Bytes of log text: an open line, and the longest string write behind it."""
COMPACT_OVER = AREA - PAYLOAD_LIMIT
"""Bytes of text over which a string write may find no room."""
assert LINE_LIMIT <= COMPACT_OVER, "an open line leaves room for a string write"  # noqa: S101 - constants

_SLOT = 512
_AREAS = (_PAGE, _PAGE + AREA)
_SIZE = _PAGE + 2 * AREA
WORD = 2 * _SLOT
"""Offset of the word: generation << 16 | length."""
_NOTE = 4 * _SLOT
NOTE_LIMIT = _PAGE - _NOTE - 8
"""Bytes that a note may have."""

_DRIVER = struct.Struct("<8s16s64sqqqqqqqq128s120s")
"""magic, boot id, uuid; then of a Snapshot: product, build, action, asked, ignored, by node, unplugged, flags, reason,
rule. The first part of a header: it stays the same from line to line."""
_LOG = struct.Struct("<QddqqqqQqqq")
"""sequence; then of a Snapshot: balance, its time, charged, unsaid lines, unsaid bytes, throttled; then generation,
area, position, length of the text. The second part of a header."""
_HEADER_SIZE = _DRIVER.size + _LOG.size
_CHECKSUM = struct.Struct("<I")
_NOTE_HEADER = struct.Struct("<II")
"""length, checksum of boot id and note."""
_MAGIC = b"unplugd2"
_GENERATIONS = (1 << 48) - 1


def boot_id() -> bytes:
    """16 bytes that differ from one boot of dom0 to the next."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def state_path(directory: Path, domid: int) -> Path:
    """Where the state of a domain is."""
    return directory / f"dom{domid}"


def read_note(directory: Path, domid: int, boot: bytes) -> bytes | None:
    """What note() kept of a domain during this boot of dom0; None where there is nothing valid."""
    try:
        descriptor = open_file(state_path(directory, domid), os.O_RDONLY)
        try:
            raw = os.pread(descriptor, _PAGE - _NOTE, _NOTE)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    if len(raw) < _NOTE_HEADER.size:
        return None
    length, checksum = _NOTE_HEADER.unpack_from(raw)
    note = raw[_NOTE_HEADER.size:_NOTE_HEADER.size + length]
    return note if 0 < length == len(note) and zlib.crc32(boot + note) == checksum else None


def _snapshot(driver: Sequence[Any], log: Sequence[Any]) -> Snapshot:
    """The guest's part of a header. An unknown action counts as the strictest: another version may have more."""
    product, build, action, asked, ignored, by_node, unplugged, flags, reason, rule = driver
    kept = oldstate.snapshot([product, build, 0, unplugged, flags, *log, reason])
    known = Action(min(max(Action.NONE, action), Action.WITHHOLD))
    return kept._replace(action=known, asked=bool(asked), ignored=bool(ignored), by_node=bool(by_node),
                         rule=oldstate.text(rule))


class StateFile:
    """The state of one domain. Bytes of the log text are added by the domain's table; commit() keeps all else."""

    kept: Snapshot | None = None
    """What was found: the guest as it was at the last commit."""
    kept_uuid: str = ""
    """Whose state it is."""

    def __init__(self, directory: Path, domid: int, boot: bytes) -> None:
        """Open or create the file. Raises OSError (ENOSPC above all): see `in_memory`."""
        self._path: Path | None = state_path(directory, domid)
        old = oldstate.read(self._path, boot)
        self._new: Path | None = None if old is None else self._path.with_name(f"{self._path.name}.new")
        """The file until its first commit, where version 0.1.0 left one, which it then replaces."""
        descriptor = open_file(self._new or self._path, os.O_RDWR | os.O_CREAT)
        try:
            if old is not None or os.fstat(descriptor).st_size != _SIZE:  # new, or not written as a whole: begin anew
                os.ftruncate(descriptor, 0)
            # storing into a page that tmpfs cannot provide would be SIGBUS: have them all now
            os.posix_fallocate(descriptor, 0, _SIZE)
            self.memory = mmap.mmap(descriptor, _SIZE)
            # a domain that logs nothing has one page of it resident, not those that the kernel would map with it
            self.memory.madvise(mmap.MADV_RANDOM)
        finally:
            os.close(descriptor)
        self._begin(boot)
        if old is not None:
            self._uuid, self.kept, text = old
            self.kept_uuid = self._uuid.decode("ascii", "replace")
            self.memory[_AREAS[0]:_AREAS[0] + len(text)] = text
            self.length = len(text)

    @classmethod
    def in_memory(cls, boot: bytes) -> StateFile:
        """A state that ends with the process, for when there is no room for a file."""
        self = cls.__new__(cls)
        self._path = self._new = None
        self.memory = mmap.mmap(-1, _SIZE)
        self._begin(boot)
        return self

    def _begin(self, boot: bytes) -> None:
        self._boot = boot
        self._uuid = b""
        self._driver = b""
        """The first part of a header, as the last commit left it; empty where it must be made anew."""
        self._sequence = 0
        self.generation = 0
        self._area = 0
        self.recorded = 0
        """Bytes of the text up to which the guest's log has taken them: its open line is before, the rest comes."""
        self.length = 0
        """Bytes of text that were found. Afterwards the table counts them."""
        for slot in (0, 1):
            self._load(slot)
        if self._sequence > 0:
            (word,) = struct.unpack_from("<Q", self.memory, WORD)
            generation, length = word >> 16, word & 0xFFFF
            if generation == self.generation & _GENERATIONS and self.length <= length <= AREA:
                self.length = length

    def _load(self, slot: int) -> None:
        at = slot * _SLOT
        raw = self.memory[at:at + _HEADER_SIZE]
        (checksum,) = _CHECKSUM.unpack_from(self.memory, at + _HEADER_SIZE)
        if zlib.crc32(raw) != checksum:
            return
        magic, boot, uuid, *driver = _DRIVER.unpack_from(raw)
        sequence, *log, generation, area, position, length = _LOG.unpack_from(raw, _DRIVER.size)
        if magic != _MAGIC or boot != self._boot or sequence <= self._sequence:
            return
        if area not in (0, 1) or not 0 <= position <= length <= AREA:
            return
        self.kept = _snapshot(driver, log)
        self._sequence, self.generation, self._area = sequence, generation, area
        self.recorded, self.length = position, length
        self._uuid = uuid.rstrip(b"\0")
        self.kept_uuid = self._uuid.decode("ascii", "replace")

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Where the text is, as Table.place() takes it: generation, offset, bytes of the area, bytes of text."""
        return self.generation, _AREAS[self._area], AREA, self.length

    def text(self, end: int) -> bytes:
        """The bytes of the text from `recorded` to `end`."""
        at = _AREAS[self._area]
        return self.memory[at + self.recorded:at + end]

    def append(self, data: bytes, end: int) -> None:
        """Add `data` to the text of `end` bytes; it counts once the table is placed anew. There must be room."""
        at = _AREAS[self._area] + end
        self.memory[at:at + len(data)] = data
        self.length = end + len(data)

    def discard(self) -> None:
        """What was found is another domain's."""
        self.kept, self.kept_uuid = None, ""
        self.recorded = self.length = 0

    def note(self, note: bytes) -> None:
        """Keep what the next process should know of the domain before it has asked anybody; read_note() finds it.

        A process that is killed meanwhile leaves no note. One over NOTE_LIMIT bytes is not kept.
        """
        if len(note) <= NOTE_LIMIT:
            raw = _NOTE_HEADER.pack(len(note), zlib.crc32(self._boot + note)) + note
            self.memory[_NOTE:_NOTE + len(raw)] = raw

    def own(self, uuid: str) -> None:
        """Say whose state this is from the next commit on ("" until the domain's uuid is known)."""
        self._uuid = uuid.encode("ascii", "replace")[:64]
        self._driver = b""

    def commit(self, guest: Guest) -> None:
        """Keep the guest as it is now. What it has said must be recorded before: this says that it is."""
        if guest.changed or not self._driver:
            self._driver = self._pack_driver(guest.snapshot())
        self._sequence += 1
        log = guest.log
        bucket, position = log.bucket, self.recorded
        raw = self._driver + _LOG.pack(
            self._sequence, bucket.balance, bucket.at, log.charged, log.unsaid_lines, log.unsaid_bytes, log.throttled,
            self.generation, self._area, position - len(log.partial), position,
        )
        at = (self._sequence & 1) * _SLOT
        self.memory[at:at + _HEADER_SIZE + 4] = raw + _CHECKSUM.pack(zlib.crc32(raw))
        guest.changed = False
        if self._new is not None and self._path is not None:
            self._new.rename(self._path)
            self._new = None

    def _pack_driver(self, kept: Snapshot) -> bytes:
        return _DRIVER.pack(
            _MAGIC, self._boot, self._uuid, -1 if kept.product is None else kept.product,
            -1 if kept.build is None else kept.build, kept.action, kept.asked, kept.ignored, kept.by_node,
            kept.unplugged, kept.flags, kept.reason.encode("utf-8", "replace"), kept.rule.encode("utf-8", "replace"),
        )

    def compact(self, guest: Guest) -> None:
        """Go on in the other area, with only the open line. All text must be recorded; then place the table."""
        partial = bytes(guest.log.partial)
        self._area ^= 1
        at = _AREAS[self._area]
        self.memory[at:at + len(partial)] = partial
        self.generation += 1
        self.recorded = self.length = len(partial)
        self.commit(guest)

    def close(self) -> None:
        """Let go of the file; it stays."""
        self.memory.close()

    def remove(self) -> None:
        """Forget the domain for good."""
        self.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
