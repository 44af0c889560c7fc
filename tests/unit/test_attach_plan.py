from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.attach.plan import (
    BAR,
    FIRST_CONFIG,
    FIRST_PORT,
    LAST_CONFIG,
    LAST_PORT,
    Ask,
    Brought,
    Locate,
    Piece,
    ReadConfig,
    ReadGuest,
    ReadQemu,
    Reply,
    Side,
    Step,
    WriteConfig,
    WriteGuest,
    WriteQemu,
    blocks,
    elements,
    ones,
    pieces,
    serve,
)
from unplugd.attach.slots import Access, Kind

MEMORY = 1 << 16
BAR_AT = 0xC000
"""Where the platform device's BAR is."""


@dataclass
class World:
    """unplugd, QEMU and the guest's memory, as a plan sees them."""

    order: int = 0
    """What unplugd answers to a 2-byte write at 0x10: this part of the mask."""
    absent: bool = False
    memory: bytearray = field(default_factory=lambda: bytearray(MEMORY))
    steps: list[Step] = field(default_factory=list)
    written: list[tuple[int, int, int]] = field(default_factory=list)
    """Port, size and value of every write that unplugd saw, element by element."""

    def carry_out(self, step: Step) -> Brought:
        self.steps.append(step)
        match step:
            case Ask(port, size, data, read, count, payload):
                if self.absent:
                    filled = count * size if read and payload is not None else 0
                    return Reply(ones(size) if read else 0, b"\xff" * filled, absent=True)
                if read:
                    value = sum((port + i & 0xFF) << 8 * i for i in range(size))
                    return Reply(value, value.to_bytes(size, "little") * count if payload is not None else b"")
                values = [data] if payload is None else [
                    int.from_bytes(payload[at:at + size], "little") for at in range(0, len(payload), size)]
                assert len(values) == count
                order = 0
                for value in values:
                    self.written.append((port, size, value))
                    if (port, size) == (0x10, 2):
                        order |= value & self.order
                    if (port, size, value) == (BAR + 4, 4, 1):
                        order |= 3 & self.order
                return Reply(order)
            case Locate(port, _):
                return port - BAR_AT if BAR_AT <= port < BAR_AT + 0x100 else None
            case ReadQemu(port, size) | ReadConfig(port, size):
                return sum((port + i & 0xFF) << 8 * i for i in range(size))
            case ReadGuest(address, length):
                return bytes(self.memory[address:address + length])
            case WriteGuest(address, data):
                self.memory[address:address + len(data)] = data
        return None

    def run(self, access: Access) -> int | None:
        plan = serve(access)
        brought: Brought = None
        try:
            while True:
                brought = self.carry_out(plan.send(brought))
        except StopIteration as stop:
            result: int | None = stop.value
            return result

    @property
    def qemu_writes(self) -> list[WriteQemu]:
        return [step for step in self.steps if isinstance(step, WriteQemu)]


def single(port: int, size: int, data: int = 0, *, read: bool = False) -> Access:
    return Access(Kind.PIO, port, data, 1, size, read, string=False, backwards=False)


ports = st.integers(FIRST_PORT, LAST_PORT)
sizes = st.sampled_from([1, 2, 4])


@st.composite
def accesses(draw: st.DrawFn) -> Access:
    size = draw(sizes)
    first, last = draw(st.sampled_from([
        (FIRST_PORT, LAST_PORT), (FIRST_CONFIG, LAST_CONFIG), (BAR_AT, BAR_AT + 0xFF), (0xD000, 0xD0FF)]))
    port = draw(st.integers(first, last + 1 - size))
    read = draw(st.booleans())
    if not draw(st.booleans()):
        return single(port, size, draw(st.integers(0, ones(size))), read=read)
    count = draw(st.integers(1, 3000))
    return Access(Kind.PIO, port, 0x8000, count, size, read, string=True, backwards=draw(st.booleans()))


