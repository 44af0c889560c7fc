from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from unplugd.attach.agent import Agent
from unplugd.attach.guestmem import GuestMemory, spans
from unplugd.attach.plan import Ask, Reply
from unplugd.attach.slots import PAGE_SIZE, Access, Kind
from unplugd.attach.xen import XenError


class Unplugd:
    """Answers when the test says so: magic to reads, what was written as the order."""

    def __init__(self) -> None:
        self.asked: list[tuple[Ask, Callable[[Reply], None]]] = []

    def ask(self, ask: Ask, done: Callable[[Reply], None]) -> None:
        self.asked.append((ask, done))

    def answer(self) -> None:
        ask, done = self.asked.pop(0)
        done(Reply(0x49D2 if ask.read else ask.data, b"\x55" * (ask.count * ask.size)))


class Qemu:
    def __init__(self, error: Exception | None = None) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.may_go = asyncio.Event()
        self.error = error

    async def write(self, port: int, size: int, value: int) -> None:
        await self.may_go.wait()
        if self.error:
            raise self.error
        self.written.append((port, size, value))

    async def read(self, port: int, size: int) -> int:
        return 0xFF


class Platform(Qemu):
    """A BAR at 0xc000 and a configuration space that reads as its register."""

    def locate(self, port: int, size: int) -> int | None:
        return port - 0xC000 if 0xC000 <= port <= 0xC0FF else None

    async def config_read(self, register: int, size: int) -> int:
        return register

    async def config_write(self, register: int, size: int, value: int) -> None:
        self.written.append((register, size, value))


class Pages:
    """Two pages of memory at frames 5 and 6; nothing elsewhere."""

    def __init__(self) -> None:
        self.memory = bytearray(2 * PAGE_SIZE)

    def _at(self, frame: int, offset: int) -> int:
        if frame not in (5, 6):
            raise XenError("map", 22)
        return (frame - 5) * PAGE_SIZE + offset

    def read(self, frame: int, offset: int, length: int) -> bytes:
        at = self._at(frame, offset)
        assert offset + length <= PAGE_SIZE
        return bytes(self.memory[at:at + length])

    def write(self, frame: int, offset: int, data: bytes) -> None:
        at = self._at(frame, offset)
        assert offset + len(data) <= PAGE_SIZE
        self.memory[at:at + len(data)] = data


def single(port: int, size: int, data: int = 0, *, read: bool = False) -> Access:
    return Access(Kind.PIO, port, data, 1, size, read, string=False, backwards=False)


def test_an_access_ends_when_qemu_has_unplugged() -> None:
    async def main() -> None:
        unplugd, qemu, answers = Unplugd(), Qemu(), dict[int, int | None]()
        failures: list[BaseException] = []
        agent = Agent(unplugd, qemu, Platform(), GuestMemory(Pages()), answers.__setitem__, failures.append)
        agent.take(0, single(0x10, 2, 3))
        agent.take(1, single(0x10, 2, read=True))  # another vCPU is not held up
        assert agent.busy == {0, 1}
        unplugd.answer()
        unplugd.answer()
        await asyncio.sleep(0)
        assert answers == {1: 0x49D2}
        qemu.may_go.set()
        while 0 not in answers:
            await asyncio.sleep(0)
        assert qemu.written == [(0x10, 2, 3)]
        assert (agent.busy, failures) == (set(), [])

    asyncio.run(main())


def test_strings_use_the_guests_memory() -> None:
    async def main() -> None:
        unplugd, pages, answers = Unplugd(), Pages(), dict[int, int | None]()
        agent = Agent(unplugd, Qemu(), Platform(), GuestMemory(pages), answers.__setitem__, lambda error: None)
        pages.memory[PAGE_SIZE - 2:PAGE_SIZE + 2] = b"abcd"
        agent.take(0, Access(Kind.PIO, 0x12, 6 * PAGE_SIZE - 2, 4, 1, read=False, string=True, backwards=False))
        assert unplugd.asked[0][0].payload == b"abcd"
        unplugd.answer()
        agent.take(0, Access(Kind.PIO, 0x12, 6 * PAGE_SIZE + 1, 2, 2, read=True, string=True, backwards=True))
        unplugd.answer()
        assert pages.memory[PAGE_SIZE - 1:PAGE_SIZE + 3] == b"\x55" * 4
        assert answers == {0: None}

    asyncio.run(main())


def test_the_platform_device_is_asked() -> None:
    async def main() -> None:
        unplugd, platform, answers = Unplugd(), Platform(), dict[int, int | None]()
        platform.may_go.set()
        qemu = Qemu()
        agent = Agent(unplugd, qemu, platform, GuestMemory(Pages()), answers.__setitem__, lambda error: None)
        agent.take(0, single(0xC008, 1, 65))
        assert unplugd.asked[0][0] == Ask(0x10008, 1, 65)
        agent.take(1, Access(Kind.PCI_CONFIG, 2 << 35 | 0x10, 0, 1, 4, read=True, string=False, backwards=False))
        agent.take(2, Access(Kind.PCI_CONFIG, 2 << 35 | 4, 7, 1, 2, read=False, string=False, backwards=False))
        agent.take(3, single(0xD000, 2, 9))
        agent.take(4, single(0xD000, 2, read=True))
        while len(agent.busy) > 1:
            await asyncio.sleep(0)
        assert answers == {1: 0x10, 2: None, 3: None, 4: 0xFF}
        assert platform.written == [(4, 2, 7), (0xD000, 2, 9)]
        assert qemu.written == []

    asyncio.run(main())


def test_what_nobody_expected_is_said() -> None:
    async def main() -> None:
        unplugd, qemu = Unplugd(), Qemu(RuntimeError("no"))
        failures: list[BaseException] = []
        agent = Agent(unplugd, qemu, Platform(), GuestMemory(Pages()), lambda vcpu, data: None, failures.append)
        agent.take(0, single(0x0D, 1, 3))
        qemu.may_go.set()
        while not failures:
            await asyncio.sleep(0)
        assert agent.busy == {0}

    asyncio.run(main())


@given(st.integers(0, 1 << 40), st.integers(0, 3 * PAGE_SIZE))
def test_spans_cover_memory_page_by_page(address: int, length: int) -> None:
    at = address
    for frame, offset, size in spans(address, length):
        assert frame * PAGE_SIZE + offset == at
        assert 0 < size <= PAGE_SIZE - offset
        at += size
    assert at == address + length


def test_memory_that_is_not_there() -> None:
    memory = GuestMemory(Pages())
    assert memory.read(5 * PAGE_SIZE - 2, 4) == b"\xff\xff\0\0"
    memory.write(7 * PAGE_SIZE - 1, b"ab")
    assert memory.read(7 * PAGE_SIZE - 1, 2) == b"a\xff"
