"""What every store must do, the real ones and the embedded one: the tests of each inherit these.

Whoever inherits gives the fixture `drive`, which runs a scenario against a connected and empty store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from unplugd.errors import NoSuchNode, StoreRefused, TransactionConflict
from unplugd.xenstore.store import Store

Drive: TypeAlias = Callable[[Callable[[Store], Awaitable[None]]], None]

PATIENCE = 30.0
"""Seconds to wait for what must come; a slow machine is no failure."""


class Seen:
    """Events as a watch's callback gets them."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, path: str) -> None:
        self.paths.append(path)
        self._more.set()

    async def until(self, path: str) -> None:
        """Wait until there was an event for `path`."""
        async with asyncio.timeout(PATIENCE):
            while path not in self.paths:
                self._more.clear()
                await self._more.wait()


async def refused(error: type[Exception], request: Awaitable[Any]) -> None:
    with pytest.raises(error):
        await request


class StoreBehaviour:
    def test_a_value_comes_back_as_it_went_whatever_its_bytes(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            for value in (b"", b"1", b"a b\tc\nd\xff\xc3\xa4", bytes(range(256)), b"x" * 2000):
                await store.write("/test/value", value)
                assert await store.read("/test/value") == value

        drive(scenario)

    def test_what_is_not_there_is_no_such_node(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            await refused(NoSuchNode, store.read("/test/absent"))
            await refused(NoSuchNode, store.directory("/test/absent"))
            await refused(NoSuchNode, store.set_permissions("/test/absent", ["n0"]))
            await refused(NoSuchNode, store.remove("/test/absent/below"))

        drive(scenario)

    @pytest.mark.parametrize(
        "path",
        [
            "/mh/driver-blacklist/xenserver-windows-v7.0+/1",
            "/a//b",
            "/a/",
            "relative",
            "",
            "/a\0b",
            "/a\n",
            "/a\0",
            "/ä",
            "@introduceDomain",
            "/" + "a" * 3072,
        ],
    )
    def test_what_xenstore_cannot_hold_is_no_such_node(self, drive: Drive, path: str) -> None:
        async def scenario(store: Store) -> None:
            await refused(NoSuchNode, store.read(path))
            await refused(NoSuchNode, store.write(path, b"1"))
            await refused(NoSuchNode, store.directory(path))
            if not path.startswith("@"):
                await refused(NoSuchNode, store.watch(path, Seen()))
            await store.write("/test/after", b"still in step")
            assert await store.read("/test/after") == b"still in step"

        drive(scenario)

    def test_a_request_longer_than_xenstore_takes_is_refused_and_harms_nobody(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            big = store.write("/test/big", b"x" * 4096)
            other = store.write("/test/other", b"1")
            with pytest.raises(StoreRefused) as caught:
                await big
            assert caught.value.code == "E2BIG"
            await other

        drive(scenario)

    def test_parents_come_to_be_and_are_listed(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            await store.write("/test/a/b/c", b"1")
            await store.write("/test/a/d", b"2")
            assert await store.read("/test/a/b") == b""
            assert sorted(await store.directory("/test/a")) == ["b", "d"]
            assert await store.directory("/test/a/b/c") == []
            assert "test" in await store.directory("/")

        drive(scenario)

    def test_removing_takes_all_below_and_what_is_gone_already_is_no_error(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            await store.write("/test/a/b/c", b"1")
            await store.remove("/test/a")
            await refused(NoSuchNode, store.read("/test/a/b/c"))
            assert await store.directory("/test") == []
            await store.remove("/test/a")

        drive(scenario)

    def test_a_directory_of_5000_entries(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            names = [f"entry-{number:05}" for number in range(5000)]
            for begin in range(0, len(names), 500):
                some = names[begin : begin + 500]
                await asyncio.gather(*(store.write(f"/test/{n}", b"", deadline=PATIENCE) for n in some))
            assert sorted(await store.directory("/test", deadline=PATIENCE)) == names

        drive(scenario)

    def test_answers_find_their_requests_however_many_are_under_way(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            await asyncio.gather(*(store.write(f"/test/{n}", b"%d" % n) for n in range(200)))
            requests = [store.read(f"/test/{n}") for n in range(200)]
            absent = [store.read(f"/test/{n}x") for n in range(200)]
            assert await asyncio.gather(*requests) == [b"%d" % n for n in range(200)]
            for error in await asyncio.gather(*absent, return_exceptions=True):
                assert isinstance(error, NoSuchNode)

        drive(scenario)

    def test_permissions_that_are_none_are_the_caller_s_mistake(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            await store.write("/test/a", b"1")
            await store.set_permissions("/test/a", ["n0", "r7"])
            for wrong in ([], ["x0"], ["n"], ["n0\n"], ["nü"], ["n0\0r7"]):
                with pytest.raises(ValueError, match="not xenstore permissions"):
                    store.set_permissions("/test/a", wrong)

        drive(scenario)

    def test_a_domain_that_nobody_introduced_is_not(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            assert await store.is_introduced(9) is False

        drive(scenario)

    # --- watches ---

    def test_a_watch_tells_of_changes_at_and_below_its_path_and_of_nothing_else(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            seen, fence = Seen(), Seen()
            await store.write("/test/a", b"1")
            await store.watch("/test/a", seen)
            await store.watch("/test/fence", fence)
            await store.write("/test/a", b"2")
            await store.write("/test/a/b/c", b"3")
            await store.write("/test/ab", b"4")
            await store.remove("/test/a/b")
            await store.remove("/test/a")
            await store.write("/test/fence", b"")
            await fence.until("/test/fence")
            # A set: xenstored may make one event of several changes.
            assert set(seen.paths) == {"/test/a", "/test/a/b/c", "/test/a/b"}
            assert fence.paths == ["/test/fence"]

        drive(scenario)

    def test_the_event_of_the_registration_does_not_come(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            seen, fence = Seen(), Seen()
            for path in ("/test/there", "/test/absent", "@introduceDomain", "@releaseDomain"):
                await store.watch(path, seen)
            await store.watch("/test/fence", fence)
            await store.write("/test/fence", b"")
            await fence.until("/test/fence")
            assert seen.paths == []

        drive(scenario)

    def test_a_watch_below_what_is_removed_is_told(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            seen = Seen()
            await store.write("/test/a/b/c", b"1")
            await store.watch("/test/a/b/c", seen)
            await store.remove("/test/a")
            await seen.until("/test/a/b/c")

        drive(scenario)

    def test_two_callbacks_of_one_path_are_both_told_until_one_is_ended(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            one, two = Seen(), Seen()
            await store.watch("/test/a", one)
            await store.watch("/test/a", two)
            await store.write("/test/a", b"1")
            await one.until("/test/a")
            await two.until("/test/a")
            await store.unwatch("/test/a", one)
            await store.unwatch("/test/a", one)
            two.paths.clear()
            await store.write("/test/a", b"2")
            await two.until("/test/a")
            assert one.paths == ["/test/a"]

        drive(scenario)

    def test_no_event_comes_once_a_watch_was_ended(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            seen, fence = Seen(), Seen()
            await store.watch("/test/fence", fence)
            await store.watch("/test/a", seen)
            writes = [store.write("/test/a", b"%d" % n) for n in range(50)]
            await store.unwatch("/test/a", seen)
            await asyncio.gather(*writes)
            at_the_end = len(seen.paths)
            await store.watch("/test/a", seen)
            await store.write("/test/fence", b"")
            await fence.until("/test/fence")
            assert len(seen.paths) == at_the_end == 0

        drive(scenario)

    def test_a_callback_watches_a_path_once(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            seen = Seen()
            await store.watch("/test/a", seen)
            with pytest.raises(ValueError, match="already"):
                store.watch("/test/a", seen)

        drive(scenario)

    def test_a_callback_that_raises_is_reported_and_the_store_goes_on(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            reported: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

            def broken(path: str) -> None:
                raise RuntimeError("a bug")

            seen = Seen()
            await store.watch("/test/a", broken)
            await store.watch("/test/a", seen)
            await store.write("/test/a", b"1")
            await seen.until("/test/a")
            async with asyncio.timeout(20):  # which of two watches fires first is xenstored's to choose
                while not reported:
                    await asyncio.sleep(0.01)
            assert [str(context["exception"]) for context in reported] == ["a bug"]
            assert await store.read("/test/a") == b"1"

        drive(scenario)

    def test_a_callback_may_use_the_store(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            values: list[Awaitable[bytes]] = []
            seen = Seen()

            def read_it(path: str) -> None:
                values.append(store.read(path))
                seen(path)

            await store.watch("/test/a", read_it)
            await store.write("/test/a", b"1")
            await seen.until("/test/a")
            assert await values[0] == b"1"

        drive(scenario)

    # --- transactions ---

    def test_a_transaction_shows_its_writes_to_itself_and_then_to_all(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            seen = Seen()
            await store.write("/test/a", b"1")
            await store.watch("/test", seen)
            async with store.transaction() as tx:
                assert await store.read("/test/a", tx=tx) == b"1"
                await store.write("/test/a", b"2", tx=tx)
                await store.write("/test/b/c", b"3", tx=tx)
                await store.set_permissions("/test/b/c", ["n0"], tx=tx)
                assert await store.read("/test/a", tx=tx) == b"2"
                assert sorted(await store.directory("/test", tx=tx)) == ["a", "b"]
                assert await store.read("/test/a") == b"1"
                assert seen.paths == []
            assert await store.read("/test/a") == b"2"
            assert await store.read("/test/b/c") == b"3"
            await seen.until("/test/a")
            await seen.until("/test/b/c")

        drive(scenario)

    def test_a_transaction_that_raises_leaves_nothing(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            async def fail() -> None:
                async with store.transaction() as tx:
                    await store.write("/test/a", b"1", tx=tx)
                    raise ZeroDivisionError

            await refused(ZeroDivisionError, fail())
            await refused(NoSuchNode, store.read("/test/a"))

        drive(scenario)

    def test_who_changes_what_a_transaction_has_read_makes_it_a_conflict(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            await store.write("/test/a", b"1")

            async def write_late() -> None:
                async with store.transaction() as tx:
                    await store.read("/test/a", tx=tx)
                    await store.write("/test/a", b"theirs")
                    await store.write("/test/a", b"ours", tx=tx)

            await refused(TransactionConflict, write_late())
            assert await store.read("/test/a") == b"theirs"

        drive(scenario)

    def test_who_removes_what_a_transaction_has_read_makes_it_a_conflict(self, drive: Drive) -> None:
        # The case that matters: a domain's directory must not come back by a late write into it.
        async def scenario(store: Store) -> None:
            await store.write("/test/domain/vm", b"/vm/1")

            async def publish_late() -> None:
                async with store.transaction() as tx:
                    await store.read("/test/domain/vm", tx=tx)
                    await store.remove("/test/domain")
                    await store.write("/test/domain/unplug/product", b"3", tx=tx)

            await refused(TransactionConflict, publish_late())
            await refused(NoSuchNode, store.read("/test/domain"))

        drive(scenario)

    def test_transactions_of_different_nodes_do_not_meet(self, drive: Drive) -> None:
        async def scenario(store: Store) -> None:
            await store.write("/test/a", b"1")
            await store.write("/test/b", b"1")
            async with store.transaction() as one, store.transaction() as two:
                assert one != two
                await store.write("/test/a", b"2", tx=one)
                await store.write("/test/b", b"2", tx=two)
            assert [await store.read("/test/a"), await store.read("/test/b")] == [b"2", b"2"]

        drive(scenario)
