"""The spool: acknowledged records that are not yet in journald's socket or in the guest's file.

One append-only file per domain, on tmpfs beside its state. It exists only while records wait. If this process dies, the
next one reads the file once. A record that was being appended at that moment is discarded: its response was not sent.

    header   for each sink the offset up to which records are delivered, u64, `file` last; then the place in the guest's
             file where an append of the next records began: inode and size of the file, u64 (0: none began)
    record   length u32, checksum u32 of the rest, then JSON: time, message (Latin-1 for bytes), fields, sinks
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from unplugd.config.keys import SINKS
from unplugd.host.ownfiles import create_file, open_file, read_file
from unplugd.sinks.records import Entry

_ORDER = (*(sink for sink in SINKS if sink != "file"), "file")
_HEADER = struct.Struct(f"<{len(_ORDER)}QQQ")
_APPEND = struct.Struct("<QQQ")
"""The end of the header: the offset of `file` and the place of the append change in one write."""
_APPEND_AT = _HEADER.size - _APPEND.size
_PREFIX = struct.Struct("<II")


SIZE_LIMIT = 16 << 20
"""Bytes that a spool can have: outboxes have a bound (delivery.py), and JSON makes a byte six at most."""

Begun = tuple[int, int]
"""A file's inode, and its size when an append to it began."""


class Spool:
    """The spool of one domain. Every method may raise OSError (ENOSPC); an append that raises has kept nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._end = 0
        self._file_done = 0
        self.begun: Begun | None = None
        """Where an earlier process began an append of which it is not known how far it came."""

    def append(self, entry: Entry, sinks: list[str]) -> int:
        """Keep `entry` for `sinks`; returns the offset behind it, for done()."""
        if self._descriptor is None:
            self._begin()
        import json  # most processes never need it, and a start should be quick

        body = json.dumps([entry.time, entry.message.decode("latin-1"), entry.fields, sinks]).encode()
        record = _PREFIX.pack(len(body), zlib.crc32(body)) + body
        self._write(record, self._end)
        self._end += len(record)
        return self._end

    def _begin(self) -> None:
        self._descriptor = create_file(self._path)
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
        """All records up to `offset` are delivered to `sink`."""
        if self._descriptor is None:
            return
        if sink == "file":
            self._file_done = offset
            os.pwrite(self._descriptor, _APPEND.pack(offset, 0, 0), _APPEND_AT)
        else:
            os.pwrite(self._descriptor, offset.to_bytes(8, "little"), 8 * _ORDER.index(sink))

    def begin(self, begun: Begun) -> None:
        """The next records are being appended to the guest's file, from `begun` on."""
        if self._descriptor is not None:
            os.pwrite(self._descriptor, _APPEND.pack(self._file_done, *begun), _APPEND_AT)

    def rewrite(self, records: list[tuple[Entry, list[str]]]) -> list[int]:
        """Replace the file by one with these records; returns the offset behind each."""
        other = Spool(self._path.with_suffix(".new"))
        offsets = [other.append(entry, sinks) for entry, sinks in records]
        if self.begun is not None:
            other.begin(self.begun)
        self._path.with_suffix(".new").rename(self._path)
        self.close()
        self._descriptor, self._end, self._file_done = other._descriptor, other._end, 0
        return offsets

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self._path

    @property
    def size(self) -> int:
        """Bytes of the file, including delivered records."""
        return self._end

    def clear(self) -> None:
        """All records are delivered: remove the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._end = self._file_done = 0
            with contextlib.suppress(OSError):
                self._path.unlink()

    def close(self) -> None:
        """Close the file; its content stays for the next process."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Append:
    """One append to a guest's file, with notes that show the next process how much of it was written (files.Ledger).

    Called in the writing thread, so that a killed process leaves no gap between a write and its note.
    """

    __slots__ = ("_abandoned", "_at", "_offset", "_spool")

    def __init__(self, spool: Spool, offset: int) -> None:
        """`offset` is where its last record ends in the spool, 0 where that is in memory alone."""
        self._spool = spool
        self._offset = offset
        self._at: Begun | None = None
        self._abandoned = False

    @property
    def begun(self) -> Begun | None:
        """Where an earlier process began it."""
        return self._spool.begun

    def begin(self, inode: int, size: int) -> None:
        """It begins at the end of a file of `size` bytes."""
        self._at = inode, size
        with contextlib.suppress(OSError):
            self._spool.begin((inode, size))

    def end(self, begun: Begun | None) -> None:
        """All of it is in the file. `begun`: it was there already, up to this place; there may be more."""
        self._spool.begun = self._at if self._abandoned else begun
        with contextlib.suppress(OSError):
            if self._offset:
                self._spool.done("file", self._offset)
            if begun is not None:
                self._spool.begin(begun)

    def abandon(self) -> None:
        """The caller does not wait any longer: the next attempt must check how much was written."""
        self._abandoned = True
        self._spool.begun = self._at


def begun(path: Path) -> Begun | None:
    """Where the process that left the spool at `path` began an append, if it did not see it end."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
        with open(descriptor, "rb") as file:
            *_, inode, size = _HEADER.unpack(file.read(_HEADER.size))
    except (OSError, struct.error):
        return None
    return (inode, size) if inode else None


def load(path: Path) -> Iterator[tuple[Entry, list[str]]]:
    """What an earlier process left at `path`: entries with the sinks that they have not reached. Damage ends it.

    Raises OSError where it cannot be read, or is no spool of ours.
    """
    try:
        data = read_file(path, SIZE_LIMIT)
    except FileNotFoundError:
        return
    if len(data) < _HEADER.size:
        return
    reached = dict(zip(_ORDER, _HEADER.unpack_from(data), strict=False))
    at = _HEADER.size
    while at + _PREFIX.size <= len(data):
        length, checksum = _PREFIX.unpack_from(data, at)
        body = data[at + _PREFIX.size : at + _PREFIX.size + length]
        at += _PREFIX.size + length
        if len(body) != length or zlib.crc32(body) != checksum:
            return
        import json

        try:
            time, message, fields, sinks = json.loads(body)
            entry = Entry(float(time), message.encode("latin-1"), tuple((str(k), str(v)) for k, v in fields))
            left = [sink for sink in sinks if sink in SINKS and reached[sink] < at]
        except (ValueError, TypeError, AttributeError):
            continue
        if left:
            yield entry, left
