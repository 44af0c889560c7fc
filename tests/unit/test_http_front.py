"""HTTP that is loaded when somebody asks: nobody is refused before, and the control socket's path ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.lab.host import until
from tests.lab.hostview import StandInHost
from unplugd.errors import HostError
from unplugd.http.front import HttpFront
from unplugd.http.sockets import listen_tcp

READY = b"GET /-/healthy HTTP/1.0\r\n\r\n"


async def ask(address: Path | tuple[str, int]) -> bytes:
    """The first line of the answer."""
    if isinstance(address, Path):
        reader, writer = await asyncio.open_unix_connection(str(address))
    else:
        reader, writer = await asyncio.open_connection(*address)
    writer.write(READY)
    line = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    return line


@asynccontextmanager
async def front(path: Path, tcp: list[socket.socket]) -> AsyncIterator[HttpFront]:
    one = HttpFront(StandInHost(), path, tcp)
    task = asyncio.get_running_loop().create_task(one.serve())
    try:
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await one.close()


def test_who_asks_is_answered_at_each_socket(tmp_path: Path) -> None:
    async def main() -> None:
        tcp = listen_tcp("127.0.0.1", 0)
        address = tcp[0].getsockname()
        path = tmp_path / "control.sock"
        async with front(path, tcp):
            assert b" 200 " in await ask(address)
            assert b" 200 " in await ask(path)
        assert not path.exists()

    asyncio.run(main())


def test_without_a_client_the_sockets_go_at_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        tcp = listen_tcp("127.0.0.1", 0)
        path = tmp_path / "control.sock"
        async with front(path, tcp):
            assert path.exists()
        assert not path.exists()
        assert tcp[0].fileno() == -1

    asyncio.run(main())


def test_a_successors_control_socket_stays(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "control.sock"
        async with front(path, []):
            path.rename(tmp_path / "before")
            path.touch()
        assert path.exists()

    asyncio.run(main())


def test_another_address_before_anybody_asked(tmp_path: Path) -> None:
    async def main() -> None:
        before = listen_tcp("127.0.0.1", 0)
        old, (probe,) = before[0].getsockname(), listen_tcp("127.0.0.1", 0)
        new = probe.getsockname()
        probe.close()
        path = tmp_path / "control.sock"
        async with front(path, before) as one:
            with pytest.raises(HostError):
                await one.prepare(("127.0.0.1", old[1]))
            assert b" 200 " in await ask(old)
            await one.replace(await one.prepare(new))
            assert b" 200 " in await ask(new)
            with pytest.raises(OSError, match=r"refused|Connect"):
                await ask(old)
            await one.replace(await one.prepare(None))
            with pytest.raises(OSError, match=r"refused|Connect"):
                await ask(new)
            assert b" 200 " in await ask(path)
        await until(lambda: not path.exists())

    asyncio.run(main())


def test_a_control_socket_that_cannot_be_had_closes_the_others(tmp_path: Path) -> None:
    tcp = listen_tcp("127.0.0.1", 0)
    (tmp_path / "control.sock").mkdir()
    with pytest.raises(HostError):
        HttpFront(StandInHost(), tmp_path / "control.sock", tcp)
    assert tcp[0].fileno() == -1
