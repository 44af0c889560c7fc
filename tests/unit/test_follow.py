"""Which domains there are, by what xenstore says: introductions, releases, losses, domids used again (section 1)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from tests.lab.host import OTHER_UUID, UUID, connected, until
from unplugd.config.load import EmbeddedDomain
from unplugd.domains.follow import DomainFollower
from unplugd.domains.nodes import DomainNodes
from unplugd.errors import StoreUnavailable
from unplugd.host import longwork
from unplugd.sinks.records import Event
from unplugd.xenstore.embedded import EmbeddedStore
from unplugd.xenstore.store import INTRODUCE_DOMAIN, RELEASE_DOMAIN

WEB = EmbeddedDomain(7, "web-01", UUID)
WEB_FACTS = DomainNodes("web-01", UUID)


class Register:
    """A DomainObserver that writes down what it is told, and insists on sense in it."""

    def __init__(self) -> None:
        self.there: dict[int, DomainNodes] = {}
        self.told: list[str] = []
        self.touches = 0

    def introduced(self, domid: int, facts: DomainNodes) -> None:
        assert domid not in self.there
        self.there[domid] = facts
        self.told.append(f"+{domid}")

    def changed(self, domid: int, facts: DomainNodes) -> None:
        before = self.there[domid]
        assert facts != before
        assert not before.uuid or facts.uuid == before.uuid
        self.there[domid] = facts
        self.told.append(f"~{domid}")

    def touched(self, domid: int) -> None:
        assert domid in self.there
        self.touches += 1

    def released(self, domid: int) -> None:
        del self.there[domid]
        self.told.append(f"-{domid}")


class Store(EmbeddedStore):
    """An embedded store that can forget its domains, as a xenstored that crashed, and fail."""

    def __init__(self, domains: Iterable[EmbeddedDomain] = ()) -> None:
        super().__init__(domains)
        self.failing = 0
        self.reads: list[str] = []

    def read(self, path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[bytes]:
        self.reads.append(path)
        if self.failing:
            self.failing -= 1
            late: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            late.set_exception(StoreUnavailable("no answer in time"))
            return late
        return super().read(path, tx=tx, deadline=deadline)

    def fire(self, event: str) -> None:
        """An event for no reason."""
        self._tree.touched.append((event, False))
        self._tell()

    def crash_empty(self) -> None:
        """The connection is lost, and what comes back knows nobody."""
        self.lose("crashed")
        for domid in self._domids:
            self._tree.remove(f"/local/domain/{domid}")
        self._domids.clear()
        self._tree.touched.clear()

    def introduce_without_nodes(self, domid: int) -> None:
        """xl has not written anything yet."""
        self._domids.add(domid)
        self.fire(INTRODUCE_DOMAIN)


class World:
    """Domains on a store, as the service drives them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.register = Register()
        self.said: list[tuple[Event, str]] = []
        self.domains = DomainFollower(self.register, lambda event, message: self.said.append((event, message)))
        self.domains.use(store)

    async def settled(self) -> None:
        """Nothing more comes."""
        for _ in range(60):
            await asyncio.sleep(0.002)

    async def reconnect(self) -> None:
        """As the service does after a loss."""
        self.domains.lost()
        self.store.restore()
        await self.domains.scan(after_release=False)


@asynccontextmanager
async def world(*domains: EmbeddedDomain, first_scan: bool = True) -> AsyncIterator[World]:
    store = Store(domains)
    it = World(store)
    it.domains.arm()
    async with connected(store):
        if first_scan:
            await it.domains.scan(after_release=False)
        task = asyncio.get_running_loop().create_task(it.domains.follow())
        try:
            yield it
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await it.domains.stop()


def test_domains_that_exist_at_start() -> None:
    async def main() -> None:
        async with world(WEB, EmbeddedDomain(8)) as it:
            assert it.register.there == {7: WEB_FACTS, 8: DomainNodes()}

    asyncio.run(main())


