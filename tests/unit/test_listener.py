"""A domain's socket: where it is, and whose it is (contract sections 1 and 6)."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.lab.client import Client, allowed, served
from tests.lab.frames import frame
from tests.lab.host import Host, host, until
from unplugd.errors import HostError
from unplugd.sinks.records import Event
from unplugd.sockets.access import ConnectionPolicy
from unplugd.sockets.listener import Listener

MAGIC = frame(0x10, 2, read=True)
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def run(tmp_path: Path, test: Callable[[Host], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with host(tmp_path) as one:
            await test(one)

    asyncio.run(main())


def test_where_it_is_and_whose(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        async with served(one, one.domain()) as listener:
            assert listener.path == tmp_path / "dom7.sock"
            status = listener.path.stat()
            assert stat.S_ISSOCK(status.st_mode)
            assert stat.S_IMODE(status.st_mode) == 0o600
            assert status.st_uid == os.geteuid()
            assert [path.name for path in tmp_path.glob("dom*")] == ["dom7.sock"]
        assert not listener.path.exists()

    run(tmp_path, main)


@needs_root
def test_it_belongs_to_its_device_model(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        listener = Listener(domain, tmp_path, ConnectionPolicy(None), allowed, one.poller)
        listener.start(1234, {})
        assert listener.path.stat().st_uid == 1234
        listener.configure(ConnectionPolicy([NOBODY]), 1234)
        assert listener.path.stat().st_uid == NOBODY
        listener.configure(ConnectionPolicy(None), None)
        assert listener.path.stat().st_uid == 0
        listener.close()

    run(tmp_path, main)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        for name in ("dom7.sock", "dom7.new"):
            stale = socket.socket(socket.AF_UNIX)
            stale.bind(str(tmp_path / name))
            stale.close()
        async with served(one, one.domain()) as listener:
            with await Client.connect(listener.path) as client:
                assert (await client.ask(MAGIC)).data == 0x49D2

    run(tmp_path, main)


def test_the_sockets_of_a_successor_stay(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        first = Listener(domain, tmp_path, ConnectionPolicy(None), allowed, one.poller)
        first.start(None, {})
        async with served(one, domain) as second:
            first.close()
            with await Client.connect(second.path) as client:
                assert (await client.ask(MAGIC)).data == 0x49D2

    run(tmp_path, main)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        listener = Listener(one.domain(), tmp_path / "gone", ConnectionPolicy(None), allowed, one.poller)
        with pytest.raises(HostError) as caught:
            listener.start(None, {})
        assert str(tmp_path / "gone" / "dom7.sock") in str(caught.value)
        listener.close()

    run(tmp_path, main)


def test_before_it_is_there_a_change_of_owner_is_no_failure(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        listener = Listener(one.domain(), tmp_path, ConnectionPolicy(None), allowed, one.poller)
        listener.configure(ConnectionPolicy(None), 5)
        assert one.journald.of(Event.SINK_FAILED) == []

    run(tmp_path, main)


def test_a_socket_that_somebody_removed_is_said(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        async with served(one, one.domain()) as listener:
            listener.path.unlink()
            listener.configure(ConnectionPolicy(None), None)
            assert "owner" in one.journald.of(Event.SINK_FAILED)[0]

    run(tmp_path, main)


def connect_as(uid: int, path: Path) -> Client:
    """A connection of another user, whatever the directories on the way let it see."""
    client = Client()
    handle = os.open(path, os.O_PATH)
    os.seteuid(uid)
    try:
        client.socket.connect(f"/proc/self/fd/{handle}")
    finally:
        os.seteuid(0)
        os.close(handle)
    return client


@needs_root
def test_another_user_is_closed_at_once_counted_and_logged(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            listener.path.chmod(0o666)  # the path decides nothing
            with connect_as(NOBODY, listener.path) as client:
                assert await client.ended()
            assert one.counters.denied_connections == 1
            assert f"uid {NOBODY}" in one.journald.of(Event.CONNECTION_DENIED)[0]
            assert domain.connections == 0
            assert sum(one.counters.ioreqs.values()) == 0

    run(tmp_path, main)


@needs_root
def test_the_device_models_uid_is_let_in(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        async with served(one, one.domain(), access=ConnectionPolicy([NOBODY])) as listener:
            with connect_as(NOBODY, listener.path) as client:
                assert (await client.ask(MAGIC)).data == 0x49D2
            assert one.counters.denied_connections == 0

    run(tmp_path, main)


def test_more_connections_than_a_domain_can_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unplugd.sockets.listener.CONNECTIONS_A_DOMAIN", 3)

    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            clients = [await Client.connect(listener.path) for _ in range(3)]
            for client in clients:
                await client.ask(MAGIC)
            with await Client.connect(listener.path) as fourth:
                assert await fourth.ended()
            assert one.journald.of(Event.CONNECTION_LIMIT)
            clients.pop().socket.close()
            await until(lambda: domain.connections == 2)
            with await Client.connect(listener.path) as again:
                assert (await again.ask(MAGIC)).data == 0x49D2
            for client in clients:
                client.socket.close()

    run(tmp_path, main)


def test_closing_hangs_up(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                await client.ask(MAGIC)
                listener.stop()
                assert await client.ended()
                await until(lambda: domain.connections == 0)
                with pytest.raises(OSError, match=r"No such file|refused"):
                    await Client.connect(listener.path)

    run(tmp_path, main)
