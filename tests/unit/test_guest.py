"""One guest: what it causes, what is told once, what survives the process (contract sections 1 and 3)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.lab.frames import frame
from tests.lab.portio import BAR, Machine
from unplugd.core.blacklist import Hit
from unplugd.core.counters import KINDS
from unplugd.core.events import (
    Announced,
    Blacklisted,
    BuildWithoutProduct,
    Ignored,
    Line,
    Reported,
    UndefinedBits,
    UnplugDenied,
    Unplugged,
    VerdictFallback,
    WasReset,
)
from unplugd.core.guest import Guest, Verdict
from unplugd.core.guestlog import Limits
from unplugd.core.history import Did
from unplugd.core.protocol import ACTIONS, Action, Effect, Rules
from unplugd.core.registry import Registry

UNLIMITED = Limits(unlimited=True)


def guest(rules: Rules | None = None, limits: Limits = UNLIMITED) -> Guest:
    return Guest(rules or Rules(), limits, Registry(), 0.0)


def test_a_build_number_with_its_verdict() -> None:
    one = guest()
    one.write(Effect.PRODUCT, 1, 0.0)
    assert one.expected_product(86451, 0.0) == 1
    one.judge(1, 86451, Verdict(blacklisted=True, reason="loses data"), 0.0)
    assert one.take_events() == [
        Announced(1, "xensource-windows", 86451, True, "loses data"),
        Blacklisted(1, "xensource-windows", 86451, "loses data"),
    ]
    assert one.take_events() == []


def test_the_magic_number_is_noted_when_it_says_something_else() -> None:
    one = guest()
    for now in (1.0, 2.0):
        one.read_magic(now)
    one.judge(3, 1, Verdict(blacklisted=True), 3.0)
    one.read_magic(4.0)
    one.reset(5.0)
    one.read_magic(6.0)
    noted = [(step.answer, first) for step, first, _, _ in one.history.steps if step.did is Did.MAGIC]
    assert noted == [(0x49D2, 1.0), (0xD249, 4.0), (0x49D2, 6.0)]


def test_what_rows_answered_is_noted_once_for_all() -> None:
    one = guest()
    one.noticed(1 << KINDS.index("log"), 1.0)
    assert not one.history.steps
    one.noticed(1 << KINDS.index("version") | 1 << KINDS.index("magic"), 2.0)
    one.noticed(1 << KINDS.index("magic"), 3.0)
    assert [(noted.step.did, noted.step.answer, noted.first, noted.times) for noted in one.history.steps] == [
        (Did.MAGIC, 0x49D2, 2.0, 1), (Did.VERSION, 1, 2.0, 1)]


def test_a_verdict_that_xenstored_had_no_part_in_is_told() -> None:
    one = guest()
    one.judge(3, 1, Verdict(blacklisted=False, fallback="no answer in time"), 0.0)
    told = one.take_events()[0]
    assert told == VerdictFallback(1, "no answer in time")
    assert "no answer in time" in str(told)


def test_a_verdict_of_before_a_reset_is_not_applied_after_it() -> None:
    machine = Machine()
    machine.outw(0x12, 3)
    machine.stream.receive(frame(0x10, 4, data=1), machine.now)
    machine.guest.reset(machine.now)  # by another connection
    assert len(machine.stream.resume(Verdict(blacklisted=True), machine.now)) == 32
    assert not machine.guest.platform.blacklisted
    assert machine.guest.platform.build is None


def test_a_build_without_a_product_is_ignored_and_told_once_between_resets() -> None:
    one = guest()
    assert one.expected_product(5, 0.0) is None
    assert one.expected_product(6, 0.0) is None
    one.reset(0.0)
    assert one.expected_product(7, 0.0) is None
    assert one.take_events() == [BuildWithoutProduct(5), WasReset(), BuildWithoutProduct(7)]


def test_protocol_version_0_ignores_product_and_build_without_a_word() -> None:
    one = guest(Rules(protocol_version=0))
    one.write(Effect.PRODUCT, 3, 0.0)
    assert one.expected_product(1, 0.0) is None
    assert one.take_events() == []


def test_a_blacklisted_verdict_lasts_until_reset() -> None:
    one = guest()
    one.write(Effect.PRODUCT, 1, 0.0)
    one.judge(1, 5, Verdict(blacklisted=True), 0.0)
    one.judge(1, 6, Verdict(blacklisted=False), 0.0)
    assert one.platform.blacklisted
    announced = [event for event in one.take_events() if isinstance(event, Announced)]
    assert [event.blacklisted for event in announced] == [True, True]
    one.reset(0.0)
    assert not one.platform.blacklisted


def test_repeating_itself_is_no_news() -> None:
    one = guest(Rules(allow_unplug=1))
    for _ in range(3):
        one.write(Effect.UNPLUG, 0x13, 0.0)
        one.judge(3, 1, Verdict(blacklisted=False), 0.0)
    assert one.take_events() == [
        UndefinedBits(0x10), UnplugDenied(2, withheld=False), Unplugged(1), Announced(3, "linux", 1, False, ""),
    ]  # fmt: skip


def test_reset_forgets_all_but_the_log_and_the_balance() -> None:
    one = guest(limits=Limits(rate=0, burst=1000))
    one.write(Effect.PRODUCT, 3, 0.0)
    one.judge(3, 1, Verdict(blacklisted=True), 0.0)
    one.write(Effect.UNPLUG, 3, 0.0)
    one.write(Effect.FLAGS_WRITE, 1, 0.0)
    one.log.write(b"partial", 0.0)
    balance = one.log.bucket.balance
    one.reset(0.0)
    kept = one.snapshot()
    assert (kept.product, kept.build, kept.action, kept.unplugged, kept.flags) == (None, None, Action.NONE, 0, 0)
    assert kept.balance < balance
    assert one.take_events()[-2:] == [Line(b"partial", 3, 1), WasReset()]


def test_reset_loops_are_bounded_like_everything_else() -> None:
    one = guest(limits=Limits(rate=0, burst=1000))
    for _ in range(1000):
        one.reset(0.0)
    stored = sum(max(64, len(str(event))) for event in one.take_events())
    assert stored <= 1000
    assert one.log.suppressed > 900


def test_lines_carry_the_product_of_their_time() -> None:
    one = guest()
    one.log.write(b"before\n", 0.0)
    one.write(Effect.PRODUCT, 3, 0.0)
    one.log.write(b"product\n", 0.0)
    one.judge(3, 1, Verdict(blacklisted=False), 0.0)
    one.log.write(b"both\n", 0.0)
    lines = [event for event in one.take_events() if isinstance(event, Line)]
    assert [(line.product, line.build) for line in lines] == [(None, None), (3, None), (3, 1)]


def test_a_snapshot_brings_another_process_to_the_same_state() -> None:
    one = guest(Rules(legacy_unplug=True), Limits(rate=1, burst=900))
    one.write(Effect.PRODUCT, 1, 0.0)
    one.judge(1, 86451, Verdict(blacklisted=True), 0.0)
    one.write(Effect.LEGACY_UNPLUG, 3, 0.0)
    one.write(Effect.FLAGS_WRITE, 1, 0.0)
    one.log.write_all(b"x" * 800 + b"\npart", 5.0)
    other = guest(Rules(), Limits(rate=1, burst=900))
    other.restore(one.snapshot(), 5.0)
    assert other.snapshot() == one.snapshot()
    assert other.log.partial == b"", "its text is written to the log again"
    assert other.log.product == (1, 86451)
    assert other.platform.blacklisted
    assert other.changed


def test_an_open_line_is_charged_once_whatever_restarts() -> None:
    """With `delay` a line's bytes are charged by frames, and the rest of its least cost when it ends."""
    limits = Limits(rate=0, burst=1000, delay=True)
    balances = []
    for restarts in range(3):
        one = guest(Rules(), limits)
        one.log.charge_frame(30, 0.0)
        one.log.write(b"x" * 30, 0.0)
        for _ in range(restarts):
            other = guest(Rules(), limits)
            other.restore(one.snapshot(), 0.0)
            other.log.write(bytes(one.log.partial), 0.0)
            one = other
        one.log.charge_frame(1, 0.0)
        one.log.write(b"\n", 0.0)
        balances.append(one.log.bucket.balance)
    assert balances == [1000 - 64] * 3