def test_domain_0_has_none() -> None:
    async def main() -> None:
        async with world(EmbeddedDomain(0, "Domain-0", OTHER_UUID), WEB) as it:
            assert list(it.register.there) == [7]

    asyncio.run(main())


def test_comings_and_goings() -> None:
    async def main() -> None:
        async with world() as it:
            it.store.introduce(7, "web-01", UUID)
            await until(lambda: it.register.there == {7: WEB_FACTS})
            it.store.release(7)
            await until(lambda: not it.register.there)
            assert it.register.told == ["+7", "-7"]

    asyncio.run(main())


def test_hundreds_at_once() -> None:
    async def main() -> None:
        async with world() as it:
            for domid in range(1, 301):
                it.store.introduce(domid, f"guest-{domid}", f"{domid:08x}-0000-4000-8000-000000000000")
            await until(lambda: len(it.register.there) == 300)
            for domid in range(1, 301):
                it.store.release(domid)
            await until(lambda: not it.register.there)

    asyncio.run(main())


@pytest.mark.parametrize("event", [INTRODUCE_DOMAIN, RELEASE_DOMAIN])
def test_spurious_events_do_no_harm(event: str) -> None:
    async def main() -> None:
        async with world(WEB) as it:
            for _ in range(3):
                it.store.fire(event)
                await it.settled()
            assert it.register.told == ["+7"]

    asyncio.run(main())


def test_the_second_release_event_does_no_harm() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.release(7)
            await until(lambda: not it.register.there)
            it.store.fire(RELEASE_DOMAIN)
            it.store.release(7)
            await it.settled()
            assert it.register.told == ["+7", "-7"]

    asyncio.run(main())


def test_a_domain_that_has_only_shut_down_stays() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.fire(RELEASE_DOMAIN)  # xenstored fires it at a shutdown too
            await it.settled()
            assert it.register.told == ["+7"]

    asyncio.run(main())


def test_released_whatever_is_still_listed() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store._domids.discard(7)
            it.store.fire(RELEASE_DOMAIN)
            await until(lambda: not it.register.there)

    asyncio.run(main())


def test_listed_but_not_introduced_is_nobody() -> None:
    async def main() -> None:
        async with world() as it:
            await it.store.write("/local/domain/9/name", b"leftover")
            await it.store.write("/local/domain/x9/name", b"no domid")
            it.store.fire(INTRODUCE_DOMAIN)
            await it.settled()
            assert it.register.told == []

    asyncio.run(main())


def test_a_domid_that_is_used_again_is_a_new_guest() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.release(7)
            it.store.introduce(7, "db-01", OTHER_UUID)
            await until(lambda: it.register.there == {7: DomainNodes("db-01", OTHER_UUID)})
            assert it.register.told == ["+7", "-7", "+7"]

    asyncio.run(main())


def test_another_uuid_at_vm_is_another_guest() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            await it.store.write("/local/domain/7/vm", f"/vm/{OTHER_UUID}".encode())
            await until(lambda: it.register.there[7].uuid == OTHER_UUID)
            assert it.register.told == ["+7", "-7", "+7"]

    asyncio.run(main())


def test_a_domain_introduced_before_it_has_any_node() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.introduce_without_nodes(12)
            await until(lambda: 12 in it.register.there)
            assert it.register.there[12] == DomainNodes()
            await it.store.write("/local/domain/12/name", b"late")
            await it.store.write("/local/domain/12/vm", f"/vm/{OTHER_UUID}".encode())
            await until(lambda: it.register.there[12] == DomainNodes("late", OTHER_UUID))
            assert "-12" not in it.register.told

    asyncio.run(main())


def test_two_at_once_one_of_them_without_any_node() -> None:
    async def main() -> None:
        async with world() as it:
            it.store.introduce(7, "web-01", UUID)
            it.store.introduce_without_nodes(12)
            await until(lambda: set(it.register.there) == {7, 12})

    asyncio.run(main())


