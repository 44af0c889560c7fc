"""What the known PV drivers do with the unplug protocol, step by step, as data.

This room knows drivers: which port they read, what they make of the answer, what they write next. How a step
gets to unplugd is the business of devicemodel.py; what unplugd makes of it is the core's.

Sources: arch/x86/xen/platform-pci-unplug.c (Linux), win-xenbus (XENBUS), win-pvdrivers (GPLPV),
sys/x86/xen/hvm.c (FreeBSD), sys/dev/pv/xen.c (OpenBSD), docs/misc/hvm-emulated-unplug.pandoc (all).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

BASE = 0x10
"""Magic number, build number, unplug mask, platform flags (by size and direction)."""
LOG = 0x12
"""Protocol version, product number, guest log (by size and direction)."""
PLATFORM_BAR = 0x10000
"""Where the platform device's I/O BAR begins in the socket's `addr`."""

MAGIC = 0x49D2
BLACKLISTED_MAGIC = 0xD249

DISKS, NICS, AUX_DISKS, NVME = 1, 2, 4, 8
"""The unplug mask's bits."""


class Then(Enum):
    """What a driver does after it has seen an answer."""

    GO_ON = "goes on"
    GO_ON_DISOBEYING = "goes on all the same"
    SKIP_TO_UNPLUG = "skips product and build"  # protocol version 0
    STOP_BLACKLISTED = "blacklisted by host"
    STOP_NO_PROTOCOL = "no unplug protocol"
    STOP_UNKNOWN_VERSION = "unknown protocol version"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a driver makes of one answer."""

    says: str
    then: Then = Then.GO_ON


@dataclass(frozen=True, slots=True)
class In:
    """The driver reads `size` bytes at `port` and draws a conclusion."""

    size: int
    port: int
    answers: tuple[tuple[int, Conclusion], ...] = ()
    otherwise: Conclusion = Conclusion("")

    def conclude(self, answer: int) -> Conclusion:
        """What the driver makes of this answer."""
        return dict(self.answers).get(answer, self.otherwise)


@dataclass(frozen=True, slots=True)
class Out:
    """The driver writes `value` (`size` bytes) at `port`."""

    size: int
    port: int
    value: int
    says: str = ""

    @property
    def is_unplug(self) -> bool:
        """Whether this write asks for an unplug: the mask, or a write to the platform BAR."""
        return (self.size, self.port) == (2, BASE) or (self.size == 4 and self.port >= PLATFORM_BAR)

    @property
    def is_build(self) -> bool:
        """Whether this write asks for a verdict."""
        return (self.size, self.port) == (4, BASE)


@dataclass(frozen=True, slots=True)
class Log:
    """The driver logs `lines` (bytes with their line ends): one `rep outsb` a line, or one `outb` a byte."""

    lines: tuple[bytes, ...]
    string: bool = True
    port: int = LOG


@dataclass(frozen=True, slots=True)
class Reset:
    """The platform device comes out of reset: the device model's word, not the driver's."""


Step = In | Out | Log | Reset


@dataclass(frozen=True, slots=True)
class Driver:
    """One guest: a `name` for the command line, a `title` for people, and what its driver does."""

    name: str
    title: str
    steps: tuple[Step, ...]

    def announcing(self, product: int | None = None, build: int | None = None) -> Driver:
        """The same driver under another product or build number."""
        values = {(2, LOG): (product, "product"), (4, BASE): (build, "build")}

        def changed(step: Step) -> Step:
            if isinstance(step, Out):
                value, what = values.get((step.size, step.port), (None, ""))
                if value is not None:
                    return replace(step, value=value, says=f"{what} {value}")
            return step

        return replace(self, steps=tuple(changed(step) for step in self.steps))

    def unplugging(self, mask: int) -> Driver:
        """The same driver, asking once for `mask` where it first asked for anything."""
        steps: list[Step] = []
        asked = False
        for step in self.steps:
            if isinstance(step, Out) and step.is_unplug:
                if not asked:
                    steps.append(unplug(mask))
                asked = True
            else:
                steps.append(step)
        return replace(self, steps=tuple(steps))

    def logging(self, *lines: bytes) -> Driver:
        """The same driver with `lines` (line ends included) in place of its own log, or at its end."""
        own = [step for step in self.steps if isinstance(step, Log)]
        if not own:
            return replace(self, steps=(*self.steps, Log(lines)))
        steps: list[Step] = []
        for step in self.steps:
            if step is own[0]:
                steps.append(replace(own[0], lines=lines))
            elif not isinstance(step, Log):
                steps.append(step)
        return replace(self, steps=tuple(steps))

    def after_reset(self) -> Driver:
        """The same driver on a freshly reset platform device."""
        return replace(self, steps=(Reset(), *self.steps))


def device_names(mask: int) -> str:
    """An unplug mask in words: 3 is "disks and NICs". Bits that nobody defined are named by number."""
    names = []
    if mask & DISKS:
        names.append("disks")
    elif mask & AUX_DISKS:
        names.append("IDE disks but the primary master")
    if mask & NICS:
        names.append("NICs")
    if mask & NVME:
        names.append("NVMe disks")
    if mask & ~0xF:
        names.append(f"undefined bits {mask & ~0xF:#x}")
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# The building blocks that the drivers share.

PRESENT = Conclusion("unplug protocol present")
ABSENT = Conclusion("no unplug protocol here", Then.STOP_NO_PROTOCOL)
ALREADY = Conclusion("blacklisted before it began", Then.STOP_BLACKLISTED)
PROBE = In(2, BASE, ((MAGIC, PRESENT), (BLACKLISTED_MAGIC, ALREADY)), otherwise=ABSENT)
"""The first read of them all."""

VERSION_1 = Conclusion("protocol version 1")
UNKNOWN_VERSION = Conclusion("unknown protocol version", Then.STOP_UNKNOWN_VERSION)
ONLY_VERSION_1 = In(1, LOG, ((1, VERSION_1),), otherwise=UNKNOWN_VERSION)
"""Linux takes no other version."""
VERSION_0_OR_1 = In(
    1,
    LOG,
    ((1, VERSION_1), (0, Conclusion("protocol version 0: no blacklist", Then.SKIP_TO_UNPLUG))),
    otherwise=UNKNOWN_VERSION,
)

NOT_ALLOWED = Conclusion("blacklisted by host", Then.STOP_BLACKLISTED)
VERDICT = In(2, BASE, ((MAGIC, Conclusion("not blacklisted")),), otherwise=NOT_ALLOWED)
"""Step 5 of the protocol: any change of the magic number is a verdict against the driver."""
IGNORED_VERDICT = In(
    2,
    BASE,
    ((MAGIC, Conclusion("not blacklisted")),),
    otherwise=Conclusion("blacklisted by host, goes on all the same", Then.GO_ON_DISOBEYING),
)


def announce(product: int, build: int) -> tuple[Out, Out]:
    """Steps 3 and 4 of the protocol."""
    return Out(2, LOG, product, f"product {product}"), Out(4, BASE, build, f"build {build}")


def unplug(mask: int) -> Out:
    """Step 6 of the protocol."""
    return Out(2, BASE, mask, f"asks to unplug {device_names(mask)}")


def xenbus_build(major: int, minor: int, micro: int) -> int:
    """The build number that XENBUS makes of its three version numbers."""
    return major << 16 | minor << 8 | micro


LINUX = Driver("linux", "Linux 2.6.37 and later", (
    PROBE, ONLY_VERSION_1, *announce(3, 1), VERDICT, unplug(DISKS | NICS),
))  # fmt: skip

XENBUS = Driver("xenbus", "Windows, XENBUS 9.1.0", (
    PROBE, VERSION_0_OR_1, *announce(0xFFFF, xenbus_build(9, 1, 0)), VERDICT,
    Log((
        b"XENBUS|UnplugInitialize: ====>\r\n",
        b"XENBUS|UnplugRequest: DISKS (requested)\r\n",
        b"XENBUS|UnplugRequest: NICS (requested)\r\n",
    )),
    unplug(DISKS), unplug(NICS),
    Log((b"XENVBD|FrontendConnect: Target[0] connected\r\n", b"XENVIF|FrontendConnect: 0/0 connected\r\n")),
))  # fmt: skip

CITRIX = Driver("citrix", "Windows, XenServer's old drivers", (
    PROBE, VERSION_0_OR_1, *announce(1, 86451), VERDICT,
    Log((b"XENUTIL: PV drivers build 86451 loaded\n",), string=False),
    unplug(DISKS | NICS),
))  # fmt: skip

GPLPV = Driver("gplpv", "Windows, GPLPV", (
    PROBE, VERSION_0_OR_1, *announce(2, 1), VERDICT, unplug(DISKS | NICS),
))  # fmt: skip

FREEBSD = Driver("freebsd", "FreeBSD", (PROBE, unplug(DISKS | NICS)))

OPENBSD = Driver("openbsd", "OpenBSD", (PROBE, unplug(DISKS | NICS)))

SUSE_LEGACY = Driver("suse-legacy", "openSUSE up to 12.3, SLES 11", (
    Out(4, PLATFORM_BAR + 4, 1, "asks to unplug disks and NICs (platform BAR)"),
))  # fmt: skip

VMDP = Driver("vmdp", "Windows, Novell VMDP", (
    Out(4, PLATFORM_BAR + 8, 1, "asks to unplug disks (platform BAR)"),
    Out(4, PLATFORM_BAR + 8, 2, "asks to unplug NICs (platform BAR)"),
))  # fmt: skip

STUBBORN = Driver("stubborn", "a driver that unplugs whatever the verdict is", (
    PROBE, VERSION_0_OR_1, *announce(1, 86451), IGNORED_VERDICT, unplug(DISKS | NICS),
))  # fmt: skip

CHATTY = Driver("chatty", "a driver that logs without end", (
    PROBE, VERSION_0_OR_1, *announce(0xFFFF, xenbus_build(9, 1, 0)), VERDICT, unplug(DISKS), unplug(NICS),
    Log(tuple(b"XENVIF|ReceiverRing: %05d: spurious event, nothing to do\r\n" % n for n in range(4000))),
))  # fmt: skip

DRIVERS: dict[str, Driver] = {
    guest.name: guest
    for guest in (
        LINUX, XENBUS, CITRIX, GPLPV, FREEBSD, OPENBSD, SUSE_LEGACY, VMDP, STUBBORN, CHATTY,
    )
}  # fmt: skip
"""Every guest by its name on the command line."""