def test_what_needs_nobodys_word_orders_nothing_but_by_unplug() -> None:
    one = guest()
    assert one.write(Effect.PRODUCT, 3, 0.0) == 0
    assert one.write(Effect.FLAGS_WRITE, 3, 0.0) == 0
    assert one.write(Effect.NONE, 3, 0.0) == 0
    assert one.write(Effect.UNPLUG, 3, 0.0) == 3


@pytest.mark.parametrize("effect", [Effect.PRODUCT, Effect.UNPLUG, Effect.FLAGS_WRITE])
def test_what_must_be_kept_is_marked(effect: Effect) -> None:
    one = guest()
    one.changed = False
    one.write(effect, 3, 0.0)
    assert one.changed


def refused(action: Action = Action.REFUSE, **more: Any) -> Guest:
    """A guest whose driver was refused."""
    one = guest()
    one.write(Effect.PRODUCT, 0xFFFF, 0.0)
    one.judge(0xFFFF, 9, Verdict(blacklisted=True, action=action, **more), 0.0)
    one.take_events()
    return one


def test_a_driver_that_is_only_reported_sees_nothing_of_it() -> None:
    one = guest()
    one.write(Effect.PRODUCT, 1, 0.0)
    verdict = Verdict(blacklisted=True, reason="loses data", action=Action.REPORT, rule="a rule")
    one.judge(1, 86451, verdict, 0.0)
    one.judge(1, 86451, verdict, 0.0)
    assert one.platform.read(Effect.MAGIC, 2) == 0x49D2
    assert one.write(Effect.UNPLUG, 3, 0.0) == 3
    assert (one.platform.verdict, one.reason, one.rule) == ("reported", "loses data", "a rule")
    assert one.take_events() == [
        Announced(1, "xensource-windows", 86451, False, "loses data"),
        Reported(1, "xensource-windows", 86451, "loses data"),
        Unplugged(3),
    ]
    assert one.history.describe(0.0)[1]["reported"] is True