def test_name_and_throttling_are_followed() -> None:
    async def main() -> None:
        async with world(EmbeddedDomain(7, "web-01--incoming", UUID)) as it:
            await it.store.write("/local/domain/7/name", b"web-01")
            await until(lambda: it.register.there[7].name == "web-01")
            await it.store.write("/local/domain/7/log-throttling", b"0")
            await until(lambda: it.register.there[7].unlimited)
            await it.store.write("/local/domain/7/log-throttling", b"1")
            await until(lambda: not it.register.there[7].unlimited)
            await it.store.remove("/local/domain/7/log-throttling")
            await it.settled()
            assert not it.register.there[7].unlimited

    asyncio.run(main())


@pytest.mark.parametrize(
    ("value", "uid"),
    [(b"65543", 65543), (b"0", 0), (b"", None), (b"-1", None), (b"root", None), (b"4294967295", None),
     (b"9" * 40, None), ("\u0661".encode(), None)],
)  # fmt: skip
def test_the_uid_of_the_device_model(value: bytes, uid: int | None) -> None:
    async def main() -> None:
        async with world(WEB) as it:
            await it.store.write("/local/domain/7/image/device-model-kill-uid", value)
            await it.settled()
            assert it.register.there[7].device_model_uid == uid

    asyncio.run(main())


@pytest.mark.parametrize(
    "vm", [b"", b"/vm/", b"/other/" + UUID.encode(), b"/vm/../../etc", b"/vm/" + b"a" * 65, b"\xff"]
)
def test_a_vm_that_names_no_uuid(vm: bytes) -> None:
    async def main() -> None:
        async with world() as it:
            await it.store.write("/local/domain/7/vm", vm)
            it.store.introduce(7, "web-01", "")
            await until(lambda: 7 in it.register.there)
            assert it.register.there[7] == DomainNodes("web-01", "")

    asyncio.run(main())


def test_a_name_that_is_not_utf_8() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            await it.store.write("/local/domain/7/name", b"w\xffb")
            await until(lambda: it.register.there[7].name == "w\udcffb")

    asyncio.run(main())


def test_what_a_guest_can_write_is_not_watched() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            await it.settled()
            watched = {path for path, _ in it.store._watches}
            home = "/local/domain/7"
            assert watched == {
                INTRODUCE_DOMAIN, RELEASE_DOMAIN, f"{home}/name", f"{home}/vm", f"{home}/log-throttling",
                f"{home}/image/device-model-kill-uid",
            }  # fmt: skip
            it.store.release(7)
            await until(lambda: len(it.store._watches) == 2)

    asyncio.run(main())


def test_a_xenstored_that_comes_back_empty_releases_nobody() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.crash_empty()
            await it.reconnect()
            await it.settled()
            assert it.register.told == ["+7"]
            assert it.register.there == {7: WEB_FACTS}, "what was known of it stays known"

    asyncio.run(main())


def test_after_a_loss_a_later_release_event_finds_it_gone() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.crash_empty()
            await it.reconnect()
            it.store.fire(INTRODUCE_DOMAIN)
            await it.settled()
            assert it.register.told == ["+7"]
            it.store.fire(RELEASE_DOMAIN)
            await until(lambda: it.register.told == ["+7", "-7"])

    asyncio.run(main())


@pytest.mark.parametrize(("uuid", "told"), [(UUID, ["+7"]), (OTHER_UUID, ["+7", "-7", "+7"])])
def test_after_a_loss_its_domid_is_introduced_anew(uuid: str, told: list[str]) -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.crash_empty()
            await it.reconnect()
            it.store.introduce(7, "web-01", uuid)
            await until(lambda: it.register.told == told and it.register.there[7].uuid == uuid)
            it.store.release(7)
            await until(lambda: it.register.told == [*told, "-7"])

    asyncio.run(main())


def test_what_happened_while_there_was_no_connection() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.lose("restarted")
            it.store.introduce(8, "new", OTHER_UUID)
            await asyncio.sleep(0)
            await it.reconnect()
            assert set(it.register.there) == {7, 8}
            it.store.release(7)
            await until(lambda: set(it.register.there) == {8})

    asyncio.run(main())


