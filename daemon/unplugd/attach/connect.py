"""Connecting to a socket as the user that it belongs to, where that user can be trusted with it.

The socket of a domain whose QEMU is not root belongs to QEMU's user, and is only for that one. Its path may lie where a
device model can write, which may be in its guest's hands: what is planted there must not give the guest a connection
to somebody else's socket. So the last component of the path is a socket and no link, and it belongs to the user who can
put sockets there: in a directory that is root's alone to any user, in another user's directory to that user. In a
directory that several users can write to, nothing is connected to.

Which sockets there are is the supervisor's.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be `uid` for a moment: what it owns needs no capability then but CAP_SETUID. Nothing, where this is not root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def connect(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Connect to a unix socket as the user that it belongs to, without waiting.

    Raises OSError: BlockingIOError when its queue is full, PermissionError where it is not connected to, and why.
    """
    connection = socket.socket(socket.AF_UNIX, kind)
    try:
        connection.setblocking(False)
        with _socket_at(path) as (where, uid), acting_as(uid):
            connection.connect(where)
    except OSError:
        connection.close()
        raise
    return connection


@contextmanager
def _socket_at(path: str) -> Iterator[tuple[str, int]]:
    """The socket at `path`: where to connect to it, whatever is put at `path` meanwhile, and the uid that owns it."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise PermissionError(errno.EPERM, "is not below directories", path) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode) or status.st_nlink > 1:
            raise PermissionError(errno.EPERM, "is not a socket, or has another name", path)
        keeper = _keeper(path)
        if keeper not in (0, os.geteuid()) and status.st_uid != keeper:
            raise PermissionError(
                errno.EPERM, f"belongs to uid {status.st_uid}, but not only that user can put a socket there", path)
        yield f"/proc/self/fd/{descriptor}", status.st_uid
    finally:
        os.close(descriptor)


def _keeper(path: str) -> int:
    """The uid that decides what is at `path`: the first owner of a directory on the way who is not root (or this
    process's user); -1 where several users can write."""
    *above, parent = reversed(Path(path).parents)
    for directory in (*above, parent):
        status = directory.stat()
        for uid in (directory.lstat().st_uid, status.st_uid):
            if uid not in (0, os.geteuid()):
                return uid
        writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        # what root has made in a sticky directory stays root's
        if writable and (directory == parent or not status.st_mode & stat.S_ISVTX):
            return -1
    return 0
