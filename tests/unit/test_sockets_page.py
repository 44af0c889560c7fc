"""unplugd's side of a loan. The lender is played here; what is done with a page is test_fastpath_page.py's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.lab.frames import FRAME
from tests.lab.host import Host, host, until
from unplugd.attach.connect import acting_as
from unplugd.attach.slots import SLOT_SIZE, SlotState
from unplugd.core.pageoffer import MESSAGE_LIMIT, SOCKET, VCPUS, greet, offer
from unplugd.domains.domain import Domain
from unplugd.errors import HostError
from unplugd.sockets import loop as eventloop
from unplugd.sockets import page as ioreqpage
from unplugd.sockets.page import IoreqPages, check_devices

try:
    from unplugd.sockets import _fastpath
except ImportError:
    pytest.skip("the compiled part was not built", allow_module_level=True)

READ = 0x20
PORTS = {0: 41, 1: 77}
OFFER = offer(3, PORTS)
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


class Refusing:
    """A Poller to whom no page is good enough."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def borrow(self, events: int, *arguments: object) -> None:
        os.fstat(events)
        self.asked.append(arguments)
        raise OSError("no")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mapped() -> int:
    """Pages of lenders that are mapped, but for the lenders' own."""
    return Path("/proc/self/maps").read_text().count("memfd:ioreq") - Lender.alive


@dataclass
class World:
    """The socket, and those who came to it."""

    one: Host
    pages: IoreqPages
    domains: dict[int, Domain]
    path: Path
    lenders: list[Lender] = field(default_factory=list)

    async def connect(self) -> Lender:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        connection.connect(str(self.path))
        self.lenders.append(Lender(connection))
        return self.lenders[-1]

    async def lend(self, domid: int = 7) -> Lender:
        lender = await self.connect()
        lender.end.send(greet(domid))
        lender.offer()
        await until(lambda: domid in self.pages.lent)
        return lender

    async def refused(self, lender: Lender) -> None:
        """The connection is closed, and nothing is lent."""
        await until(lambda: lender.ended)
        assert self.pages.lent == []
        assert mapped() == 0


class Lender:
    """An end of a connection, with event channels and a page."""

    alive = 0

    def __init__(self, end: socket.socket) -> None:
        Lender.alive += 1
        self.open = True
        self.end = end
        self.memory = os.memfd_create("ioreq")
        os.ftruncate(self.memory, mmap.PAGESIZE)
        self.page = mmap.mmap(self.memory, mmap.PAGESIZE)
        self.xen, self.events = socket.socketpair()
        for one in (self.xen, self.events):
            one.setblocking(False)

    def offer(self, message: bytes = OFFER, count: int = 2) -> None:
        socket.send_fds(self.end, [message], [self.events.fileno(), *[self.memory] * 20][:count])

    def put(self, vcpu: int) -> None:
        """A vCPU reads the magic number."""
        FRAME.pack_into(self.page, vcpu * SLOT_SIZE, 0x10, 0, 1, 2, 100 + vcpu, 0, READ | SlotState.READY, 0)
        self.xen.send(struct.pack("<I", PORTS[vcpu]))

    def state(self, vcpu: int) -> int:
        return self.page[vcpu * SLOT_SIZE + 30] & 0xF

    @property
    def ended(self) -> bool:
        """Whether the other end is closed."""
        try:
            return self.end.recv(100) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        for one in (self.end, self.xen, self.events, self.page):
            one.close()
        os.close(self.memory)
        Lender.alive -= 1