def test_a_rename_while_there_was_no_connection() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            it.store.lose("restarted")
            it.store._tree.write("/local/domain/7/name", b"renamed")
            await it.reconnect()
            assert it.register.there[7].name == "renamed"

    asyncio.run(main())


def test_a_read_that_fails_is_tried_again() -> None:
    async def main() -> None:
        async with world() as it:
            it.store.failing = 1
            it.store.introduce(7, "web-01", UUID)
            await until(lambda: it.register.there == {7: WEB_FACTS})
            assert it.said[0][0] is Event.STORE_REFUSED
            await it.store.write("/local/domain/7/name", b"other")
            await until(lambda: it.register.there[7].name == "other")

    asyncio.run(main())


def test_a_read_that_fails_at_the_first_scan_is_made_good_by_the_next() -> None:
    async def main() -> None:
        async with world(WEB, first_scan=False) as it:
            it.store.failing = 2
            with pytest.raises(StoreUnavailable):
                await it.domains.scan(after_release=False)
            await it.settled()
            await it.domains.scan(after_release=False)
            assert it.register.there == {7: WEB_FACTS}

    asyncio.run(main())


def test_a_read_that_fails_keeps_no_other_domain_waiting() -> None:
    async def main() -> None:
        async with world(first_scan=False) as it:
            for domid in (7, 8, 9):
                it.store.introduce(domid, f"guest-{domid}", "")
            it.store.failing = 1
            with pytest.raises(StoreUnavailable):
                await it.domains.scan(after_release=False)
            assert list(it.register.there) == [8, 9]
            await it.domains.scan(after_release=False)
            assert sorted(it.register.there) == [7, 8, 9]

    asyncio.run(main())


