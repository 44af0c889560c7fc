"""Files and directories of unplugd's own: opened without following links, and checked before they are used.

What is read at start decides about guests, and what is written may be read back by root. So a path of ours is used
only if nobody else can have put something there: the last component is no symbolic link, its type is the expected one,
it belongs to root or to the user that this process is, and it is not larger than it can be. Nothing here ever blocks: a
FIFO or a device is refused, not waited for.

Every error is an OSError whose `strerror` says what is wrong and what to do, and whose `filename` says where. Which
files there are is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_file(path: Path, flags: int, limit: int | None = None, mode: int = 0o600) -> int:
    """Open a regular file of ours; the descriptor does not block. `limit` is the largest size in bytes.

    Raises OSError: FileNotFoundError where it is not there, others as the module says.
    """
    try:
        descriptor = os.open(path, flags | _FLAGS, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused(path, "is a symbolic link: remove it") from None
        if error.errno == errno.ENXIO:      # a FIFO that nobody reads, or a socket
            raise _refused(path, "is not a regular file: remove it") from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "is not a regular file: remove it")
        _check_owner(path, status)
        if limit is not None and status.st_size > limit:
            raise _refused(path, f"has {status.st_size} bytes, more than the {limit} that it can have: remove it")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: Path, limit: int) -> bytes:
    """All of a file of ours that has at most `limit` bytes. Raises OSError as open_file()."""
    descriptor = open_file(path, os.O_RDONLY, limit)
    with open(descriptor, "rb") as file:
        return file.read(limit)


def create_file(path: Path) -> int:
    """A new, empty file for reading and writing; what was at `path` is removed. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def replace_file(path: Path, data: bytes) -> None:
    """Make `data` the contents of the file at `path`: it is there as a whole or not at all. Raises OSError."""
    new = path.with_suffix(".new")
    with open(create_file(new), "wb") as file:
        file.write(data)
    os.replace(new, path)


def make_directory(path: Path, mode: int) -> os.stat_result:
    """Make a directory and those above it, or check the one that is there. Raises OSError as the module says."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise _refused(path, "cannot be made: what is above it is not a directory") from None
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode)
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise _refused(path, "is a symbolic link: remove it, or configure the directory that it leads to")
    if not stat.S_ISDIR(status.st_mode):
        raise _refused(path, "is not a directory: remove it")
    _check_owner(path, status)
    return status


def _check_owner(path: Path, status: os.stat_result) -> None:
    uid = os.geteuid()
    if status.st_uid not in (0, uid):
        raise _refused(path, f"belongs to uid {status.st_uid}, not to uid {uid}: remove it, or change its owner")


def _refused(path: Path, why: str) -> OSError:
    return OSError(errno.EPERM, why, os.fspath(path))
