"""A domain's socket: made, owned and listened on (contract sections 1 and 6). Who may connect is access.py's.

The path decides nothing: SO_PEERCRED does. The socket is bound under another name, gets its mode and owner, and only
then its place, so that nobody ever connects to one that is not ready, and a stale one is replaced at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import stat
from pathlib import Path
from typing import ClassVar

from unplugd.domains.domain import Domain
from unplugd.errors import HostError
from unplugd.host.systemd import Passed, forget_fd, store_fd
from unplugd.sinks.records import Event
from unplugd.sockets.access import ConnectionPolicy, credentials
from unplugd.sockets.connection import Connection, Judge
from unplugd.sockets.poller import ReadsConnections

_MODE = 0o600

BACKLOG = 512
"""Who may wait to be accepted at one socket."""
ACCEPTS = 4
"""Connections that one domain gets in an iteration of the event loop."""
ACCEPT_RETRY = 1.0
"""Seconds until accepting is tried again where there was no descriptor or no memory for it."""

CONNECTIONS_A_DOMAIN = 256
"""Connections that one domain may have: Xen's 128 vCPUs, twice. Fewer where there are few descriptors."""

_SHARE = 2
"""One in so many descriptors may be a device model's connection; of these, a quarter may be one domain's."""


def _inode_suffix(inode: tuple[int, int] | None) -> str:
    """End of a socket's name in systemd's store: device and inode of its path.

    They tell a socket whose path is still its own from one that was replaced: getsockname() only knows the name that
    the socket had before it got its place.
    """
    return "" if inode is None else "@{:x}.{}".format(*inode)


