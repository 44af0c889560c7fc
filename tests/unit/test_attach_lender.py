from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, field

import pytest

from tests.lab.host import until
from unplugd.attach.lender import Lender
from unplugd.attach.slots import Access, Kind
from unplugd.core.pageoffer import MESSAGE_LIMIT, Offer, offered


def access(port: int) -> Access:
    return Access(Kind.PIO, port, 0, 1, 2, read=True, string=False, backwards=False)


class FakeServer:
    """Ioreq server 3 of a domain with two vCPUs; `xen` is what makes its event channels readable."""

    id = 3

    def __init__(self) -> None:
        self.xen, self._events = socket.socketpair()
        self._events.setblocking(False)
        self.fd = self._events.fileno()
        self.ports = {0: 40, 1: 41}
        self.slots: dict[int, Access] = {}
        self.found: deque[tuple[int, Access]] = deque()
        self.busy: list[set[int]] = []
        """What left_over() was told."""

    def access(self, vcpu: int) -> Access:
        return self.slots.pop(vcpu)

    def accesses(self) -> list[tuple[int, Access]]:
        self._events.recv(100)
        return [self.found.popleft() for _ in range(len(self.found))]

    def left_over(self, busy: Container[int] = ()) -> list[tuple[int, Access]]:
        self.busy.append({vcpu for vcpu in self.ports if vcpu in busy})
        return [(vcpu, self.slots.pop(vcpu)) for vcpu in sorted(self.slots) if vcpu not in busy]

    def event(self, vcpu: int, port: int) -> None:
        """Xen says that a vCPU waits."""
        self.found.append((vcpu, access(port)))
        self.xen.send(b"x")

    def close(self) -> None:
        self.xen.close()
        self._events.close()


@dataclass
class World:
    """A lender, and unplugd's ends of the connections that he made."""

    server: FakeServer
    privcmd: int
    taken: list[tuple[int, int]] = field(default_factory=list)
    """vCPU and port."""
    busy: set[int] = field(default_factory=set)
    borrowers: list[socket.socket] = field(default_factory=list)
    lenders: list[socket.socket] = field(default_factory=list)
    connects: int = 0
    may_connect: asyncio.Event = field(default_factory=asyncio.Event)
    refuse: bool = False
    broken: bool = False
    """The connection ends before anything can be said."""

    async def connect(self) -> socket.socket:
        self.connects += 1
        await self.may_connect.wait()
        if self.refuse:
            raise ConnectionRefusedError
        borrower, lender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (borrower, lender):
            end.setblocking(False)
        self.borrowers.append(borrower)
        self.lenders.append(lender)
        if self.broken:
            borrower.close()
        return lender

    def take(self, vcpu: int, one: Access) -> None:
        self.taken.append((vcpu, one.port))

    async def serves(self, port: int) -> None:
        """Wait until Xen's event for this port is taken."""
        self.server.event(0, port)
        await until(lambda: (0, port) in self.taken)


def run(work: Callable[[World, Lender], Awaitable[None]], *, started: bool = True) -> None:
    async def main() -> None:
        privcmd = os.open(os.devnull, os.O_RDWR)
        world = World(FakeServer(), privcmd)
        world.may_connect.set()
        lender = Lender(world.server, privcmd, world.connect, world.take, world.busy)
        if started:
            lender.start()
        try:
            await work(world, lender)
        finally:
            asyncio.get_running_loop().remove_reader(world.server.fd)
            for end in world.lenders:
                if end.fileno() != -1:
                    asyncio.get_running_loop().remove_reader(end.fileno())
            for end in world.borrowers + world.lenders:
                end.close()
            world.server.close()
            os.close(privcmd)

    asyncio.run(main())


