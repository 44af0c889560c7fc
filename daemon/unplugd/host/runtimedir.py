"""The runtime directory: creates and locks it, removes files of released domains, and creates sockets for root.

The content of its files belongs to domains/statefile.py, sinks/spool.py and blacklist/verdicts.py; its sockets belong
to sockets/listener.py and http/sockets.py.
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
from unplugd.host.ownfiles import make_directory, open_file


def listen_for_root(
    what: str, path: Path, backlog: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A socket that listens at `path` for root only; a socket of a dead process there is replaced.

    `what` is its name in errors. Raises HostError if `path` is something else or cannot be used.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise HostError(what, str(path), "another file, not a socket, is there")
            path.unlink()
        bound = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        try:
            bound.bind(str(path))
            path.chmod(0o600)  # before listen(): until then no client can connect
            bound.listen(backlog)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise HostError(what, str(path), error.strerror or str(error)) from error
    return bound


class RuntimeDirectory:
    """`runtime_dir` (0755, for device models of other uids) with `state` in it (0700).

    This process locks it until it ends. Raises HostError if it cannot be used or another unplugd has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"
        try:
            for directory, mode in (path, 0o755), (self.state, 0o700):
                if make_directory(directory, mode).st_mode & 0o7777 != mode:
                    directory.chmod(mode)
            self._lock = open_file(self.state / "lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise HostError("runtime_dir", str(error.filename or path), error.strerror or str(error)) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HostError("runtime_dir", str(path), "another unplugd uses it") from None

    def reload_is_awaited(self) -> bool:
        """Whether the unit's ExecReload= waits: it creates the file `reload` before it sends SIGHUP."""
        return (self.path / "reload").exists()

    def answer_reload(self, problem: str) -> None:
        """Tell ExecReload= the result: write `reload.refused` if the reload was refused, then remove `reload`."""
        with contextlib.suppress(OSError):
            if problem:
                (self.path / "reload.refused").write_text(problem + "\n", "utf-8")
            (self.path / "reload").unlink()

    def remove_stale(self, domids: Container[int]) -> None:
        """Remove sockets and state of all other domains: they were released while unplugd did not run."""
        for directory, suffix in (self.path, ".sock"), (self.state, ".new"), (self.state, ""):
            for name in os.listdir(directory):
                domid = name.removeprefix("dom").removesuffix(suffix)
                if name == f"dom{domid}{suffix}" and domid.isdecimal() and int(domid) not in domids:
                    with contextlib.suppress(OSError):
                        (directory / name).unlink()
