"""The table of accesses against a model that is written from the contract alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.frames import frame
from tests.lab.portio import BAR, Machine
from unplugd.core.counters import KINDS
from unplugd.core.guest import Verdict
from unplugd.core.protocol import (
    ALL_DEVICES,
    LEGACY_TABLE,
    TABLE,
    Effect,
    Platform,
    Rules,
    device_names,
    effects,
)
from unplugd.core.stream import NeedVerdict

ADDRESSES = [*range(0x31), *range(BAR, BAR + 0x100), 0xFFFF, 0xFFFE]
SIZES = (1, 2, 4, 8)
RULES = [
    Rules(),
    Rules(protocol_version=0),
    Rules(legacy_unplug=True),
    Rules(allow_unplug=2),
    Rules(allow_unplug=0, legacy_unplug=True),
]


class Contract:
    """The device of contract section 1, row by row; nobody's code but this page's reading of it."""

    def __init__(self, rules: Rules, *, blacklist: bool) -> None:
        self.rules = rules
        self.blacklist = blacklist
        self.reset()

    def reset(self) -> None:
        """Power on."""
        self.product = 0
        self.build: int | None = None
        self.blacklisted = False
        self.ordered = 0
        self.flags = 0
        self.log = bytearray()

    def read(self, addr: int, size: int) -> int:
        """What the guest reads."""
        if addr == 0x10 and size == 2:
            return 0xD249 if self.blacklisted else 0x49D2
        if addr == 0x12 and size == 1:
            return self.rules.protocol_version
        if addr in (0x10, 0x10000) and size == 1:
            return self.flags
        return {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}[size]

    def write(self, addr: int, size: int, data: int) -> int:
        """What the response's `data` is."""
        value = data % 256**size
        if (addr, size) == (0x12, 2):
            if self.rules.protocol_version == 1:
                if value != self.product:
                    self.build = None  # it was another driver's
                self.product = value
        elif (addr, size) == (0x10, 4):
            if self.product and self.rules.protocol_version == 1:
                self.build = value
                self.blacklisted = self.blacklisted or self.blacklist
        elif (addr, size) == (0x10, 2):
            return self.order(value)
        elif (addr, size) in ((0x12, 1), (0x10008, 1)):
            self.log.append(value)
        elif (addr, size) in ((0x10, 1), (0x10000, 1)):
            self.flags = value % 2
        elif self.rules.legacy_unplug and size == 4:
            if (addr, value) == (0x10004, 1):
                return self.order(3)
            if (addr, value) == (0x10008, 1):
                return self.order(1)
            if (addr, value) == (0x10008, 2):
                return self.order(2)
        return 0

    def order(self, mask: int) -> int:
        """What of an unplug mask is ordered."""
        mask &= 15 & self.rules.allow_unplug
        self.ordered |= mask
        return mask


class Judged(Machine):
    """A machine whose every build number gets the same verdict."""

    def __init__(self, rules: Rules, *, blacklisted: bool) -> None:
        super().__init__(rules)
        self.blacklisted = blacklisted

    def verdict(self, need: NeedVerdict) -> Verdict:
        return Verdict(self.blacklisted)


def same(machine: Machine, contract: Contract) -> None:
    """Both are in the same state, as far as anybody can see."""
    platform = machine.guest.platform
    assert (platform.product or 0, platform.build) == (contract.product, contract.build)
    assert (platform.blacklisted, platform.unplugged, platform.flags) == (
        contract.blacklisted, contract.ordered, contract.flags,
    )  # fmt: skip


def put_into_state(machine: Machine, contract: Contract, state: str) -> None:
    """A few of the states that a guest can be in."""
    steps = {"fresh": [], "product": [(0x12, 2, 3)], "judged": [(0x12, 2, 3), (0x10, 4, 1)],
             "unplugged": [(0x12, 2, 1), (0x10, 4, 7), (0x10, 2, 3), (0x10, 1, 1)]}[state]  # fmt: skip
    for addr, size, value in steps:
        assert machine.ask(frame(addr, size, data=value)).data == contract.write(addr, size, value)


@pytest.mark.parametrize("blacklist", [False, True], ids=["allowed", "blacklisted"])
@pytest.mark.parametrize("state", ["fresh", "product", "judged", "unplugged"])
@pytest.mark.parametrize("rules", RULES[:3], ids=repr)
def test_every_read_at_every_address_of_every_size(rules: Rules, state: str, blacklist: bool) -> None:
    machine = Judged(rules, blacklisted=blacklist)
    contract = Contract(rules, blacklist=blacklist)
    put_into_state(machine, contract, state)
    for addr, size in itertools.product(ADDRESSES, SIZES):
        answer = machine.ask(frame(addr, size, data=0x1122334455667788, read=True))
        assert answer.data == contract.read(addr, size), (hex(addr), size)
        string = machine.ask(frame(addr, size, read=True, string=True, count=3))
        assert string.data == 0
        assert string.payload == contract.read(addr, size).to_bytes(size, "little") * 3
    same(machine, contract)  # reading changes nothing
    assert machine.lines == []