def receive(borrower: socket.socket) -> tuple[Offer, list[os.stat_result]]:
    """An offer, and what came with it."""
    message, descriptors, _, _ = socket.recv_fds(borrower, MESSAGE_LIMIT, 10)
    stats = [os.fstat(descriptor) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    return offered(message), stats


async def lend(world: World, lender: Lender) -> socket.socket:
    """Have the page lent; returns the borrower's end."""
    lender.offer()
    await until(lambda: lender.lent)
    receive(world.borrowers[-1])
    return world.borrowers[-1]


def test_what_is_left_over_is_taken_then_events_are_served() -> None:
    async def work(world: World, lender: Lender) -> None:
        world.server.slots = {0: access(0x10), 1: access(0x12)}
        lender.start()
        assert world.taken == [(0, 0x10), (1, 0x12)]
        assert world.server.busy == [set()]
        assert not lender.lent
        await world.serves(0x14)
        assert world.connects == 0

    run(work, started=False)


def test_an_offer_has_both_descriptors() -> None:
    async def work(world: World, lender: Lender) -> None:
        lender.offer()
        await until(lambda: lender.lent)
        said, (events, privcmd) = receive(world.borrowers[0])
        assert said == Offer(3, bytes.fromhex("0028000000 0129000000"))
        assert events.st_ino == os.fstat(world.server.fd).st_ino
        assert privcmd.st_rdev == os.fstat(world.privcmd).st_rdev

    run(work)


def test_who_has_lent_does_not_listen() -> None:
    async def work(world: World, lender: Lender) -> None:
        await lend(world, lender)
        world.server.event(0, 0x10)
        for _ in range(10):
            await asyncio.sleep(0)
        assert world.taken == []
        world.borrowers[0].close()
        await until(lambda: world.taken == [(0, 0x10)])

    run(work)


def test_vcpus_that_come_are_taken() -> None:
    async def work(world: World, lender: Lender) -> None:
        borrower = await lend(world, lender)
        world.server.slots = {0: access(0x10), 1: access(0x12)}
        borrower.send(b"\1")
        await until(lambda: world.taken == [(1, 0x12)])
        borrower.send(b"\0")
        await until(lambda: world.taken == [(1, 0x12), (0, 0x10)])
        world.server.slots = {0: access(0x11), 1: access(0x13)}
        borrower.send(b"\0\1")
        await until(lambda: world.taken[2:] == [(0, 0x11), (1, 0x13)])
        assert lender.lent

    run(work)


def test_vcpus_that_are_unknown_or_busy_are_not() -> None:
    async def work(world: World, lender: Lender) -> None:
        borrower = await lend(world, lender)
        world.server.slots = {0: access(0x10), 1: access(0x12), 2: access(0x14)}
        world.busy.add(0)
        borrower.send(b"\0")
        borrower.send(b"\2\xff")
        borrower.send(b"\1")
        await until(lambda: world.taken)
        assert world.taken == [(1, 0x12)]
        assert set(world.server.slots) == {0, 2}
        assert lender.lent

    run(work)


def test_the_end_of_the_connection_gives_the_page_back() -> None:
    async def work(world: World, lender: Lender) -> None:
        borrower = await lend(world, lender)
        world.busy.add(1)
        world.server.slots = {0: access(0x10), 1: access(0x12)}
        borrower.close()
        await until(lambda: not lender.lent)
        assert world.server.busy == [set(), {1}]
        assert world.taken == [(0, 0x10)]
        assert world.lenders[0].fileno() == -1
        await world.serves(0x14)

    run(work)


def test_a_connection_that_fails_gives_the_page_back() -> None:
    async def work(world: World, lender: Lender) -> None:
        lender.offer()
        await until(lambda: lender.lent)
        world.borrowers[0].close()  # with the offer unread: the connection is reset
        await until(lambda: not lender.lent)
        assert world.server.busy == [set(), set()]
        await world.serves(0x14)

    run(work)


def test_a_wake_up_for_nothing_is_no_end() -> None:
    async def work(world: World, lender: Lender) -> None:
        borrower = await lend(world, lender)
        world.server.slots = {0: access(0x10)}
        borrower.send(b"\0")
        world.lenders[0].recv(100)  # before the lender could
        lender._heard()
        assert lender.lent
        assert world.taken == []

    run(work)


def test_who_is_refused_keeps_all_accesses_and_asks_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World, lender: Lender) -> None:
        world.refuse = True
        lender.offer()
        await until(lambda: world.connects == 1)
        await world.serves(0x10)
        assert not lender.lent
        assert world.server.busy == [set()]
        world.refuse = False
        lender.offer()  # so soon, it is not even asked for
        assert world.connects == 1
        monkeypatch.setattr("unplugd.attach.lender.RETRY", 0.0)
        await lend(world, lender)

    run(work)


def test_an_offer_that_cannot_be_sent_changes_nothing() -> None:
    async def work(world: World, lender: Lender) -> None:
        world.broken = True
        world.busy.add(0)
        world.server.slots = {0: access(0x10), 1: access(0x12)}
        lender.offer()
        await until(lambda: len(world.server.busy) == 2)
        assert not lender.lent
        assert world.server.busy[1] == {0}
        assert world.taken == [(1, 0x12)]
        assert world.lenders[0].fileno() == -1
        await world.serves(0x14)

    run(work)


def test_events_are_served_until_there_is_a_connection() -> None:
    async def work(world: World, lender: Lender) -> None:
        world.may_connect.clear()
        lender.offer()
        await until(lambda: world.connects == 1)
        await world.serves(0x10)
        assert not lender.lent
        world.may_connect.set()
        await until(lambda: lender.lent)

    run(work)


def test_one_offer_at_a_time() -> None:
    async def work(world: World, lender: Lender) -> None:
        world.may_connect.clear()
        lender.offer()
        lender.offer()
        await until(lambda: world.connects == 1)
        lender.offer()
        world.may_connect.set()
        await until(lambda: lender.lent)
        lender.offer()
        for _ in range(10):
            await asyncio.sleep(0)
        assert world.connects == 1
        receive(world.borrowers[0])
        with pytest.raises(BlockingIOError):
            world.borrowers[0].recv(100)

    run(work)


def test_the_page_can_be_lent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unplugd.attach.lender.RETRY", 0.0)

    async def work(world: World, lender: Lender) -> None:
        for number in range(3):
            borrower = await lend(world, lender)
            world.server.slots = {1: access(number)}
            borrower.send(b"\1")
            await until(lambda: (1, number) in world.taken)  # noqa: B023 # awaited before the loop goes on
            borrower.close()
            await until(lambda: not lender.lent)
            await world.serves(0x20 + number)
        assert world.connects == 3

    run(work)
