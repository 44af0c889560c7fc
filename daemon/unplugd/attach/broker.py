"""The messages between a domain's process and the supervisor, over a socket pair of datagrams.

A domain's process is not root, has an empty root directory and may not create sockets, so it cannot connect to
anything. It asks the supervisor, which connects and passes the descriptor. It can only ask for the sockets of its own
domain.

    child -> supervisor    b"connect unplugd"   b"connect pages"   b"connect qemu"   b"log TEXT"   b"attached TEXT"
    supervisor -> child    b"connected WHAT" with a descriptor    b"refused WHAT"    b"detach"
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

MESSAGE_LIMIT = 1024
"""Bytes of a message; longer log texts are cut."""


def pair() -> tuple[socket.socket, socket.socket]:
    """A new pair: the supervisor's end and the child's. Neither blocks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


class ChildEnd:
    """The child's end. `detach` is called when the supervisor sends it; `gone` when the supervisor has ended."""

    def __init__(self, end: socket.socket, detach: Callable[[], None], gone: Callable[[], None]) -> None:
        self._end = end
        self._detach = detach
        self._gone = gone
        self._waiting: dict[str, asyncio.Future[socket.socket]] = {}

    def start(self) -> None:
        """Begin to listen, in the running loop."""
        asyncio.get_running_loop().add_reader(self._end.fileno(), self._readable)

    def stop(self) -> None:
        """Listen no more."""
        asyncio.get_running_loop().remove_reader(self._end.fileno())

    def say(self, kind: str, text: str) -> None:
        """Send a `log` or `attached` message; lost if the supervisor does not keep up."""
        # Cut by bytes, not characters, because the limit is that of a datagram.
        message = f"{kind} {text}".encode("utf-8", "backslashreplace")[:MESSAGE_LIMIT]
        try:
            self._end.send(message)
        except OSError:
            pass

    def log(self, text: str) -> None:
        """Have the supervisor record something."""
        self.say("log", text)

    async def connect(self, what: str) -> socket.socket:
        """A new connection to `unplugd` or `qemu`. Raises OSError when it cannot be had now."""
        future: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        if what in self._waiting:
            raise BlockingIOError(f"a connection to {what} is being made")
        self._waiting[what] = future
        try:
            self._end.send(f"connect {what}".encode())
            return await future
        finally:
            del self._waiting[what]

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._end, MESSAGE_LIMIT, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        connections = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        verb, _, what = data.decode("ascii", "replace").partition(" ")
        waiting = self._waiting.get(what)
        match verb:
            case "connected" if connections and waiting is not None and not waiting.done():
                connection = connections.pop()
                connection.setblocking(False)
                waiting.set_result(connection)
            case "refused" if waiting is not None and not waiting.done():
                waiting.set_exception(ConnectionRefusedError(f"{what} cannot be reached"))
            case "detach":
                self._detach()
            case "":
                self.stop()
                self._gone()
        for connection in connections:
            connection.close()
