"""A lent ioreq page against the domain's socket: same accesses, same answers, same everything.

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
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.frames import frame
from tests.lab.host import until
from unplugd.attach.slots import SLOT_SIZE, SlotState
from unplugd.config.load import LogConfig
from unplugd.core.ioreq import FRAME_SIZE
from unplugd.domains.domain import Domain
from unplugd.sockets import loop as eventloop

try:
    from tests.unit.test_fastpath import LOG, Peer, fast, pure, run
except ImportError:
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

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.memory = os.memfd_create("page")
        os.ftruncate(self.memory, mmap.PAGESIZE)
        self.page = mmap.mmap(self.memory, mmap.PAGESIZE)
        self.theirs, self.events = socket.socketpair()
        self.lender, self.borrower = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.theirs, self.events, self.lender, self.borrower):
            end.setblocking(False)
        self.handed: list[int] = []
        holder, tail = eventloop.poller(), peer.domain.tail
        assert holder is not None
        assert tail is not None
        self.poller = holder
        ports = b"".join(struct.pack("<BI", *item) for item in PORTS.items())
        events = os.dup(self.events.fileno())
        holder.borrow(events, self.borrower.fileno(), tail, self.memory, 7, 1, ports, False)

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
                response = await self.peer.exchange(0, access.frame, FRAME_SIZE)
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


def with_page(test: Callable[[Xen], Coroutine[Any, Any, None]], log: LogConfig = LOG) -> None:
    """A test with a page that is lent, and given back afterwards."""

    async def main(peer: Peer) -> None:
        xen = Xen(peer)
        try:
            await test(xen)
            xen.poller.give_back(xen.borrower.fileno())
        finally:
            xen.close()

    run(fast, main, log)


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
    seen: list[tuple[list[int], dict[str, object]]] = []

    async def over_the_socket(peer: Peer) -> None:
        answers = []
        for access in accesses:
            response = await peer.exchange(0, access.frame, FRAME_SIZE)
            answers.append(int.from_bytes(response[8:16], "little") if access.bits & READ else access.data)
        seen.append((answers, peer.seen()))

    async def over_the_page(xen: Xen) -> None:
        answers = [await xen.answered(access) for access in accesses]
        seen.append((answers, xen.peer.seen()))

    run(pure, over_the_socket)
    with_page(over_the_page)
    assert seen[0] == seen[1]


def test_what_is_plain_is_answered_in_place() -> None:
    async def test(xen: Xen) -> None:
        assert await xen.answered(MAGIC) == 0x49D2
        assert await xen.answered(read(0x12, 1, vcpu=127)) == 1
        assert await xen.answered(Access(0x12, 2, 0xFFFF_0003)) == 0xFFFF_0003  # a write finds its slot as it was
        for value in b"seen\n":
            await xen.answered(Access(0x12, 1, value, vcpu=1))
        assert xen.handed == [0x12]  # the byte with which a line begins, for which Python sets a timer
        assert xen.peer.domain.guest.snapshot().product == 3
        await until(lambda: xen.peer.one.journald.lines == ["seen"])
        assert xen.peer.one.counters.ioreqs["magic"] == 1

    with_page(test)


def test_what_has_consequences_is_the_lenders() -> None:
    async def test(xen: Xen) -> None:
        for access in (Access(0x10, 2, 3), Access(0x10, 1, 1), read(0x10, 1), Access(0x0E, 4, 1), read(0x10, 4),
                       Access(0x10, 4, 7), read(0x14, 2)):
            await xen.answered(access)
        assert len(xen.handed) == 7
        xen.handed.clear()
        # neither strings, nor what is no port, nor what nobody knows
        for access in (Access(0x12, 1, 0x1000, STRING, count=5), Access(0x10, 2, bits=READ | STRING, count=2),
                       Access(0x10, 2, bits=READ, kind=1), Access(0x10, 2, bits=READ, kind=8),
                       Access(0x10, 2, bits=READ, count=2), Access(0x10008, 1, 0x41), Access(0x12, 1, 0x41, kind=2)):
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

    with_page(test, LogConfig(on_limit="delay"))


def test_one_domain_does_not_keep_others_waiting() -> None:
    """What is beyond its share of a round waits for the next, and is answered then."""
    async def test(xen: Xen) -> None:
        for _ in range(300):
            assert await xen.answered(MAGIC) == 0x49D2

    with_page(test)


@pytest.mark.parametrize("how", ["lender", "events", "domain", "give_back"])
def test_the_page_goes_back(how: str) -> None:
    async def test(peer: Peer) -> None:
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
                assert peer.domain.tail is not None
                peer.domain.tail.close()
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

    run(fast, test)


def test_a_fault_gives_the_page_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The access has no answer: the lender finds it in its slot, and asks by the socket."""
    async def test(peer: Peer) -> None:
        xen = Xen(peer)
        for value in b"line":
            await xen.answered(Access(0x12, 1, value))
        with monkeypatch.context() as patched:
            patched.setattr(Domain, "line_ended", broken)
            patched.setattr("sys.unraisablehook", lambda _: None)
            xen.put(Access(0x12, 1, 0x5C))
            await until(lambda: xen.state() == SlotState.RESPONSE)
            xen.put(Access(0x12, 1, 0x0A))
            await until(lambda: xen.given() == b"")
        assert xen.state() == SlotState.READY
        xen.close()

    run(fast, test)


def broken(domain: Domain, now: float) -> None:
    raise RuntimeError("no")


def test_what_is_no_page_is_refused() -> None:
    async def test(peer: Peer) -> None:
        ours, theirs = socket.socketpair()
        holder, tail = eventloop.poller(), peer.domain.tail
        assert holder is not None
        assert tail is not None
        memory = os.memfd_create("page")
        one = struct.pack("<BI", 0, 7)
        for ports in (b"", one[:4], one + b"x", struct.pack("<BI", 128, 7), 129 * one):
            with pytest.raises(ValueError, match="not the vCPUs of an ioreq page"):
                holder.borrow(ours.fileno(), theirs.fileno(), tail, memory, 7, 1, ports, False)
        with pytest.raises(OSError, match="ioctl"):  # it can be mapped, but is no privcmd
            holder.borrow(ours.fileno(), theirs.fileno(), tail, memory, 7, 1, one, True)
        with pytest.raises(OSError, match="device"):
            holder.borrow(ours.fileno(), theirs.fileno(), tail, theirs.fileno(), 7, 1, one, False)
        os.close(memory)
        ours.close()
        theirs.close()

    run(fast, test)
