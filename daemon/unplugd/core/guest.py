"""One guest as unplugd remembers it: its platform device, its log, and what happened that nobody was told yet.

All connections of a domain share one Guest. What must survive the process is in Snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from unplugd.core.blacklist import Hit
from unplugd.core.counters import KINDS
from unplugd.core.events import (
    Announced,
    Blacklisted,
    BuildWithoutProduct,
    Event,
    Ignored,
    Reported,
    UndefinedBits,
    UnplugDenied,
    Unplugged,
    VerdictFallback,
    WasReset,
)
from unplugd.core.guestlog import GuestLog, Limits
from unplugd.core.history import Did, History, Step
from unplugd.core.protocol import Action, Effect, Platform, Rules
from unplugd.core.registry import Registry

_MAGIC_READ, _VERSION_READ = (1 << KINDS.index(kind) for kind in ("magic", "version"))


class Verdict(NamedTuple):
    """What came of looking a build number up."""

    blacklisted: bool
    """Whether it is listed for this guest."""
    reason: str = ""
    """Why, in an administrator's words; "" if unknown."""
    source: str = ""
    """Who said so: "xenstore", "configuration", "mirror", "on-error" or "unknown-product"."""
    fallback: str = ""
    """Why xenstored itself was not asked, or did not answer, and what decided instead; "" where it answered."""
    action: Action = Action.REFUSE
    """What being listed means for this guest; counts where it is `blacklisted`."""
    rule: str = ""
    """What decided, in words; "" where nothing did."""
    by_node: bool = False
    """Whether xenstore's node decided, or what stood in for it, so that `blacklist.action` says what that means."""


ALLOWED = Verdict(blacklisted=False, source="xenstore")
"""xenstore has no entry for it: nearly every verdict."""


class Snapshot(NamedTuple):
    """All of a guest that must survive the process, except the bytes of its partial line."""

    product: int | None
    build: int | None
    action: int
    """As Platform.action."""
    asked: bool
    """As Platform.asked."""
    ignored: bool
    """As Platform.ignored."""
    by_node: bool
    """As Guest.by_node."""
    unplugged: int
    flags: int
    balance: float
    balance_at: float
    """Seconds of the clock that the caller brings."""
    charged: int
    unsaid_lines: int
    unsaid_bytes: int
    throttled: bool
    reason: str
    """As Guest.reason."""
    rule: str
    """As Guest.rule."""


