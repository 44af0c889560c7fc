"""The runtime directory: made, taken for this process alone, and cleared of what domains left that are gone; and how
a socket in it is root's.

What is in its files is domains/statefile.py's, sinks/spool.py's and blacklist/verdicts.py's; its sockets are
sockets/listener.py's and http/sockets.py's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Container
from pathlib import Path

from unplugd.errors import HostError


def listen_for_root(
    what: str, path: Path, backlog: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A socket, called `what`, that listens at `path` for root only; one that a dead process left there is replaced.

    Raises HostError if `path` is something else or cannot be had.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise HostError(what, str(path), "something that is no socket is there")
            path.unlink()
        bound = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        try:
            bound.bind(str(path))
            path.chmod(0o600)  # before listen(): until then nobody can connect
            bound.listen(backlog)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise HostError(what, str(path), error.strerror or str(error)) from error
    return bound


class RuntimeDirectory:
    """`runtime_dir` (0755, for device models of other uids) with `state` in it (0700).

    It is this process's until that ends. Raises HostError where it cannot be had or another unplugd has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if path.stat().st_mode & 0o7777 != 0o755:
                path.chmod(0o755)
            self.state.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError("runtime_dir", str(path), error.strerror or str(error)) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HostError("runtime_dir", str(path), "another unplugd uses it") from None

    def remove_stale(self, domids: Container[int]) -> None:
        """Remove sockets and state of all domains but these: they went while no unplugd ran."""
        for directory, suffix in (self.path, ".sock"), (self.state, ".new"), (self.state, ""):
            for name in os.listdir(directory):
                domid = name.removeprefix("dom").removesuffix(suffix)
                if name == f"dom{domid}{suffix}" and domid.isdigit() and int(domid) not in domids:
                    with contextlib.suppress(OSError):
                        (directory / name).unlink()