def run(
    directory: Path, work: Callable[[World], Awaitable[None]], *, start: bool = True, xen: bool = False
) -> None:
    failed: list[dict[str, object]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        async with host(directory) as one:
            domains = {7: one.domain()}
            pages = IoreqPages(directory, domains.get, xen=xen)
            if start:
                pages.start()
            world = World(one, pages, domains, directory / SOCKET)
            try:
                await work(world)
            finally:
                pages.stop()
                for lender in world.lenders:
                    lender.close()
                for domain in domains.values():
                    domain.stop()

    with asyncio.Runner(loop_factory=lambda: eventloop.Loop(_fastpath.Poller)) as runner:
        runner.run(main())
    assert failed == []


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """No descriptor is open afterwards that was not before."""
    before = descriptors()
    yield
    assert descriptors() == before


def nobody(domid: int) -> None:
    """No domain is there."""


# --- the socket


def test_without_the_compiled_part_nobody_listens(tmp_path: Path) -> None:
    async def main() -> None:
        with nothing_left():
            pages = IoreqPages(tmp_path, nobody)
            pages.start()
            assert list(tmp_path.iterdir()) == []
            pages.stop()
            pages.give_back(7)
            assert pages.lent == []

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_pure_python_has_no_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPLUGD_PURE", "1")

    async def main() -> None:
        IoreqPages(tmp_path, nobody).start()
        assert list(tmp_path.iterdir()) == []

    asyncio.run(main())


def test_the_socket_comes_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
            stale.bind(str(world.path))
        with nothing_left():
            world.pages.start()
            mode = world.path.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            (await world.connect()).close()
            world.pages.stop()
            assert not world.path.exists()
            world.pages.stop()  # nothing any more

    run(tmp_path, work, start=False)


def test_it_listens_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        for _ in range(2):
            world.pages.start()
            (await world.lend()).close()
            await until(lambda: world.pages.lent == [])
            world.pages.stop()

    run(tmp_path, work, start=False)


def test_a_place_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        (tmp_path / SOCKET).write_text("somebody's")
        with nothing_left(), pytest.raises(HostError, match=r"pages\.sock"):
            world.pages.start()
        world.pages.stop()

    run(tmp_path, work, start=False)


def test_stop_gives_pages_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        visitor, lender = await world.connect(), await world.lend()
        world.pages.stop()
        await until(lambda: visitor.ended and lender.ended)
        assert world.pages.lent == []
        assert mapped() == 0
        visitor.close()
        lender.close()

    run(tmp_path, work)


# --- who and what is refused


@pytest.mark.parametrize("message", [b"", b"x", b"abc", bytes(MESSAGE_LIMIT + 10)])
def test_a_greeting_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: bytes) -> None:
    async def work(world: World) -> None:
        with nothing_left():
            lender = await world.connect()
            lender.end.send(message)
            await world.refused(lender)
            lender.close()

    run(tmp_path, work)


def test_descriptors_that_come_with_a_greeting_are_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        with nothing_left():
            lender = await world.connect()
            lender.offer(greet(7))
            lender.end.send(OFFER)
            await world.refused(lender)
            lender.close()

    run(tmp_path, work)


def test_who_comes_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        before = descriptors()
        for greeting in (None, greet(7)):
            lender = await world.connect()
            if greeting is not None:
                lender.end.send(greeting)
            lender.close()
            await until(lambda: descriptors() == before)
        assert world.pages.lent == []

    run(tmp_path, work)


def test_a_domain_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        with nothing_left():
            lender = await world.connect()
            lender.end.send(greet(8))
            lender.offer()
            await world.refused(lender)
            lender.close()

    run(tmp_path, work)


@pytest.mark.parametrize("count", [0, 1])
def test_an_offer_with_too_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    async def work(world: World) -> None:
        with nothing_left():
            lender = await world.connect()
            lender.end.send(greet(7))
            lender.offer(OFFER, count)
            await world.refused(lender)
            lender.close()

    run(tmp_path, work)


@pytest.mark.parametrize("message", [b"\0", offer(3, {}), OFFER[:-1], OFFER + b"x", bytes(MESSAGE_LIMIT + 5)])
def test_an_offer_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: bytes) -> None:
    async def work(world: World) -> None:
        with nothing_left():
            lender = await world.connect()
            lender.end.send(greet(7))
            lender.offer(message)
            await world.refused(lender)
            lender.close()

    run(tmp_path, work)


