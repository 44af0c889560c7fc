"""What happened at a guest, as the core tells it: frozen facts, each with the sentence that people read.

Guest-chosen values in the sentences are numbers; the only guest text is Line.text, which every sink escapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from unplugd.core.protocol import device_names


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the guest's log that the limiter let pass."""

    text: bytes
    """Raw bytes, 1 to 4095, without the line's end."""
    product: int | None
    build: int | None


@dataclass(frozen=True, slots=True)
class LinesDropped:
    """The limiter dropped lines; said in the guest's own log."""

    lines: int
    bytes: int

    def __str__(self) -> str:
        return f"unplugd: {self.lines} lines ({self.bytes} bytes) dropped: rate limit"


@dataclass(frozen=True, slots=True)
class Announced:
    """A build number was judged."""

    product: int
    product_name: str | None
    build: int
    blacklisted: bool
    """The guest's state after it: true too where an earlier build number was blacklisted."""
    reason: str
    """Why this build number is blacklisted; "" where it is not, or where nobody said."""

    def __str__(self) -> str:
        name = self.product_name or "unregistered product"
        verdict = "blacklisted" if self.blacklisted else "allowed"
        return f"PV driver {name} ({self.product}) build {self.build}: {verdict}"


@dataclass(frozen=True, slots=True)
class Blacklisted:
    """The guest's driver became blacklisted: from now on its magic reads 0xd249."""

    product: int
    product_name: str | None
    build: int
    reason: str

    def __str__(self) -> str:
        because = f": {self.reason}" if self.reason else ""
        return f"PV driver {self.product_name} build {self.build} is blacklisted{because}"


@dataclass(frozen=True, slots=True)
class VerdictFallback:
    """A build number was judged without xenstored's word."""

    build: int
    why: str

    def __str__(self) -> str:
        return f"build {self.build} judged without xenstored: {self.why}"


@dataclass(frozen=True, slots=True)
class Unplugged:
    """Devices were ordered to be unplugged that had not been since reset."""

    mask: int
    """The whole order."""

    def __str__(self) -> str:
        return f"unplugs {device_names(self.mask)}"


@dataclass(frozen=True, slots=True)
class UnplugDenied:
    """Policy refused devices that the driver asked to have unplugged."""

    mask: int
    blacklisted: bool
    """True where it was refused because the driver is blacklisted."""

    def __str__(self) -> str:
        key = "policy.blacklisted_unplug" if self.blacklisted else "policy.allow_unplug"
        return f"unplug of {device_names(self.mask)} refused by {key}"


@dataclass(frozen=True, slots=True)
class UndefinedBits:
    """An unplug mask had bits that mean nothing."""

    bits: int

    def __str__(self) -> str:
        return f"undefined bits {self.bits:#06x} of an unplug mask ignored"


@dataclass(frozen=True, slots=True)
class BuildWithoutProduct:
    """A build number came before a product number and was ignored."""

    build: int

    def __str__(self) -> str:
        return f"build number {self.build} ignored: no product number came before it"


@dataclass(frozen=True, slots=True)
class WasReset:
    """The platform device came out of reset: the guest's protocol state is forgotten."""

    def __str__(self) -> str:
        return "platform device reset: product, build, verdict and unplugged devices forgotten"


@dataclass(frozen=True, slots=True)
class Throttled:
    """The guest's log ran into its limit."""

    delaying: bool

    def __str__(self) -> str:
        return "guest log over its rate limit: " + ("its accesses wait" if self.delaying else "lines are dropped")


@dataclass(frozen=True, slots=True)
class Resumed:
    """The guest's log is within its limit again."""

    def __str__(self) -> str:
        return "guest log within its rate limit again"


Event = (
    Line | LinesDropped | Announced | Blacklisted | VerdictFallback | Unplugged | UnplugDenied | UndefinedBits
    | BuildWithoutProduct | WasReset | Throttled | Resumed
)
