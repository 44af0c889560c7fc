"""The rows of a guest: which accesses need no protocol, because their answer is a constant or they only log a byte.

A row is in the table only if executing it changes no row. Magic number, version, flags and log bytes are such accesses;
product, build, unplug, flags writes and resets change the state from which the rows follow, and are never rows. The
rows come from the table of protocol.py, as the documentation does. table.py (and the compiled part) executes them.
"""

from __future__ import annotations

from typing import NamedTuple

from unplugd.core.counters import KINDS
from unplugd.core.guestlog import SLOT
from unplugd.core.protocol import Effect, Platform


class Answer(NamedTuple):
    """One row: an access, and what becomes of it."""

    read: bool
    addr: int
    size: int
    value: int | None
    """What a read answers; None for a write whose byte is appended to the guest's log and answered with 0."""
    kind: int
    """Its place in KINDS: the counter, and the bit in `Table.seen`."""
    left: int = 0
    """A string of so many elements is left to the protocol (core.guestlog.SLOT); 0: none is."""


def answers(platform: Platform, *, delay: bool) -> tuple[Answer, ...]:
    """The rows of a guest in this state. With `delay`, log bytes are charged before they are answered: no row."""
    rows = []
    for row in platform.rules.rows():
        kind = KINDS.index(row.effect.kind)
        match row.effect:
            case Effect.MAGIC | Effect.VERSION | Effect.FLAGS_READ:
                rows.append(Answer(True, row.addr, row.size, platform.read(row.effect, row.size), kind))
            case Effect.LOG if not delay:
                rows.append(Answer(False, row.addr, row.size, None, kind, SLOT))
    return tuple(rows)


def state_of(platform: Platform, *, delay: bool) -> tuple[object, ...]:
    """What the rows depend on: equal for two guests whose rows are equal."""
    return platform.rules, platform.blacklisted, platform.flags, delay
