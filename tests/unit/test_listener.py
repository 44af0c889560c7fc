"""A domain's socket: where it is, whose it is, and who may connect (contract sections 1 and 6)."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab.client import Client, allowed, served
from tests.lab.host import Host, host, until
from tests.lab.portio import frame
from unplugd.errors import HostError
from unplugd.sinks.records import Event
from unplugd.sockets.access import Access
from unplugd.sockets.listener import Listener

MAGIC = frame(0x10, 2, read=True)
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def run(tmp_path: Path, test: Callable[[Host], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with host(tmp_path) as one:
            await test(one)

    asyncio.run(main())


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The users that this host has."""
    there: dict[str, int] = {}

    def getpwnam(name: str) -> SimpleNamespace:
        return SimpleNamespace(pw_uid=there[name])

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    return there


def test_root_may_always(users: dict[str, int]) -> None:
    assert Access(None).allows(0, 7, None)
    assert Access([1000]).allows(0, 7, None)


def test_the_uid_that_xenstore_names(users: dict[str, int]) -> None:
    access = Access(None)
    assert access.device_model_uid(7, 1234) == 1234
    assert access.allows(1234, 7, 1234)
    assert not access.allows(1235, 7, 1234)
    assert not access.allows(1234, 7, None)


def test_a_uid_for_each_domain(users: dict[str, int]) -> None:
    users["xen-qemuuser-range-base"] = 131072
    access = Access(None)
    assert access.device_model_uid(7, None) == 131079
    assert access.allows(131079, 7, None)
    assert not access.allows(131080, 7, None), "another domain's device model"
    assert not access.allows(131072, 7, None)
    assert access.allows(5, 7, 5), "xenstore knows better"
    assert not access.allows(131079, 7, 5)


def test_a_shared_uid_says_nothing_about_the_domain(users: dict[str, int]) -> None:
    users["xen-qemuuser-shared"] = 999
    assert not Access(None).allows(999, 7, None)
    assert not Access(None).allows(999, 7, 999)
    assert Access(None).device_model_uid(7, 999) is None
    assert Access([999]).allows(999, 7, 999), "unless listed"


def test_a_uid_that_two_domains_name_lets_neither_in_until_one_is_gone(users: dict[str, int]) -> None:
    access = Access(None)
    assert access.learn(7, 1234) == {7}
    assert access.allows(1234, 7, 1234)
    assert access.learn(8, 1234) == {7, 8}, "both sockets change their owner"
    assert not access.allows(1234, 7, 1234)
    assert not access.allows(1234, 8, 1234)
    assert access.learn(8, None) == {7, 8}
    assert access.allows(1234, 7, 1234)
    assert access.learn(7, 5) == {7}
    assert not access.allows(1234, 7, 5)


def test_listed_uids(users: dict[str, int]) -> None:
    users["xen-qemuuser-range-base"] = 131072
    access = Access([1000, 1001])
    assert access.device_model_uid(7, 5) == 1000, "the first of which owns the sockets"
    assert access.allows(1001, 7, None)
    assert not access.allows(131079, 7, None)
    assert not access.allows(5, 7, 5)


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
        listener = Listener(domain, tmp_path, Access(None), allowed)
        listener.start(1234, {})
        assert listener.path.stat().st_uid == 1234
        listener.configure(Access([NOBODY]), 1234)
        assert listener.path.stat().st_uid == NOBODY
        listener.configure(Access(None), None)
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
        first = Listener(domain, tmp_path, Access(None), allowed)
        first.start(None, {})
        async with served(one, domain) as second:
            first.close()
            with await Client.connect(second.path) as client:
                assert (await client.ask(MAGIC)).data == 0x49D2

    run(tmp_path, main)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        listener = Listener(one.domain(), tmp_path / "gone", Access(None), allowed)
        with pytest.raises(HostError) as caught:
            listener.start(None, {})
        assert str(tmp_path / "gone" / "dom7.sock") in str(caught.value)
        listener.close()

    run(tmp_path, main)


def test_before_it_is_there_a_change_of_owner_is_no_failure(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        listener = Listener(one.domain(), tmp_path, Access(None), allowed)
        listener.configure(Access(None), 5)
        assert one.journald.of(Event.SINK_FAILED) == []

    run(tmp_path, main)


def test_a_socket_that_somebody_removed_is_said(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        async with served(one, one.domain()) as listener:
            listener.path.unlink()
            listener.configure(Access(None), None)
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
        async with served(one, one.domain(), access=Access([NOBODY])) as listener:
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
