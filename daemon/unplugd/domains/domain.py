"""A domain that unplugd serves: its guest's state, and what becomes of what the guest caused.

settle() is the one place where events turn into records and state is kept; every connection calls it before it sends
responses. Log bytes come by the table: the rows append them to the state, and _record() gives them to the guest's log.
"""

from __future__ import annotations

import asyncio
import time

from unplugd.core.blacklist import for_guest
from unplugd.core.events import Event as CoreEvent
from unplugd.core.events import Line, LinesDropped
from unplugd.core.guest import Guest
from unplugd.core.guestlog import LINE_LIMIT
from unplugd.core.guestrules import stance
from unplugd.core.protocol import Action
from unplugd.domains.labels import Labels
from unplugd.domains.records import DomainRecords
from unplugd.domains.settings import Settings
from unplugd.domains.statefile import COMPACT_OVER, WORD, StateFile, state_path
from unplugd.domains.table import Rows
from unplugd.domains.turns import BUDGET, Turns
from unplugd.sinks.records import Event


class Domain:
    """One domain from introduction to release."""

    def __init__(self, domid: int, name: str, uuid: str, settings: Settings) -> None:
        """`name` and `uuid` are "" as long as xenstore does not have them."""
        self.domid = domid
        self.uuid = uuid
        self.settings = settings
        self.connections = 0
        """Device model connections that are open."""
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
        self._behind = False
        """Text of the table waits for a turn to be recorded."""
        self._closed = False
        self.records = DomainRecords(domid, settings.delivery)
        now = time.monotonic()
        self.rule = settings.rule_of(self.name, uuid)
        """The `[[guest]]` table that counts for it."""
        self.stance = stance(self.rule, settings.config.blacklist.mode)
        self._guest = Guest(settings.rules_of(self.rule), settings.limits_of(self.rule, unlimited=False),
                            settings.registry, now, settings.delivery.cost)
        self._identify_records()
        self._kept_uuid = ""
        self.state = self._open_state(uuid, now)
        self.outbox = settings.delivery.open(domid, self.name, uuid, self._lost)
        self.table = settings.table_type(self.state.memory, WORD, self._woken)
        self.table.place(*self.state.place)
        self._rows: Rows | None = None
        platform = self._guest.platform
        self._follow_blacklist()
        self._compared: object = platform.product, platform.build, platform.verdict, platform.unplugged
        self._labels.follow(platform.product, platform.build)
        self.catch_up()
        self.settle(now)

    def _open_state(self, uuid: str, now: float) -> StateFile:
        try:
            state = StateFile(self.settings.state_directory, self.domid, self.settings.boot)
        except OSError as error:
            self.records.own(Event.SINK_FAILED, f"{state_path(self.settings.state_directory, self.domid)}: "
                                                f"{error.strerror}; its state will not survive a restart")
            return StateFile.in_memory(self.settings.boot)
        if state.kept is None or (uuid and state.kept_uuid not in ("", uuid)):
            state.discard()
        else:
            self._guest.restore(state.kept, now)
            self._kept_uuid = state.kept_uuid
        state.own(uuid or self._kept_uuid)
        return state

    # --- who it is

    @property
    def name(self) -> str:
        """dom0's name for it; `dom<domid>` until xenstore has one."""
        return self._name or f"dom{self.domid}"

    def _identify_records(self) -> None:
        self.records.identify(self.name, self.uuid, self.settings.registry, self.settings.config.log.identifier)
        self._guest.log.prefix = len(self.records.prefix)

    def rename(self, name: str) -> None:
        """xenstore has another name for it."""
        if name == self._name:
            return
        before, self._name = self.name, name
        self.settings.delivery.rename(self.outbox, self.name)
        self.configure()
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
            self.configure()
        return True

    # --- what metrics and the API show

    @property
    def guest(self) -> Guest:
        """Its guest's state, with all that its rows did."""
        self.catch_up()
        return self._guest

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
    def verdict(self) -> str | None:
        """What became of the driver, one of VERDICTS; None until a build number was judged."""
        return self.guest.platform.verdict

    @property
    def unplugged(self) -> int:
        """Mask of all that was ordered since reset."""
        return self.guest.platform.unplugged

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
        """Whether its log is over the limit."""
        return self._guest.log.throttled

    # --- what the guest causes

    def answer(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Answers to the frames from offset `at` on that rows answer, and how many bytes they took (stream.Backing)."""
        self._use_rows()
        return self.table.answer(data, at)

    def log(self, data: bytes, now: float) -> None:
        """Bytes for the guest's log, of a frame that no row answers."""
        self.catch_up()
        if self.table.text > COMPACT_OVER:
            self._make_room()
        self.state.append(data, self.table.text)
        self.table.place(*self.state.place)
        self._record(now, forever=True)

    def catch_up(self) -> None:
        """Bring the guest up to date with what its rows did: before anything looks at it, or changes it."""
        if self._closed:
            return
        table = self.table
        if table.seen:
            seen, table.seen = table.seen, 0
            self._guest.noticed(seen, table.seen_at)
        if table.text != self.state.recorded:
            self._record(table.heard or time.monotonic(), forever=True)

    def _woken(self) -> None:
        """The table has appended what must be looked at before it is answered: a line's begin or end, a full line."""
        now = time.monotonic()
        if self.turns.over:
            self._record_later()
        else:
            self._record(now, forever=False)
        self._look_ahead(now)

    def _record(self, now: float, *, forever: bool) -> None:
        """Have the guest's log take the text that the table appended, and record what follows.

        What one event says is recorded, and kept as recorded, before the next is: after SIGKILL one is recorded twice
        at most, and none is lost. Lines that are dropped need not be kept: the next process drops them again. Without
        `forever` it takes BUDGET seconds at most, and the rest comes later.
        """
        state, guest = self.state, self._guest
        text = state.text(self.table.text)
        at = 0
        while at < len(text):
            taken = guest.log.write(text[at:] if at else text, now)
            at += taken
            state.recorded += taken
            if guest.events:
                self._record_events()
                state.commit(guest)
                if not forever and at < len(text) and time.monotonic() - now > BUDGET:
                    self._record_later()
                    break
        if at == len(text) and self.table.text > COMPACT_OVER:
            self._make_room()

    def _record_later(self) -> None:
        if not self._behind:
            self._behind = True
            self.turns.next(self._record_behind)

    def _record_behind(self) -> None:
        self._behind = False
        now = time.monotonic()
        if self.table.text != self.state.recorded and not self._closed:
            self._record(now, forever=False)
            self._look_ahead(now)
            self.turns.charge(time.monotonic() - now)

    def _make_room(self) -> None:
        self.state.compact(self._guest)
        self.table.place(*self.state.place)

    def settle(self, now: float) -> None:
        """Record what happened and keep the state: to be called before the responses that depend on it are sent."""
        guest = self._guest
        if guest.events:
            guest.changed = True
            self._record_events()
        if guest.changed:
            self.state.commit(guest)
            self._compare()
            self._use_rows()
        self._look_ahead(now)

    def _look_ahead(self, now: float) -> None:
        """Have a timer for what time brings, and have the table wake us where a timer or the text needs it."""
        log = self._guest.log
        if log.throttled != self._was_throttled:
            self._was_throttled = log.throttled
            self.settings.throttling()
            self._arm(now)
        elif self._timer is None and (log.partial or log.throttled):
            self._arm(now)
        table, state = self.table, self.state
        if self._timer is None:
            table.wake = table.text + 1
        else:
            table.wake = min(state.recorded - len(log.partial) + LINE_LIMIT, COMPACT_OVER + 1)

    def _use_rows(self) -> None:
        rows = self.settings.rows(self._guest.platform, delay=self._guest.log.limits.delay)
        if rows is not self._rows:
            self._rows = rows
            self.table.use(rows)

    def _record_events(self) -> None:
        for event in self._guest.take_events():
            self._tell(event)

    def _tell(self, event: CoreEvent) -> None:
        # as it was when the event came: what is behind it in the text is not recorded yet
        if isinstance(event, Line):
            text, product, build = event
            self._log_lines += 1
            self._log_bytes += len(text)
            self.records.guest_line(self.outbox, Event.GUEST_LINE, text, product, build)
            return
        driver = self._guest.platform.product, self._guest.platform.build
        if isinstance(event, LinesDropped):
            self.records.guest_line(self.outbox, Event.LINES_DROPPED, str(event).encode(), *driver)
        else:
            self.records.happened(event, *driver)

    def _compare(self) -> None:
        """Labels and published nodes follow the state itself: a record of its change may have been suppressed."""
        platform = self._guest.platform
        state = platform.product, platform.build, platform.verdict, platform.unplugged
        if state != self._compared:
            self._compared = state
            self._labels.follow(platform.product, platform.build)
            self.settings.published(self.domid)

    def _lost(self, lines: int, size: int) -> None:
        self._sink_lines += lines
        self._sink_bytes += size

    # --- time

    def _arm(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        log = self._guest.log
        seconds = log.next_tick(now)
        if seconds is not None:  # never later than the next line that begins now would have to be flushed
            seconds = max(0.01, min(seconds, log.limits.flush_after))
            self._timer = asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.catch_up()
        now = time.monotonic()
        self._guest.log.tick(now)
        self._guest.changed = True
        self.settle(now)

    def configure(self) -> None:
        """Follow a reload, another name or uuid, or a change of `unlimited`."""
        settings = self.settings
        guest = self.guest
        guest.registry = settings.registry
        self._identify_records()
        before, self.rule = self.rule, settings.rule_of(self.name, self.uuid)
        self.stance = stance(self.rule, settings.config.blacklist.mode)
        if self.rule != before:
            self.records.own(Event.POLICY_CHANGED, f"{self.rule or 'no [[guest]] table'} counts from now on")
        guest.platform.rules = settings.rules_of(self.rule)
        now = time.monotonic()
        guest.log.configure(settings.limits_of(self.rule, unlimited=self.unlimited), now)
        self._follow_blacklist()
        self._arm(now)
        self._use_rows()
        self.settle(now)

    def _follow_blacklist(self) -> None:
        """Withhold the orders of a refused driver, or no longer, as the configuration says now."""
        guest, settings = self._guest, self.settings
        platform = guest.platform
        product = settings.registry.name(platform.product)
        hit = None
        if product is not None and platform.build is not None:
            hit = for_guest(settings.blacklist.listed(product, platform.build, self.name, self.uuid), self.stance)
        enforced = not (self.stance.observe or self.stance.exempt)
        if guest.follow(hit, settings.blacklist.action if enforced else Action.NONE):
            action = platform.action.name.lower()
            self.records.own(Event.POLICY_CHANGED,
                             f'its driver stays refused; from the next unplug mask on the action is "{action}"')

    def limit(self, *, unlimited: bool) -> None:
        """The toolstack switched the rate limit of the guest's log off or on."""
        if unlimited != self.unlimited:
            self.unlimited = unlimited
            self.configure()

    def stop(self) -> None:
        """unplugd stops: all of the state stays for the next process."""
        self.state.commit(self.guest)
        self._close()
        self.state.close()

    def _close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.table.close()

    def release(self) -> None:
        """The domain is gone: its partial line is recorded, the rest forgotten."""
        self.guest.log.cut(time.monotonic())
        self._close()
        for event in self._guest.take_events():
            if isinstance(event, Line | LinesDropped):
                self._tell(event)
        self.state.remove()
