"""A device model's end of a domain's socket, inside the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.frames import Answer, answers
from tests.lab.host import Host
from unplugd.core.guest import Verdict
from unplugd.core.stream import NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.sockets.access import ConnectionPolicy
from unplugd.sockets.connection import Judge
from unplugd.sockets.listener import Listener

PATIENCE = 30.0


def allowed(_domain: Domain, _need: NeedVerdict, _deadline: float) -> asyncio.Future[Verdict]:
    """Everybody is welcome."""
    verdict = asyncio.get_running_loop().create_future()
    verdict.set_result(Verdict(blacklisted=False))
    return verdict


class Client:
    """One connection."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, path: Path) -> Client:
        """Connect to a domain's socket."""
        self = cls()
        try:
            await self.loop.sock_connect(self.socket, str(path))
        except OSError:
            self.socket.close()
            raise
        return self

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await asyncio.wait_for(self.loop.sock_sendall(self.socket, data), PATIENCE)

    async def receive(self, size: int) -> bytes:
        """Just so many bytes, fewer only at the end of the connection."""
        data = b""
        while len(data) < size:
            try:
                piece = await asyncio.wait_for(self.loop.sock_recv(self.socket, size - len(data)), PATIENCE)
            except ConnectionResetError:
                break
            if not piece:
                break
            data += piece
        return data

    async def ask(self, request: bytes) -> Answer:
        """One request, one response without a payload."""
        await self.send(request)
        (answer,) = answers(await self.receive(32))
        return answer

    async def ended(self) -> bool:
        """Whether the other end closes, with nothing more to say."""
        return await self.receive(1) == b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()


@asynccontextmanager
async def served(
    one: Host, domain: Domain, judge: Judge = allowed, access: ConnectionPolicy | None = None
) -> AsyncIterator[Listener]:
    """A domain's socket, for a while."""
    # root may always; anybody else who runs the tests is the device model
    own = ConnectionPolicy(None if os.geteuid() == 0 else [os.geteuid()])
    listener = Listener(domain, one.directory, access or own, judge, one.poller)
    listener.start(None, {})
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(ValueError):
            domain.stop()
        await asyncio.sleep(0.01)
