"""The HVM emulated device unplug protocol: one table of accesses, and the device that a guest finds behind it.

Everything that a port access can do is in TABLE; what is not there reads as all ones and is ignored when written.
Sources: xen.git docs/misc/hvm-emulated-unplug.pandoc (numbers in brackets are the steps of the original mail of
2008), contract section 1, "What each access does". The table in docs/protocol.md is generated from this one.

The order that a driver follows, all of it on ports 0x10-0x13:

    [1] read magic -> [2] read version -> [3] write product -> [4] write build -> [5] read magic again
    -> [6] write unplug mask;  log bytes at any time after [1]

No I/O and no clock here; who looks a build number up is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum, IntEnum, IntFlag
from functools import lru_cache
from typing import NamedTuple

from unplugd.core.ioreq import BAR

MAGIC = 0x49D2
"""[1] The unplug protocol is there and this guest's driver is welcome."""
MAGIC_BLACKLISTED = 0xD249
"""[5] The driver that announced itself is blacklisted and must not load: the magic with its bytes swapped."""

FLAG_ROM_LOCK = 0x01
"""PFFLAG_ROM_LOCK: the only platform flag that is kept. Locking the ROM is the device model's work."""


class Unplug(IntFlag):
    """Bits of the unplug mask (step 6)."""

    IDE_DISKS = 1
    """All IDE and SCSI disks, but no CD drives."""
    NICS = 2
    """All emulated network cards."""
    AUX_IDE_DISKS = 4
    """All IDE disks but the primary master; overridden by IDE_DISKS."""
    NVME_DISKS = 8
    """All NVMe disks."""


DEVICES: Mapping[str, int] = {
    "ide-disks": int(Unplug.IDE_DISKS),
    "nics": int(Unplug.NICS),
    "aux-ide-disks": int(Unplug.AUX_IDE_DISKS),
    "nvme-disks": int(Unplug.NVME_DISKS),
}
"""The bits under their names in configuration, metrics and output; plain numbers, since a flag's `&` is slow."""

ALL_DEVICES = 15


class Action(IntEnum):
    """What being on the blacklist means for a guest; the stricter, the higher (contract section 2)."""

    NONE = 0
    """It is not on the blacklist."""
    REPORT = 1
    """The guest sees nothing of it; it is recorded, counted and published."""
    REFUSE = 2
    """The magic number reads 0xd249; what the driver asks for all the same is ordered."""
    WITHHOLD = 3
    """The magic number reads 0xd249, and nothing that the driver asks for is unplugged."""


ACTIONS: Mapping[str, Action] = {"report": Action.REPORT, "refuse": Action.REFUSE, "withhold": Action.WITHHOLD}
"""The actions under their names in the configuration."""

VERDICTS = ("allowed", "reported", "refused", "ignored", "withheld")
"""What Platform.verdict can be."""


def device_names(mask: int) -> str:
    """The names of a mask's devices, comma separated; `nothing` for 0."""
    return ", ".join(name for name, bit in DEVICES.items() if mask & bit) or "nothing"


class Effect(Enum):
    """What an access does; the value is its kind in `unplugd_ioreqs_total`, before a slash."""

    MAGIC = "magic"
    VERSION = "version"
    PRODUCT = "product"
    BUILD = "build"
    UNPLUG = "unplug"
    LOG = "log"
    FLAGS_READ = "flags/read"
    FLAGS_WRITE = "flags/write"
    LEGACY_UNPLUG = "unplug/legacy"
    NONE = "other"

    def __init__(self, value: str) -> None:
        self.kind = value.partition("/")[0]
        """The value of the label `kind`."""


class Row(NamedTuple):
    """One line of the table."""

    read: bool
    addr: int
    size: int
    effect: Effect
    meaning: str
    answer: str


READ, WRITE = True, False

TABLE: tuple[Row, ...] = (
    Row(READ, 0x10, 2, Effect.MAGIC, "magic number",
        "0x49d2, or 0xd249 once this guest's driver is blacklisted"),
    Row(READ, 0x12, 1, Effect.VERSION, "protocol version", "1, or what `protocol_version` says"),
    Row(WRITE, 0x12, 2, Effect.PRODUCT, "product number; 0 counts as not given", "0"),
    Row(WRITE, 0x10, 4, Effect.BUILD, "build number; the verdict stands before the answer", "0"),
    Row(WRITE, 0x10, 2, Effect.UNPLUG, "unplug mask", "the order: what the device model must unplug"),
    Row(WRITE, 0x12, 1, Effect.LOG, "one byte of guest log", "0"),
    Row(READ, 0x10, 1, Effect.FLAGS_READ, "platform flags", "the flags"),
    Row(WRITE, 0x10, 1, Effect.FLAGS_WRITE, "platform flags, bit 0 (ROM lock) is kept", "0"),
    Row(WRITE, BAR + 8, 1, Effect.LOG, "one byte of guest log (platform BAR)", "0"),
    Row(READ, BAR, 1, Effect.FLAGS_READ, "platform flags (platform BAR)", "the flags"),
    Row(WRITE, BAR, 1, Effect.FLAGS_WRITE, "platform flags (platform BAR)", "0"),
)