def test_each_build_number_of_a_guest_that_was_not_refused_is_judged_anew() -> None:
    one = refused(Action.REPORT, reason="old", rule="a rule")
    one.judge(0xFFFF, 10, Verdict(blacklisted=False), 0.0)
    assert (one.platform.verdict, one.reason, one.rule) == ("allowed", "", "")


def test_a_refused_driver_that_unplugs_all_the_same_is_told_once() -> None:
    one = refused()
    assert one.platform.verdict == "refused"
    assert [one.write(Effect.UNPLUG, mask, 0.0) for mask in (0, 1, 2)] == [0, 1, 2]
    assert one.platform.verdict == "ignored"
    assert one.take_events() == [Unplugged(1), Ignored(1), Unplugged(2)]


def test_what_was_unplugged_before_the_verdict_is_not_held_against_the_driver() -> None:
    one = guest()
    one.write(Effect.UNPLUG, 3, 0.0)
    one.judge(3, 1, Verdict(blacklisted=True), 0.0)
    assert one.platform.verdict == "refused"


def test_a_driver_from_which_all_is_withheld() -> None:
    one = refused(Action.WITHHOLD)
    assert (one.platform.read(Effect.MAGIC, 2), one.platform.verdict) == (0xD249, "refused")
    assert [one.write(Effect.UNPLUG, mask, 0.0) for mask in (9, 2)] == [0, 0]
    assert (one.platform.verdict, one.platform.unplugged) == ("withheld", 0)
    assert one.take_events() == [UnplugDenied(9, withheld=True), UnplugDenied(2, withheld=True)]


