"""What configuration alone says about build numbers: which are listed, for which guests, and what that means.

xenstore itself (`/mh/driver-blacklist/<product>/<build>`) is asked elsewhere. Decided here is what xenstore cannot
express: ranges, some guests only, another action than `blacklist.action`, and names that a path cannot have.

Source: contract section 2, "Actions".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from unplugd.core.guestrules import Patterns, Stance
from unplugd.core.protocol import Action
from unplugd.core.registry import fits_xenstore

ROOT = "/mh/driver-blacklist"
"""The directory of the blacklist in xenstore (mail of 2008; contract section 2)."""

LAST_BUILD = 0xFFFFFFFF


class BlacklistEntry(NamedTuple):
    """One build number of a product."""

    product: str
    build: int
    reason: str = ""
    action: Action | None = None
    """None: `blacklist.action` counts."""
    guests: Patterns | None = None
    """Whom it is for; None: all guests."""


class BlacklistRange(NamedTuple):
    """The build numbers `first` to `last` of a product, both included."""

    product: str
    first: int = 0
    last: int = LAST_BUILD
    reason: str = ""
    action: Action | None = None
    guests: Patterns | None = None


class Hit(NamedTuple):
    """A build number is listed for a guest."""

    action: Action
    """Never Action.NONE."""
    reason: str = ""
    """Why, in an administrator's words; "" if nobody said."""
    rule: str = ""
    """What decided, in words."""


def node(product: str, build: int) -> str | None:
    """The xenstore node that blacklists this build; None where there cannot be one."""
    return f"{ROOT}/{product}/{build}" if fits_xenstore(product) else None


def build_number(name: str) -> int | None:
    """The build number in the name of a node: decimal, no sign, no leading zeros. None if it is no such number."""
    if name.isascii() and name.isdigit() and len(name) <= 10 and (name[0] != "0" or name == "0"):
        build = int(name)
        return build if build <= LAST_BUILD else None
    return None


def strictest(*hits: Hit | None) -> Hit | None:
    """The one that counts of several: the strictest, of equals the first."""
    return max((hit for hit in hits if hit is not None), key=lambda hit: hit.action, default=None)


def for_guest(hit: Hit | None, stance: Stance) -> Hit | None:
    """What counts for a guest of this stance."""
    if hit is None or not (stance.observe or stance.exempt):
        return hit
    if stance.exempt:
        return None
    return hit._replace(action=Action.REPORT, rule=f"{hit.rule}; only observed: {stance.rule}")


class Configured:
    """The configured blacklist, ready to be asked. `action` is `blacklist.action`."""

    def __init__(self, entries: Iterable[BlacklistEntry] = (), ranges: Iterable[BlacklistRange] = (),
                 action: Action = Action.REFUSE) -> None:
        self.action = action
        self.nodes: dict[str, str] = {}
        """Node to reason: what belongs into xenstore."""
        self._exact: dict[tuple[str, int], list[BlacklistEntry]] = {}
        self._ranges: dict[str, list[BlacklistRange]] = {}
        for entry in entries:
            path = node(entry.product, entry.build)
            if path is None or entry.guests is not None or entry.action not in (None, action):
                self._exact.setdefault((entry.product, entry.build), []).append(entry)
            else:
                self.nodes[path] = entry.reason
        for one in ranges:
            self._ranges.setdefault(one.product, []).append(one)

    def decide(self, product: str, build: int, name: str = "", uuid: str = "") -> Hit | None:
        """What configuration itself says of this build in a guest of this name and uuid; None where it isn't listed."""
        found: list[BlacklistEntry | BlacklistRange] = []
        found += self._exact.get((product, build), ())
        found += (one for one in self._ranges.get(product, ()) if one.first <= build <= one.last)
        return strictest(*(self._hit(one) for one in found if one.guests is None or one.guests.match(name, uuid)))

    def listed(self, product: str, build: int, name: str = "", uuid: str = "") -> Hit | None:
        """What all of the configuration says of this build, its nodes in xenstore included."""
        hit = self.decide(product, build, name, uuid)
        path = node(product, build)
        if path is None or path not in self.nodes:
            return hit
        return strictest(hit, self.node_hit(product, build, self.nodes[path]))

    def node_hit(self, product: str, build: int, reason: str) -> Hit:
        """What a node of xenstore says, or what stands in for it."""
        return Hit(self.action, reason, f"xenstore's node {product}/{build}{said(self.action, None)}")

    def _hit(self, one: BlacklistEntry | BlacklistRange) -> Hit:
        return Hit(one.action or self.action, one.reason, describe(one, self.action))


def describe(one: BlacklistEntry | BlacklistRange, action: Action) -> str:
    """An entry or range in words; `action` is what counts where it names none."""
    what = f"entry {one.product} {one.build}" if isinstance(one, BlacklistEntry) else (
        f"range {one.product} {one.first}-{one.last}")
    return f"{what}{said(one.action or action, one.guests)}"


def said(action: Action, guests: Patterns | None) -> str:
    """How a rule ends: whom it is for, and its action."""
    return ("" if guests is None else f" for guests {guests}") + f" ({action.name.lower()})"
