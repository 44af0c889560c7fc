"""What real guests do, byte for byte, each test named after its guest.

Sources: the guests' own drivers, and qemu-traditional's hw/xen_platform.c for the edge cases.
"""

from __future__ import annotations

import pytest

from tests.lab.frames import RESET, answers, frame
from tests.lab.portio import BAR, Machine
from unplugd.core.events import (
    Announced,
    Blacklisted,
    BuildWithoutProduct,
    Ignored,
    Line,
    UndefinedBits,
    UnplugDenied,
    Unplugged,
    WasReset,
)
from unplugd.core.protocol import Action, Rules
from unplugd.core.registry import Registry


def linux(machine: Machine, mask: int = 3) -> int | None:
    """arch/x86/xen/platform-pci-unplug.c: the order, or None where the driver gives up."""
    if machine.inw(0x10) != 0x49D2:
        return None
    if machine.inb(0x12) == 1:
        machine.outw(0x12, 3)
        machine.outl(0x10, 1)
        if machine.inw(0x10) != 0x49D2:
            return None
    return machine.outw(0x10, mask)


def xenbus(machine: Machine, product: int, build: int, *, disks: int = 1) -> tuple[int, int] | None:
    """win-xenbus: the orders for disks and NICs, or None where the driver gives up."""
    if machine.inw(0x10) != 0x49D2:
        return None
    assert machine.inb(0x12) == 1
    machine.outw(0x12, product)
    machine.outl(0x10, build)
    if machine.inw(0x10) != 0x49D2:
        return None
    return machine.outw(0x10, disks), machine.outw(0x10, 2)


XENBUS_BUILD = 9 << 16 | 1 << 8 | 0
"""major << 16 | minor << 8 | micro"""


def test_linux() -> None:
    machine = Machine()
    assert linux(machine) == 3
    assert machine.looked_up == [(3, 1)]
    assert machine.said == [Announced(3, "linux", 1, False, ""), Unplugged(3)]


def test_linux_byte_for_byte() -> None:
    machine = Machine()
    asked = bytes.fromhex(
        "1000000000000000 0000000000000000 01000000 02000000 01000000 0000 21 00"  # inw 0x10
        "1200000000000000 0000000000000000 01000000 01000000 01000000 0000 21 00"  # inb 0x12
        "1200000000000000 0300000000000000 01000000 02000000 01000000 0000 01 00"  # outw 0x12, 3
        "1000000000000000 0100000000000000 01000000 04000000 01000000 0000 01 00"  # outl 0x10, 1
        "1000000000000000 0000000000000000 01000000 02000000 01000000 0000 21 00"  # inw 0x10
        "1000000000000000 0300000000000000 01000000 02000000 01000000 0000 01 00"  # outw 0x10, 3
    )
    assert machine.feed(asked) == bytes.fromhex(
        "1000000000000000 d249000000000000 01000000 02000000 01000000 0000 23 00"
        "1200000000000000 0100000000000000 01000000 01000000 01000000 0000 23 00"
        "1200000000000000 0000000000000000 01000000 02000000 01000000 0000 03 00"
        "1000000000000000 0000000000000000 01000000 04000000 01000000 0000 03 00"
        "1000000000000000 d249000000000000 01000000 02000000 01000000 0000 23 00"
        "1000000000000000 0300000000000000 01000000 02000000 01000000 0000 03 00"
    )


def test_linux_blacklisted_by_host() -> None:
    machine = Machine(blacklist={("linux", 1)})
    assert linux(machine) is None
    assert machine.inw(0x10) == 0xD249
    assert machine.said == [Announced(3, "linux", 1, True, ""), Blacklisted(3, "linux", 1, "")]


def test_linux_after_resume() -> None:
    machine = Machine()
    assert linux(machine) == 3
    assert linux(machine) == 3, "device models treat it as idempotent: the same order again"
    assert machine.events(Unplugged) == [Unplugged(3)], "what is gone already is no news"
    assert machine.events(Announced) == [Announced(3, "linux", 1, False, "")]
    assert machine.looked_up == [(3, 1), (3, 1)], "the verdict is asked for anew"


