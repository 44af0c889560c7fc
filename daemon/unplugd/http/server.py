"""The HTTP server: its listeners, and which pages each serves. client.py limits the cost of a client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from unplugd.errors import HostError
from unplugd.http.client import HttpConnection, HttpListener
from unplugd.http.metrics import HostView
from unplugd.http.pages import Pages
from unplugd.http.sockets import BACKLOG, listen_tcp, resolve
from unplugd.http.turns import HttpTurns

ACCEPTS = 4
"""Connections that a listener accepts in an iteration of the event loop."""

CLOSE_DEADLINE = 2.0
"""Seconds that close() gives the connections to go."""

RESOLVE_DEADLINE = 5.0
"""Seconds that the name of an address may take."""


class HttpServer:
    """All listeners of the service. Those of start_tcp() and start_sockets() serve only the public pages."""

    def __init__(self, host: HostView, turns: HttpTurns | None = None) -> None:
        """`turns` are those of all servers of the process."""
        self._host = host
        self._pages = Pages(host)
        self._turns = turns or HttpTurns()
        self._listeners: list[tuple[asyncio.Server, HttpListener]] = []
        self._control_file: tuple[Path, int] | None = None
        self.tcp: list[socket.socket] = []
        """The listening sockets that anybody may use."""

    async def start_tcp(
        self, address: str, port: int, beside: Sequence[socket.socket] = ()
    ) -> tuple[str, int]:
        """Listen at a TCP address; returns the actual address (port 0 lets the kernel choose one).

        `beside`: see listen_tcp(). Without a network there is no listener, and the port stays 0. Raises HostError if
        the address cannot be used.
        """
        try:
            found = await asyncio.wait_for(asyncio.to_thread(resolve, address, port), RESOLVE_DEADLINE)
        except TimeoutError:
            raise HostError("HTTP listener", f"{address}:{port}", "the name is not resolved in time") from None
        await self.start_sockets(listen_tcp(address, port, found, beside))
        name = self.tcp[0].getsockname() if self.tcp else (address, 0)
        return name[0], name[1]

    async def start_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Serves listening sockets that systemd passed, TCP or unix. HttpServer closes them from now on."""
        for passed in sockets:
            passed.setblocking(False)
            listener = HttpListener(self._pages, self._turns, self._host.denied, everything=False)
            self._listeners.append((await _serve(passed, listener), listener))
            self.tcp.append(passed)

    async def start_control(self, bound: socket.socket, path: Path) -> None:
        """Serves everything on a socket that sockets.listen_control() made at `path`."""
        listener = HttpListener(self._pages, self._turns, self._host.denied, everything=True)
        self._listeners.append((await _serve(bound, listener), listener))
        self._control_file = (path, _inode(path))

    async def close(self) -> None:
        """Stops all listeners, closes all connections and removes the control socket."""
        listeners, self._listeners = self._listeners, []
        await _close(listeners)
        if self._control_file is not None:
            path, inode = self._control_file
            self._control_file = None
            _remove(path, inode)


def _inode(path: Path) -> int:
    return path.lstat().st_ino


def _remove(path: Path, inode: int) -> None:
    with suppress(OSError):
        if _inode(path) == inode:   # and not another process's by now
            path.unlink()


async def _serve(bound: socket.socket, listener: HttpListener) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if bound.family == socket.AF_UNIX:
        server = await loop.create_unix_server(lambda: HttpConnection(listener), sock=bound, backlog=ACCEPTS)
    else:
        server = await loop.create_server(lambda: HttpConnection(listener), sock=bound, backlog=ACCEPTS)
    bound.listen(BACKLOG)   # asyncio accepts as many at a time as it has the kernel queue, which may be more
    return server


async def _close(listeners: list[tuple[asyncio.Server, HttpListener]]) -> None:
    for server, listener in listeners:
        server.close()
        for connection in list(listener.connections):
            connection.abort()
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*(server.wait_closed() for server, _ in listeners)), CLOSE_DEADLINE)
