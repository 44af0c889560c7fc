"""A domain that unplugd serves: who it is, its guest's state, and what becomes of what the guest caused.

`settle()` is the one place where events turn into records and state is kept; every connection calls it before it sends
responses. Who may connect is sockets/listener.py's, which domains there are is follow.py's.
"""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import TYPE_CHECKING

from unplugd.core.events import Event as CoreEvent
from unplugd.core.events import Line, LinesDropped
from unplugd.core.guest import ALLOWED, Guest
from unplugd.core.protocol import Effect
from unplugd.domains.labels import Labels
from unplugd.domains.records import DomainRecords
from unplugd.domains.settings import Settings
from unplugd.domains.statefile import StateFile
from unplugd.sinks.records import Event
from unplugd.sockets.loop import STEPS, tail_of
from unplugd.sockets.turns import Turns

if TYPE_CHECKING:
    from unplugd.sockets._fastpath import Tail


class Domain:
    """One domain from introduction to release."""

    def __init__(self, domid: int, name: str, uuid: str, settings: Settings) -> None:
        """`name` and `uuid` are "" as long as xenstore does not have them."""
        self.domid = domid
        self.uuid = uuid
        self.settings = settings
        self.attached = 0
        """Device model connections that Python has; see `connections`."""
        self.tail: Tail | None = None
        """What of it the fast path may change, where there is one; offered anew whenever all is settled."""
        self.turns = Turns()
        self.unlimited = False
        self._log_lines = 0
        self._log_bytes = 0
        self._sink_lines = 0
        self._sink_bytes = 0
        self._name = name
        self._labels = Labels()
        self._timer: asyncio.TimerHandle | None = None
        self._was_throttled = False
        self.records = DomainRecords(domid, settings.delivery)
        now = time.monotonic()
        self._guest = Guest(settings.rules, settings.limits(unlimited=False), settings.registry, now,
                           settings.delivery.cost)
        self._identify_records()
        self._kept_uuid = ""
        self.state = self._open_state(uuid, now)
        self.outbox = settings.delivery.open(domid, self.name, uuid, self._lost)
        platform = self.guest.platform
        self._compared: object = platform.product, platform.build, platform.blacklisted, platform.unplugged
        self._labels.follow(platform.product, platform.build)
        self.tail = tail_of(self)
        self._follow_rules()
        self.settle(now)

    def _open_state(self, uuid: str, now: float) -> StateFile:
        path = self.settings.state_directory / f"dom{self.domid}"
        try:
            state = StateFile(path, self.settings.boot)
        except OSError as error:
            self.records.own(Event.SINK_FAILED, f"{path}: {error.strerror}; its state will not survive a restart")
            return StateFile.in_memory(self.settings.boot)
        if state.kept_uuid is not None and (not uuid or state.kept_uuid in ("", uuid)):
            state.restore(self.guest, now)
            self._kept_uuid = state.kept_uuid
        state.own(uuid or self._kept_uuid)
        return state

    # --- who it is

    @property
    def name(self) -> str:
        """dom0's name for it; `dom<domid>` until xenstore has one."""
        return self._name or f"dom{self.domid}"

    def _identify_records(self) -> None:
        self.records.identify(self.name, self.uuid, self.settings.registry)
        self.guest.log.prefix = len(self.records.prefix)

    def rename(self, name: str) -> None:
        """xenstore has another name for it."""
        if name == self._name:
            return
        before, self._name = self.name, name
        self._identify_records()
        self._offer(time.monotonic())
        self.settings.delivery.rename(self.outbox, self.name)
        if before != f"dom{self.domid}":
            self.records.own(Event.RENAMED, f"renamed from {before}")

    def identify(self, uuid: str) -> bool:
        """xenstore has a uuid for it. False if this is another guest than the one that was known by this domid."""
        known = self.uuid or self._kept_uuid
        if known and known != uuid:
            return False
        if not self.uuid:
            self.uuid = uuid
            self.state.own(uuid)
            self.state.commit(self.guest)
            self._identify_records()
            self._offer(time.monotonic())
        return True

    # --- what metrics and the API show

    @property
    def guest(self) -> Guest:
        """Its guest's state, with all that the fast path has done to it."""
        self.catch_up()
        return self._guest

    def catch_up(self) -> None:
        """Be told what the fast path has done: before anything looks at the domain, or changes it."""
        if self.tail is not None and self.tail.changed:
            self.tail.tell()

    @property
    def resets(self) -> int:
        """How often the guest's platform device was reset: nobody but Python does that, so it is always known."""
        return self._guest.resets

    @property
    def log_lines(self) -> int:
        """Lines of the guest's log that were recorded."""
        self.catch_up()
        return self._log_lines

    @property
    def log_bytes(self) -> int:
        """Bytes in the lines that were recorded."""
        self.catch_up()
        return self._log_bytes

    @property
    def product(self) -> int | None:
        """The product number that the driver gave."""
        return self.guest.platform.product

    @property
    def build(self) -> int | None:
        """The build number that was judged last."""
        return self.guest.platform.build

    @property
    def blacklisted(self) -> bool:
        """Whether the driver is blacklisted, until reset."""
        return self.guest.platform.blacklisted

    @property
    def unplugged(self) -> int:
        """Mask of all that was ordered since reset."""
        return self.guest.platform.unplugged

    @property
    def connections(self) -> int:
        """Device model connections that are open."""
        return self.attached + (self.tail.held if self.tail is not None else 0)

    @property
    def label_product(self) -> str:
        """Product number as a label value."""
        self.catch_up()
        return self._labels.product

    @property
    def label_build(self) -> str:
        """Build number as a label value."""
        self.catch_up()
        return self._labels.build

    @property
    def dropped_lines(self) -> dict[str, int]:
        """Lines dropped, by reason."""
        return {"rate-limit": self.guest.log.dropped_lines, "sink": self._sink_lines}

    @property
    def dropped_bytes(self) -> dict[str, int]:
        """Bytes of dropped lines, by reason."""
        return {"rate-limit": self.guest.log.dropped_bytes, "sink": self._sink_bytes}

    @property
    def throttled(self) -> bool:
        """Whether its log is over the limit. The fast path drops lines, but does not decide that."""
        return self._guest.log.throttled

    # --- what the guest causes

    def settle(self, now: float) -> None:
        """Record what happened and keep the state: to be called before the responses that depend on it are sent."""
        guest = self._guest
        if guest.events:
            guest.changed = True
            for event in guest.take_events():
                self._tell(event)
        if guest.changed:
            self.state.commit(guest)
            self._compare()
        elif guest.grew:
            self.state.grow(guest)
        log = guest.log
        if log.throttled != self._was_throttled:
            self._was_throttled = log.throttled
            self.settings.throttling()
            self._arm(now)
        elif self._timer is None:
            if log.partial or log.throttled:
                self._arm(now)
        elif log.partial and self._timer.when() > now + log.limits.flush_after:
            self._arm(now)  # it was for something that has more time
        if self.tail is not None:
            self._offer(now)

    def _offer(self, now: float) -> None:
        """The fast path may go on from here; a new line may begin there once the timer is soon enough to flush it."""
        if self.tail is not None:
            log = self._guest.log
            begin_from = inf if self._timer is None else self._timer.when() - log.limits.flush_after
            noted = self._guest.magic_noted
            self.tail.offer(*self.state.place, self._guest.platform.blacklisted, not log.limits.delay, begin_from,
                            -1 if noted is None else noted)
            bucket, dropping = log.bucket, log.dropping
            if dropping is not None:
                self.tail.offer_drops(*dropping, bucket.balance, bucket.at, bucket.rate, bucket.burst)
            elif log.passes and self.settings.delivery.direct(self.outbox):
                self.tail.offer_lines(self.records.line_fields(*log.product), not log.limits.unlimited,
                                      bucket.balance, bucket.at, bucket.rate, bucket.burst)

    def _follow_rules(self) -> None:
        if self.tail is not None:
            rules = self.settings.rules
            self.tail.rules(rules.protocol_version, rules.allowed(blacklisted=False), rules.allowed(blacklisted=True))

    def caught_up(self, log: tuple[float, int, int, int, float], place: tuple[int, int],
                  count: tuple[int, int, float, list[tuple[int, int]]], passed: tuple[int, int, float, float],
                  steps: tuple[tuple[int, int, float], ...]) -> None:
        """The fast path has served: what it did to the log, where it kept that, what it counted (_fastpath.pyi).

        Where there were `steps`, it calls settle() then.
        """
        self._guest.log.caught_up(*log)
        if log[0] or steps:
            self.state.follow(place, self._guest)
        magics, logged, seconds, durations = count
        counters = self.settings.counters
        counters.ioreqs["magic"] += magics
        counters.ioreqs["log"] += logged
        counters.duration_sum += seconds
        for bucket, batches in durations:
            counters.duration_counts[bucket] += batches
        lines, size, balance, at = passed
        if lines:
            self._log_lines += lines
            self._log_bytes += size
            self._guest.log.bucket.balance, self._guest.log.bucket.at = balance, at
        if steps:
            self._repeat(steps)
        if magics:
            self._guest.read_magic(time.monotonic())

    def _repeat(self, steps: tuple[tuple[int, int, float], ...]) -> None:
        """Do what the guest did, which is answered and kept already."""
        guest, tally = self._guest, self.settings.counters.ioreqs
        changed = guest.changed
        for kind, value, at in steps:
            effect = STEPS[kind]
            if effect is Effect.MAGIC:
                guest.read_magic(at)
                continue
            tally[effect.kind] += 1
            if effect is Effect.VERSION:
                guest.read_version(at)
            elif effect is Effect.BUILD:
                guest.judge(guest.platform.product or 0, value, ALLOWED, at)
            else:
                guest.write(effect, value, at)
        if not guest.events:
            guest.changed = changed  # it is kept as it is
            self._compare()

    def line_ended(self, now: float) -> None:
        """A newline came by the fast path, which calls settle() before it answers."""
        self._guest.log.end_line(now)
        self._guest.grew = True

    def _tell(self, event: CoreEvent) -> None:
        match event:
            case Line(text, product, build):
                self._log_lines += 1
                self._log_bytes += len(text)
                self.records.guest_line(self.outbox, Event.GUEST_LINE, text, product, build)
                return
            case LinesDropped():
                self.records.guest_line(self.outbox, Event.LINES_DROPPED, str(event).encode(), self.product, self.build)
                return
        self.records.happened(event, self.product, self.build)

    def _compare(self) -> None:
        """Labels and published nodes follow the state itself: a record of its change may have been suppressed."""
        platform = self._guest.platform
        state = platform.product, platform.build, platform.blacklisted, platform.unplugged
        if state != self._compared:
            self._compared = state
            self._labels.follow(platform.product, platform.build)
            self.settings.published(self)

    def _lost(self, lines: int, size: int) -> None:
        self._sink_lines += lines
        self._sink_bytes += size

    # --- time

    def _arm(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seconds = self.guest.log.next_tick(now)
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.01, seconds), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        self.guest.log.tick(now)
        self.guest.changed = True
        self.settle(now)
        if self._timer is None:
            self._arm(now)
            self._offer(now)

    def configure(self) -> None:
        """Follow a reload, or a change of `unlimited`."""
        settings = self.settings
        self.guest.platform.rules = settings.rules
        self.guest.registry = settings.registry
        self._identify_records()
        self._follow_rules()
        now = time.monotonic()
        self.guest.log.configure(settings.limits(unlimited=self.unlimited), now)
        self._arm(now)
        self._offer(now)

    def limit(self, *, unlimited: bool) -> None:
        """The toolstack switched the rate limit of the guest's log off or on."""
        if unlimited != self.unlimited:
            self.unlimited = unlimited
            self.configure()

    def stop(self) -> None:
        """unplugd stops: all of the state stays for the next process."""
        self.catch_up()
        if self._timer is not None:
            self._timer.cancel()
        self._close_tail()
        self.state.commit(self.guest)
        self.state.close()

    def _close_tail(self) -> None:
        if self.tail is not None:
            self.tail.close()
            self.tail = None

    def release(self) -> None:
        """The domain is gone: its partial line is recorded, the rest forgotten."""
        self.catch_up()
        if self._timer is not None:
            self._timer.cancel()
        self._close_tail()
        now = time.monotonic()
        self.guest.log.cut(now)
        for event in self.guest.take_events():
            if isinstance(event, Line | LinesDropped):
                self._tell(event)
        self.state.remove()