def test_guests_are_served_while_many_domains_come(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[int] = []

    async def main() -> None:
        async with world(*(EmbeddedDomain(domid) for domid in range(1, 101)), first_scan=False) as it:

            def serve() -> bool:
                served.append(len(it.register.there))
                return False

            monkeypatch.setattr(longwork, "serve_guests", serve)
            await it.domains.scan(after_release=False)
            assert len(it.register.there) == 100
            assert len(served) > 50
            assert served[0] == 1

    asyncio.run(main())


def test_a_scan_that_is_given_up_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with world(WEB, EmbeddedDomain(8), first_scan=False) as it:
            pending: list[asyncio.Future[bytes]] = []

            def never(path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[bytes]:
                pending.append(asyncio.get_running_loop().create_future())
                return pending[-1]

            read = it.store.read
            it.store.read = never  # type: ignore[method-assign] # a store that does not answer
            scan = asyncio.ensure_future(it.domains.scan(after_release=False))
            await until(lambda: len(pending) == 8)
            scan.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await scan
            for future in pending:  # too late; nobody reads it, and nobody complains of that
                if not future.done():
                    future.set_exception(StoreUnavailable("no answer in time"))
            it.store.read = read  # type: ignore[method-assign] # as above
            await it.domains.scan(after_release=False)
            assert sorted(it.register.there) == [7, 8]

    asyncio.run(main())


def test_a_change_while_a_domain_is_met_is_not_missed() -> None:
    async def main() -> None:
        async with world() as it:
            read = it.store.read

            def late(path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[bytes]:
                answer = read(path, tx=tx, deadline=deadline)
                if path.endswith("/name"):
                    it.store.read = read  # type: ignore[method-assign] # a store that is late
                    it.store.write("/local/domain/7/name", b"just now")
                return answer

            it.store.read = late  # type: ignore[method-assign] # a store that is late
            it.store.introduce(7, "", UUID)
            await until(lambda: it.register.there.get(7) == DomainNodes("just now", UUID))

    asyncio.run(main())


def test_a_connection_lost_while_looking_again_is_no_error() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            await it.store.write("/local/domain/7/name", b"other")
            it.store.lose("gone")
            await it.settled()
            assert it.said == []
            await it.reconnect()
            assert it.register.there[7].name == "other"

    asyncio.run(main())


def test_a_look_that_got_no_answer_is_repeated() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            await it.settled()
            it.store.failing = 1  # one read passes its deadline, the connection stays
            await it.store.write("/local/domain/7/name", b"other")
            await until(lambda: it.register.there[7].name == "other", 5.0)

    asyncio.run(main())


def test_a_domain_that_goes_while_its_nodes_are_being_watched_is_no_fault_of_xenstores() -> None:
    async def main() -> None:
        async with world() as it:
            for domid in range(1, 60):
                it.store.introduce(domid, f"guest-{domid}", "")
            await until(lambda: len(it.register.there) == 59)
            for domid in range(1, 60):
                it.store.release(domid)
            await until(lambda: not it.register.there)
            await it.settled()
            assert it.said == []

    asyncio.run(main())


# --- a process that was started anew goes on where the last one was (restore)


async def _restored(it: World, facts: dict[int, DomainNodes]) -> None:
    it.domains.restore(facts)
    assert it.register.there == facts, "before xenstore was asked"
    async with connected(it.store):
        await it.domains.scan(after_release=True)


def test_a_restored_domain_is_served_at_once_and_its_facts_follow_xenstore() -> None:
    async def main() -> None:
        it = World(Store([WEB]))
        await _restored(it, {7: DomainNodes("old-name", UUID, unlimited=True, device_model_uid=9)})
        assert it.register.told == ["+7", "~7"]
        assert it.register.there == {7: WEB_FACTS}, "what xenstore no longer says was true of an earlier process"
        await it.domains.stop()

    asyncio.run(main())


def test_a_restored_domain_of_which_nothing_changed_is_no_news() -> None:
    async def main() -> None:
        it = World(Store([WEB]))
        await _restored(it, {7: WEB_FACTS})
        assert it.register.told == ["+7"]
        await it.domains.stop()

    asyncio.run(main())


def test_a_restored_domain_that_went_meanwhile_is_released_by_the_first_scan() -> None:
    async def main() -> None:
        it = World(Store([]))
        await _restored(it, {7: WEB_FACTS})
        assert it.register.told == ["+7", "-7"]
        await it.domains.stop()

    asyncio.run(main())


def test_another_guest_under_a_restored_domid() -> None:
    async def main() -> None:
        it = World(Store([EmbeddedDomain(7, "web-02", OTHER_UUID)]))
        await _restored(it, {7: WEB_FACTS})
        assert it.register.told == ["+7", "-7", "+7"]
        assert it.register.there == {7: DomainNodes("web-02", OTHER_UUID)}
        await it.domains.stop()

    asyncio.run(main())


def test_domains_are_read_by_all_readers_that_are_connected() -> None:
    async def main() -> None:
        everybody = [EmbeddedDomain(domid, f"vm{domid}", "") for domid in range(1, 31)]
        it = World(Store(everybody))
        readers = [Store(everybody), Store(everybody), Store(everybody)]
        it.domains.readers = readers
        async with connected(it.store), connected(readers[0]), connected(readers[1]):
            await it.domains.scan(after_release=False)
            assert sorted(it.register.there) == list(range(1, 31))
            assert [bool(reader.reads) for reader in readers] == [True, True, False]
            assert {path.split("/")[3] for path in it.store.reads} == {str(n) for n in range(2, 31, 3)}
        await it.domains.stop()

    asyncio.run(main())


def test_a_domain_whose_vm_was_gone_in_between_is_another() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            await it.settled()
            await it.store.remove("/local/domain/7/vm")
            await it.settled()
            assert it.register.told == ["+7"]
            await it.store.write("/local/domain/7/vm", f"/vm/{UUID}".encode())
            await it.settled()
            assert it.register.told == ["+7", "-7", "+7"]

    asyncio.run(main())


def test_what_happened_to_its_nodes_is_told_though_their_values_are_the_same() -> None:
    async def main() -> None:
        async with world(WEB) as it:
            await it.settled()
            before = it.register.touches
            await it.store.write("/local/domain/7/vm", f"/vm/{UUID}".encode())
            await it.settled()
            assert it.register.told == ["+7"]
            assert it.register.touches == before + 1

    asyncio.run(main())
