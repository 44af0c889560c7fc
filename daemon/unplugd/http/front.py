"""HTTP as the service has it: sockets that listen from the start, and a server that is loaded when somebody asks.

HTTP and its libraries take a tenth of a second and 10 MiB, which no guest should wait for and no host should give that
nobody scrapes. Until the first client they are not there; that one waits a little longer. What is said is client.py's.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from unplugd.http.metrics import HostView
from unplugd.http.sockets import listen_control

if TYPE_CHECKING:
    from unplugd.http.server import HttpServer


class HttpFront:
    """The control socket at `control` and the listening sockets `tcp`, which are this object's from now on.

    Raises HostError where the control socket cannot be had; then `tcp` is closed.
    """

    def __init__(self, host: HostView, control: Path, tcp: list[socket.socket]) -> None:
        self._host = host
        self._path = control
        self._tcp = tcp
        try:
            self._listening = listen_control(control)
        except BaseException:
            for each in tcp:
                each.close()
            raise
        self._inode = control.lstat().st_ino
        self._servers: tuple[HttpServer, HttpServer] | None = None
        """Of the control socket, and of everybody else's."""
        self._opening = asyncio.Lock()
        self._asked = asyncio.Event()

    async def serve(self) -> None:
        """Wait for the first client, and have it and all others served; returns once they are."""
        if self._servers is None and not self._opening.locked():
            for each in self._sockets:
                asyncio.get_running_loop().add_reader(each, self._asked.set)
        await self._asked.wait()
        await self._open()

    @property
    def _sockets(self) -> list[socket.socket]:
        return [self._listening, *self._tcp]

    def _wait_no_more(self) -> None:
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)

    async def _open(self) -> HttpServer:
        """Load and start the servers, if that has not been done; returns the one that everybody may ask."""
        async with self._opening:
            if self._servers is None:
                self._wait_no_more()
                # in a thread, so that guests wait for a slice of it only
                await asyncio.to_thread(importlib.import_module, "unplugd.http.server")
                from unplugd.http.server import HttpServer

                control, public = HttpServer(self._host), HttpServer(self._host)
                await control.start_control(self._listening, self._path)
                await public.start_sockets(self._tcp)
                self._servers = control, public
                self._asked.set()
            return self._servers[1]

    async def prepare(self, listen: tuple[str, int] | None) -> HttpServer:
        """A server at another TCP address, or at none, for replace(). Raises HostError if that is not to be had."""
        await self._open()
        from unplugd.http.server import HttpServer

        server = HttpServer(self._host)
        if listen is not None:
            await server.start_tcp(*listen)
        return server

    async def replace(self, server: HttpServer) -> None:
        """Serve everybody with what prepare() gave, no longer where it was until now."""
        if self._servers is not None:
            previous = self._servers[1]
            self._servers = self._servers[0], server
            await previous.close()

    async def close(self) -> None:
        """Stop listening; the control socket's path is gone with it."""
        if self._servers is not None:
            for server in self._servers:
                await server.close()
            return
        self._wait_no_more()
        for each in self._sockets:
            each.close()
        with suppress(OSError):
            if self._path.lstat().st_ino == self._inode:  # and not another process's by now
                self._path.unlink()