def test_vcpus_that_no_page_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        before = descriptors()
        lender = await world.connect()
        lender.end.send(greet(7))
        lender.offer(offer(3, {VCPUS: 41}))
        await until(lambda: lender.ended)
        assert world.pages.lent == []
        assert mapped() == 0
        lender.close()
        assert descriptors() == before

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("events", "flags", "privcmd"),
    [
        ("socket", 0, "/dev/null"),
        ("/dev/null", os.O_NONBLOCK, "socket"),
        ("/dev/null", 0, "/dev/null"),  # event channels that block
        ("/dev/null", os.O_NONBLOCK, "/dev/null"),  # of which no page can be mapped
        ("/dev/null", os.O_NONBLOCK, "/dev/zero"),  # and that know no domain
    ],
)  # fmt: skip
def test_descriptors_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: str, flags: int, privcmd: str
) -> None:
    async def work(world: World) -> None:
        with nothing_left():
            lender = await world.connect()
            passed = [lender.events.fileno() if path == "socket" else os.open(path, os.O_RDWR | bits)
                      for path, bits in ((events, flags), (privcmd, 0))]
            lender.end.send(greet(7))
            socket.send_fds(lender.end, [OFFER], passed)
            await world.refused(lender)
            for descriptor in set(passed) - {lender.events.fileno()}:
                os.close(descriptor)
            lender.close()

    run(tmp_path, work, xen=True)


def test_what_the_compiled_part_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        refusing = Refusing()
        with nothing_left(), monkeypatch.context() as patched:
            patched.setattr(ioreqpage, "compiled_poller", lambda: refusing)
            patched.setattr(ioreqpage, "check_devices", lambda events, privcmd: None)
            lender = await world.connect()
            lender.end.send(greet(7))
            lender.offer()
            await world.refused(lender)
            lender.close()
        ((_, table, _, *said),) = refusing.asked
        assert table is world.domains[7].table
        assert said == [7, 3, OFFER[2:], True]

    run(tmp_path, work, xen=True)


def test_a_second_loan_of_the_same_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        first = await world.lend()
        before = descriptors()
        second = await world.connect()
        second.end.send(greet(7))
        second.offer()
        await until(lambda: second.ended)
        second.close()
        assert descriptors() == before
        assert world.pages.lent == [7]
        assert not first.ended
        first.close()
        await until(lambda: world.pages.lent == [])
        (await world.lend()).close()

    run(tmp_path, work)


def test_without_descriptors_who_comes_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        monkeypatch.setattr(ioreqpage, "ACCEPT_RETRY", 0.05)
        asked = 0

        def accept(_: socket.socket) -> tuple[socket.socket, object]:
            nonlocal asked
            asked += 1
            raise OSError(errno.EMFILE, "none left")

        with nothing_left(), monkeypatch.context() as patched:
            patched.setattr(socket.socket, "accept", accept)
            lender = await world.connect()
            lender.end.send(greet(7))
            lender.offer()
            await until(lambda: asked == 3)
            patched.undo()
            await until(lambda: world.pages.lent == [7])
            lender.close()
            await until(lambda: world.pages.lent == [])
        assert asked < 20

    run(tmp_path, work)


def test_a_visitor_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        monkeypatch.setattr(ioreqpage, "VISITORS", 3)
        with nothing_left():
            visitors = [await world.connect() for _ in range(4)]
            await until(lambda: visitors[3].ended)
            assert not any(visitor.ended for visitor in visitors[:3])
            visitors[0].end.send(greet(7))  # who has lent a page is no visitor any more
            visitors[0].offer()
            await until(lambda: world.pages.lent == [7])
            another = await world.connect()
            another.end.send(b"no greeting")
            await until(lambda: another.ended)
            visitors[0].close()
            await until(lambda: world.pages.lent == [])
            world.pages.stop()
            assert all(visitor.ended for visitor in visitors[1:])
            world.pages.start()
            assert mapped() == 0
            for visitor in [*visitors[1:], another]:
                visitor.close()

    run(tmp_path, work)


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        monkeypatch.setattr(ioreqpage, "PATIENCE", 0.05)
        lender = await world.lend()
        with nothing_left():
            silent, greeting = await world.connect(), await world.connect()
            greeting.end.send(greet(7))
            await until(lambda: silent.ended and greeting.ended)
            silent.close()
            greeting.close()
        assert world.pages.lent == [7]
        assert not lender.ended
        lender.close()

    run(tmp_path, work)


