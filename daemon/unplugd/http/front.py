"""HTTP for the service: sockets that listen from the start, and a server that is loaded for the first client.

Loading HTTP and its libraries takes a tenth of a second and 10 MiB. Guests must not wait for this at start, and a host
without scrapes does not need it. So they are loaded when the first client connects. client.py talks to the clients.
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
from unplugd.http.turns import HttpTurns

if TYPE_CHECKING:
    from unplugd.http.server import HttpServer


class HttpFront:
    """The control socket at `control`, and the listening sockets `tcp`, which this object owns and closes.

    Raises HostError if the control socket cannot be created; `tcp` is closed then.
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
        """For the control socket, and for TCP."""
        self._turns = HttpTurns()
        self._opening = asyncio.Lock()
        self._asked = asyncio.Event()

    async def serve(self) -> None:
        """Wait for the first client, then load and start the servers; returns when they run."""
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
        """Load and start the servers, if they do not run yet; returns the one for TCP."""
        async with self._opening:
            if self._servers is None:
                self._wait_no_more()
                # in a thread, so that guests wait for a slice of it only
                await asyncio.to_thread(importlib.import_module, "unplugd.http.server")
                from unplugd.http.server import HttpServer

                control, public = HttpServer(self._host, self._turns), HttpServer(self._host, self._turns)
                await control.start_control(self._listening, self._path)
                await public.start_sockets(self._tcp)
                self._servers = control, public
                self._asked.set()
            return self._servers[1]

    async def prepare(self, listen: tuple[str, int] | None) -> HttpServer:
        """A server at another TCP address, or at none, for replace(). Raises HostError if it cannot listen there."""
        current = await self._open()
        from unplugd.http.server import HttpServer

        server = HttpServer(self._host, self._turns)
        if listen is not None:
            await server.start_tcp(*listen, beside=current.tcp)
        return server

    async def replace(self, server: HttpServer) -> None:
        """Use the server from prepare() for TCP, and close the previous one."""
        if self._servers is not None:
            previous = self._servers[1]
            self._servers = self._servers[0], server
            await previous.close()

    async def close(self) -> None:
        """Stop listening, and remove the path of the control socket."""
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
