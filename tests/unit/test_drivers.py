"""unplugd.simulator.drivers: the drivers are what the sources say, and variants change only what they say."""

from __future__ import annotations

import dataclasses

import pytest

from unplugd.core.families import family_of, xenbus_build
from unplugd.simulator.drivers import (
    BLACKLISTED_MAGIC,
    CHATTY,
    CITRIX,
    DRIVERS,
    FREEBSD,
    LINUX,
    MAGIC,
    PROBE,
    SLOT,
    STUBBORN,
    VERDICT,
    VERSION_0_OR_1,
    XENBUS,
    XENBUS_PROBE,
    XENBUS_VERSION,
    Driver,
    In,
    Log,
    Out,
    Reset,
    Then,
    device_names,
)


def writes(guest: Driver) -> list[tuple[int, int, int]]:
    return [(step.size, step.port, step.value) for step in guest.steps if isinstance(step, Out)]


EVERY_WRITE = {
    "linux": [(2, 0x12, 3), (4, 0x10, 1), (2, 0x10, 3)],
    "linux-ide-disks": [(2, 0x12, 3), (4, 0x10, 1), (2, 0x10, 1)],
    "linux-aux-ide-disks": [(2, 0x12, 3), (4, 0x10, 1), (2, 0x10, 4)],
    "linux-nics": [(2, 0x12, 3), (4, 0x10, 1), (2, 0x10, 2)],
    "linux-all": [(2, 0x12, 3), (4, 0x10, 1), (2, 0x10, 7)],
    "linux-unnecessary": [(2, 0x12, 3), (4, 0x10, 1)],
    "linux-never": [],
    "xenbus": [(2, 0x12, 0xFFFF), (4, 0x10, 0x090100), (2, 0x10, 1), (2, 0x10, 2)],
    "xenbus-2026": [(2, 0x12, 0xFFFF), (4, 0x10, 0x09035E), (2, 0x10, 9), (2, 0x10, 2)],
    "xenbus-boot-emulated": [(2, 0x12, 0xFFFF), (4, 0x10, 0x090100), (2, 0x10, 4), (2, 0x10, 2)],
    "xenbus-first-boot": [(2, 0x12, 0xFFFF), (4, 0x10, 0x090100)],
    "xenbus-safe-mode": [(2, 0x12, 0xFFFF), (4, 0x10, 0x090100)],
    "citrix": [(2, 0x12, 1), (4, 0x10, 86451), (2, 0x10, 3)],
    "gplpv": [(2, 0x12, 2), (4, 0x10, 1), (2, 0x10, 3)],
    "suse-vmdp": [(2, 0x12, 205), (4, 0x10, 20501), (2, 0x10, 7)],
    "suse-vmdp-disks": [(2, 0x12, 205), (4, 0x10, 20501), (2, 0x10, 5)],
    "suse-vmdp-nics": [(2, 0x12, 205), (4, 0x10, 20501), (2, 0x10, 2)],
    "freebsd": [(2, 0x10, 3)],
    "openbsd": [(2, 0x10, 3)],
    "suse-legacy": [(4, 0x10004, 1)],
    "vmdp": [(4, 0x10008, 1), (4, 0x10008, 2)],
    "stubborn": [(2, 0x12, 1), (4, 0x10, 86451), (2, 0x10, 3)],
    "chatty": [(2, 0x12, 0xFFFF), (4, 0x10, 0x090100), (2, 0x10, 1), (2, 0x10, 2)],
}


def test_every_guest_is_listed_here() -> None:
    assert DRIVERS.keys() == EVERY_WRITE.keys()


@pytest.mark.parametrize("name", EVERY_WRITE)
def test_what_it_writes(name: str) -> None:
    assert writes(DRIVERS[name]) == EVERY_WRITE[name]


@pytest.mark.parametrize("name", sorted(set(EVERY_WRITE) - {"suse-legacy", "vmdp", "linux-never"}))
def test_it_probes_first(name: str) -> None:
    assert DRIVERS[name].steps[0] == (XENBUS_PROBE if name.startswith("xenbus") else PROBE)


