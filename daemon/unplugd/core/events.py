"""What happened at a guest, as the core tells it: frozen facts, each with the sentence that people read.

Guest-chosen values in the sentences are numbers; the only guest text is Line.text, which every sink escapes.
"""

from __future__ import annotations

from typing import NamedTuple

from unplugd.core.protocol import device_names


class Line(NamedTuple):
    """A line of the guest's log that the limiter let pass."""

    text: bytes
    """Raw bytes, 1 to 4095, without the line's end."""
    product: int | None
    build: int | None


class LinesDropped(NamedTuple):
    """The limiter dropped lines; said in the guest's own log."""

    lines: int
    bytes: int

    def __str__(self) -> str:
        return f"unplugd: {self.lines} lines ({self.bytes} bytes) dropped: rate limit"


class Announced(NamedTuple):
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


class Blacklisted(NamedTuple):
    """The guest's driver became blacklisted: from now on its magic reads 0xd249."""

    product: int
    product_name: str | None
    build: int
    reason: str

    def __str__(self) -> str:
        because = f": {self.reason}" if self.reason else ""
        return f"PV driver {self.product_name} build {self.build} is blacklisted{because}"


class Reported(NamedTuple):
    """The driver is on the blacklist with the action `report`: the guest was not told."""

    product: int
    product_name: str | None
    build: int
    reason: str

    def __str__(self) -> str:
        because = f": {self.reason}" if self.reason else ""
        return f"PV driver {self.product_name} build {self.build} is on the blacklist and only reported{because}"


class Ignored(NamedTuple):
    """A driver that was refused had devices unplugged all the same (action `refuse`)."""

    mask: int
    """The order."""

    def __str__(self) -> str:
        return f"refused, and unplugs {device_names(self.mask)} all the same: its driver ignores the blacklist"


class VerdictFallback(NamedTuple):
    """A build number was judged without xenstored's word."""

    build: int
    why: str

    def __str__(self) -> str:
        return f"build {self.build} judged without xenstored: {self.why}"


class Unplugged(NamedTuple):
    """Devices were ordered to be unplugged that had not been since reset."""

    mask: int
    """The whole order."""

    def __str__(self) -> str:
        return f"unplugs {device_names(self.mask)}"


class UnplugDenied(NamedTuple):
    """Policy refused devices that the driver asked to have unplugged."""

    mask: int
    withheld: bool
    """True where it was refused because the driver is blacklisted with the action `withhold`."""

    def __str__(self) -> str:
        if self.withheld:
            return f"unplug of {device_names(self.mask)} withheld: the driver is blacklisted"
        return f"unplug of {device_names(self.mask)} refused by policy.allow_unplug"


class UndefinedBits(NamedTuple):
    """An unplug mask had bits that mean nothing."""

    bits: int

    def __str__(self) -> str:
        return f"undefined bits {self.bits:#06x} of an unplug mask ignored"


class BuildWithoutProduct(NamedTuple):
    """A build number came before a product number and was ignored."""

    build: int

    def __str__(self) -> str:
        return f"build number {self.build} ignored: no product number came before it"


class WasReset(NamedTuple):
    """The platform device came out of reset: the guest's protocol state is forgotten."""

    def __str__(self) -> str:
        return "platform device reset: product, build, verdict and unplugged devices forgotten"


class Throttled(NamedTuple):
    """The guest's log ran into its limit."""

    delaying: bool

    def __str__(self) -> str:
        return "guest log over its rate limit: " + ("its accesses wait" if self.delaying else "lines are dropped")


class Resumed(NamedTuple):
    """The guest's log is within its limit again."""

    def __str__(self) -> str:
        return "guest log within its rate limit again"


Event = (
    Line | LinesDropped | Announced | Blacklisted | Reported | Ignored | VerdictFallback | Unplugged | UnplugDenied
    | UndefinedBits | BuildWithoutProduct | WasReset | Throttled | Resumed
)
