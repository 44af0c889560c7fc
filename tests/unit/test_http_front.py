"""HTTP that is loaded when somebody asks: nobody is refused before, and the control socket's path ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
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
            with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HostError, match="in use"):
                await one.prepare(("127.0.0.1", taken.getsockname()[1]))
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


def test_the_listener_moves_between_addresses_that_overlap(tmp_path: Path) -> None:
    async def main() -> None:
        tcp = listen_tcp("127.0.0.1", 0)
        port = tcp[0].getsockname()[1]
        async with front(tmp_path / "control.sock", tcp) as one:
            for address in ("0.0.0.0", "127.0.0.1", "localhost", "*", "127.0.0.1", "127.0.0.1"):
                await one.replace(await one.prepare((address, port)))
                assert b" 200 " in await ask(("127.0.0.1", port))
            # the address is still ours alone: a second unplugd notices
            with pytest.raises(HostError, match="in use"):
                listen_tcp("127.0.0.1", port)

    asyncio.run(main())


def test_a_name_that_nobody_resolves_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()

    def slow(*arguments: object, **more: object) -> None:
        gone.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    async def main() -> None:
        async with front(tmp_path / "control.sock", []) as one:
            monkeypatch.setattr("unplugd.http.server.RESOLVE_DEADLINE", 0.1)
            monkeypatch.setattr(socket, "getaddrinfo", slow)
            with pytest.raises(HostError, match=r"name\.example:80: .*in time"):
                await one.prepare(("name.example", 80))
            gone.set()

    asyncio.run(main())


@pytest.mark.parametrize("host", ["127.0.0..1", "x" * 64, "a" * 300, "\udcff"])
def test_what_is_no_address_at_all_is_a_fault_of_the_host(host: str) -> None:
    with pytest.raises(HostError):
        listen_tcp(host, 0)
