"""A lent ioreq page against core/ alone: same accesses, same answers, same everything.

The hypervisor and unplugd-attach are played here: a page, a socket in place of the event channels, and a lender who
carries out over the socket what comes back to him.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.corealone import Core
from tests.lab.frames import FRAME, frame
from tests.lab.host import host, until
from tests.unit.test_same_as_core import CONFIG, LOOPS, Daemon
from unplugd.attach.slots import SLOT_SIZE, SlotState
from unplugd.config.load import Config, LogConfig
from unplugd.core.ioreq import FRAME_SIZE
from unplugd.domains.domain import Domain
from unplugd.sockets.loop import compiled_poller

if "compiled" not in LOOPS:
    pytest.skip("the compiled part was not built", allow_module_level=True)

READ, STRING = 0x20, 0x10
PORTS = {0: 41, 1: 77, 127: 3}
"""Ours, by vCPU."""


@dataclass(frozen=True)
class Access:
    """What a vCPU does; `bits` beside the state."""

    port: int
    size: int
    data: int = 0
    bits: int = 0
    count: int = 1
    kind: int = 0
    vcpu: int = 0

    @property
    def frame(self) -> bytes:
        """As an agent says it on the socket."""
        data = self.data if self.bits & (READ | STRING) else self.data & (1 << 8 * self.size) - 1
        return frame(self.port, self.size, data=data, read=bool(self.bits & READ))


def read(port: int, size: int, vcpu: int = 0) -> Access:
    return Access(port, size, bits=READ, vcpu=vcpu)


MAGIC = read(0x10, 2)


class Xen:
    """A page that is lent for a domain."""

    def __init__(self, peer: Daemon) -> None:
        self.peer = peer
        self.memory = os.memfd_create("page")
        os.ftruncate(self.memory, mmap.PAGESIZE)
        self.page = mmap.mmap(self.memory, mmap.PAGESIZE)
        self.theirs, self.events = socket.socketpair()
        self.lender, self.borrower = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.theirs, self.events, self.lender, self.borrower):
            end.setblocking(False)
        self.handed: list[int] = []
        holder = compiled_poller()
        assert holder is not None
        self.poller = holder
        ports = b"".join(struct.pack("<BI", *item) for item in PORTS.items())
        events = os.dup(self.events.fileno())
        holder.borrow(events, self.borrower.fileno(), peer.domain.table, self.memory, 7, 1, ports, False)

    def put(self, access: Access, *, ring: bool = True) -> None:
        """Have a vCPU stand still, and (`ring`) say so."""
        FRAME.pack_into(self.page, access.vcpu * SLOT_SIZE, access.port, access.data, access.count, access.size,
                        100 + access.vcpu, 0, access.bits | SlotState.READY, access.kind)
        if ring:
            self.ring(access.vcpu)

    def ring(self, *vcpus: int) -> None:
        self.theirs.send(b"".join(struct.pack("<I", PORTS[vcpu]) for vcpu in vcpus))

    def state(self, vcpu: int = 0) -> int:
        return self.page[vcpu * SLOT_SIZE + 30] & 0xF

    def data(self, vcpu: int = 0) -> int:
        return int.from_bytes(self.page[vcpu * SLOT_SIZE + 8:vcpu * SLOT_SIZE + 16], "little")

    def unmasked(self) -> bytes:
        """The ports that were written back."""
        with contextlib.suppress(BlockingIOError):
            return self.theirs.recv(4096)
        return b""

    def given(self) -> bytes | None:
        """The vCPU that was given to the lender; b"" once the page went back."""
        with contextlib.suppress(BlockingIOError):
            return self.lender.recv(4096)
        return None

    async def answered(self, access: Access) -> int:
        """Make an access; the lender carries it out, where it comes to him. Returns what the vCPU finds in the slot."""
        self.put(access)
        deadline = time.monotonic() + 20
        while self.state(access.vcpu) != SlotState.RESPONSE:
            vcpu = self.given()
            if vcpu is not None:
                assert vcpu == bytes([access.vcpu])
                assert self.state(access.vcpu) == SlotState.IN_PROCESS
                self.handed.append(access.port)
                response = await self.peer.send(0, access.frame, FRAME_SIZE, closed=False)
                at = access.vcpu * SLOT_SIZE
                if access.bits & READ:
                    self.page[at + 8:at + 16] = response[8:16]
                self.page[at + 30] = access.bits | SlotState.RESPONSE
            assert time.monotonic() < deadline, access
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.unmasked()
        return self.data(access.vcpu)

    def close(self) -> None:
        for end in (self.theirs, self.events, self.lender, self.borrower):
            end.close()
        self.page.close()
        os.close(self.memory)


def run(test: Callable[[Daemon], Coroutine[Any, Any, None]], config: Config = CONFIG) -> None:
    """A test with a domain, in which no callback may fail."""
    failed: list[object] = []

    async def main(directory: Path) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        async with host(directory, config) as one:
            peer = Daemon(one)
            peer.connect(0)
            try:
                await test(peer)
            finally:
                peer.close()

    with tempfile.TemporaryDirectory() as directory, asyncio.Runner(loop_factory=LOOPS["compiled"]) as runner:
        runner.run(main(Path(directory)))
    assert failed == []


def with_page(test: Callable[[Xen], Coroutine[Any, Any, None]], config: Config = CONFIG) -> None:
    """A test with a page that is lent, and given back afterwards."""

    async def main(peer: Daemon) -> None:
        xen = Xen(peer)
        try:
            await test(xen)
            xen.poller.give_back(xen.borrower.fileno())
        finally:
            xen.close()

    run(main, config)


ACCESSES = st.one_of(
    st.builds(read, st.just(0x10), st.just(2), st.sampled_from(sorted(PORTS))),
    st.builds(read, st.just(0x12), st.just(1), st.sampled_from(sorted(PORTS))),
    st.builds(lambda value, vcpu: Access(0x12, 1, value, vcpu=vcpu), st.sampled_from([0x61, 0x0A, 0x0D, 0xFF61]),
              st.sampled_from(sorted(PORTS))),
    st.builds(lambda number: Access(0x12, 2, number), st.sampled_from([0, 1, 3, 0x70001])),
    st.builds(lambda number: Access(0x10, 4, number), st.sampled_from([1, 13])),
    st.builds(lambda mask: Access(0x10, 2, mask), st.integers(0, 31)),
    st.builds(Access, st.integers(0x0D, 0x16), st.sampled_from([1, 2, 4]), st.integers(0, 2**64 - 1),
              st.sampled_from([0, READ])),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(ACCESSES, max_size=30))
def test_it_is_the_same_over_the_page(accesses: list[Access]) -> None:
    async def over_the_page(xen: Xen) -> None:
        domain = xen.peer.domain
        core = Core(CONFIG, domain.records.prefix, domain.settings.delivery.cost)
        core.connect(0)
        for access in accesses:
            response, _ = core.send(0, access.frame)
            expected = int.from_bytes(response[8:16], "little") if access.bits & READ else access.data
            assert await xen.answered(access) == expected
        assert await xen.peer.seen(len(core.records)) == core.seen()

    with_page(over_the_page)


def test_what_is_plain_is_answered_in_place() -> None:
    async def test(xen: Xen) -> None:
        assert await xen.answered(MAGIC) == 0x49D2
        assert await xen.answered(read(0x12, 1, vcpu=127)) == 1
        assert await xen.answered(Access(0x12, 2, 0xFFFF_0003)) == 0xFFFF_0003  # a write finds its slot as it was
        for value in b"seen\n":
            await xen.answered(Access(0x12, 1, value, vcpu=1))
        assert xen.handed == [0x12], "the product number alone"
        assert xen.peer.domain.guest.snapshot().product == 3
        await until(lambda: xen.peer.one.journald.lines == ["seen"])
        assert xen.peer.one.counters.ioreqs["magic"] == 1

    with_page(test)


def test_what_has_consequences_is_the_lenders() -> None:
    async def test(xen: Xen) -> None:
        for access in (Access(0x10, 2, 3), Access(0x10, 1, 1), Access(0x0E, 4, 1), read(0x10, 4), Access(0x10, 4, 7),
                       read(0x14, 2)):
            await xen.answered(access)
        assert len(xen.handed) == 6
        xen.handed.clear()
        # neither strings, nor what is no port access, nor what nobody knows
        for access in (Access(0x12, 1, 0x1000, STRING, count=5), Access(0x10, 2, bits=READ | STRING, count=2),
                       Access(0x10, 2, bits=READ, kind=1), Access(0x10, 2, bits=READ, kind=8),
                       Access(0x10, 2, bits=READ, count=2), Access(0x12, 1, 0x41, kind=2)):
            xen.put(access)
            await until(lambda: xen.given() == b"\0")
            assert xen.state() == SlotState.IN_PROCESS
        assert xen.peer.one.counters.ioreqs.get("log", 0) == 0

    with_page(test)


def test_several_vcpus_at_once_and_ports_of_nobody() -> None:
    async def test(xen: Xen) -> None:
        for vcpu in PORTS:
            xen.put(read(0x10, 2, vcpu), ring=False)
        xen.theirs.send(struct.pack("<4I", 41, 1000, 3, 77))
        await until(lambda: all(xen.state(vcpu) == SlotState.RESPONSE for vcpu in PORTS))
        assert [xen.data(vcpu) for vcpu in PORTS] == [0x49D2] * 3
        assert xen.unmasked() == struct.pack("<4I", 41, 1000, 3, 77)

    with_page(test)


def test_an_event_without_an_access_does_nothing() -> None:
    async def test(xen: Xen) -> None:
        for state in (SlotState.NONE, SlotState.IN_PROCESS, SlotState.RESPONSE):
            xen.put(MAGIC, ring=False)
            xen.page[30] = READ | state
            xen.ring(0)
            await until(xen.unmasked)
            assert (xen.state(), xen.given()) == (state, None)

    with_page(test)


def test_a_log_that_is_delayed_is_the_lenders() -> None:
    async def test(xen: Xen) -> None:
        await xen.answered(Access(0x12, 1, 0x61))
        assert xen.handed == [0x12]
        assert await xen.answered(MAGIC) == 0x49D2
        assert xen.handed == [0x12]

    with_page(test, Config(log=LogConfig(on_limit="delay")))


def test_one_domain_does_not_keep_others_waiting() -> None:
    """What is beyond its share of a round waits for the next, and is answered then."""
    async def test(xen: Xen) -> None:
        for _ in range(300):
            assert await xen.answered(MAGIC) == 0x49D2

    with_page(test)


@pytest.mark.parametrize("how", ["lender", "events", "domain", "give_back"])
def test_the_page_goes_back(how: str) -> None:
    async def test(peer: Daemon) -> None:
        before = len(os.listdir("/proc/self/fd"))
        xen = Xen(peer)
        assert await xen.answered(MAGIC) == 0x49D2
        match how:
            case "lender":  # gone, but nobody has noticed
                xen.lender.close()
                xen.put(Access(0x10, 2, 3))
                await until(lambda: xen.state() == SlotState.IN_PROCESS)
            case "events":
                xen.theirs.close()
                await until(lambda: xen.given() == b"")
            case "domain":
                peer.domain.table.close()
                xen.put(MAGIC)
                await until(lambda: xen.given() == b"")
                assert xen.state() == SlotState.READY
            case _:
                xen.poller.give_back(xen.borrower.fileno())
                xen.poller.give_back(xen.borrower.fileno())  # nothing any more
                assert xen.given() == b""
                xen.put(MAGIC)
                await asyncio.sleep(0.05)
                assert xen.state() == SlotState.READY
        xen.close()
        assert len(os.listdir("/proc/self/fd")) <= before

    run(test)


def test_a_fault_gives_the_page_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The access has no answer: the lender finds it in its slot, and asks by the socket."""
    async def test(peer: Daemon) -> None:
        xen = Xen(peer)
        for value in b"line":
            await xen.answered(Access(0x12, 1, value))
        with monkeypatch.context() as patched:
            patched.setattr(Domain, "_record", broken)
            patched.setattr("sys.unraisablehook", lambda _: None)
            xen.put(Access(0x12, 1, 0x5C))
            await until(lambda: xen.state() == SlotState.RESPONSE)
            xen.put(Access(0x12, 1, 0x0A))
            await until(lambda: xen.given() == b"")
        assert xen.state() == SlotState.READY
        xen.close()

    run(test)


