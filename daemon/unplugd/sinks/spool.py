"""Records on their way: what was acknowledged to a guest and is not yet in journald's socket or in the guest's file.

One append-only file a domain, on tmpfs beside its state, which exists only while something is on its way. It is read
once, by the next process, if this one dies. A record that was being appended at that moment is cut off: its response
had not been sent.

    header   for each sink in SINKS order the offset up to which it is done, u64
    record   length u32, checksum u32 of the rest, then JSON: time, message (Latin-1 for bytes), fields, sinks
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from unplugd.config import SINKS
from unplugd.records import Entry

_HEADER = struct.Struct(f"<{len(SINKS)}Q")
_PREFIX = struct.Struct("<II")


class Spool:
    """The spool of one domain. Every method may raise OSError (ENOSPC); an append that raises has kept nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._end = 0

    def append(self, entry: Entry, sinks: list[str]) -> int:
        """Keep `entry` for `sinks`; returns the offset behind it, for done()."""
        if self._descriptor is None:
            self._begin()
        body = json.dumps([entry.time, entry.message.decode("latin-1"), entry.fields, sinks]).encode()
        record = _PREFIX.pack(len(body), zlib.crc32(body)) + body
        self._write(record, self._end)
        self._end += len(record)
        return self._end

    def _begin(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        try:
            self._write(bytes(_HEADER.size), 0)
        except OSError:
            self.close()
            raise
        self._end = _HEADER.size

    def _write(self, data: bytes, at: int) -> None:
        if self._descriptor is None or os.pwrite(self._descriptor, data, at) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def done(self, sink: str, offset: int) -> None:
        """`sink` has everything up to `offset`."""
        if self._descriptor is not None:
            os.pwrite(self._descriptor, offset.to_bytes(8, "little"), 8 * SINKS.index(sink))

    def rewrite(self, records: list[tuple[Entry, list[str]]]) -> list[int]:
        """Replace the file by one with these records; returns the offset behind each."""
        other = Spool(self._path.with_suffix(".new"))
        offsets = [other.append(entry, sinks) for entry, sinks in records]
        self._path.with_suffix(".new").rename(self._path)
        self.close()
        self._descriptor, self._end = other._descriptor, other._end
        return offsets

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    @property
    def size(self) -> int:
        """Bytes of the file, what is done included."""
        return self._end

    def clear(self) -> None:
        """Nothing is on its way any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._end = 0
            with contextlib.suppress(OSError):
                self._path.unlink()

    def close(self) -> None:
        """Let go of the file; what is in it stays for the next process."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def load(path: Path) -> Iterator[tuple[Entry, list[str]]]:
    """What an earlier process left at `path`: entries with the sinks that they have not reached. Damage ends it."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    if len(data) < _HEADER.size:
        return
    reached = dict(zip(SINKS, _HEADER.unpack_from(data), strict=True))
    at = _HEADER.size
    while at + _PREFIX.size <= len(data):
        length, checksum = _PREFIX.unpack_from(data, at)
        body = data[at + _PREFIX.size : at + _PREFIX.size + length]
        at += _PREFIX.size + length
        if len(body) != length or zlib.crc32(body) != checksum:
            return
        try:
            time, message, fields, sinks = json.loads(body)
            entry = Entry(float(time), message.encode("latin-1"), tuple((str(k), str(v)) for k, v in fields))
            left = [sink for sink in sinks if sink in SINKS and reached[sink] < at]
        except (ValueError, TypeError, AttributeError):
            continue
        if left:
            yield entry, left