@pytest.mark.parametrize("blacklist", [False, True], ids=["allowed", "blacklisted"])
@pytest.mark.parametrize("rules", RULES, ids=repr)
@pytest.mark.parametrize("value", [1, 2, 0xFFFF_FFFF_FFFF_FFFF])
def test_every_write_at_every_address_of_every_size(rules: Rules, value: int, blacklist: bool) -> None:
    machine = Judged(rules, blacklisted=blacklist)
    contract = Contract(rules, blacklist=blacklist)
    for addr, size in itertools.product(ADDRESSES, SIZES):
        answer = machine.ask(frame(addr, size, data=value))
        assert answer.data == contract.write(addr, size, value), (hex(addr), size)
        same(machine, contract)
    assert bytes(machine.guest.log.partial) == bytes(contract.log)


@settings(max_examples=60)
@given(
    rules=st.builds(Rules, st.sampled_from([0, 1]), st.integers(0, 15), st.booleans()),
    blacklist=st.booleans(),
    accesses=st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from([0x0F, 0x10, 0x11, 0x12, 0x13, 0x14, BAR, BAR + 4, BAR + 8, BAR + 9]),
            st.sampled_from(SIZES),
            st.one_of(st.integers(0, 17), st.integers(0, 2**64 - 1)),
        ),
        max_size=30,
    ),
)
def test_any_sequence_of_accesses(
    rules: Rules, blacklist: bool, accesses: list[tuple[bool, int, int, int]]
) -> None:
    machine = Judged(rules, blacklisted=blacklist)
    contract = Contract(rules, blacklist=blacklist)
    for read, addr, size, value in accesses:
        if read:
            assert machine.ask(frame(addr, size, data=value, read=True)).data == contract.read(addr, size)
        else:
            assert machine.ask(frame(addr, size, data=value)).data == contract.write(addr, size, value)
    same(machine, contract)


@given(addr=st.integers(0, BAR + 0xFF), size=st.sampled_from(SIZES), data=st.integers(0, 2**64 - 1))
def test_ports_elsewhere_read_all_ones_and_ignore_writes(addr: int, size: int, data: int) -> None:
    if 0x10 <= addr <= 0x1F or addr >= BAR:
        return
    machine = Machine()
    assert machine.ask(frame(addr, size, read=True)).data == 256**size - 1
    assert machine.ask(frame(addr, size, data=data)).data == 0
    same(machine, Contract(Rules(), blacklist=False))


def test_asking_again_for_what_is_gone_gets_the_same_order() -> None:
    platform = Platform(Rules())
    first, again = platform.unplug(3), platform.unplug(3)
    assert (first.order, first.added) == (3, 3)
    assert (again.order, again.added) == (3, 0)


def test_5_stays_5() -> None:
    assert Platform(Rules()).unplug(5).order == 5


def test_undefined_bits_are_dropped_and_told() -> None:
    ordered = Platform(Rules()).unplug(0xFFF3)
    assert (ordered.order, ordered.undefined, ordered.refused) == (3, 0xFFF0, 0)


def test_policy_refuses_what_it_does_not_allow() -> None:
    ordered = Platform(Rules(allow_unplug=1)).unplug(3)
    assert (ordered.order, ordered.refused) == (1, 2)


def test_the_platform_reads_all_ones_where_there_is_nothing() -> None:
    assert Platform(Rules()).read(Effect.NONE, 4) == 0xFFFFFFFF


def test_names_of_devices() -> None:
    assert device_names(ALL_DEVICES) == "ide-disks, nics, aux-ide-disks, nvme-disks"
    assert device_names(0) == "nothing"


def test_every_row_has_an_access_of_its_own_and_a_kind_that_is_counted() -> None:
    rows = TABLE + LEGACY_TABLE
    assert len({(row.read, row.addr, row.size) for row in rows}) == len(rows)
    assert {row.effect.kind for row in rows} | {"other", "reset"} == set(KINDS)


def test_legacy_rows_are_served_only_where_policy_says_so() -> None:
    assert set(effects(Rules(legacy_unplug=True))) - set(effects(Rules())) == {
        (False, BAR + 4, 4),
        (False, BAR + 8, 4),
    }
