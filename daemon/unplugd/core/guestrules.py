"""Rules for some guests only: which guests a pattern means, and which `[[guest]]` table of the configuration counts.

A guest is known by dom0's name for it and by its uuid. libxl renames a guest while it migrates (`web-01--incoming` on
the host that it comes to, `web-01--migratedaway` on the one that it leaves): the rules of `web-01` count all the time.

Source: contract section 2, "Actions".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from typing import NamedTuple

INCOMING, MIGRATED_AWAY = "--incoming", "--migratedaway"
MIGRATING = (INCOMING, MIGRATED_AWAY)
"""What libxl appends to a guest's name while it migrates."""


def bare_name(name: str) -> str:
    """A guest's name without what libxl appends to it."""
    for suffix in MIGRATING:
        name = name.removesuffix(suffix)
    return name


class Patterns:
    """Shell patterns of names (`*`, `?`, `[...]`; case counts), or whole uuids."""

    __slots__ = ("_name", "_uuids", "patterns")

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns
        self._name = re.compile("|".join(map(translate, patterns)))
        self._uuids = {pattern.lower() for pattern in patterns}

    def match(self, name: str, uuid: str) -> bool:
        """Whether the guest of this name and uuid is meant."""
        return self._name.match(bare_name(name)) is not None or uuid.lower() in self._uuids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and self.patterns == other.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __str__(self) -> str:
        return ", ".join(self.patterns)

    __repr__ = __str__


class GuestRule(NamedTuple):
    """A `[[guest]]` table; what is None is not said, and the configuration's other keys count."""

    match: Patterns
    blacklist: str | None = None
    """"enforce", "observe" or "exempt"."""
    allow_unplug: int | None = None
    """Mask of what may be unplugged."""
    rate: float | None = None
    burst: float | None = None
    on_limit: str | None = None
    """"drop" or "delay"."""

    def __str__(self) -> str:
        return f"[[guest]] {self.match}"


class Stance(NamedTuple):
    """How the blacklist counts for a guest."""

    observe: bool = False
    """Every action is `report`."""
    exempt: bool = False
    """Nothing is listed for it."""
    rule: str = ""
    """What decided that, in words."""


def first_match(rules: Iterable[GuestRule], name: str, uuid: str) -> GuestRule | None:
    """The table that counts for the guest of this name and uuid."""
    return next((rule for rule in rules if rule.match.match(name, uuid)), None)


def stance(rule: GuestRule | None, mode: str) -> Stance:
    """How the blacklist counts for a guest whose table this is; `mode` is `blacklist.mode`."""
    if rule is not None and rule.blacklist is not None:
        decided = f'{rule}, blacklist = "{rule.blacklist}"'
        return Stance(rule.blacklist == "observe", rule.blacklist == "exempt", decided)
    return Stance(observe=mode == "observe", rule=f'blacklist.mode = "{mode}"')
