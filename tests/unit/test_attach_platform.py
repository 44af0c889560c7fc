from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.attach.platform import PlatformBar, find

COMMAND, BAR0 = 4, 0x10


class Machine:
    """QEMU with a platform device at 00:02.0, and Xen's routing of ports: who gets what is checked at every step."""

    def __init__(self, *, present: bool = True) -> None:
        self.present = present
        self.space = bytearray(256)
        self.space[0:4] = b"\x53\x58\x01\x00"
        self.address = 0
        self.ours: set[int] = set()
        self.beside: list[tuple[int, int, int]] = []
        self.steals = False
        """True: another vCPU points QEMU's address register at the BAR before each write of the data port."""

    @property
    def bar(self) -> int | None:
        at = int.from_bytes(self.space[BAR0:BAR0 + 4], "little") & ~0xFF
        return at if self.space[COMMAND] & 1 and 0 < at < 0x10000 else None

    def check(self) -> None:
        assert self.bar is None or self.bar in self.ours

    async def write(self, port: int, size: int, value: int) -> None:
        await asyncio.sleep(0)
        if port == 0xCF8:
            assert size == 4
            self.address = value
        elif port >= 0xCFC and port < 0xD00:
            assert self.address >> 8 == 0x800010
            register = (BAR0 if self.steals else self.address & 0xFC) + (port & 3)
            for at, byte in enumerate(value.to_bytes(size, "little"), register):
                if at == COMMAND or BAR0 < at < BAR0 + 4:
                    self.space[at] = byte
                elif at == BAR0:
                    self.space[at] = 1
            self.check()
        else:
            self.beside.append((port, size, value))

    async def read(self, port: int, size: int) -> int:
        await asyncio.sleep(0)
        if port == 0xCF8:
            return self.address
        if 0xCFC <= port < 0xD00:
            at = (self.address & 0xFC) + (port & 3)
            return int.from_bytes(self.space[at:at + size], "little")
        return 0x55

    async def query(self, command: str) -> Any:
        assert command == "query-pci"
        await asyncio.sleep(0)
        region = {"bar": 0, "type": "io", "size": 256, "address": -1 if self.bar is None else self.bar}
        device = {"id": {"vendor": 0x5853}, "bus": 0, "slot": 2, "function": 0, "regions": [region]}
        return [{"bus": 0, "devices": [device] if self.present else []}]

    def own(self, first: int, last: int) -> None:
        assert last - first == 0xFF
        self.ours.add(first)

    def disown(self, first: int, last: int) -> None:
        self.ours.remove(first)
        self.check()


def play(machine: Machine, work: Callable[[PlatformBar], Awaitable[None]]) -> list[str]:
    said: list[str] = []

    async def main() -> None:
        device = await find(machine)
        assert device is not None
        platform = PlatformBar(device, machine, machine, said.append)
        await platform.look()
        async with asyncio.timeout(60):
            await work(platform)

    asyncio.run(main())
    return said


def test_a_machine_without_the_device() -> None:
    assert asyncio.run(find(Machine(present=False))) is None


def test_the_bar_is_followed_from_place_to_place() -> None:
    machine = Machine()

    async def work(platform: PlatformBar) -> None:
        assert platform.locate(0xC004, 1) is None
        await platform.config_write(BAR0, 4, 0xC000)
        assert platform.locate(0xC004, 1) is None  # not switched on
        assert machine.ours == {0xC000}
        await platform.config_write(COMMAND, 2, 3)
        assert platform.locate(0xC004, 4) == 4
        assert platform.locate(0xC0FE, 4) is None
        # its size is asked for while it is on
        await platform.config_write(BAR0, 4, 0xFFFFFFFF)
        assert platform.locate(0xC004, 1) is None
        await platform.config_write(BAR0, 4, 0xD001)
        assert machine.ours == {0xD000}
        assert platform.locate(0xD0FF, 1) == 0xFF
        # in pieces
        await platform.config_write(BAR0 + 1, 1, 0xE1)
        assert (machine.ours, machine.bar) == ({0xE100}, 0xE100)
        await platform.config_write(BAR0 - 1, 4, 0x00F20000)
        assert (machine.ours, machine.bar) == ({0xF200}, 0xF200)
        assert await platform.config_read(0, 4) == 0x00015853
        assert await platform.config_read(BAR0 + 1, 4) == 0xF2
        assert await platform.config_read(0x100, 4) == 0xFFFFFFFF
        await platform.config_write(0x110, 4, 0xC000)
        assert machine.ours == {0xF200}

    assert play(machine, work) == []