def test_linux_after_resume_on_a_host_that_blacklists_it_now() -> None:
    machine = Machine()
    assert linux(machine) == 3
    machine.blacklist = {("linux", 1)}
    assert linux(machine) is None
    assert machine.guest.platform.unplugged == 3


def test_linux_after_reset() -> None:
    machine = Machine()
    linux(machine)
    machine.reset()
    assert machine.guest.platform.unplugged == 0
    assert linux(machine) == 3
    assert machine.events(WasReset, Unplugged) == [Unplugged(3), WasReset(), Unplugged(3)]


@pytest.mark.parametrize(
    ("option", "mask"), [("ide-disks", 1), ("nics", 2), ("aux-ide-disks", 4), ("all", 15), ("ide+nics+aux", 7)]
)
def test_linux_xen_emul_unplug(option: str, mask: int) -> None:
    assert linux(Machine(), mask) == mask


def test_linux_on_protocol_version_0() -> None:
    machine = Machine(Rules(protocol_version=0), blacklist={("linux", 1)})
    assert linux(machine) == 3
    assert machine.looked_up == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_xenbus_logs_by_rep_outsb(end: bytes) -> None:
    machine = Machine()
    assert xenbus(machine, 0xFFFF, XENBUS_BUILD) == (1, 2)
    text = [b"XENBUS|DriverEntry: ====>", b"XENBUS|DriverEntry: \\Device\\x \xb5", b"y" * 254]
    for line in text:
        assert machine.outs(0x12, 1, line + end) == 0
    assert machine.lines == text
    assert machine.events(Line)[0] == Line(text[0], 0xFFFF, XENBUS_BUILD)
    assert machine.looked_up == [(0xFFFF, 0x90100)]
    assert machine.events(Unplugged) == [Unplugged(1), Unplugged(2)]


def test_xenbus_line_split_at_a_page_boundary() -> None:
    machine = Machine()
    machine.outs(0x12, 1, b"XENVIF|Frontend")
    machine.outs(0x12, 1, b"Connect: <====\r")
    machine.outs(0x12, 1, b"\n")
    assert machine.lines == [b"XENVIF|FrontendConnect: <===="]


def test_xenbus_several_lines_in_one_rep_outsb() -> None:
    machine = Machine()
    machine.outs(0x12, 1, b"one\r\n\r\n\ntwo\nthree")
    assert machine.lines == [b"one", b"two"]


def test_xenbus_booted_emulated_unplugs_aux_disks() -> None:
    assert xenbus(Machine(), 0xFFFF, XENBUS_BUILD, disks=4) == (4, 2)


def test_xenbus_of_a_vendor_that_configuration_registers() -> None:
    machine = Machine(registry=Registry({"my-drivers": 0x1234}), blacklist={("my-drivers", XENBUS_BUILD)})
    assert xenbus(machine, 0x1234, XENBUS_BUILD) is None
    assert xenbus(machine, 0x1234, XENBUS_BUILD) is None, "0xd249 is there before it announces itself"


def test_xenservers_old_drivers() -> None:
    machine = Machine()
    assert xenbus(machine, 1, 86451) == (1, 2)
    assert machine.events(Announced) == [Announced(1, "xensource-windows", 86451, False, "")]


def test_xenservers_old_drivers_blacklisted() -> None:
    machine = Machine(blacklist={("xensource-windows", 86451)})
    assert xenbus(machine, 1, 86451) is None
    assert machine.inw(0x10) == 0xD249
    assert machine.inb(0x12) == 1
    assert machine.guest.platform.unplugged == 0


def test_gplpv() -> None:
    machine = Machine()
    assert machine.inw(0x10) == 0x49D2
    assert machine.inb(0x12) == 1
    machine.outw(0x12, 2)
    machine.outl(0x10, 0x0B00_0175)
    assert machine.inw(0x10) == 0x49D2
    assert machine.outw(0x10, 1) == 1
    assert machine.outw(0x10, 2) == 2
    assert machine.events(Announced) == [Announced(2, "gplpv-windows", 0x0B00_0175, False, "")]