def test_a_refused_driver_to_which_policy_allows_nothing_got_nothing() -> None:
    one = guest(Rules(allow_unplug=0))
    one.judge(3, 1, Verdict(blacklisted=True), 0.0)
    one.write(Effect.UNPLUG, 3, 0.0)
    assert one.platform.verdict == "withheld"


def test_a_verdict_that_is_less_strict_takes_nothing_back() -> None:
    one = refused(Action.WITHHOLD, reason="old", rule="a rule")
    for verdict in (Verdict(blacklisted=False), Verdict(blacklisted=True, reason="new", rule="another")):
        one.judge(0xFFFF, 10, verdict, 0.0)
        assert (one.platform.action, one.reason, one.rule) == (Action.WITHHOLD, "old", "a rule")
    refused_first = refused(rule="a rule")
    refused_first.judge(0xFFFF, 10, Verdict(blacklisted=True, action=Action.WITHHOLD, rule="another"), 0.0)
    assert (refused_first.platform.action, refused_first.rule) == (Action.WITHHOLD, "another")


@pytest.mark.parametrize(
    ("was", "by_node", "hit", "default", "now"),
    [
        (Action.REFUSE, True, None, Action.WITHHOLD, Action.WITHHOLD),
        (Action.WITHHOLD, True, None, Action.REFUSE, Action.REFUSE),
        (Action.REFUSE, False, Hit(Action.WITHHOLD, rule="new"), Action.REFUSE, Action.WITHHOLD),
        (Action.REFUSE, True, Hit(Action.REPORT), Action.WITHHOLD, Action.WITHHOLD),
        (Action.REFUSE, False, None, Action.WITHHOLD, Action.REFUSE),
        (Action.WITHHOLD, False, Hit(Action.REPORT), Action.REFUSE, Action.WITHHOLD),
        (Action.WITHHOLD, True, None, Action.REPORT, Action.WITHHOLD),
        (Action.REPORT, True, None, Action.WITHHOLD, Action.REPORT),
    ],
)
def test_whether_orders_are_withheld_follows_the_configuration(
    was: Action, by_node: bool, hit: Hit | None, default: Action, now: Action,
) -> None:
    one = refused(was, by_node=by_node, rule="old")
    one.changed = False
    assert one.follow(hit, default) is one.changed is (was is not now)
    assert one.platform.action is now
    assert one.rule == (hit.rule if hit is not None and hit.rule else "old")


def test_the_verdict_survives_the_process() -> None:
    one = refused(Action.WITHHOLD, reason="old", rule="a rule", by_node=True)
    one.write(Effect.UNPLUG, 3, 0.0)
    other = guest()
    other.restore(one.snapshot(), 0.0)
    assert other.snapshot() == one.snapshot()
    assert (other.platform.verdict, other.rule, other.by_node) == ("withheld", "a rule", True)
    other.reset(0.0)
    assert (other.platform.verdict, other.reason, other.rule, other.by_node) == (None, "", "", False)