@root
@pytest.mark.parametrize(("ours", "uid", "let_in"), [(0, 60007, False), (60007, 60007, True), (60007, 0, True)])
def test_who_may_come(monkeypatch: pytest.MonkeyPatch, ours: int, uid: int, let_in: bool) -> None:
    async def work(world: World) -> None:
        world.path.chmod(0o666)
        before = descriptors()
        with acting_as(uid):
            lender = await world.connect()
        with monkeypatch.context() as patched:
            patched.setattr(os, "geteuid", lambda: ours)
            if let_in:
                lender.end.send(greet(7))
                lender.offer()
                await until(lambda: world.pages.lent == [7])
            else:
                await world.refused(lender)
        lender.close()
        await until(lambda: world.pages.lent == [])
        assert mapped() == 0
        assert descriptors() == before

    with TemporaryDirectory() as directory:  # tmp_path is for nobody else
        os.chmod(directory, 0o711)
        run(Path(directory), work)


# --- a loan


def test_accesses_are_answered(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        lender = await world.lend()
        assert mapped() == 1
        for vcpu in PORTS:
            lender.put(vcpu)
            await until(lambda: lender.state(vcpu) == SlotState.RESPONSE)  # noqa: B023 # awaited before the loop goes on
            assert lender.page[vcpu * SLOT_SIZE + 8:vcpu * SLOT_SIZE + 10] == b"\xd2\x49"
        assert world.one.counters.ioreqs["magic"] == 2
        lender.close()
        await until(lambda: world.pages.lent == [])

    run(tmp_path, work)


def test_pages_of_several_domains(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        world.domains[3] = world.one.domain(3, "db-01", "4f0e0c5e-0000-4000-8000-000000000003")
        web, db = await world.lend(7), await world.lend(3)
        assert world.pages.lent == [3, 7]
        web.close()
        await until(lambda: world.pages.lent == [3])
        db.put(0)
        await until(lambda: db.state(0) == SlotState.RESPONSE)
        db.close()

    run(tmp_path, work)


def test_descriptors_too_many_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(world: World) -> None:
        before = descriptors()
        lender = await world.connect()
        lender.end.send(greet(7))
        lender.offer(OFFER, 20)
        await until(lambda: world.pages.lent == [7] or lender.ended)
        lender.close()
        await until(lambda: world.pages.lent == [])
        assert mapped() == 0
        assert descriptors() == before

    run(tmp_path, work)


@pytest.mark.parametrize("how", ["closed", "speaks", "events", "given back", "released", "released and an event"])
def test_the_end_of_a_loan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async def work(world: World) -> None:
        before = descriptors()
        lender = await world.lend()
        match how:
            case "closed":
                lender.end.shutdown(socket.SHUT_WR)
            case "speaks":
                lender.end.send(b"hello")
            case "events":
                lender.xen.close()
            case "given back":
                world.pages.give_back(7)
                assert world.pages.lent == []
                world.pages.give_back(7)  # nothing any more
            case "released":  # as Service.released() has it
                domain = world.domains.pop(7)
                world.pages.give_back(7)
                domain.release()
            case _:
                world.domains.pop(7).release()
                lender.put(0)
        await until(lambda: lender.ended)
        await until(lambda: world.pages.lent == [])
        assert lender.state(0) in (SlotState.NONE, SlotState.READY)
        assert mapped() == 0
        lender.close()
        # a domain that is released closes a file of its own
        assert descriptors() <= before
        if how not in ("released", "released and an event"):
            assert descriptors() == before
            (await world.lend()).close()

    run(tmp_path, work)


# --- what is a device


def test_devices_that_do_not_block() -> None:
    waits, ready = os.open(os.devnull, os.O_RDWR), os.open(os.devnull, os.O_RDWR | os.O_NONBLOCK)
    ours, theirs = os.pipe2(os.O_NONBLOCK)
    try:
        check_devices(ready, waits)
        check_devices(ready, ready)
        with pytest.raises(ValueError, match="event channels that block"):
            check_devices(waits, ready)
        for events, privcmd in ((ours, ready), (ready, theirs), (ours, theirs)):
            with pytest.raises(ValueError, match="not a device"):
                check_devices(events, privcmd)
    finally:
        for descriptor in (waits, ready, ours, theirs):
            os.close(descriptor)