@pytest.mark.parametrize(
    ("port", "size", "expected"),
    [
        (0x0D, 1, [(0x0D, 1, 0, Side.QEMU)]),
        (0x0D, 2, [(0x0D, 1, 0, Side.QEMU), (0x0E, 1, 8, Side.QEMU)]),
        (0x0D, 4, [(0x0D, 1, 0, Side.QEMU), (0x0E, 2, 8, Side.QEMU), (0x10, 1, 24, Side.UNPLUGD)]),
        (0x0E, 2, [(0x0E, 2, 0, Side.QEMU)]),
        (0x0E, 4, [(0x0E, 2, 0, Side.QEMU), (0x10, 2, 16, Side.UNPLUGD)]),
        (0x0F, 2, [(0x0F, 1, 0, Side.QEMU), (0x10, 1, 8, Side.UNPLUGD)]),
        (0x0F, 4, [(0x0F, 1, 0, Side.QEMU), (0x10, 2, 8, Side.UNPLUGD), (0x12, 1, 24, Side.UNPLUGD)]),
        (0x10, 4, [(0x10, 4, 0, Side.UNPLUGD)]),
        (0x11, 4, [(0x11, 4, 0, Side.UNPLUGD)]),
        (0x13, 4, [(0x13, 4, 0, Side.UNPLUGD)]),
        (0xCFA, 2, [(0xCFA, 2, 0, Side.QEMU)]),
        (0xCFB, 4, [(0xCFB, 1, 0, Side.QEMU), (0xCFC, 2, 8, Side.NOBODY), (0xCFE, 1, 24, Side.NOBODY)]),
        (0xCFA, 4, [(0xCFA, 2, 0, Side.QEMU), (0xCFC, 2, 16, Side.NOBODY)]),
        (0xCFC, 4, [(0xCFC, 4, 0, Side.NOBODY)]),
    ],
)
def test_accesses_are_split_where_qemu_splits_them(
    port: int, size: int, expected: list[tuple[int, int, int, Side]]
) -> None:
    assert pieces(port, size) == tuple(Piece(*piece) for piece in expected)


@given(ports, sizes)
def test_pieces_cover_the_access_once(port: int, size: int) -> None:
    covered = [(piece.port + i, piece.side) for piece in pieces(port, size) for i in range(piece.size)]
    assert [at for at, _ in covered] == list(range(port, port + size))
    assert all(side is (Side.UNPLUGD if at >= 0x10 else Side.QEMU) for at, side in covered)


@given(accesses(), st.sampled_from([0, 1, 2, 3, 15]))
def test_qemu_sees_an_unplug_only_on_unplugds_word(access: Access, order: int) -> None:
    world = World(order=order)
    world.memory[:] = bytes(i * 7 & 0xFF for i in range(MEMORY))
    world.run(access)
    asked = False
    for step in world.steps:
        match step:
            case Ask(port, size, _, read, _, _):
                asked = (port, size, read) == (0x10, 2, False) or (port >= BAR and not read)
            case WriteQemu(0x10, 2, value):
                assert asked
                assert value
                assert value & ~order == 0
            case WriteQemu(port, size, value):
                assert value <= ones(size)
                if (port, size) != (0x10, 1):
                    assert port + size <= 0x10 or 0xCFA <= port < port + size <= 0xCFC or port >= 0xD000
                    assert step.beside == (port >= 0xD000)


@given(accesses())
def test_without_unplugd_qemu_gets_its_own_ports_only(access: Access) -> None:
    world = World(order=15, absent=True)
    world.run(access)
    assert all(write.port + write.size <= 0x10 or write.port >= FIRST_CONFIG for write in world.qemu_writes)


@given(ports, sizes)
def test_a_read_is_put_together_from_both_sides(port: int, size: int) -> None:
    expected = sum((port + i & 0xFF) << 8 * i for i in range(size))
    assert World().run(single(port, size, read=True)) == expected
    assert World(absent=True).run(single(0x10, 2, read=True)) == 0xFFFF


def test_a_crossing_write_is_an_unplug_mask_for_unplugd() -> None:
    world = World(order=3)
    assert world.run(single(0x0E, 4, 0x0003_1234)) is None
    assert world.steps == [WriteQemu(0x0E, 2, 0x1234), Ask(0x10, 2, data=3), WriteQemu(0x10, 2, 3)]


def test_the_rom_lock_is_qemus_work() -> None:
    world = World()
    world.run(single(0x10, 1, 1))
    assert world.steps == [Ask(0x10, 1, data=1), WriteQemu(0x10, 1, 1)]


def test_the_bar_is_unplugds() -> None:
    world = World(order=3)
    world.run(single(BAR_AT + 4, 4, 1))
    assert world.steps == [Locate(BAR_AT + 4, 4), Ask(BAR + 4, 4, data=1), WriteQemu(0x10, 2, 3)]
    world = World()
    world.run(single(BAR_AT + 8, 1, 1))
    assert world.steps[1:] == [Ask(BAR + 8, 1, data=1)]
    world = World()
    world.run(single(BAR_AT, 1, 1))
    assert world.steps[1:] == [Ask(BAR, 1, data=1), WriteQemu(0x10, 1, 1)]
    assert World().run(single(BAR_AT + 2, 2, read=True)) == 0x0302
    world = World()
    world.memory[:4] = b"log\n"
    world.run(Access(Kind.PIO, BAR_AT + 8, 0, 4, 1, read=False, string=True, backwards=False))
    assert world.steps[2:] == [Ask(BAR + 8, 1, count=4, payload=b"log\n")]