class GuestMachine(RuleBasedStateMachine):
    """Accesses, resets, restarts and time against the plainest model of the contract."""

    @initialize(
        version=st.sampled_from([1, 1, 0]), allow=st.sampled_from([15, 15, 2]), legacy=st.booleans(),
        action=st.sampled_from(list(ACTIONS.values())),
    )
    def begin(self, version: int, allow: int, action: Action, legacy: bool) -> None:
        self.ruled_by = Rules(version, allow, legacy)
        self.action = action
        self.machine = Machine(self.ruled_by, blacklist={("linux", 1), ("experimental", 9)}, action=action)
        self.forget()
        self.lines: list[bytes] = []
        self.partial = b""

    def forget(self) -> None:
        self.product = 0
        self.build: int | None = None
        self.blacklisted = False
        self.verdict: str | None = None
        self.ordered = 0
        self.flags = 0

    @rule(product=st.sampled_from([0, 1, 3, 0xFFFF, 0x777]))
    def give_product(self, product: int) -> None:
        assert self.machine.outw(0x12, product) == 0
        if self.ruled_by.protocol_version:
            if product != self.product:
                self.build = None
                self.verdict = self.verdict if self.blacklisted else None
            self.product = product

    @rule(build=st.sampled_from([0, 1, 9, 2**32 - 1]))
    def give_build(self, build: int) -> None:
        assert self.machine.outl(0x10, build) == 0
        if self.product and self.ruled_by.protocol_version:
            self.build = build
            listed = (self.product, build) in ((3, 1), (0xFFFF, 9))
            if listed and self.action is not Action.REPORT and not self.blacklisted:
                self.blacklisted, self.verdict = True, "refused"
            elif not self.blacklisted:
                self.verdict = "reported" if listed else "allowed"

    def order(self, mask: int) -> int:
        order = mask & 15 & self.ruled_by.allow_unplug
        if self.blacklisted and self.action is Action.WITHHOLD:
            order = 0
        if self.blacklisted and mask & 15:
            self.verdict = "ignored" if order or self.verdict == "ignored" else "withheld"
        self.ordered |= order
        return order

    @rule(mask=st.integers(0, 0xFFFF))
    def unplug(self, mask: int) -> None:
        assert self.machine.outw(0x10, mask) == self.order(mask)

    @rule(value=st.integers(0, 3), addr=st.sampled_from([BAR + 4, BAR + 8]))
    def unplug_legacy(self, value: int, addr: int) -> None:
        mask = {(BAR + 4, 1): 3, (BAR + 8, 1): 1, (BAR + 8, 2): 2}.get((addr, value), 0)
        assert self.machine.outl(addr, value) == (self.order(mask) if self.ruled_by.legacy_unplug else 0)

    @rule(value=st.integers(0, 255), addr=st.sampled_from([0x10, BAR]))
    def write_flags(self, value: int, addr: int) -> None:
        assert self.machine.outb(addr, value) == 0
        self.flags = value & 1

    @rule(text=st.text("ab\r\n", min_size=1, max_size=20).map(str.encode), at_once=st.booleans())
    def log(self, text: bytes, at_once: bool) -> None:
        if at_once:
            self.machine.outs(0x12, 1, text)
        else:
            self.machine.feed(b"".join(frame(0x12, 1, data=byte) for byte in text))
        *ended, self.partial = (self.partial + text).split(b"\n")
        self.lines += [line.removesuffix(b"\r") for line in ended if line not in (b"", b"\r")]

    def flush(self) -> None:
        self.lines += [self.partial] if self.partial else []
        self.partial = b""

    @rule()
    def reset(self) -> None:
        self.machine.reset()
        self.flush()
        self.forget()

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.machine.now += seconds
        self.machine.guest.log.tick(self.machine.now)
        self.machine.said += self.machine.guest.take_events()
        if self.machine.guest.log.partial == b"":
            self.flush()

    @rule()
    def the_daemon_is_killed_and_comes_back(self) -> None:
        """Between two frames: what was answered is there again."""
        old = self.machine
        self.machine = Machine(self.ruled_by, blacklist=old.blacklist, action=self.action)
        self.machine.now = old.now
        self.machine.guest.restore(old.guest.snapshot(), old.now)
        self.machine.guest.log.write_all(bytes(old.guest.log.partial), old.now)
        self.machine.said = old.said

    @invariant()
    def reads_say_the_same(self) -> None:
        machine = self.machine
        assert machine.inw(0x10) == (0xD249 if self.blacklisted else 0x49D2)
        assert machine.inb(0x12) == self.ruled_by.protocol_version
        assert machine.inb(0x10) == machine.inb(BAR) == self.flags
        platform = machine.guest.platform
        assert (platform.product or 0, platform.build, platform.unplugged) == (self.product, self.build, self.ordered)
        assert platform.verdict == self.verdict

    @invariant()
    def lines_are_the_same(self) -> None:
        assert self.machine.lines == self.lines
        assert self.machine.guest.log.partial == self.partial


TestGuestMachine = GuestMachine.TestCase
TestGuestMachine.settings = settings(max_examples=25, stateful_step_count=25)
