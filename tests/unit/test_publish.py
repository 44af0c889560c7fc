"""What the toolstack learns of a guest's driver: the nodes, their permissions, and when they are not written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.lab.host import OTHER_UUID, UUID, Host, connected, host, until
from unplugd.config.load import EmbeddedDomain
from unplugd.core.guest import Verdict
from unplugd.core.protocol import Effect
from unplugd.domains.domain import Domain
from unplugd.domains.publish import ATTEMPTS, Publisher
from unplugd.errors import NoSuchNode, StoreRefused, TransactionConflict
from unplugd.sinks.records import Event
from unplugd.xenstore.embedded import EmbeddedStore

HOME = "/local/domain/7"
BASE = f"{HOME}/unplug"


class World:
    """A publisher with one domain."""

    def __init__(self, one: Host, store: EmbeddedStore, *, enabled: bool) -> None:
        self.host = one
        self.store = store
        self.noted: list[bool] = []
        self.replaced: list[Domain] = []
        self.publisher = Publisher(one.say, noted=self._note, replaced=self.replaced.append)
        self.publisher.use(store, enabled=enabled)
        one.settings.published = lambda _domid: self.publisher.changed(self.domain)
        self.domain = one.domain()

    def _note(self, domain: Domain, published: bool) -> None:
        self.noted.append(published)

    def announce(self, product: int = 3, build: int = 1, *, blacklisted: bool = False, unplug: int = 3) -> None:
        """The guest's driver says who it is and unplugs."""
        guest = self.domain.guest
        guest.write(Effect.PRODUCT, product, 0.0)
        guest.judge(product, build, Verdict(blacklisted), 0.0)
        guest.write(Effect.UNPLUG, unplug, 0.0)
        self.domain.settle(time.monotonic())

    async def nodes(self) -> dict[str, str] | None:
        """What is published."""
        try:
            names = await self.store.directory(BASE)
        except NoSuchNode:
            return None
        return {name: (await self.store.read(f"{BASE}/{name}")).decode() for name in names}

    async def has(self, nodes: dict[str, str] | None) -> None:
        """Wait until just this is published."""
        for _ in range(2000):
            if await self.nodes() == nodes:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"published is {await self.nodes()}")


@asynccontextmanager
async def world(tmp_path: Path, *, enabled: bool = True, store: EmbeddedStore | None = None) -> AsyncIterator[World]:
    store = store or EmbeddedStore([EmbeddedDomain(7, "web-01", UUID)])
    async with host(tmp_path) as one, connected(store):
        it = World(one, store, enabled=enabled)
        yield it
        await it.publisher.stop()


LINUX = {"product": "3", "product-name": "linux", "build": "1", "blacklisted": "0", "unplugged": "3",
         "verdict": "allowed"}