def test_the_guests_address_register_is_as_it_was() -> None:
    machine = Machine()
    machine.address = 0x8000F800

    async def work(platform: PlatformBar) -> None:
        await platform.config_read(0x0E, 4)
        assert machine.address == 0x8000F800
        await platform.config_write(COMMAND, 2, 3)
        assert machine.address == 0x8000F800

    play(machine, work)


def test_ports_beside_the_bar_are_qemus() -> None:
    machine = Machine()

    async def work(platform: PlatformBar) -> None:
        await platform.config_write(BAR0, 4, 0xC000)
        await platform.write(0xC004, 1, 7)
        assert await platform.read(0xC004, 1) == 0x55
        assert machine.beside == [(0xC004, 1, 7)]
        # while the BAR is being switched on, an access on another vCPU waits and is not let through
        switching = asyncio.create_task(platform.config_write(COMMAND, 1, 1))
        await asyncio.sleep(0)
        assert platform.locate(0xC004, 1) is None
        await platform.write(0xC004, 1, 1)
        assert await platform.read(0xC004, 2) == 0xFFFF
        await switching
        assert machine.beside == [(0xC004, 1, 7)]

    play(machine, work)


def test_a_bar_that_was_switched_on_behind_our_back_unplugs_nothing() -> None:
    machine = Machine()

    async def work(platform: PlatformBar) -> None:
        await platform.config_write(BAR0, 4, 0xC000)
        machine.space[COMMAND] = 1
        assert platform.locate(0xC004, 1) is None
        for port, size, value in ((0xC004, 1, 1), (0xC001, 4, 0x01000000), (0xC008, 4, 0x102), (0xC007, 2, 0x0100)):
            await platform.write(port, size, value)
        assert machine.beside == []
        await platform.write(0xC008, 1, 65)
        assert machine.beside == [(0xC008, 1, 65)]

    play(machine, work)


def test_a_bar_that_is_on_already_is_found() -> None:
    machine = Machine()
    machine.space[COMMAND], machine.space[BAR0 + 1] = 1, 0xC3

    async def work(platform: PlatformBar) -> None:
        assert platform.locate(0xC300, 1) == 0
        assert machine.ours == {0xC300}
        machine.present = False  # hot-unplugged
        await platform.config_write(COMMAND, 2, 0)
        assert machine.ours == {0xC300}

    play(machine, work)


def test_moving_it_without_end_ends() -> None:
    machine = Machine()

    async def work(platform: PlatformBar) -> None:
        for place in range(1, 256):
            await platform.config_write(BAR0, 4, place << 8)
        assert len(machine.ours) == 32
        await platform.config_write(COMMAND, 2, 3)
        assert machine.ours == {0x2000}

    said = play(machine, work)
    assert len(said) == 1
    assert "not moved any more" in said[0]


@pytest.mark.parametrize("steals", [False, True])
@given(st.lists(st.tuples(
    st.sampled_from([COMMAND, BAR0, BAR0 + 1, BAR0 + 2, BAR0 + 3, 0x0D, 0x14, 0x3C]), st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 1, 3, 0xC0, 0xC000, 0xC001, 0xD0, 0x1C001, 0xFFFFFFFF, 0xC0000001, 0x01D000])), max_size=40))
def test_qemu_never_has_it_where_it_is_not_ours(steals: bool, writes: list[tuple[int, int, int]]) -> None:
    machine = Machine()
    machine.space[COMMAND] = steals
    machine.steals = steals

    async def work(platform: PlatformBar) -> None:
        for register, size, value in writes:
            await platform.config_write(register, size, value & (1 << 8 * size) - 1)
            machine.check()

    play(machine, work)
