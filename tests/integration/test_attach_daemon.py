"""An ioreq server's agent in front of the real daemon: everything but Xen and QEMU."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from tests.lab.daemon import PATIENCE, Daemon, Run, embedded
from unplugd.attach.agent import Agent
from unplugd.attach.connect import connect as connect_to
from unplugd.attach.forward import PAUSE, Forward
from unplugd.attach.guestmem import GuestMemory
from unplugd.attach.slots import PAGE_SIZE, Access, Kind
from unplugd.attach.unplugd import Unplugd


class Pages:
    def __init__(self) -> None:
        self.memory = bytearray(16 * PAGE_SIZE)

    def read(self, frame: int, offset: int, length: int) -> bytes:
        at = frame * PAGE_SIZE + offset
        return bytes(self.memory[at:at + length])

    def write(self, frame: int, offset: int, data: bytes) -> None:
        at = frame * PAGE_SIZE + offset
        self.memory[at:at + len(data)] = data


class Qemu:
    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.told: list[tuple[int, int, int]] = []

    async def attempt(self, port: int, size: int, value: int) -> None:
        self.told.append((port, size, value))

    async def write(self, port: int, size: int, value: int) -> None:
        self.written.append((port, size, value))

    async def read(self, port: int, size: int) -> int:
        return 0


class Platform(Qemu):
    """The BAR is at 0xc000."""

    def locate(self, port: int, size: int) -> int | None:
        return port - 0xC000 if 0xC000 <= port <= 0xC0FF else None

    async def config_read(self, register: int, size: int) -> int:
        return 0

    async def config_write(self, register: int, size: int, value: int) -> None:
        raise AssertionError(register)


class Guest:
    """One vCPU: an access at a time."""

    def __init__(self, agent: Agent, answers: asyncio.Queue[int | None]) -> None:
        self.agent = agent
        self._answers = answers

    async def access(self, access: Access) -> int | None:
        self.agent.take(0, access)
        async with asyncio.timeout(PATIENCE):
            return await self._answers.get()

    async def read(self, port: int, size: int) -> int | None:
        return await self.access(Access(Kind.PIO, port, 0, 1, size, read=True, string=False, backwards=False))

    async def write(self, port: int, size: int, value: int) -> None:
        await self.access(Access(Kind.PIO, port, value, 1, size, read=False, string=False, backwards=False))


def play(daemon: Daemon, work: Callable[[Guest, Qemu, Pages], Awaitable[None]]) -> None:
    async def main() -> None:
        async def connect() -> socket.socket:
            return connect_to(str(daemon.runtime / "dom7.sock"))

        unplugd = Unplugd(connect, give_up_after=None, report=lambda text: None)
        connection = asyncio.create_task(unplugd.run())
        answers: asyncio.Queue[int | None] = asyncio.Queue()
        qemu, pages = Qemu(), Pages()
        failures: list[BaseException] = []
        reports: list[str] = []
        asked = Forward(unplugd, qemu, reports.append, failures.append)
        agent = Agent(
            asked, qemu, Platform(), GuestMemory(pages), lambda _, data: answers.put_nowait(data), failures.append
        )
        await work(Guest(agent, answers), qemu, pages)
        assert (failures, reports) == ([], [])
        connection.cancel()
        unplugd.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_driver_unplugs_what_policy_allows(run: Run) -> None:
    async def work(guest: Guest, qemu: Qemu, pages: Pages) -> None:
        assert await guest.read(0x10, 2) == 0x49D2
        assert await guest.read(0x12, 1) == 1
        await guest.write(0x12, 2, 3)
        await guest.write(0x10, 4, 1)
        assert await guest.read(0x10, 2) == 0x49D2
        await guest.write(0x10, 2, 3)
        assert qemu.written == [(0x10, 2, 2)]
        await guest.write(0x0E, 4, 0x0001_0000)  # the way round
        assert qemu.written[1:] == [(0x0E, 2, 0)]

    play(run(embedded(7, policy={"allow_unplug": ["nics"]})), work)


def test_the_bar_obeys_policy(run: Run) -> None:
    async def work(guest: Guest, qemu: Qemu, pages: Pages) -> None:
        assert await guest.read(0xC004, 4) == 0xFFFFFFFF
        for size in (1, 2, 4):
            await guest.write(0xC004, size, 1)
            await guest.write(0xC008, size, 2)
        assert qemu.written == []
        await guest.write(0xC000, 1, 1)
        assert await guest.read(0xC000, 1) == 1
        assert qemu.written == [(0x10, 1, 1)]

    async def allowed(guest: Guest, qemu: Qemu, pages: Pages) -> None:
        await guest.write(0xC008, 4, 2)
        await guest.write(0xC004, 4, 1)
        assert qemu.written == [(0x10, 2, 2), (0x10, 2, 3)]

    play(run(embedded(7)), work)
    play(run(embedded(7, policy={"legacy_unplug": True})), allowed)


def test_strings_come_from_memory_and_go_there(run: Run) -> None:
    daemon = run(embedded(7))

    async def work(guest: Guest, qemu: Qemu, pages: Pages) -> None:
        pages.memory[PAGE_SIZE - 3:PAGE_SIZE + 3] = b"hello\n"
        await guest.access(Access(Kind.PIO, 0x12, PAGE_SIZE - 3, 6, 1, read=False, string=True, backwards=False))
        await guest.access(Access(Kind.PIO, 0x10, 2 * PAGE_SIZE + 2, 3, 2, read=True, string=True, backwards=True))
        assert pages.memory[2 * PAGE_SIZE - 2:2 * PAGE_SIZE + 4] == b"\xd2\x49" * 3

    play(daemon, work)
    text = "".join(file.read_text() for file in daemon.log_directory.glob("*.log"))
    assert text.endswith(" hello\n")


def test_an_access_outlives_the_daemon(run: Run) -> None:
    daemon = run(embedded(7))

    async def work(guest: Guest, qemu: Qemu, pages: Pages) -> None:
        await guest.write(0x12, 2, 3)
        daemon.kill()
        pending = asyncio.create_task(guest.write(0x10, 2, 2))
        await asyncio.sleep(0.2)
        assert not pending.done()
        await asyncio.to_thread(daemon.start)
        await pending
        assert qemu.written == [(0x10, 2, 2)]

    play(daemon, work)


@pytest.mark.parametrize(("action", "told"), [("report", True), ("refuse", False), ("withhold", False)])
def test_qemu_is_told_of_drivers_that_may_run(run: Run, action: str, told: bool) -> None:
    listed = {"product": "experimental", "build": 0x9035E, "action": action}

    async def work(guest: Guest, qemu: Qemu, pages: Pages) -> None:
        await guest.write(0x12, 2, 0xFFFF)
        await guest.write(0x10, 4, 0x9035E)
        await guest.write(0x10, 2, 2)
        if not told:
            await asyncio.sleep(4 * PAUSE)
            assert qemu.told == []
            return
        async with asyncio.timeout(PATIENCE):
            while len(qemu.told) < 2:
                await asyncio.sleep(0.01)
        assert qemu.told == [(0x12, 2, 0xFFFF), (0x10, 4, 0x9035E)]

    play(run(embedded(7, blacklist={"entry": [listed]})), work)