def test_what_a_toolstack_reads(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            await it.has(LINUX)
            for path in [BASE, *(f"{BASE}/{name}" for name in LINUX)]:
                assert it.store.permissions(path) == ["n0"]

    asyncio.run(main())


def test_a_blacklisted_driver(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce(1, 2**32 - 1, blacklisted=True, unplug=0)
            await it.has({
                "product": "1", "product-name": "xensource-windows", "build": "4294967295", "blacklisted": "1",
                "unplugged": "0", "verdict": "refused",
            })  # fmt: skip

    asyncio.run(main())


def test_a_driver_that_nobody_registered_has_no_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce(0x777, 5)
            await it.has({"product": "1911", "build": "5", "blacklisted": "0", "unplugged": "3", "verdict": "allowed"})

    asyncio.run(main())


def test_a_bsd_says_only_what_is_unplugged(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.domain.guest.write(Effect.UNPLUG, 3, 0.0)
            it.domain.settle(time.monotonic())
            await it.has({"blacklisted": "0", "unplugged": "3"})

    asyncio.run(main())


def test_a_reset_removes_the_nodes(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            await it.has(LINUX)
            it.domain.guest.reset(time.monotonic())
            it.domain.settle(time.monotonic())
            await it.has(None)

    asyncio.run(main())


def test_what_no_longer_holds_is_taken_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            await it.has(LINUX)
            it.announce(0x777, 5)
            await it.has({"product": "1911", "build": "5", "blacklisted": "0", "unplugged": "3", "verdict": "allowed"})

    asyncio.run(main())


def test_after_the_first_at_most_once_a_second(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            written = 0
            real = it.store.transaction

            def counted() -> object:
                nonlocal written
                written += 1
                return real()

            it.store.transaction = counted  # type: ignore[method-assign,assignment] # a store that counts
            begin = time.monotonic()
            for build in range(40):
                it.announce(3, build)
                await asyncio.sleep(0.01)
            await it.has({**LINUX, "build": "39"})
            assert written <= 2 + (time.monotonic() - begin)

    asyncio.run(main())


@pytest.mark.parametrize("what", ["gone", "another", "unknown"])
def test_a_late_write_brings_no_destroyed_domain_back(tmp_path: Path, what: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            if what == "unknown":
                it.domain.uuid = ""
            else:
                it.store.release(7)
            if what == "another":
                it.store.introduce(7, "db-01", OTHER_UUID)
            it.announce()
            await asyncio.sleep(0.1)
            assert await it.nodes() is None
            if what == "gone":
                with pytest.raises(NoSuchNode):
                    await it.store.read(HOME)

    asyncio.run(main())


class Busy(EmbeddedStore):
    """A xenstored in which somebody else always writes in between, for a while."""

    conflicts = 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[int]:
        async with super().transaction() as tx:
            yield tx
            if self.conflicts:
                self.conflicts -= 1
                raise TransactionConflict


def test_a_conflict_is_tried_again(tmp_path: Path) -> None:
    async def main() -> None:
        store = Busy([EmbeddedDomain(7, "web-01", UUID)])
        store.conflicts = 3
        async with world(tmp_path, store=store) as it:
            it.announce()
            await it.has(LINUX)
            assert it.host.said == []

    asyncio.run(main())


def test_a_xenstore_that_is_too_busy_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        store = Busy([EmbeddedDomain(7, "web-01", UUID)])
        store.conflicts = ATTEMPTS
        async with world(tmp_path, store=store) as it:
            it.announce()
            await until(lambda: it.host.said)
            assert it.host.said[0][0] is Event.STORE_REFUSED

    asyncio.run(main())


class Quota(EmbeddedStore):
    """A xenstored without room."""

    def write(
        self, path: str, value: bytes, *, tx: int = 0, deadline: float | None = None
    ) -> asyncio.Future[None]:
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refused.set_exception(StoreRefused(path, "EQUOTA"))
        return refused


def test_a_refusal_is_said_with_its_reason(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, store=Quota([EmbeddedDomain(7, "web-01", UUID)])) as it:
            it.announce()
            await until(lambda: it.host.said)
            event, message = it.host.said[0]
            assert event is Event.STORE_REFUSED
            assert "domain 7" in message
            assert "EQUOTA" in message

    asyncio.run(main())


def test_off_means_nothing_is_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, enabled=False) as it:
            it.announce()
            await asyncio.sleep(0.05)
            assert await it.nodes() is None

    asyncio.run(main())


def test_after_a_loss_it_is_written_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            await it.has(LINUX)
            it.store.lose("crashed")
            it.publisher.lost()
            it.announce(3, 2)
            await asyncio.sleep(0.05)
            it.store.restore()
            await it.store.remove(BASE)
            it.publisher.changed(it.domain)
            await it.has({**LINUX, "build": "2"})
            assert it.host.said == [], "a lost connection is nobody's refusal"

    asyncio.run(main())


def test_what_is_published_already_is_not_written_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            await it.has(LINUX)
            await it.store.write(f"{BASE}/build", b"tampered")
            it.publisher.changed(it.domain)
            await asyncio.sleep(1.3)
            assert (await it.nodes() or {})["build"] == "tampered"

    asyncio.run(main())


def test_a_released_domain_is_forgotten_in_the_middle(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            it.publisher.forget(it.domain)
            it.publisher.forget(it.domain)
            await asyncio.sleep(0.05)
            assert await it.nodes() is None
            stranger: Domain = it.host.domain(8, "db", OTHER_UUID)
            it.publisher.forget(stranger)

    asyncio.run(main())


def test_all_at_once_after_a_connect_writes_what_is_missing_and_takes_out_what_no_longer_holds(tmp_path: Path) -> None:
    async def main() -> None:
        store = EmbeddedStore([EmbeddedDomain(7, "web-01", UUID), EmbeddedDomain(8, "db-01", OTHER_UUID)])
        async with world(tmp_path, store=store) as it:
            for name in ("build", "unplugged"):  # of before a reset that nobody published
                await store.write(f"/local/domain/8/unplug/{name}", b"1")
            other = it.host.domain(8, "db-01", OTHER_UUID)
            it.publisher.enabled = False
            it.announce()
            it.publisher.enabled = True
            await it.publisher.publish_all([it.domain, other])
            await it.has(LINUX)
            for _ in range(2000):
                if "unplug" not in await store.directory("/local/domain/8"):
                    break
                await asyncio.sleep(0.01)
            assert "unplug" not in await store.directory("/local/domain/8")

    asyncio.run(main())


def test_all_at_once_without_a_connection_is_no_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            await it.has(LINUX)
            it.store.lose("gone")
            await it.publisher.publish_all([it.domain])
            it.publisher.enabled = False
            await it.publisher.publish_all([it.domain])

    asyncio.run(main())


def test_whether_nodes_are_there_is_noted_before_they_go_and_after_they_come(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            await it.has(LINUX)
            await until(lambda: it.noted == [True])
            it.domain.guest.reset(0.0)
            it.domain.settle(time.monotonic())
            await it.has(None)
            assert it.noted[:2] == [True, False]
            it.announce()
            await it.has(LINUX)
            await until(lambda: it.noted[-1])
            it.publisher.lost()
            assert not it.noted[-1]

    asyncio.run(main())


@pytest.mark.parametrize("gone", [True, False])
def test_a_directory_that_was_made_anew_is_another_guests(tmp_path: Path, gone: bool) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.announce()
            await it.has(LINUX)
            if gone:
                await it.store.remove(BASE)  # with the domain's directory, which is there again
            it.publisher.verify(it.domain)
            if gone:
                await until(lambda: it.replaced == [it.domain])
                assert await it.nodes() is None
            else:
                await asyncio.sleep(0.5)
                assert it.replaced == []
                assert await it.nodes() == LINUX

    asyncio.run(main())
