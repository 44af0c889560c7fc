"""Watches: when one is armed, and which events count. What a real xenstored does is in the integration tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.test_xenstore_connection import PATIENCE, FakePipe, reply
from unplugd.errors import NoSuchNode, StoreRefused, StoreUnavailable
from unplugd.xenstore import watches as module
from unplugd.xenstore.connection import StoreConnection
from unplugd.xenstore.watches import Watches
from unplugd.xenstore.wire import Op


class Xenstored:
    """The other side of a connection, by hand."""

    def __init__(self, watches: Watches) -> None:
        self.pipe = FakePipe()
        self.connection = self.pipe.connection = StoreConnection(watches.event)
        self.connection.connection_made(self.pipe)

    async def asked(self, count: int) -> list[tuple[int, bytes]]:
        """The first `count` requests, once they are there: number and payload."""
        while len(self.pipe.sent) < count:
            await asyncio.sleep(0)
        return list(zip(self.pipe.ids(), (message[16:] for message in self.pipe.sent), strict=True))

    def acknowledge(self, request_id: int, op: int = Op.WATCH) -> None:
        self.connection.data_received(reply(op, request_id, b"OK\0"))

    def refuse(self, request_id: int, code: bytes) -> None:
        self.connection.data_received(reply(Op.ERROR, request_id, code + b"\0"))

    def event(self, path: bytes, token: bytes) -> None:
        self.connection.data_received(reply(Op.WATCH_EVENT, 0, path + b"\0" + token + b"\0"))


def run(scenario: Callable[[Watches], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario(Watches())

    asyncio.run(main())


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_watch_given_up_as_it_is_armed_is_not_left_there() -> None:
    async def scenario(watches: Watches) -> None:
        store = Xenstored(watches)
        await watches.arm_all(store.connection)
        arming = watches.add("/vm", lambda path: None)
        ((number, payload),) = await store.asked(1)
        store.acknowledge(number)
        await turn()
        store.event(b"/vm", payload.split(b"\0")[1])
        arming.cancel()  # before anybody was told that it is armed
        await store.asked(2)
        await turn()
        assert store.pipe.sent[1][0] == Op.UNWATCH

    run(scenario)


def test_armed_is_acknowledged_and_the_first_event_there() -> None:
    # xenstored queues no event twice: until the first one is there, that of a change may have vanished behind it.
    async def scenario(watches: Watches) -> None:
        seen: list[str] = []
        store = Xenstored(watches)
        await watches.arm_all(store.connection)
        armed = watches.add("/a", seen.append)
        assert await store.asked(1) == [(1, b"/a\x001\0")]
        store.acknowledge(1)
        await turn()
        assert not armed.done()
        store.event(b"/a", b"1")
        await armed
        assert seen == []
        store.event(b"/a/b", b"1")
        assert seen == ["/a/b"]

    run(scenario)


def test_the_first_event_may_come_before_the_acknowledgement() -> None:
    # As the kernel's device may have it.
    async def scenario(watches: Watches) -> None:
        seen: list[str] = []
        store = Xenstored(watches)
        await watches.arm_all(store.connection)
        armed = watches.add("/a", seen.append)
        store.event(b"/a", b"1")
        await turn()
        assert not armed.done()
        store.acknowledge(1)
        await armed
        assert seen == []

    run(scenario)


def test_a_first_event_that_never_comes_costs_no_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.05)

    async def scenario(watches: Watches) -> None:
        seen: list[str] = []
        store = Xenstored(watches)
        await watches.arm_all(store.connection)
        armed = watches.add("/a", seen.append)
        store.acknowledge(1)
        await armed
        store.event(b"/a", b"1")
        assert seen == ["/a"]

    run(scenario)


def test_on_a_new_connection_the_token_is_new_and_the_first_event_swallowed_again() -> None:
    async def scenario(watches: Watches) -> None:
        seen: list[str] = []
        armed = watches.add("/a", seen.append)
        for token in (b"1", b"2"):
            store = Xenstored(watches)
            arming = asyncio.create_task(watches.arm_all(store.connection))
            assert await store.asked(1) == [(1, b"/a\0" + token + b"\0")]
            if token == b"2":
                store.event(b"/a", b"1")  # a stale one
            store.acknowledge(1)
            await turn()
            assert not arming.done()
            store.event(b"/a", token)
            await arming
            assert armed.done()
            store.connection.drop("gone")
            watches.disarm()
        assert seen == []

    run(scenario)


def test_losing_the_connection_while_arming_fails_the_arming_and_not_the_watch() -> None:
    async def scenario(watches: Watches) -> None:
        armed = watches.add("/a", lambda path: None)
        for acknowledged in (False, True):
            store = Xenstored(watches)
            arming = asyncio.create_task(watches.arm_all(store.connection))
            await store.asked(1)
            if acknowledged:
                store.acknowledge(1)
                await turn()
            store.connection.drop("gone")
            with pytest.raises(StoreUnavailable, match="gone"):
                await arming
            watches.disarm()
            assert not armed.done()
        watches.close("closed")
        with pytest.raises(StoreUnavailable, match="closed"):
            await armed

    run(scenario)


def test_a_refused_watch_fails_alone_and_is_forgotten() -> None:
    async def scenario(watches: Watches) -> None:
        armed = [watches.add(path, lambda path: None) for path in ("/a", "/b")]
        store = Xenstored(watches)
        arming = asyncio.create_task(watches.arm_all(store.connection))
        await store.asked(2)
        store.refuse(1, b"ENOSPC")
        store.acknowledge(2)
        store.event(b"/b", b"2")
        await arming
        with pytest.raises(StoreRefused):
            await armed[0]
        await armed[1]
        again = Xenstored(watches)
        watches.disarm()
        arming = asyncio.create_task(watches.arm_all(again.connection))
        assert [payload for _, payload in await again.asked(1)] == [b"/b\x003\0"]
        arming.cancel()

    run(scenario)


def test_a_watch_that_stood_and_is_refused_later_is_not_lost_in_silence() -> None:
    async def scenario(watches: Watches) -> None:
        armed = watches.add("/a", lambda path: None)
        first, second = Xenstored(watches), Xenstored(watches)
        arming = asyncio.create_task(watches.arm_all(first.connection))
        await first.asked(1)
        first.acknowledge(1)
        first.event(b"/a", b"1")
        await asyncio.gather(arming, armed)
        watches.disarm()
        arming = asyncio.create_task(watches.arm_all(second.connection))
        await second.asked(1)
        second.refuse(1, b"ENOSPC")
        with pytest.raises(StoreRefused):
            await arming

    run(scenario)


def test_a_watch_can_be_ended_or_given_up_while_it_is_being_armed() -> None:
    async def scenario(watches: Watches) -> None:
        def callback(path: str) -> None:
            raise AssertionError(path)

        ended, given_up = watches.add("/a", callback), watches.add("/b", callback)
        store = Xenstored(watches)
        arming = asyncio.create_task(watches.arm_all(store.connection))
        await store.asked(2)
        done = watches.end("/a", callback)
        given_up.cancel()
        assert [payload for _, payload in (await store.asked(4))[2:]] == [b"/a\x001\0", b"/b\x002\0"]
        for request_id, op in ((1, Op.WATCH), (2, Op.WATCH), (3, Op.UNWATCH), (4, Op.UNWATCH)):
            store.acknowledge(request_id, op)
            store.event(b"/a", b"1")
            store.event(b"/b", b"2")
        await asyncio.gather(arming, done)
        with pytest.raises(StoreUnavailable, match="ended"):
            await ended

    run(scenario)


def test_what_cannot_be_watched_is_said_at_once() -> None:
    async def scenario(watches: Watches) -> None:
        with pytest.raises(NoSuchNode):
            await watches.add("/a.b", lambda path: None)
        await watches.end("/a.b", print)

    run(scenario)