def test_xenbus_logs_whole_lines_of_a_slot_by_string_io() -> None:
    lines = []
    for step in XENBUS.steps:
        if isinstance(step, Log):
            assert step.string
            lines += [*step.lines, *step.refused]
    assert all(line.endswith(b"\n") != (len(line) == SLOT) and len(line) <= SLOT for line in lines)
    assert sum(len(line) == SLOT for line in lines) == 1
    assert b"UNPLUG: PRE-AMBLE (DRIVERS NOT BLACKLISTED)\n" in lines
    assert b"UNPLUG: PRE-AMBLE (DRIVERS BLACKLISTED)\n" in lines


def test_whether_a_driver_goes_on_is_what_is_known_of_its_family() -> None:
    for guest in DRIVERS.values():
        products = [step.value for step in guest.steps if isinstance(step, Out) and (step.size, step.port) == (2, 0x12)]
        family = family_of(products[0]) if products else None
        if guest in (CHATTY, STUBBORN) or family is None or family.obeys is None:
            continue
        stops = [step for step in guest.steps if isinstance(step, In)
                 and step.conclude(BLACKLISTED_MAGIC).then is Then.STOP_BLACKLISTED]
        assert bool(stops) is family.obeys, guest.name


def test_chatty_logs_more_than_the_default_limit_takes() -> None:
    lines = [line for step in CHATTY.steps if isinstance(step, Log) for line in step.lines]
    assert sum(max(64, len(line)) for line in lines) > 131072


@pytest.mark.parametrize(
    ("step", "answer", "then"),
    [
        (PROBE, MAGIC, Then.GO_ON),
        (PROBE, BLACKLISTED_MAGIC, Then.STOP_BLACKLISTED),
        (PROBE, 0xFFFF, Then.STOP_NO_PROTOCOL),
        (VERDICT, MAGIC, Then.GO_ON),
        (VERDICT, BLACKLISTED_MAGIC, Then.STOP_BLACKLISTED),
        (VERDICT, 0xFFFF, Then.STOP_BLACKLISTED),
        (VERSION_0_OR_1, 0, Then.SKIP_TO_UNPLUG),
        (VERSION_0_OR_1, 1, Then.GO_ON),
        (VERSION_0_OR_1, 2, Then.STOP_UNKNOWN_VERSION),
        (XENBUS_PROBE, BLACKLISTED_MAGIC, Then.SKIP_TO_UNPLUG_DISOBEYING),
        (XENBUS_PROBE, 0xFFFF, Then.SKIP_TO_UNPLUG),
        (XENBUS_VERSION, 0, Then.SKIP_TO_UNPLUG),
        (XENBUS_VERSION, 2, Then.GO_ON),
        (LINUX.steps[1], 0, Then.STOP_UNKNOWN_VERSION),
    ],
)
def test_what_a_driver_concludes(step: In, answer: int, then: Then) -> None:
    assert step.conclude(answer).then is then


def test_another_product_and_build() -> None:
    guest = LINUX.announcing(product=0x1234, build=7)
    assert writes(guest) == [(2, 0x12, 0x1234), (4, 0x10, 7), (2, 0x10, 3)]
    assert LINUX.announcing() == LINUX
    assert FREEBSD.announcing(1, 2) == FREEBSD


def test_another_mask_is_asked_for_once() -> None:
    assert writes(XENBUS.unplugging(8))[2:] == [(2, 0x10, 8)]
    assert writes(DRIVERS["vmdp"].unplugging(3)) == [(2, 0x10, 3)]


def test_other_log_lines_take_the_place_of_its_own() -> None:
    assert [s for s in XENBUS.logging(b"x\n").steps if isinstance(s, Log)] == [Log((b"x\n",))]
    assert [s for s in CITRIX.logging(b"x\n").steps if isinstance(s, Log)] == [Log((b"x\n",), string=False)]
    assert LINUX.logging(b"x\n").steps == (*LINUX.steps, Log((b"x\n",)))


def test_after_reset() -> None:
    assert LINUX.after_reset().steps == (Reset(), *LINUX.steps)


def test_a_step_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROBE.port = 1  # type: ignore[misc] # it is frozen


def test_xenbus_build_number() -> None:
    assert xenbus_build(9, 1, 0) == 0x090100


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0, "nothing"),
        (1, "disks"),
        (2, "NICs"),
        (3, "disks and NICs"),
        (4, "IDE disks but the primary master"),
        (5, "disks"),
        (0xB, "disks, NICs and NVMe disks"),
        (0x13, "disks, NICs and undefined bits 0x10"),
    ],
)
def test_a_mask_in_words(mask: int, names: str) -> None:
    assert device_names(mask) == names
