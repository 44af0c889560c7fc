"""What is done with one guest's file on the disk: append, rotate, rename, join. It runs in the threads of files.py.

Which file a guest has, and in which order this is done, does not belong here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Protocol

from unplugd.host.ownfiles import make_directory, open_file

FILE_MODE, DIRECTORY_MODE = 0o640, 0o750


class Ledger(Protocol):
    """The notes about an append, which survive the process. Called in the writing thread."""

    @property
    def begun(self) -> tuple[int, int] | None:
        """Inode and size of the file to which an earlier process began to append these lines."""

    def begin(self, inode: int, size: int) -> None:
        """The lines are now written behind the first `size` bytes of the file with this inode."""

    def end(self, begun: tuple[int, int] | None) -> None:
        """All lines are written. `begun`: an earlier process wrote them, and there may be more from this place on."""


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _open(path: Path, flags: int = 0) -> int:
    """Open `path` for reading and appending."""
    return open_file(path, flags | os.O_RDWR | os.O_APPEND, mode=FILE_MODE)


def append(path: Path, lines: list[bytes], max_bytes: int, ledger: Ledger | None) -> None:
    """Append lines; those of them that an earlier process has written (see `ledger`) are left out. Raises OSError."""
    begun = None
    if ledger is not None and ledger.begun is not None:
        lines, begun = _missing(path, lines, *ledger.begun)
    try:
        _append_batches(path, lines, max_bytes, ledger)
    except FileNotFoundError:
        make_directory(path.parent, DIRECTORY_MODE)  # somebody removed it, with our file in it
        _append_batches(path, lines, max_bytes, ledger)
    if ledger is not None:
        ledger.end(begun)


def _missing(path: Path, lines: list[bytes], inode: int, size: int) -> tuple[list[bytes], tuple[int, int] | None]:
    """Those of `lines` that are not in the file of that inode from `size` on; and where to look for more of them."""
    for file in (path, _older(path)):
        try:
            descriptor = _open(file)
        except OSError:
            continue
        try:
            if os.fstat(descriptor).st_ino == inode:
                text = os.pread(descriptor, sum(map(len, lines)) + 1, size)
                break
        finally:
            os.close(descriptor)
    else:
        return lines, None
    at = int(text.startswith(b"\n"))  # the end of a half line: see _write_whole
    for number, line in enumerate(lines):
        if not text.startswith(line, at):
            return lines[number:], None
        at += len(line)
    return [], (inode, size + at)


def _append_batches(path: Path, lines: list[bytes], max_bytes: int, ledger: Ledger | None) -> None:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and size + len(line) > max_bytes:
            _append_batch(path, b"".join(batch), max_bytes, ledger)
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        _append_batch(path, b"".join(batch), max_bytes, ledger)


def _append_batch(path: Path, data: bytes, max_bytes: int, ledger: Ledger | None) -> None:
    descriptor, size = _open_at_end(path)
    try:
        if size and size + len(data) > max_bytes:
            os.replace(path, _older(path))
            full, (descriptor, size) = descriptor, _open_at_end(path)
            os.close(full)
        if ledger is not None:
            ledger.begin(os.fstat(descriptor).st_ino, size)
        _write_whole(descriptor, size, data)
    finally:
        os.close(descriptor)


def _open_at_end(path: Path) -> tuple[int, int]:
    descriptor = _open(path, os.O_CREAT)
    return descriptor, os.fstat(descriptor).st_size


def _write_whole(descriptor: int, size: int, data: bytes) -> None:
    """Write all of `data` at the end of a file of `size` bytes, or leave the file as it was and raise OSError."""
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data  # a killed process left half a line: start a new line
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        if len(rest) < len(data):
            os.ftruncate(descriptor, size)
        raise


def rename(source: Path, target: Path, max_bytes: int) -> None:
    """Move the file and its older generation to another name.

    If an earlier domain of that name left a file there, it belongs to this guest (a guest that migrates comes back as
    `<name>--incoming`): it is continued while it has room, otherwise it becomes the older generation.
    """
    try:
        if not stat.S_ISREG(os.lstat(source).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(source))
        if not _continue(source, target, max_bytes):
            if os.path.lexists(target):
                os.replace(target, _older(target))
            if os.path.lexists(_older(source)):
                os.replace(_older(source), _older(target))
            os.replace(source, target)
    except FileNotFoundError:
        if os.path.lexists(source):
            raise  # otherwise the domain has not written a line yet, or its file was removed


def become_older(source: Path, target: Path, max_bytes: int) -> None:
    """Make the file the older generation of `target`, which is being written, unless that has one."""
    older = _older(source)
    try:
        if os.path.lexists(_older(target)) or not stat.S_ISREG(os.lstat(source).st_mode):
            return
        if os.path.lexists(older) and _join(source, older, max_bytes):
            source = older
        os.replace(source, _older(target))
        if source != older:
            os.unlink(older)
    except FileNotFoundError:
        pass  # it has not written a line, or has no older generation


def _continue(source: Path, target: Path, max_bytes: int) -> bool:
    """Append `source` to `target` and remove it, if both exist and fit into one file."""
    if os.path.lexists(_older(source)) or not os.path.lexists(target):
        return False
    return _join(source, target, max_bytes)


def _join(source: Path, target: Path, max_bytes: int) -> bool:
    """Append `source` to `target` and remove it, if they fit into one file."""
    text = _read_whole(source, max_bytes)
    if len(text) + os.lstat(target).st_size > max_bytes:
        return False
    try:
        descriptor = _open(target)
    except OSError:  # a link or worse: it goes out of the way instead
        return False
    try:
        _write_whole(descriptor, os.fstat(descriptor).st_size, text)
    finally:
        os.close(descriptor)
    os.unlink(source)
    return True


def _read_whole(path: Path, max_bytes: int) -> bytes:
    """Return the contents of `path`, or more than `max_bytes` of them if it has more."""
    descriptor = _open(path)
    try:
        return os.pread(descriptor, max_bytes + 1, 0)
    finally:
        os.close(descriptor)
