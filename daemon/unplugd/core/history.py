"""What a guest's driver did, step by step: the last accesses of the protocol, for people who ask why.

A bounded ring of a guest: products, builds with their verdict, unplug masks with their order, resets, and the reads of
magic number and version. Log bytes never. A step that repeats the last one only counts up, so a driver that polls
fills nothing. No clock here: the caller brings seconds, and says in describe() what they are as time of day.

The history is for people: it is not kept over a restart of unplugd. The journal has what was worth a record.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from unplugd.core.protocol import DEVICES

LIMIT = 64
"""Steps that are remembered of one guest: a driver's start is five to eight."""


class Did(Enum):
    """What a step was; the value is its name in the API."""

    MAGIC = "magic"
    """Read the magic number: `answer` is what it read. Noted when the answer is another than before."""
    VERSION = "version"
    """Read the protocol version: `answer` is what it read."""
    PRODUCT = "product"
    """Wrote a product number."""
    BUILD = "build"
    """Wrote a build number, which was judged: `blacklisted`, `source` and `reason` are the verdict."""
    IGNORED_BUILD = "ignored-build"
    """Wrote a build number that was ignored, without a product number before it."""
    UNPLUG = "unplug"
    """Wrote an unplug mask: `answer` is the order."""
    RESET = "reset"
    """The platform device came out of reset: what came before no longer counts."""
    RESTORED = "restored"
    """unplugd started anew and took the guest's state over; the steps before are in the journal."""


class Step(NamedTuple):
    """One step of a guest's driver."""

    did: Did
    number: int | None = None
    """What was written: product, build or mask."""
    answer: int | None = None
    """What was read, or the order."""
    blacklisted: bool | None = None
    """Whether the guest was refused, then or before."""
    reported: bool = False
    """Whether the build is on the blacklist with the action `report`."""
    source: str = ""
    """Who gave the verdict: "xenstore", "configuration", "mirror", "on-error" or "unknown-product"."""
    reason: str = ""
    """Why, in an administrator's words; "" if unknown."""
    product: int | None = None
    """Whose build it is."""


class Noted(NamedTuple):
    """A step in the ring."""

    step: Step
    first: float
    """When it was done first, seconds."""
    last: float
    """When it was done last; differs from `first` where it was repeated."""
    times: int


class History:
    """The last steps of one guest, oldest first."""

    __slots__ = ("_forgotten", "_limit", "_ring")

    def __init__(self, limit: int = LIMIT) -> None:
        self._ring: list[Noted] = []  # a deque has room for 64 from the start on, and most domains need none
        self._limit = limit
        self._forgotten = 0

    def note(self, step: Step, now: float, times: int = 1) -> None:
        """The guest did this, `times` times."""
        ring = self._ring
        if ring and ring[-1].step == step:
            last = ring[-1]
            ring[-1] = last._replace(last=now, times=last.times + times)
            return
        if len(ring) == self._limit:
            self._forgotten += 1
            del ring[0]
        ring.append(Noted(step, now, now, times))

    @property
    def steps(self) -> tuple[Noted, ...]:
        """What is remembered."""
        return tuple(self._ring)

    @property
    def forgotten(self) -> int:
        """How many steps there were before those that are remembered."""
        return self._forgotten

    def describe(self, offset: float) -> list[dict[str, object]]:
        """The steps as the API shows them; `offset` is what makes the caller's seconds a time of day (POSIX)."""
        return [_described(noted, offset) for noted in self._ring]


def _described(noted: Noted, offset: float) -> dict[str, object]:
    step = noted.step
    shown: dict[str, object] = {
        "time": round(noted.first + offset, 3),
        "last_time": round(noted.last + offset, 3),
        "times": noted.times,
        "did": step.did.value,
    }
    match step.did:
        case Did.MAGIC | Did.VERSION:
            shown["answer"] = step.answer
        case Did.PRODUCT:
            shown["product"] = step.number
        case Did.BUILD:
            shown |= {"product": step.product, "build": step.number, "blacklisted": step.blacklisted,
                      "reported": step.reported, "source": step.source, "reason": step.reason}
        case Did.IGNORED_BUILD:
            shown["build"] = step.number
        case Did.UNPLUG:
            order = step.answer or 0
            shown |= {"mask": step.number, "order": [name for name, bit in DEVICES.items() if order & bit]}
    return shown
