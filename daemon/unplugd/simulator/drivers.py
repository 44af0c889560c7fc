"""What the known PV drivers do with the unplug protocol, step by step, as data.

This room knows drivers: which port they read, what they make of the answer, what they write next. How a step
gets to unplugd is the business of devicemodel.py; what unplugd makes of it is the core's.

Whether a family obeys is in core/families.py, with what a refusal does to it.

Sources: arch/x86/xen/platform-pci-unplug.c (Linux), win-xenbus, src/xen/{unplug,log,module}.c (XENBUS), win-pvdrivers
(GPLPV), vmdp (SUSE VMDP), sys/x86/xen/hvm.c (FreeBSD), sys/dev/pv/xen.c (OpenBSD), docs/misc/hvm-emulated-unplug.pandoc
(all).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from unplugd.core.families import xenbus_build

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
    SKIP_TO_UNPLUG_DISOBEYING = "skips product and build, and goes on all the same"
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
    """The driver logs `lines` (bytes with their line ends): one `rep outsb` a line, or one `outb` a byte.

    `refused` is what it logs in their place once it knows that it is blacklisted, if that is something else.
    """

    lines: tuple[bytes, ...]
    string: bool = True
    port: int = LOG
    refused: tuple[bytes, ...] = ()


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


def linux(name: str, option: str, mask: int | None) -> Driver:
    """Linux with this `xen_emul_unplug`; a `mask` of None asks for nothing."""
    return Driver(name, f"Linux, xen_emul_unplug={option}", (
        PROBE, ONLY_VERSION_1, *announce(3, 1), VERDICT, *(() if mask is None else (unplug(mask),)),
    ))  # fmt: skip


LINUX = replace(linux("linux", "", DISKS | NICS), title="Linux 2.6.37 and later")
LINUX_VARIANTS = (
    linux("linux-ide-disks", "ide-disks", DISKS),
    linux("linux-aux-ide-disks", "aux-ide-disks", AUX_DISKS),
    linux("linux-nics", "nics", NICS),
    linux("linux-all", "all", DISKS | NICS | AUX_DISKS),
    linux("linux-unnecessary", "unnecessary", None),
    Driver("linux-never", "Linux, xen_emul_unplug=never", ()),
)

SLOT = 256
"""Bytes of a line of XENBUS's: what is longer is cut there, and has no newline then."""


def slot(line: bytes) -> bytes:
    """A line as XENBUS logs it."""
    return (line + b"\n")[:SLOT]


MODULES = tuple(slot(line) for line in (
    b"xen|ModuleAdd: FFFFF80214E00000 - FFFFF80215E46FFF [ntoskrnl.exe]",
    b"xen|ModuleAdd: FFFFF80214400000 - FFFFF802144AEFFF [hal.dll]",
    b"xen|ModuleAdd: FFFFF80218B00000 - FFFFF80218B2CFFF [xenfilt.sys]",
))  # fmt: skip
"""A part of the list of kernel modules that XENBUS logs when it starts: 10 to 20 KB in all."""
TOO_LONG = slot(b"xen|ModuleAdd: FFFFF80218A00000 - FFFFF80218A3FFFF [" + b"a-driver-with-a-long-name-" * 9 + b".sys]")

XENBUS_PROBE = In(
    2, BASE,
    ((MAGIC, PRESENT), (BLACKLISTED_MAGIC, Conclusion("blacklisted before it began", Then.SKIP_TO_UNPLUG_DISOBEYING))),
    otherwise=Conclusion("no unplug protocol here, goes on all the same", Then.SKIP_TO_UNPLUG),
)  # fmt: skip
XENBUS_VERSION = In(
    1, LOG, ((0, Conclusion("protocol version 0: no blacklist", Then.SKIP_TO_UNPLUG)),),
    otherwise=Conclusion("a protocol version with a blacklist"),
)  # fmt: skip
_PREAMBLE = b"UNPLUG: PRE-AMBLE (DRIVERS %sBLACKLISTED)"
_UNPLUG_LINES = {
    DISKS: b"UNPLUG: DISKS", DISKS | NVME: b"UNPLUG: DISKS", AUX_DISKS: b"UNPLUG: AUX DISKS", NICS: b"UNPLUG: NICS",
}  # fmt: skip


def xenbus(name: str, title: str, version: tuple[int, int, int], *masks: int) -> Driver:
    """A Windows guest with XENBUS of this version, which asks for these masks. It logs its verdict, and goes on."""
    requests = tuple(slot(b"xen|UnplugSetRequest: %s (1)" % (b"NICS" if mask == NICS else b"DISKS")) for mask in masks)
    unplugs = tuple(step for mask in masks for step in (unplug(mask), Log((slot(_UNPLUG_LINES[mask]),))))
    return Driver(name, title, (
        XENBUS_PROBE, XENBUS_VERSION, *announce(0xFFFF, xenbus_build(*version)), IGNORED_VERDICT,
        Log((*MODULES, slot(b"XENBUS|UnplugInitialize: ====>"), TOO_LONG, *requests)),
        Log((slot(_PREAMBLE % b"NOT "),), refused=(slot(_PREAMBLE % b""),)),
        *unplugs,
    ))  # fmt: skip


XENBUS = xenbus("xenbus", "Windows, XENBUS 9.1.0 (2015 to 2025)", (9, 1, 0), DISKS, NICS)
XENBUS_2026 = xenbus("xenbus-2026", "Windows, XENBUS 9.2.350 (since February 2026)", (9, 2, 350), DISKS | NVME, NICS)
XENBUS_VARIANTS = (
    XENBUS_2026,
    xenbus("xenbus-boot-emulated", "Windows, XENBUS 9.1.0, XEN:BOOT_EMULATED=TRUE", (9, 1, 0), AUX_DISKS, NICS),
    xenbus("xenbus-first-boot", "Windows, XENBUS 9.1.0, first boot after its installation", (9, 1, 0)),
    xenbus("xenbus-safe-mode", "Windows, XENBUS 9.1.0, safe mode", (9, 1, 0)),
)

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


def suse_vmdp(name: str, what: str, mask: int) -> Driver:
    """A Windows guest with SUSE's VMDP: its product number follows its version, its build number is its own."""
    return Driver(name, f"Windows, SUSE VMDP, {what}", (
        PROBE, VERSION_0_OR_1, *announce(205, 20501), VERDICT, unplug(mask),
    ))  # fmt: skip


VMDP_VARIANTS = (
    suse_vmdp("suse-vmdp", "all devices", DISKS | NICS | AUX_DISKS),
    suse_vmdp("suse-vmdp-disks", "disks", DISKS | AUX_DISKS),
    suse_vmdp("suse-vmdp-nics", "network cards", NICS),
)

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
        LINUX, *LINUX_VARIANTS, XENBUS, *XENBUS_VARIANTS, CITRIX, GPLPV, *VMDP_VARIANTS, FREEBSD, OPENBSD, SUSE_LEGACY,
        VMDP, STUBBORN, CHATTY,
    )
}  # fmt: skip
"""Every guest by its name on the command line."""
