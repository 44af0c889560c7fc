"""What configuration alone says about build numbers: ranges, and exact numbers that xenstore cannot hold.

xenstore itself (`/mh/driver-blacklist/<product>/<build>`) is asked elsewhere; here is the part that needs no asking.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from unplugd.core.registry import fits_xenstore

ROOT = "/mh/driver-blacklist"
"""The directory of the blacklist in xenstore (mail of 2008; contract section 2)."""

LAST_BUILD = 0xFFFFFFFF


class BlacklistEntry(NamedTuple):
    """One build number of a product."""

    product: str
    build: int
    reason: str = ""

    @property
    def path(self) -> str | None:
        """Its node in xenstore; None where a path cannot have the product's name."""
        return node(self.product, self.build)


class BlacklistRange(NamedTuple):
    """The build numbers `first` to `last` of a product, both included."""

    product: str
    first: int = 0
    last: int = LAST_BUILD
    reason: str = ""


def node(product: str, build: int) -> str | None:
    """The xenstore node that blacklists this build; None where there cannot be one."""
    return f"{ROOT}/{product}/{build}" if fits_xenstore(product) else None


def build_number(name: str) -> int | None:
    """The build number in the name of a node: decimal, no sign, no leading zeros. None if it is no such number."""
    if name.isascii() and name.isdigit() and len(name) <= 10 and (name[0] != "0" or name == "0"):
        build = int(name)
        return build if build <= LAST_BUILD else None
    return None


class Configured:
    """The configured blacklist, ready to be asked."""

    def __init__(self, entries: Iterable[BlacklistEntry] = (), ranges: Iterable[BlacklistRange] = ()) -> None:
        self.nodes: dict[str, str] = {}
        """Node to reason: what belongs into xenstore."""
        self._exact: dict[tuple[str, int], str] = {}
        self._ranges: dict[str, list[BlacklistRange]] = {}
        for entry in entries:
            if (path := entry.path) is None:
                self._exact[entry.product, entry.build] = entry.reason
            else:
                self.nodes[path] = entry.reason
        for one in ranges:
            self._ranges.setdefault(one.product, []).append(one)

    def decide(self, product: str, build: int) -> str | None:
        """The reason for which configuration itself blacklists this build; None where it doesn't."""
        exact = self._exact.get((product, build))
        if exact is not None:
            return exact
        for one in self._ranges.get(product, ()):
            if one.first <= build <= one.last:
                return one.reason
        return None
