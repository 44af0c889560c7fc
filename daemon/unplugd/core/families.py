"""What is known of the families of PV drivers: how they number their builds, and what a refusal does to them.

Data for people: `unplugctl show` and `blacklist impact`, docs/drivers.md and the simulator's help take it from here.
Nothing of the protocol depends on it.

Sources: as each family names them; read in 2026.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from unplugd.core.protocol import Action


class Numbering(Enum):
    """How a driver's build number comes about; the value is that in words."""

    CONSTANT = "always 1, whatever the version"
    OWN = "one number of its own"
    XENBUS = "major << 16 | minor << 8 | micro of the version, not masked"


class Family(NamedTuple):
    """A family of drivers."""

    name: str
    title: str
    """Whose drivers they are."""
    products: tuple[int, ...]
    """Product numbers; none where the driver announces nothing."""
    numbering: Numbering | None
    obeys: bool | None
    """Whether a driver that is told that it is blacklisted stays away; None: not known."""
    refused: str
    """What `refuse` does to it."""
    withheld: str
    """What `withhold` does to it."""
    source: str


UNKNOWN = "Not known: nothing is known of this driver. The protocol asks a driver that is told so to stay away."

STAYS_AWAY = "It stays away, and the guest runs with its emulated devices."
THE_SAME = "The same: it asks for nothing."

LINUX = Family(
    "Linux", "Linux 2.6.37 and later", (3,), Numbering.CONSTANT, True, STAYS_AWAY, THE_SAME,
    "Linux, arch/x86/xen/platform-pci-unplug.c",
)
XENBUS = Family(
    "XENBUS", "the Windows drivers of XenServer, XCP-ng and the Xen Project since 2013", (0xFFFF,),
    Numbering.XENBUS, False,
    "Nothing: it logs that it is blacklisted, unplugs all the same and runs.",
    "It falls back to emulated disks (since 2013): XENVBD starts no disk whose emulated twin is there. It falls back to"
    " emulated network cards with XENVIF of 2022-23 or later; what older ones do is not known.",
    "win-xenbus, src/xen/unplug.c; win-xenvbd, src/xenvbd; win-xenvif, src/xenvif/pdo.c",
)
XENSERVER_OLD = Family(
    "XenServer, old", "XenServer's Windows drivers before XENBUS", (1,), Numbering.OWN, None,
    "Not known: their source is not public. The protocol asks a driver to stay away.",
    "Not known. A driver that starts beside its emulated twin reaches one disk by two ways.",
    "the protocol's mail of 2008",
)
GPLPV = Family(
    "GPLPV", "James Harper's GPL drivers for Windows", (2,), Numbering.OWN, True, STAYS_AWAY, THE_SAME,
    "win-pvdrivers, xenpci",
)
VMDP = Family(
    "VMDP", "SUSE's Virtual Machine Driver Pack for Windows", (205,), Numbering.OWN, True,
    STAYS_AWAY + " Asked again without a reset, it tries the platform device's BAR (policy.legacy_unplug).", THE_SAME,
    "vmdp, xenbus; the product number follows the version",
)
BSD = Family(
    "BSD", "FreeBSD and OpenBSD", (), None, None,
    "Cannot be: it announces no product and no build.", "Cannot be, for the same reason.",
    "FreeBSD, sys/x86/xen/hvm.c; OpenBSD, sys/dev/pv/xen.c",
)

FAMILIES = (LINUX, XENBUS, XENSERVER_OLD, GPLPV, VMDP, BSD)

SHOWN = 4
"""Versions that are named of one build number: some numbers have dozens."""

_VERSION = re.compile(r"([0-9]{1,5})\.([0-9]{1,3})\.([0-9]{1,5})")


def family_of(product: int | None) -> Family | None:
    """The family that announces this product number; None where none is known."""
    return next((family for family in FAMILIES if product in family.products), None)


def xenbus_build(major: int, minor: int, micro: int) -> int:
    """The build number that XENBUS makes of its version: parts that are too large run into each other."""
    return major << 16 | minor << 8 | micro


def parse_version(text: str) -> int | None:
    """The build number of a version such as 9.2.350, by XENBUS's formula; None where the text is no such version."""
    found = _VERSION.fullmatch(text)
    if found is None:
        return None
    major, minor, micro = map(int, found.groups())
    if major > 0xFFFF or minor > 0xFF or micro > 0xFFFF:
        return None
    return xenbus_build(major, minor, micro)


def versions(build: int) -> list[str]:
    """The versions whose build number by XENBUS's formula this is, the likeliest first: smaller parts are likelier."""
    major, middle, micro = build >> 16, build >> 8 & 0xFF, build & 0xFF
    pairs = [(high, minor) for high in range(middle + 1) for minor in range(middle + 1) if high | minor == middle]
    return [f"{major}.{minor}.{high << 8 | micro}" for high, minor in pairs]


def in_words(product: int | None, build: int) -> str:
    """A build number as people know it: the versions that announce it, where its family numbers so; else "".

    Several versions can have the same number: all are named, or how many more there are.
    """
    family = family_of(product)
    if family is None or family.numbering is not Numbering.XENBUS or build <= 0xFFFF:
        return ""
    found = versions(build)
    named = found[:SHOWN] if len(found) > SHOWN + 1 else found
    if len(named) < len(found):
        return ", ".join(named) + f" or {len(found) - len(named)} more versions"
    return " or ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def effect(action: Action, family: Family | None) -> str:
    """What an action does to a driver of this family."""
    if action is Action.REPORT:
        return "Nothing: the guest is not told."
    if family is None:
        return UNKNOWN
    return family.refused if action is Action.REFUSE else family.withheld


def predicted(action: Action, family: Family | None) -> str:
    """The verdict that a driver of this family comes to."""
    if action is Action.REPORT:
        return "reported"
    if family is not None and family.obeys:
        return "refused"
    insists = "withheld" if action is Action.WITHHOLD else "ignored"
    return insists if family is not None and family.obeys is False else f"refused or {insists}"