LEGACY_TABLE: tuple[Row, ...] = (
    Row(WRITE, BAR + 4, 4, Effect.LEGACY_UNPLUG, "1 unplugs disks and NICs (old SUSE, VMDP)", "the order"),
    Row(WRITE, BAR + 8, 4, Effect.LEGACY_UNPLUG, "1 unplugs disks, 2 unplugs NICs (VMDP)", "the order"),
)
"""What `policy.legacy_unplug` adds: the protocol's predecessors on the platform device's BAR."""

LEGACY_MASKS: Mapping[tuple[int, int], int] = {
    (BAR + 4, 1): Unplug.IDE_DISKS | Unplug.NICS,
    (BAR + 8, 1): Unplug.IDE_DISKS,
    (BAR + 8, 2): Unplug.NICS,
}
"""Address and value of a legacy write to the mask it stands for; any other value does nothing."""


class Rules(NamedTuple):
    """What the configuration decides about the protocol."""

    protocol_version: int = 1
    """What VERSION reads as; with 0 a driver sends no product and build, and any that come are ignored."""
    allow_unplug: int = ALL_DEVICES
    """Mask of what may be unplugged at all."""
    legacy_unplug: bool = False
    """Whether LEGACY_TABLE is served."""

    def rows(self) -> Iterator[Row]:
        """The accesses that have an effect under these rules."""
        yield from TABLE
        if self.legacy_unplug:
            yield from LEGACY_TABLE


@lru_cache(maxsize=16)
def effects(rules: Rules) -> Mapping[tuple[bool, int, int], Effect]:
    """The accesses that have an effect under these rules: (read, addr, size) to effect."""
    return {(row.read, row.addr, row.size): row.effect for row in rules.rows()}


class Ordered(NamedTuple):
    """What came of an unplug mask."""

    order: int
    """What the device model must unplug: asked for, defined and allowed."""
    added: int
    """The part of it that was not ordered before (since reset)."""
    undefined: int
    """Bits of the mask that mean nothing."""
    refused: int
    """Defined bits that policy refused."""


class Platform:
    """The state of one guest's platform device, from reset to reset."""

    __slots__ = ("action", "asked", "build", "flags", "ignored", "product", "rules", "unplugged")

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.reset()

    def reset(self) -> None:
        """As after power-on: nothing was announced, nothing is unplugged."""
        self.product: int | None = None
        self.build: int | None = None
        self.action = Action.NONE
        """What the standing verdict means: of the last build number, or of the one for which the guest was refused."""
        self.asked = False
        """Whether the driver asked to have devices unplugged after it was refused."""
        self.ignored = False
        """Whether devices were ordered to be unplugged for it then."""
        self.unplugged = 0
        self.flags = 0

    @property
    def blacklisted(self) -> bool:
        """Whether the guest was told that its driver is blacklisted: the magic number then reads 0xd249."""
        return self.action >= Action.REFUSE

    @property
    def verdict(self) -> str | None:
        """What became of the driver, one of VERDICTS; None until a build number was judged."""
        if self.blacklisted:
            return "ignored" if self.ignored else "withheld" if self.asked else "refused"
        if self.build is None:
            return None
        return "reported" if self.action is Action.REPORT else "allowed"

    def read(self, effect: Effect, size: int) -> int:
        """What a read of `size` bytes with this effect answers."""
        match effect:
            case Effect.MAGIC:
                return MAGIC_BLACKLISTED if self.blacklisted else MAGIC
            case Effect.VERSION:
                return self.rules.protocol_version
            case Effect.FLAGS_READ:
                return self.flags
            case _:
                return (1 << 8 * size) - 1

    def give_product(self, number: int) -> None:
        """[3] A product number; 0 takes back what was given. The build number of another product is forgotten."""
        if self.rules.protocol_version and number != (self.product or 0):
            self.product = number or None
            self.build = None

    def judge(self, build: int, action: Action) -> bool:
        """[4] A build number with its verdict. A guest once refused stays so until reset.

        False where an earlier verdict, which is stricter, still stands.
        """
        self.build = build
        if self.blacklisted and action < self.action:
            return False
        self.action = action
        return True

    def unplug(self, mask: int) -> Ordered:
        """[6] An unplug mask. The same mask gets the same order again: device models treat it as idempotent."""
        defined = mask & ALL_DEVICES
        allowed = 0 if self.action is Action.WITHHOLD else self.rules.allow_unplug
        order = defined & allowed
        added = order & ~self.unplugged
        self.unplugged |= order
        if self.blacklisted:
            self.asked = self.asked or defined != 0
            self.ignored = self.ignored or order != 0
        return Ordered(order, added, mask & ~ALL_DEVICES, defined & ~allowed)

    def write_flags(self, value: int) -> None:
        """Keep the flags that are defined."""
        self.flags = value & FLAG_ROM_LOCK