class Listener:
    """The socket of one domain and its connections."""

    open_connections: ClassVar[int] = 0
    """Connections of all domains that are open."""

    def __init__(self, domain: Domain, directory: Path, access: ConnectionPolicy, judge: Judge,
                 poller: ReadsConnections, *, keep: bool = False) -> None:
        """`keep`: leave the socket with systemd for the next process."""
        self.domain = domain
        self._keep = keep
        self._stored: str | None = None
        """The name under which systemd keeps the socket."""
        self.path = directory / f"dom{domain.domid}.sock"
        self._access = access
        self._judge = judge
        self._known_uid: int | None = None
        self._listening: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._inode: tuple[int, int] | None = None
        self._connections: set[Connection] = set()
        self._poller = poller

    def start(self, device_model_uid: int | None, passed: Passed) -> bool:
        """Listen, on the socket that an earlier process left with systemd (True) or on a new one (False).

        What is taken of `passed` is taken out. Raises HostError.
        """
        self._known_uid = device_model_uid
        adopted = self._adopt(passed)
        listening = adopted or self._bind()
        if adopted is None:
            name = self._names()[0] + _inode_suffix(self._inode)
            if self._keep and store_fd(name, listening.fileno()):
                self._stored = name
        self._listening = listening
        self._listen()
        return adopted is not None

    def _names(self) -> list[str]:
        """What names of the socket in systemd's store begin with: the uuid's, or without one while there was none."""
        plain = f"dom{self.domain.domid}"
        return [f"{plain}-{self.domain.uuid}", plain] if self.domain.uuid else [plain]

    def _adopt(self, passed: Passed) -> socket.socket | None:
        """A socket that is listened on already: whoever connected meanwhile waits in its queue."""
        mine = [begin for begin in self._names() if begin in passed]
        if not mine:
            return None
        inode = None
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            inode = status.st_dev, status.st_ino
        found = None
        for begin in mine:
            for name, listening in passed.pop(begin):
                if found is None and name == begin + _inode_suffix(inode) and self._owned():
                    found, self._stored, self._inode = listening, name, inode
                else:
                    listening.close()
                if name != self._stored:
                    forget_fd(name)
        return found

    def _owned(self) -> bool:
        try:
            self._own(os.fspath(self.path))
        except OSError:
            return False
        return True

    def _bind(self) -> socket.socket:
        path = os.fspath(self.path)
        new = path.removesuffix(".sock") + ".new"
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(bound.fileno(), _MODE)  # bind() gives it to the path
            try:
                bound.bind(new)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                os.unlink(new)
                bound.bind(new)
            bound.listen(BACKLOG)
            status = self._own(new)
            if stat.S_IMODE(status.st_mode) != _MODE:
                os.chmod(new, _MODE)
            os.rename(new, path)
        except OSError as error:
            bound.close()
            raise HostError("socket of a domain", path, error.strerror or str(error)) from error
        self._inode = status.st_dev, status.st_ino
        return bound

    def _own(self, path: str) -> os.stat_result:
        uid = self._access.device_model_uid(self.domain.domid, self._known_uid)
        if uid is None:
            uid = os.geteuid()
        status = os.stat(path)
        if status.st_uid != uid:
            os.chown(path, uid, -1)
        return status

    def configure(self, access: ConnectionPolicy, device_model_uid: int | None) -> None:
        """Another configuration, or xenstore says as whom the device model runs. Connections that exist stay."""
        self._access = access
        self._known_uid = device_model_uid
        try:
            if self._inode is not None:
                self._own(os.fspath(self.path))
        except OSError as error:
            self.domain.records.own(Event.SINK_FAILED, f"{self.path}: its owner could not be set: {error.strerror}")

    def _listen(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        """Somebody connects. A few at a time: a crowd at one domain's socket does not keep the others waiting."""
        if self._listening is None:
            return
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTS):
            try:
                peer = self._listening.accept()[0]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors or no memory: they wait in the queue
                loop.remove_reader(self._listening.fileno())
                self._retry = loop.call_later(ACCEPT_RETRY, self._listen)
                loop.call_exception_handler({"message": f"{self.path}: accept", "exception": error})
                return
            self._serve(peer)

    def _serve(self, peer: socket.socket) -> None:
        """Serve a client that has connected if it may, else close. Where serving fails, it alone is closed."""
        if not self._admit(peer):
            peer.close()
            return
        try:
            self._connections.add(Connection(self.domain, peer, self._poller, self._judge, self._closed))
        except (OSError, MemoryError) as error:
            peer.close()
            self._no_memory(error)
            return
        self._count(1)

    def _no_memory(self, error: Exception) -> None:
        self._deny(Event.CONNECTION_LIMIT, f"connection closed: there is no memory for it: {error!r}")

    def _count(self, more: int) -> None:
        Listener.open_connections += more
        self.domain.connections += more

    def _deny(self, event: Event, message: str) -> None:
        """A connection is closed at once: it is counted and said."""
        self.domain.settings.counters.denied_connections += 1
        self.domain.records.complain(event, message)

    def _most(self) -> tuple[int, int]:
        """How many connections there may be: of the domain, and of all."""
        in_all = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE
        return min(CONNECTIONS_A_DOMAIN, in_all // 4), in_all

    def _admit(self, peer: socket.socket) -> bool:
        """Whether a client may connect; where not, that is said."""
        domain = self.domain
        try:
            pid, uid = credentials(peer)
        except OSError:
            return False
        if not self._access.allows(uid, domain.domid, self._known_uid):
            self._deny(Event.CONNECTION_DENIED, f"connection of uid {uid} (pid {pid}) refused: it is"
                                                " not root, nor this domain's device model")
            return False
        most, in_all = self._most()
        if len(self._connections) >= most:
            self._deny(Event.CONNECTION_LIMIT, f"connection refused: the domain has {most} already")
            return False
        if Listener.open_connections >= in_all:
            self._deny(Event.CONNECTION_LIMIT, f"connection refused: all domains have {in_all} already")
            return False
        return True

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._count(-1)

    def close(self) -> None:
        """The domain is gone: no socket, no connections."""
        self._hang_up()
        if self._stored is not None:
            forget_fd(self._stored)
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._inode:  # not a successor's
                self.path.unlink()

    def stop(self) -> None:
        """unplugd stops. A socket that systemd keeps stays where it is: who connects waits for the next process."""
        if self._stored is not None:
            self._hang_up()
        else:
            self.close()

    def _hang_up(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
        for connection in list(self._connections):
            connection.close()