class Guest:
    """The state of one domain and the events that it caused, oldest first, in `events` (the caller takes them)."""

    __slots__ = (
        "_announced", "_read_magic", "_told", "by_node", "changed", "events", "history", "log", "platform", "reason",
        "registry", "resets", "rule",
    )

    def __init__(self, rules: Rules, limits: Limits, registry: Registry, now: float,
                 cost: Callable[[bytes], int] = len) -> None:
        self.events: list[Event] = []
        self.history = History()
        self.platform = Platform(rules)
        self.log = GuestLog(limits, self.events, now, cost)
        self.registry = registry
        self.changed = True
        """Set by everything that changes a Snapshot, but for log bytes; cleared when it is kept."""
        self.reason = ""
        """Why the driver is blacklisted; "" where it isn't or nobody said."""
        self.rule = ""
        """Which rule decided the standing verdict, in words; "" where none did."""
        self.by_node = False
        """Whether it was xenstore's node, as Verdict.by_node."""
        self._read_magic: bool | None = None
        self.resets = 0
        """How often the platform device was reset: a verdict that was asked for before one counts no more."""
        self._announced: tuple[int, int, Action] | None = None
        self._told: set[object] = set()

    def reset(self, now: float) -> None:
        """The platform device came out of reset (contract section 1)."""
        self.changed = True
        self.log.cut(now)
        self.history.note(Step(Did.RESET), now)
        self._read_magic = None
        self.platform.reset()
        self.resets += 1
        self.reason = self.rule = ""
        self.by_node = False
        self.log.product = (None, None)
        self._announced = None
        self._told.clear()
        self.log.record(WasReset(), now)

    def read_magic(self, now: float) -> None:
        """The magic number was read: noted the first time that it says so, for a driver may poll it."""
        blacklisted = self.platform.blacklisted
        if blacklisted is not self._read_magic:
            self._read_magic = blacklisted
            self.history.note(Step(Did.MAGIC, answer=self.platform.read(Effect.MAGIC, 2)), now)

    def noticed(self, kinds: int, at: float) -> None:
        """Rows were used (Table.seen): magic number and version were read, the last of them at `at`."""
        if kinds & _MAGIC_READ:
            self.read_magic(at)
        if kinds & _VERSION_READ:
            self.read_version(at)

    def read_version(self, now: float) -> int:
        """The protocol version was read; returns it."""
        version = self.platform.read(Effect.VERSION, 1)
        self.history.note(Step(Did.VERSION, answer=version), now)
        return version

    def write(self, effect: Effect, value: int, now: float) -> int:
        """A write whose effect needs nobody else's word; returns what its response carries."""
        match effect:
            case Effect.PRODUCT:
                self.changed = True
                self.platform.give_product(value)
                self.history.note(Step(Did.PRODUCT, number=value), now)
                self._identify()
            case Effect.FLAGS_WRITE:
                self.changed = True
                self.platform.write_flags(value)
            case Effect.UNPLUG | Effect.LEGACY_UNPLUG:
                return self._unplug(value, now)
        return 0

    def expected_product(self, build: int, now: float) -> int | None:
        """The product number whose build number `build` is; None where it is ignored: nothing to look up.

        That is so without a product number before it, and with protocol version 0.
        """
        platform = self.platform
        if not platform.rules.protocol_version:
            return None
        if platform.product is None:
            self.history.note(Step(Did.IGNORED_BUILD, number=build), now)
            self._tell_once(BuildWithoutProduct(build), BuildWithoutProduct, now)
        return platform.product

    def judge(self, product: int, build: int, verdict: Verdict, now: float) -> None:
        """A build number has its verdict."""
        self.changed = True
        platform = self.platform
        before = platform.blacklisted
        action = verdict.action if verdict.blacklisted else Action.NONE
        if platform.judge(build, action):
            self.reason = verdict.reason if verdict.blacklisted else ""
            self.rule, self.by_node = verdict.rule, verdict.by_node
        self.history.note(Step(Did.BUILD, number=build, product=product, blacklisted=platform.blacklisted,
                               reported=platform.action is Action.REPORT, source=verdict.source,
                               reason=verdict.reason), now)
        if verdict.fallback:
            self.log.record(VerdictFallback(build, verdict.fallback), now)
        self._identify()
        name = self.registry.name(product)
        announced = product, build, platform.action
        if announced != self._announced:
            self._announced = announced
            self.log.record(Announced(product, name, build, platform.blacklisted, verdict.reason), now)
            if platform.action is Action.REPORT:
                self.log.record(Reported(product, name, build, verdict.reason), now)
        if platform.blacklisted and not before:
            self.log.record(Blacklisted(product, name, build, verdict.reason), now)

    def follow(self, hit: Hit | None, action: Action) -> bool:
        """Follow another configuration, or another name; says whether anything has changed.

        `hit` is what configuration says now of the driver, `action` what a node of xenstore means. Whether the orders
        of a refused driver are withheld follows; that it was refused stands until reset.
        """
        platform = self.platform
        said = Action.NONE if hit is None else hit.action
        new = max(said, action) if self.by_node else said
        if not platform.blacklisted or new < Action.REFUSE or new is platform.action:
            return False
        platform.action = new
        if hit is not None and said is new:
            self.rule = hit.rule
        self.changed = True
        return True

    def _unplug(self, mask: int, now: float) -> int:
        self.changed = True
        ignored = self.platform.ignored
        ordered = self.platform.unplug(mask)
        self.history.note(Step(Did.UNPLUG, number=mask, answer=ordered.order), now)
        if ordered.undefined:
            self._tell_once(UndefinedBits(ordered.undefined), UndefinedBits, now)
        if ordered.refused:
            denied = UnplugDenied(ordered.refused, self.platform.action is Action.WITHHOLD)
            self._tell_once(denied, denied, now)
        if ordered.added:
            self.log.record(Unplugged(ordered.order), now)
        if self.platform.ignored and not ignored:
            self.log.record(Ignored(ordered.order), now)
        return ordered.order

    def _tell_once(self, event: Event, key: object, now: float) -> None:
        """Record an event once between two resets: a driver that repeats itself is no news."""
        if key not in self._told:
            self._told.add(key)
            self.log.record(event, now)

    def _identify(self) -> None:
        self.log.product = (self.platform.product, self.platform.build)

    def take_events(self) -> list[Event]:
        """The events so far; from now on they are the caller's."""
        events = self.events[:]
        self.events.clear()
        return events

    def snapshot(self) -> Snapshot:
        """What must be kept."""
        platform, log = self.platform, self.log
        return Snapshot(platform.product, platform.build, platform.action, platform.asked, platform.ignored,
                        self.by_node, platform.unplugged, platform.flags, log.bucket.balance, log.bucket.at,
                        log.charged, log.unsaid_lines, log.unsaid_bytes, log.throttled, self.reason, self.rule)

    def restore(self, kept: Snapshot, now: float) -> None:
        """Go on where an earlier process stopped. The log text that it had not recorded is written to the log later."""
        platform, log = self.platform, self.log
        platform.product, platform.build = kept.product, kept.build
        platform.action, platform.asked, platform.ignored = Action(kept.action), kept.asked, kept.ignored
        platform.unplugged, platform.flags = kept.unplugged, kept.flags
        log.bucket.restore(kept.balance, kept.balance_at, now)
        log.charged = 0  # the open line is written to the log again, which counts its bytes
        log.unsaid_lines, log.unsaid_bytes, log.throttled = kept.unsaid_lines, kept.unsaid_bytes, kept.throttled
        self.reason, self.rule, self.by_node = kept.reason, kept.rule, kept.by_node
        self._identify()
        log.begin_anew(now)
        self.history.note(Step(Did.RESTORED), now)
        self.changed = True