@pytest.mark.parametrize("guest", ["freebsd", "openbsd"])
def test_freebsd_and_openbsd_unplug_at_once(guest: str) -> None:
    machine = Machine()
    assert machine.inw(0x10) == 0x49D2
    assert machine.outw(0x10, 3) == 3
    assert machine.said == [Unplugged(3)]
    assert machine.looked_up == []


def test_freebsd_only_nics_by_policy() -> None:
    machine = Machine(Rules(allow_unplug=2))
    assert machine.inw(0x10) == 0x49D2
    assert machine.outw(0x10, 3) == 2
    assert machine.said == [UnplugDenied(1, withheld=False), Unplugged(2)]


@pytest.mark.parametrize(
    ("addr", "value", "order"), [(BAR + 4, 1, 3), (BAR + 8, 1, 1), (BAR + 8, 2, 2)],
    ids=["old suse", "vmdp disks", "vmdp nics"],
)  # fmt: skip
def test_suse_and_vmdp_legacy(addr: int, value: int, order: int) -> None:
    off, on = Machine(), Machine(Rules(legacy_unplug=True))
    assert off.outl(addr, value) == 0
    assert off.said == []
    assert on.outl(addr, value) == order
    assert on.said == [Unplugged(order)]


@pytest.mark.parametrize(("addr", "value"), [(BAR + 4, 0), (BAR + 4, 2), (BAR + 8, 0), (BAR + 8, 3), (BAR + 4, 3)])
def test_suse_legacy_other_values_do_nothing(addr: int, value: int) -> None:
    machine = Machine(Rules(legacy_unplug=True))
    assert machine.outl(addr, value) == 0
    assert machine.outw(addr, value) == 0
    assert machine.said == []


@pytest.mark.parametrize("legacy", [False, True])
def test_vmdp_logs_to_the_bar_always(legacy: bool) -> None:
    machine = Machine(Rules(legacy_unplug=legacy))
    for byte in b"vmdp says\n":
        assert machine.outb(BAR + 8, byte) == 0
    assert machine.lines == [b"vmdp says"]


def test_vmdp_and_0x12_write_the_same_line() -> None:
    machine = Machine()
    machine.outb(BAR + 8, ord("a"))
    machine.outb(0x12, ord("b"))
    machine.outb(BAR + 8, ord("\n"))
    assert machine.lines == [b"ab"]


def test_suse_legacy_of_a_blacklisted_driver_denied() -> None:
    machine = Machine(Rules(legacy_unplug=True), blacklist={("linux", 1)}, action=Action.WITHHOLD)
    linux(machine)
    assert machine.outl(BAR + 4, 1) == 0


def test_qemu_traditional_product_0_counts_as_not_given() -> None:
    machine = Machine(blacklist={("linux", 1)})
    machine.outw(0x12, 0)
    machine.outl(0x10, 1)
    assert machine.looked_up == []
    assert machine.said == [BuildWithoutProduct(1)]
    assert machine.inw(0x10) == 0x49D2


def test_qemu_traditional_product_0_takes_back_what_was_given() -> None:
    machine = Machine(blacklist={("linux", 1)})
    machine.outw(0x12, 3)
    machine.outw(0x12, 0)
    machine.outl(0x10, 1)
    assert machine.looked_up == []


def test_qemu_traditional_build_before_product() -> None:
    machine = Machine(blacklist={("linux", 1)})
    machine.outl(0x10, 1)
    assert machine.said == [BuildWithoutProduct(1)]
    assert machine.guest.platform.build is None
    machine.outw(0x12, 3)
    assert machine.inw(0x10) == 0x49D2, "the number that came too early is forgotten"
    machine.outl(0x10, 1)
    assert machine.inw(0x10) == 0xD249


