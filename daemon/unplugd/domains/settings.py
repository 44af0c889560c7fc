"""What all domains share: the rules that follow from the configuration, where records and state go, who is told.

What one domain is, and does with it, is domain.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from unplugd.config.load import Config
from unplugd.core.answers import answers, state_of
from unplugd.core.blacklist import Configured
from unplugd.core.counters import Counters
from unplugd.core.guestlog import Limits
from unplugd.core.guestrules import GuestRule, first_match
from unplugd.core.protocol import Platform, Rules
from unplugd.core.registry import Registry
from unplugd.domains import table
from unplugd.domains.statefile import boot_id
from unplugd.sinks.delivery import Delivery


@dataclass
class Settings:
    """`configure` replaces the parts that a reload changes."""

    config: Config
    delivery: Delivery
    counters: Counters
    state_directory: Path
    published: Callable[[int], None]
    """Called with the domid of a domain whose published nodes may be out of date."""
    throttling: Callable[[], None] = lambda: None
    """Called when a domain's log came over its limit, or is within it again."""
    boot: bytes = field(default_factory=boot_id)
    table_type: type[table.Table] = table.Table
    """The Table that the event loop's Poller can serve, with its Rows."""
    rows_type: type[table.Rows] = table.Rows

    def __post_init__(self) -> None:
        self.configure(self.config)

    def configure(self, config: Config, prepared: Configured | None = None) -> None:
        """Take the rules from `config`. `prepared` is its blacklist, if that exists already."""
        self.config = config
        self.registry = Registry(config.products)
        self.rules = Rules(
            config.protocol_version,
            config.policy.allow_unplug,
            config.policy.legacy_unplug,
        )
        blacklist = config.blacklist
        self.blacklist = prepared or Configured(blacklist.entries, blacklist.ranges, blacklist.action)
        self._rows: dict[tuple[object, ...], table.Rows] = {}

    def rule_of(self, name: str, uuid: str) -> GuestRule | None:
        """The `[[guest]]` table that counts for a guest."""
        return first_match(self.config.guests, name, uuid)

    def rules_of(self, rule: GuestRule | None) -> Rules:
        """What the configuration decides about the protocol for a guest with this table."""
        if rule is None or rule.allow_unplug is None:
            return self.rules
        return self.rules._replace(allow_unplug=rule.allow_unplug)

    def limits_of(self, rule: GuestRule | None, *, unlimited: bool) -> Limits:
        """The limits of the log of a guest with this table."""
        log = self.config.log
        rate, burst, on_limit = log.rate, log.burst, log.on_limit
        if rule is not None:
            rate = rate if rule.rate is None else rule.rate
            burst = burst if rule.burst is None else rule.burst
            on_limit = rule.on_limit or on_limit
        return Limits(rate, burst, on_limit == "delay", unlimited, log.flush_after)

    def rows(self, platform: Platform, *, delay: bool) -> table.Rows:
        """The rows of a guest in this state: the same object for all guests whose rows are equal."""
        state = state_of(platform, delay=delay)
        rows = self._rows.get(state)
        if rows is None:
            rows = self._rows[state] = self.rows_type(answers(platform, delay=delay), self.counters.frames)
        return rows
