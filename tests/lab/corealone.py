"""core/ alone: a guest without rows, table, state file or sockets. What a daemon does must be what this does.

Several connections, virtual time that stands still, verdicts at once. What the daemon records is compared with events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from unplugd.config.load import Config
from unplugd.core.counters import Counters
from unplugd.core.escape import escape_journal
from unplugd.core.events import Event as CoreEvent
from unplugd.core.events import Line, LinesDropped
from unplugd.core.guest import ALLOWED, Guest, Verdict
from unplugd.core.guestlog import Limits
from unplugd.core.history import Did, Noted
from unplugd.core.protocol import Action, Rules
from unplugd.core.registry import Registry
from unplugd.core.stream import IoreqStream, NeedTokens, NeedVerdict

LISTED = {13: Action.REFUSE, 14: Action.REPORT, 15: Action.WITHHOLD}
"""Builds on the blacklist, and what that means."""


def verdict(build: int) -> Verdict:
    """What is said of a build."""
    action = LISTED.get(build)
    return ALLOWED if action is None else Verdict(blacklisted=True, reason="unlucky", source="xenstore", action=action)


class Record(NamedTuple):
    """What a record says, of a guest's line or of unplugd's own."""

    guest: bool
    """In the guest's log."""
    message: str
    driver: tuple[str, str]
    """Product and build of a guest's line; empty else: a record of unplugd's has those of the end of a batch."""


def record_of(event: CoreEvent, prefix: str) -> Record:
    """The record that an event becomes."""
    match event:
        case Line(text, product, build):
            driver = ("" if product is None else str(product), "" if product is None or build is None else str(build))
            return Record(True, escape_journal(text).decode(), driver)
        case LinesDropped():
            return Record(True, str(event), ("", ""))
    return Record(False, prefix + str(event), ("", ""))


def noted(steps: Sequence[Noted]) -> list[object]:
    """A history but for what rows leave open: in which order, and how often, magic number and version were read."""
    shown: list[object] = []
    reads: set[object] = set()
    for step, _, _, times in steps:
        if step.did in (Did.MAGIC, Did.VERSION):
            reads.add(step)
            continue
        shown += [frozenset(reads), step, times]
        reads.clear()
    return [*shown, frozenset(reads)]


def in_order(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Of the guest and of unplugd: each in its order. Where journald is busy, either may wait for itself."""
    return [record for record in records if record.guest], [record for record in records if not record.guest]


class Core:
    """One guest and its connections, by number."""

    def __init__(self, config: Config, prefix: str, cost: Callable[[bytes], int]) -> None:
        self.now = 1000.0
        self.counters = Counters()
        self.events: list[CoreEvent] = []
        self.records: list[Record] = []
        self.lines = 0
        self._prefix = prefix
        self._cost = cost
        self._config = config
        self._unlimited = False
        self.guest = self._born()
        self._streams: dict[int, IoreqStream] = {}
        self._rest: dict[int, bytes] = {}

    def _born(self) -> Guest:
        guest = Guest(self._rules(), self._limits(), Registry(), self.now, self._cost)
        guest.log.prefix = len(self._prefix)
        return guest

    def _rules(self) -> Rules:
        policy = self._config.policy
        return Rules(self._config.protocol_version, policy.allow_unplug, policy.legacy_unplug)

    def _limits(self) -> Limits:
        log = self._config.log
        return Limits(log.rate, log.burst, log.on_limit == "delay", self._unlimited, log.flush_after)

    def connect(self, number: int) -> None:
        """A connection, in place of the one that has this number."""
        self._streams[number] = IoreqStream(self.guest, self.counters)
        self._rest[number] = b""

    def send(self, number: int, data: bytes) -> tuple[bytes, bool]:
        """What is answered, and whether the connection is closed for a fault."""
        stream = self._streams[number]
        data = self._rest[number] + data
        out = b""
        while True:
            answers, used = stream.receive(data, self.now)
            out += answers
            data = data[used:]
            while isinstance(stream.waiting, NeedVerdict):
                out += stream.resume(verdict(stream.waiting.build), self.now)
            assert not isinstance(stream.waiting, NeedTokens), "time stands still here"
            self._record()
            if not used:
                break
        self._rest[number] = data
        if stream.fault is not None:
            self.counters.protocol_errors[stream.fault.reason] += 1
            return out, True
        return out, False

    def _record(self) -> None:
        for event in self.guest.take_events():
            self.events.append(event)
            self.records.append(record_of(event, self._prefix))
            self.lines += isinstance(event, Line)

    def limit(self, *, unlimited: bool) -> None:
        """The toolstack's switch."""
        if unlimited != self._unlimited:
            self._unlimited = unlimited
            self._configure()

    def reload(self, config: Config) -> None:
        """Another configuration."""
        self._config = config
        self._configure()

    def _configure(self) -> None:
        self.guest.platform.rules = self._rules()
        self.guest.log.configure(self._limits(), self.now)

    def killed(self) -> None:
        """Another process goes on, with what was acknowledged."""
        before = self.guest
        self._unlimited = False
        self.guest = self._born()
        self.guest.restore(before.snapshot(), self.now)
        self.guest.log.write_all(bytes(before.log.partial), self.now)
        self.lines = 0
        self._record()

    def seen(self) -> dict[str, object]:
        """All that there is to see of it."""
        guest, log = self.guest, self.guest.log
        return {
            "guest": guest.snapshot()._replace(balance_at=0.0),
            "partial": bytes(log.partial),
            "dropped": (log.dropped_lines, log.dropped_bytes, log.suppressed),
            "lines": self.lines,
            "frames": dict(self.counters.ioreqs),
            "faults": dict(self.counters.protocol_errors),
            "history": noted(guest.history.steps) if not guest.history.forgotten else [],
            "records": in_order(self.records),
        }