def test_qemu_traditional_unknown_product() -> None:
    machine = Machine()
    machine.outw(0x12, 0x7777)
    machine.outl(0x10, 5)
    assert machine.inw(0x10) == 0x49D2
    assert machine.said == [Announced(0x7777, None, 5, False, "")]
    assert "unregistered" in str(machine.said[0])
    assert machine.outw(0x10, 3) == 3


@pytest.mark.parametrize("build", [2**31, 2**32 - 1])
def test_qemu_traditional_build_from_2_to_the_31_is_not_negative(build: int) -> None:
    machine = Machine(blacklist={("xensource-windows", build)})
    machine.outw(0x12, 1)
    machine.outl(0x10, build)
    assert machine.looked_up == [(1, build)]
    assert machine.inw(0x10) == 0xD249
    assert f"build {build}:" in str(machine.said[0])


@pytest.mark.parametrize(("action", "order"), [(Action.REFUSE, 3), (Action.WITHHOLD, 0)], ids=["refuse", "withhold"])
def test_qemu_traditional_blacklisted_driver_that_unplugs(action: Action, order: int) -> None:
    machine = Machine(blacklist={("xensource-windows", 86451)}, action=action)
    assert xenbus(machine, 1, 86451) is None
    assert machine.outw(0x10, 3) == order
    assert machine.guest.platform.unplugged == order
    expected = [Unplugged(3), Ignored(3)] if order else [UnplugDenied(3, withheld=True)]
    assert machine.said[2:] == expected


def test_qemu_traditional_blacklisted_until_reset() -> None:
    machine = Machine(blacklist={("xensource-windows", 86451)})
    xenbus(machine, 1, 86451)
    machine.outw(0x12, 1)
    machine.outl(0x10, 90000)
    assert machine.inw(0x10) == 0xD249, "a later build number does not lift it"
    assert machine.feed(RESET) == RESET
    assert machine.inw(0x10) == 0x49D2


def test_qemu_traditional_undefined_bits() -> None:
    machine = Machine()
    assert machine.outw(0x10, 0xFF13) == 3
    assert machine.said == [UndefinedBits(0xFF10), Unplugged(3)]


def test_qemu_traditional_platform_flags() -> None:
    machine = Machine()
    assert machine.outb(0x10, 0xFF) == 0
    assert machine.inb(0x10) == machine.inb(BAR) == 1
    machine.outb(BAR, 0xFE)
    assert machine.inb(0x10) == 0


def test_qemu_traditional_two_vcpus_share_the_device() -> None:
    machine = Machine()
    other = machine.connect()
    machine.outw(0x12, 3)
    other.receive(frame(0x10, 2, data=2), machine.now)
    (flags,) = answers(other.receive(frame(0x10, 1, read=True), machine.now)[0])
    assert flags.data == 0
    assert machine.guest.platform.product == 3
    assert machine.guest.platform.unplugged == 2


SLOT = b"x" * 256


def test_xenbus_a_full_slot_is_a_line_of_its_own() -> None:
    machine = Machine()
    for line in (b"before\n", SLOT, b"after\n"):
        machine.outs(0x12, 1, line)
    assert machine.lines == [b"before", SLOT, b"after"]


@pytest.mark.parametrize(
    "pieces",
    [(b"begun ", SLOT), (SLOT[1:],), (SLOT + b"y",), (b"a\n" + SLOT[2:],), (SLOT[:100], SLOT[100:])],
    ids=["goes on", "shorter", "longer", "with a newline", "in two parts"],
)  # fmt: skip
def test_any_other_string_write_without_a_newline_begins_a_line(pieces: tuple[bytes, ...]) -> None:
    machine = Machine()
    for piece in pieces:
        machine.outs(0x12, 1, piece)
    machine.outs(0x12, 1, b"end\n")
    assert machine.lines == (b"".join(pieces) + b"end").split(b"\n")


def test_256_single_bytes_are_no_slot() -> None:
    machine = Machine()
    machine.feed(b"".join(frame(0x12, 1, data=byte) for byte in SLOT + b"y\n"))
    assert machine.lines == [SLOT + b"y"]
