"""The embedded store: what every store does, and what only it has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.store_behaviour import PATIENCE, Drive, Seen, StoreBehaviour
from unplugd.config.load import EmbeddedDomain, XenstoreConfig
from unplugd.errors import NoSuchNode, StoreUnavailable
from unplugd.xenstore.choice import open_store
from unplugd.xenstore.embedded import EmbeddedStore
from unplugd.xenstore.store import Store

UUID = "4f0e0c5e-0000-4000-8000-000000000007"


def run(scenario: Callable[[EmbeddedStore], Awaitable[None]], store: EmbeddedStore | None = None) -> None:
    """Run a scenario against a connected store."""

    async def main() -> None:
        under_test = store or EmbeddedStore()
        connected = asyncio.Event()
        task = asyncio.create_task(under_test.run(connected.set, lambda reason: None))
        async with asyncio.timeout(PATIENCE):
            await connected.wait()
        await scenario(under_test)
        await under_test.close()
        await task

    asyncio.run(main())


@pytest.fixture
def drive() -> Drive:
    def driver(scenario: Callable[[Store], Awaitable[None]]) -> None:
        run(scenario)

    return driver


class TestAsEveryStore(StoreBehaviour):
    pass


def test_the_configured_domains_are_there() -> None:
    async def scenario(store: EmbeddedStore) -> None:
        assert await store.directory("/local/domain") == ["7", "8"]
        assert await store.read("/local/domain/7/name") == b"web-01"
        assert await store.read("/local/domain/7/vm") == f"/vm/{UUID}".encode()
        assert await store.read(f"/vm/{UUID}/uuid") == UUID.encode()
        assert await store.directory("/local/domain/8") == ["domid"]
        assert [await store.is_introduced(domid) for domid in (7, 8, 9)] == [True, True, False]

    config = XenstoreConfig(
        backend="embedded", domains=(EmbeddedDomain(7, "web-01", UUID), EmbeddedDomain(8))
    )
    store = open_store(config)
    assert isinstance(store, EmbeddedStore)
    run(scenario, store)


def test_domains_come_and_go_and_watches_are_told() -> None:
    async def scenario(store: EmbeddedStore) -> None:
        come, gone, below = Seen(), Seen(), Seen()
        await store.watch("@introduceDomain", come)
        await store.watch("@releaseDomain", gone)
        await store.watch("/local/domain/7/name", below)
        store.introduce(7, "web-01", UUID)
        await come.until("@introduceDomain")
        await below.until("/local/domain/7/name")
        assert await store.is_introduced(7)
        store.release(7)
        await gone.until("@releaseDomain")
        assert below.paths == ["/local/domain/7/name", "/local/domain/7/name"]
        assert not await store.is_introduced(7)
        with pytest.raises(NoSuchNode):
            await store.read("/local/domain/7")
        with pytest.raises(NoSuchNode):
            await store.read(f"/vm/{UUID}")
        store.release(7)
        await store.write("/test", b"")
        assert (come.paths, gone.paths) == (["@introduceDomain"], ["@releaseDomain"])

    run(scenario)


def test_new_nodes_inherit_permissions() -> None:
    async def scenario(store: EmbeddedStore) -> None:
        await store.write("/a", b"")
        await store.set_permissions("/a", ["n0", "r7"])
        await store.write("/a/b/c", b"")
        assert store.permissions("/a/b/c") == ["n0", "r7"]
        await store.set_permissions("/a/b/c", ["n0"])
        assert store.permissions("/a/b/c") == ["n0"]

    run(scenario)


def test_before_it_runs_and_after_close_it_is_unavailable() -> None:
    async def main() -> None:
        store = EmbeddedStore()
        with pytest.raises(StoreUnavailable):
            await store.read("/")
        with pytest.raises(StoreUnavailable):
            async with store.transaction():
                pass
        task = asyncio.create_task(store.run(lambda: None, lambda reason: None))
        await asyncio.sleep(0)
        assert await store.directory("/") == []
        await store.close()
        await store.close()
        await task
        assert not store.connected
        with pytest.raises(StoreUnavailable):
            await store.read("/")
        with pytest.raises(StoreUnavailable):
            await store.watch("/a", Seen())
        with pytest.raises(RuntimeError):
            await store.run(lambda: None, lambda reason: None)

    asyncio.run(main())


def test_it_can_be_lost_and_come_back() -> None:
    async def main() -> None:
        store = EmbeddedStore()
        said: list[str] = []
        task = asyncio.create_task(store.run(lambda: said.append("connected"), said.append))
        await asyncio.sleep(0)
        seen, later = Seen(), Seen()
        await store.watch("/a", seen)

        async def lose_it_in_a_transaction() -> None:
            async with store.transaction():
                store.lose("pulled the plug")
                store.restore()

        with pytest.raises(StoreUnavailable, match="the transaction"):
            await lose_it_in_a_transaction()
        store.lose("pulled the plug")
        with pytest.raises(StoreUnavailable, match="pulled the plug"):
            await store.read("/a")
        armed = store.watch("/a", later)
        assert not armed.done()
        store.restore()
        await armed
        await store.write("/a", b"1")
        await seen.until("/a")
        await later.until("/a")
        assert said == ["connected", "pulled the plug", "connected", "pulled the plug", "connected"]
        assert store.reconnects == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not store.connected

    asyncio.run(main())


def test_a_watch_that_was_never_armed_can_be_ended_or_given_up() -> None:
    async def main() -> None:
        store = EmbeddedStore()
        ended, given_up, closed = (
            store.watch("/a", Seen()),
            store.watch("/b", Seen()),
            store.watch("/c", Seen()),
        )
        seen = Seen()
        other = store.watch("/d", seen)
        await store.unwatch("/d", seen)
        given_up.cancel()
        ended.cancel()
        await store.close()
        for future in (closed, other):
            with pytest.raises(StoreUnavailable):
                await future

    asyncio.run(main())
