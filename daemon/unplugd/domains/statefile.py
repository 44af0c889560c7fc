"""What is remembered of a domain where SIGKILL does not reach it: one small mapped file a domain, on tmpfs.

A response is sent only after `commit()` (contract section 1, "Acknowledged"). The kernel keeps what was stored into the
mapping whatever becomes of the process, so a commit is a few memory copies and no system call.

    page 0    two slots, written in turn: header with sequence number and checksum. The valid one with the higher
              number counts; a slot that was being written when the process died is not valid, the other one is.
              Then one word: the length of the partial line since the header, with the number of that header, and how
              much of it journald has: before the partial line there may be lines that wait for it (fastpath/gather.c).
              Then what xenstore said of the domain (see note()), with a checksum of its own.
    page 1-2  two areas for the partial line. Bytes are only ever added after those that count; a new line begins in
              the other area, so that nothing a valid header refers to is overwritten.

The file belongs to a boot of dom0, a domid and a uuid: anything else in it is somebody else's and is discarded.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from pathlib import Path

from unplugd.core.guest import Guest, Snapshot
from unplugd.core.guestlog import LINE_LIMIT

_PAGE = 4096
SIZE = 3 * _PAGE
_SLOT = 512
_AREAS = (_PAGE, 2 * _PAGE)
_WORD = 2 * _SLOT // 8
_LENGTH_BITS = 12  # LINE_LIMIT fits
_NOTE = 4 * _SLOT
NOTE_LIMIT = _PAGE - _NOTE - 8
"""Bytes that a note may have."""

_HEADER = struct.Struct("<8sQ16s64sqqqqqddqqqq128sqq")
"""magic, sequence, boot id, uuid; then a Snapshot: product, build, blacklisted, unplugged, flags, balance, its time,
charged, unsaid lines, unsaid bytes, throttled, reason; then area of the partial line, its length."""
_CHECKSUM = struct.Struct("<I")
_NOTE_HEADER = struct.Struct("<II")
"""length, checksum of boot id and note."""
_MAGIC = b"unplugd1"


def boot_id() -> bytes:
    """16 bytes that differ from one boot of dom0 to the next."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def read_note(path: Path, boot: bytes) -> bytes | None:
    """What note() kept in the state file at `path` during this boot of dom0; None where there is nothing valid."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
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


class StateFile:
    """The state of one domain; `kept_uuid` is whose state was found in the file, None if there was none."""

    def __init__(self, path: Path, boot: bytes) -> None:
        """Open or create the file. Raises OSError (ENOSPC above all): see `in_memory`."""
        self._path: Path | None = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size != SIZE:  # new, or not all of it was written: begin anew
                os.ftruncate(descriptor, 0)
            # storing into a page that tmpfs cannot provide would be SIGBUS: have them all now
            os.posix_fallocate(descriptor, 0, SIZE)
            self._map = mmap.mmap(descriptor, SIZE)
            # a domain that logs nothing has one page of it resident, not those that the kernel would map with it
            self._map.madvise(mmap.MADV_RANDOM)
        finally:
            os.close(descriptor)
        self._begin(boot)

    @classmethod
    def in_memory(cls, boot: bytes) -> StateFile:
        """A state that ends with the process, for when there is no room for a file."""
        self = cls.__new__(cls)
        self._path = None
        self._map = mmap.mmap(-1, SIZE)
        self._begin(boot)
        return self

    def _begin(self, boot: bytes) -> None:
        self._words = memoryview(self._map).cast("Q")
        self._boot = boot
        self._uuid = b""
        self._sequence = 0
        self._area = 0
        self._length = 0
        self._line = -1
        self.kept_uuid: str | None = None
        self._kept: tuple[Snapshot, bytes] | None = None
        for slot in (0, 1):
            self._load(slot)
        self._load_length()

    def _load(self, slot: int) -> None:
        at = slot * _SLOT
        raw = self._map[at:at + _HEADER.size]
        (checksum,) = _CHECKSUM.unpack_from(self._map, at + _HEADER.size)
        if zlib.crc32(raw) != checksum:
            return
        (magic, sequence, boot, uuid, product, build, blacklisted, unplugged, flags, balance, balance_at, charged,
         unsaid_lines, unsaid_bytes, throttled, reason, area, length) = _HEADER.unpack(raw)
        if magic != _MAGIC or boot != self._boot or sequence <= self._sequence:
            return
        if area not in (0, 1) or not 0 <= length < LINE_LIMIT or balance != balance:
            return
        self._sequence, self._area, self._length = sequence, area, length
        self._uuid = uuid.rstrip(b"\0")
        self.kept_uuid = self._uuid.decode("ascii", "replace")
        snapshot = Snapshot(
            None if product < 0 else product, None if build < 0 else build, bool(blacklisted), unplugged, flags,
            balance, balance_at, charged, unsaid_lines, unsaid_bytes, bool(throttled),
            reason.rstrip(b"\0").decode("utf-8", "ignore"),
        )
        self._kept = snapshot, self._map[_AREAS[area]:_AREAS[area] + length]

    def _load_length(self) -> None:
        rest, length = divmod(self._words[_WORD], 1 << _LENGTH_BITS)
        sent, number = divmod(rest, 1 << 32)
        if self._kept is None or number != self._sequence & 0xFFFFFFFF or not self._length <= length < LINE_LIMIT:
            return
        self._length = length
        at = _AREAS[self._area]
        self._kept = self._kept[0], self._map[at + min(sent, length):at + length]

    @property
    def durable(self) -> bool:
        """Whether it outlives the process."""
        return self._path is not None

    @property
    def mapping(self) -> mmap.mmap:
        """The state itself, for who keeps it beside commit() and grow() (the compiled part); see follow()."""
        return self._map

    @property
    def place(self) -> tuple[int, int]:
        """Sequence number of the last commit, and the area of the partial line."""
        return self._sequence, self._area

    def follow(self, place: tuple[int, int], guest: Guest) -> None:
        """Go on behind what somebody else kept: the guest as it is now, at `place`."""
        self._sequence, self._area = place
        self._line = guest.log.line_number
        self._length = len(guest.log.partial)

    def restore(self, guest: Guest, now: float) -> bool:
        """Put what was found into `guest`; says whether there was anything."""
        if self._kept is None:
            return False
        guest.restore(*self._kept, now)
        return True

    def note(self, note: bytes) -> None:
        """Keep what the next process should know of the domain before it has asked anybody; read_note() finds it.

        A process that is killed meanwhile leaves no note. One over NOTE_LIMIT bytes is not kept.
        """
        if len(note) <= NOTE_LIMIT:
            raw = _NOTE_HEADER.pack(len(note), zlib.crc32(self._boot + note)) + note
            self._map[_NOTE:_NOTE + len(raw)] = raw

    def own(self, uuid: str) -> None:
        """Say whose state this is from the next commit on ("" until the domain's uuid is known)."""
        self._uuid = uuid.encode("ascii", "replace")[:64]

    def commit(self, guest: Guest) -> None:
        """Keep the guest as it is now."""
        log = guest.log
        if log.line_number != self._line or len(log.partial) < self._length:
            self._area ^= 1
            self._length = 0
            self._line = log.line_number
        self._append(log.partial)
        self._sequence += 1
        product, build, *others, reason = guest.snapshot()
        raw = _HEADER.pack(
            _MAGIC, self._sequence, self._boot, self._uuid, -1 if product is None else product,
            -1 if build is None else build, *others, reason.encode("utf-8", "replace"), self._area, self._length,
        )
        at = (self._sequence & 1) * _SLOT
        self._map[at:at + _HEADER.size + 4] = raw + _CHECKSUM.pack(zlib.crc32(raw))
        guest.changed = guest.grew = False

    def grow(self, guest: Guest) -> None:
        """Keep the guest, nothing of which has changed but its log."""
        log = guest.log
        if log.line_number != self._line:
            self.commit(guest)
            return
        partial, begin = log.partial, self._length
        if len(partial) == begin + 1:  # a byte at a time, as most drivers log
            self._map[_AREAS[self._area] + begin] = partial[begin]
            self._length = begin + 1
        else:
            self._append(partial)
        # one aligned store: it is there or it is not
        self._words[_WORD] = (self._sequence & 0xFFFFFFFF) << _LENGTH_BITS | self._length
        guest.grew = False

    def _append(self, partial: bytearray) -> None:
        """Add to the current area what the partial line has more than what is there."""
        begin, end = self._length, len(partial)
        if end > begin:
            at = _AREAS[self._area]
            self._map[at + begin:at + end] = bytes(partial[begin:])
            self._length = end

    def close(self) -> None:
        """Let go of the file; it stays."""
        self._words.release()
        self._map.close()

    def remove(self) -> None:
        """Forget the domain for good."""
        self.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