def test_what_is_beside_the_bar_is_qemus() -> None:
    world = World()
    world.run(single(0xD004, 1, 1))
    assert world.steps[1:] == [WriteQemu(0xD004, 1, 1, beside=True)]
    assert World().run(single(0xD004, 1, read=True)) == 4
    world = World()
    world.run(single(0xCFA, 1, 6))
    assert world.steps == [WriteQemu(0xCFA, 1, 6)]
    assert World().run(single(0xCFE, 1, read=True)) == 0xFF


def test_configuration_space_is_read_and_written() -> None:
    def config(size: int, data: int = 0, *, read: bool = False, count: int = 1, string: bool = False) -> Access:
        return Access(Kind.PCI_CONFIG, 0x10 << 32 | 0x11, data, count, size, read, string, backwards=False)

    world = World()
    world.run(config(2, 0x1234_5678))
    assert world.steps == [WriteConfig(0x11, 2, 0x5678)]
    assert World().run(config(2, read=True)) == 0x1211
    world = World()
    world.memory[:4] = b"\1\2\3\4"
    world.run(config(2, count=2, string=True))
    assert world.steps[1:] == [WriteConfig(0x11, 2, 0x0201), WriteConfig(0x11, 2, 0x0403)]
    world = World()
    world.run(config(1, count=3, string=True, read=True))
    assert world.memory[:4] == b"\x11\x11\x11\0"


@given(st.binary(min_size=1, max_size=9000), st.sampled_from([1, 2, 4]), st.booleans())
def test_strings_are_emitted_in_order(data: bytes, size: int, backwards: bool) -> None:
    data = data[:len(data) // size * size]
    count = len(data) // size
    if not count:
        return
    world = World()
    start = 0x8000
    order = elements(data, size, backwards=backwards)
    low = start - (count - 1) * size if backwards else start
    # lying in memory so that the guest emits `data`
    world.memory[low:low + len(data)] = order
    world.run(Access(Kind.PIO, 0x12, start, count, size, read=False, string=True, backwards=backwards))
    emitted = b"".join(value.to_bytes(size, "little") for _, _, value in world.written)
    assert emitted == data
    assert all(len(step.payload or b"") <= 4096 for step in world.steps if isinstance(step, Ask))


@given(st.integers(1, 3000), sizes, st.booleans(), ports)
def test_strings_read_fill_exactly_their_memory(count: int, size: int, backwards: bool, port: int) -> None:
    port = min(port, LAST_PORT + 1 - size)
    world = World()
    start = 0x8000
    low = start - (count - 1) * size if backwards else start
    world.run(Access(Kind.PIO, port, start, count, size, read=True, string=True, backwards=backwards))
    one = sum((port + i) << 8 * i for i in range(size)).to_bytes(size, "little")
    assert bytes(world.memory) == bytes(low) + one * count + bytes(MEMORY - low - len(one) * count)


def test_a_crossing_string_goes_element_by_element() -> None:
    world = World(order=15)
    world.memory[0:8] = (0x0001_AAAA).to_bytes(4, "little") + (0x0002_BBBB).to_bytes(4, "little")
    world.run(Access(Kind.PIO, 0x0E, 0, 2, 4, read=False, string=True, backwards=False))
    assert world.steps[1:] == [
        WriteQemu(0x0E, 2, 0xAAAA), Ask(0x10, 2, data=1), WriteQemu(0x10, 2, 1),
        WriteQemu(0x0E, 2, 0xBBBB), Ask(0x10, 2, data=2), WriteQemu(0x10, 2, 2),
    ]  # fmt: skip


def test_blocks_of_backward_strings() -> None:
    access = Access(Kind.PIO, 0x12, 0x5000, 5, 2, read=False, string=True, backwards=True)
    assert list(blocks(access, limit=4)) == [(0x4FFE, 2), (0x4FFA, 2), (0x4FF8, 1)]


@pytest.mark.parametrize("kind", [Kind.INVALIDATE, Kind.COPY, Kind.TIMEOFFSET, 42])
def test_what_is_not_for_a_port_is_acknowledged(kind: int) -> None:
    world = World()
    access = Access(kind, 0, 5, 1, 4, read=False, string=False, backwards=False)
    assert world.run(access) is None
    assert world.steps == []