def broken(_domain: Domain, _now: float, *, forever: bool) -> None:
    raise RuntimeError("no")


@pytest.mark.parametrize("closes", ["table", "page", "both"])
def test_a_domain_that_goes_within_the_callback(closes: str) -> None:
    async def test(peer: Daemon) -> None:
        xen = Xen(peer)
        holder = compiled_poller()
        assert holder is not None
        domain, record = peer.domain, peer.domain._record

        def goes(now: float, *, forever: bool) -> None:
            record(now, forever=forever)
            if closes != "page":
                domain.table.close()
            if closes != "table":
                holder.give_back(xen.borrower.fileno())

        with patch.object(domain, "_record", goes):
            xen.put(Access(0x12, 1, 0x0A))
            await until(lambda: xen.given() == b"" or xen.state() == SlotState.RESPONSE)
        # where the page is still ours, the byte was kept before, and is answered
        assert (xen.state() == SlotState.RESPONSE) is (closes == "table")
        xen.put(MAGIC)
        await until(lambda: closes != "table" or xen.given() == b"")
        assert xen.state() == SlotState.READY
        xen.close()

    run(test)


def test_what_is_no_page_is_refused() -> None:
    async def test(peer: Daemon) -> None:
        ours, theirs = socket.socketpair()
        holder, table = compiled_poller(), peer.domain.table
        assert holder is not None
        memory = os.memfd_create("page")
        one = struct.pack("<BI", 0, 7)
        for ports in (b"", one[:4], one + b"x", struct.pack("<BI", 128, 7), 129 * one):
            with pytest.raises(ValueError, match="not the vCPUs of an ioreq page"):
                holder.borrow(ours.fileno(), theirs.fileno(), table, memory, 7, 1, ports, False)
        with pytest.raises(OSError, match="ioctl"):  # it can be mapped, but is no privcmd
            holder.borrow(ours.fileno(), theirs.fileno(), table, memory, 7, 1, one, True)
        with pytest.raises(OSError, match="device"):
            holder.borrow(ours.fileno(), theirs.fileno(), table, theirs.fileno(), 7, 1, one, False)
        os.close(memory)
        ours.close()
        theirs.close()

    run(test)
