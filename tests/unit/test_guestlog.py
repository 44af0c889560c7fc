"""A guest's log: lines, the limiter, and the bound on what a guest makes dom0 store (contract section 3)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unplugd.core.events import Event, Line, LinesDropped, Resumed, Throttled, WasReset
from unplugd.core.guestlog import RECORD_COST, REPORT_INTERVAL, GuestLog, Limits

UNLIMITED = Limits(unlimited=True)


class Log:
    """A GuestLog with its events, in virtual time."""

    def __init__(self, limits: Limits = UNLIMITED) -> None:
        self.now = 100.0
        self.events: list[Event] = []
        self.log = GuestLog(limits, self.events, self.now)

    def say(self, data: bytes) -> None:
        """The guest writes."""
        self.log.write_all(data, self.now)

    def later(self, seconds: float) -> None:
        """Time passes, with every tick that was asked for, as a timer would."""
        end = self.now + seconds
        while True:
            wait = self.log.next_tick(self.now)
            if wait is None or self.now + wait > end:
                break
            self.now = min(end, self.now + max(0.01, wait))
            self.log.tick(self.now)
        self.now = end

    @property
    def lines(self) -> list[bytes]:
        """What passed."""
        return [event.text for event in self.events if isinstance(event, Line)]

    def of(self, *kinds: type[Event]) -> list[Event]:
        """Events of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]


def expected_lines(data: bytes) -> list[bytes]:
    """Lines by the contract's words: ended by newline, a carriage return before it goes, cut at 4095, none empty."""
    lines = []
    current = b""
    for byte in data:
        if byte == 10:
            lines.append(current.removesuffix(b"\r"))
            current = b""
            continue
        current += bytes((byte,))
        if len(current) == 4095:
            lines.append(current)
            current = b""
    return [line for line in lines if line]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\n", [b"one"]),
        (b"one\r\n", [b"one"]),
        (b"one\r\r\n", [b"one\r"]),
        (b"a\rb\n", [b"a\rb"]),
        (b"\n\r\n\n", []),
        (b"no end", []),
        (b"a\nb\nc", [b"a", b"b"]),
        (b"\0\xff\x1b[2J\n", [b"\0\xff\x1b[2J"]),
        (b"x" * 4094 + b"\n", [b"x" * 4094]),
        (b"x" * 4095 + b"\n", [b"x" * 4095]),
        (b"x" * 4096 + b"\n", [b"x" * 4095, b"x"]),
        (b"x" * 9000 + b"\n", [b"x" * 4095, b"x" * 4095, b"x" * 810]),
    ],
)
def test_bytes_become_lines(data: bytes, lines: list[bytes]) -> None:
    log = Log()
    log.say(data)
    assert log.lines == lines


PIECES = st.one_of(st.text("ab\r\n").map(str.encode), st.integers(4080, 4110).map(lambda count: b"x" * count))


@settings(max_examples=40)
@given(pieces=st.lists(PIECES, max_size=8))
def test_in_any_pieces(pieces: list[bytes]) -> None:
    log = Log()
    for piece in pieces:
        log.say(piece)
    assert log.lines == expected_lines(b"".join(pieces))


def test_a_line_carries_who_said_it() -> None:
    log = Log()
    log.log.product = (3, 1)
    log.say(b"x\n")
    assert log.events == [Line(b"x", 3, 1)]


def test_a_partial_line_is_flushed_after_its_time_without_a_byte() -> None:
    log = Log(Limits(flush_after=5.0))
    log.say(b"half")
    log.later(4.9)
    assert log.lines == []
    log.say(b" a")
    log.later(4.9)
    assert log.lines == []
    log.later(0.2)
    assert log.lines == [b"half a"]
    assert log.log.next_tick(log.now) is None


def test_a_partial_line_of_before_the_restart_counts_anew() -> None:
    log = Log(Limits(flush_after=5.0))
    log.now += 1000
    log.log.begin_anew(log.now)
    log.say(b"kept")
    log.later(4.9)
    assert log.lines == []
    log.later(0.2)
    assert log.lines == [b"kept"]


def test_bytes_are_taken_up_to_the_first_event() -> None:
    log = Log(Limits(rate=0, burst=1000))
    data = b"\n\none\n\n" + b"x" * 100 + b"\nhalf"
    taken: list[int] = []
    while sum(taken) < len(data):
        taken.append(log.log.write(data[sum(taken):], log.now))
        assert len(log.events) == min(len(taken), 2)
    assert taken == [6, 102, 4]
    assert log.lines == [b"one", b"x" * 100]
    assert log.log.partial == b"half"
    assert log.log.bucket.balance == 1000 - RECORD_COST - 100


def test_a_line_costs_its_bytes_at_least_64() -> None:
    log = Log(Limits(rate=0, burst=1000))
    log.say(b"x\n")
    assert log.log.bucket.balance == 936
    log.say(b"y" * 100 + b"\n")
    assert log.log.bucket.balance == 836


def test_empty_lines_cost_nothing() -> None:
    log = Log(Limits(rate=0, burst=1000))
    log.say(b"\n" * 500)
    assert log.log.bucket.balance == 1000


def test_at_the_limit_whole_lines_are_dropped_and_counted() -> None:
    log = Log(Limits(rate=0, burst=200))
    log.say(b"".join(b"%099d\n" % number for number in range(5)))
    assert log.lines == [b"%099d" % 0, b"%099d" % 1]
    assert (log.log.dropped_lines, log.log.dropped_bytes) == (3, 297)
    assert log.log.throttled


def test_before_the_next_line_that_passes_is_said_what_was_dropped() -> None:
    log = Log(Limits(rate=100, burst=200))
    for number in range(6):
        log.say(b"%099d\n" % number)
    dropped = log.log.dropped_lines
    assert dropped
    log.now += 5
    log.say(b"passes\n")
    said = log.of(LinesDropped)
    assert said == [LinesDropped(dropped, dropped * 99)]
    assert log.events.index(said[0]) < log.events.index(Line(b"passes", None, None))
    assert (log.log.unsaid_lines, log.log.unsaid_bytes) == (0, 0)


def test_a_line_passes_only_if_the_record_before_it_fits_too() -> None:
    log = Log(Limits(rate=0, burst=100))
    log.say(b"x" * 101 + b"\n")
    log.events.clear()
    log.log.bucket.balance = 64 + max(64, len(str(LinesDropped(1, 101)))) - 1
    log.say(b"small\n")
    assert log.events == []
    log.log.bucket.balance = 64 + max(64, len(str(LinesDropped(2, 106))))
    log.say(b"small\n")
    assert log.events == [LinesDropped(2, 106), Line(b"small", None, None)]


def test_while_it_goes_on_it_is_said_at_most_every_10_seconds() -> None:
    log = Log(Limits(rate=200, burst=400))
    said_at = []
    for _ in range(6000):
        log.say(b"y" * 380 + b"\n")
        before = len(log.of(LinesDropped))
        log.later(0.01)
        if len(log.of(LinesDropped)) > before:
            said_at.append(log.now)
    followed = zip(log.events, [*log.events[1:], WasReset()], strict=True)
    alone = [one for one, after in followed if isinstance(one, LinesDropped) and not isinstance(after, Line)]
    assert len(alone) <= 60 / REPORT_INTERVAL + 1
    assert said_at


def test_what_was_dropped_last_is_said_by_time_alone() -> None:
    log = Log(Limits(rate=100, burst=200))
    for number in range(6):
        log.say(b"%099d\n" % number)
    log.later(30)
    assert sum(event.lines for event in log.events if isinstance(event, LinesDropped)) == log.log.dropped_lines
    assert log.of(Resumed) == [Resumed()]
    assert log.log.next_tick(log.now) is None


def test_throttled_and_resumed_are_said_once_each() -> None:
    log = Log(Limits(rate=100, burst=1000))
    for _ in range(30):
        log.say(b"z" * 90 + b"\n")
    log.later(60)
    log.say(b"quiet\n")
    assert log.of(Throttled, Resumed) == [Throttled(delaying=False), Resumed()]


def test_a_resume_without_a_throttled_record_is_not_said() -> None:
    log = Log(Limits(rate=1e-3, burst=64))
    log.say(b"a\n")
    log.say(b"b\n")
    assert log.log.throttled
    assert log.of(Throttled) == []
    log.log.configure(UNLIMITED, log.now)
    log.say(b"c\n")
    assert log.of(Throttled, Resumed) == []
    assert not log.log.throttled


def test_log_throttling_0_switches_the_limit_off() -> None:
    log = Log(Limits(rate=0, burst=64))
    log.say(b"a\nb\nc\n")
    log.log.configure(UNLIMITED, log.now)
    log.say(b"d\n")
    assert log.lines == [b"a", b"d"]
    assert log.of(LinesDropped) == [LinesDropped(2, 2)]
    balance = log.log.bucket.balance
    log.say(b"e" * 4000 + b"\n")
    assert log.log.bucket.balance == balance


def test_every_record_that_a_guest_causes_is_charged_or_only_counted() -> None:
    log = Log(Limits(rate=0, burst=100))
    assert log.log.record(WasReset(), log.now)
    assert log.log.bucket.balance <= 36
    assert not log.log.record(WasReset(), log.now)
    assert log.log.suppressed == 1
    assert log.events == [WasReset()]


def test_a_record_costs_its_prefix_too() -> None:
    log = Log(Limits(rate=0, burst=1000))
    log.log.prefix = 300
    log.log.record(WasReset(), log.now)
    assert log.log.bucket.balance == 1000 - 300 - len(str(WasReset()))


def test_delay_drops_nothing_and_charges_a_frame_at_once() -> None:
    log = Log(Limits(rate=100, burst=1000, delay=True))
    log.log.charge_frame(600, log.now)
    assert log.log.bucket.balance == 400
    log.say(b"x" * 599 + b"\n")
    assert log.log.bucket.balance == 400
    assert log.log.hold(log.now) == 0
    log.log.charge_frame(600, log.now)
    log.say(b"y" * 599 + b"\n")
    assert log.log.hold(log.now) == pytest.approx(2.0)
    assert log.log.hold(log.now + 2.001) == 0
    assert log.lines == [b"x" * 599, b"y" * 599]
    assert log.log.dropped_lines == 0


def test_delay_charges_the_rest_up_to_64_when_a_line_ends() -> None:
    log = Log(Limits(rate=0, burst=1000, delay=True))
    for byte in b"abc\n":
        log.log.charge_frame(1, log.now)
        log.say(bytes((byte,)))
    assert log.log.bucket.balance == 936


def test_delay_charges_no_line_twice() -> None:
    log = Log(Limits(rate=0, burst=1000, delay=True))
    for piece in (b"a" * 100 + b"\n" + b"b" * 100, b"\n"):
        log.log.charge_frame(len(piece), log.now)
        log.say(piece)
    assert 1000 - log.log.bucket.balance <= 202


def test_delay_says_that_it_delays() -> None:
    log = Log(Limits(rate=100, burst=300, delay=True))
    log.log.charge_frame(400, log.now)
    log.say(b"x" * 399 + b"\n")
    assert log.log.hold(log.now) > 0
    assert log.of(Throttled) == [], "it cannot be paid yet"
    log.later(30)
    assert log.of(Throttled, Resumed) == [Throttled(delaying=True), Resumed()]


def test_what_a_partial_line_paid_counts_only_in_the_mode_in_which_it_paid() -> None:
    log = Log(Limits(rate=0, burst=1000, delay=True))
    log.log.charge_frame(300, log.now)
    log.say(b"x" * 300)
    log.log.configure(Limits(rate=0, burst=1000), log.now)
    log.log.configure(Limits(rate=0, burst=1000, delay=True), log.now)
    log.say(b"\n")
    assert log.log.bucket.balance <= 1000 - 600 + 1


def test_delay_is_off_with_log_throttling_0() -> None:
    log = Log(Limits(rate=1, burst=1, delay=True, unlimited=True))
    log.log.charge_frame(4096, log.now)
    log.say(b"x" * 4000 + b"\n")
    assert log.log.hold(log.now) == 0
    assert log.lines == [b"x" * 4000]


def test_drop_never_holds() -> None:
    log = Log(Limits(rate=1, burst=1))
    log.log.bucket.overdraw(100, log.now)
    assert log.log.hold(log.now) == 0


def test_a_line_that_passes_with_half_of_the_burst_there_ends_the_throttling() -> None:
    log = Log(Limits(rate=100, burst=1000))
    log.say(b"z" * 700 + b"\n")
    log.say(b"z" * 700 + b"\n")
    assert log.of(Throttled) == [Throttled(delaying=False)]
    log.now += 9  # no tick in between
    log.say(b"quiet\n")
    assert log.events[-2:] == [Line(b"quiet", None, None), Resumed()]
    assert not log.log.throttled


def test_a_bucket_that_never_refills_asks_for_no_ticks() -> None:
    log = Log(Limits(rate=0, burst=64))
    log.say(b"a\nb\n")
    assert log.log.next_tick(log.now) is None


def test_the_cost_is_what_is_stored() -> None:
    events: list[Event] = []
    log = GuestLog(Limits(rate=0, burst=1000), events, 0.0, lambda line: 4 * len(line))
    log.write(b"\xff" * 100 + b"\n", 0.0)
    assert log.bucket.balance == 600


# --- the bound

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.text("ab\n", max_size=300).map(str.encode)),
        st.tuples(st.just("say"), st.integers(1, 60).map(lambda count: b"\n".join([b"x"] * count) + b"\n")),
        st.tuples(st.just("say"), st.integers(1, 9000).map(lambda size: b"y" * size)),
        st.tuples(st.just("record"), st.just(b"")),
        st.tuples(st.just("cut"), st.just(b"")),
        st.tuples(st.just("later"), st.integers(0, 200).map(lambda tenths: b"x" * tenths)),
    ),
    max_size=40,
)


def cost(event: Event) -> int:
    """Charged bytes of what is stored."""
    return max(64, len(event.text) if isinstance(event, Line) else len(str(event)))


@settings(max_examples=80)
@given(rate=st.sampled_from([0, 1, 50, 256, 5000]), burst=st.sampled_from([0, 64, 150, 1000, 8000]), steps=STEPS)
def test_drop_stores_at_most_burst_and_rate_by_time_and_loses_no_count(
    rate: int, burst: int, steps: list[tuple[str, bytes]]
) -> None:
    log = Log(Limits(rate=rate, burst=burst, flush_after=1.0))
    begin = log.now
    written = b""
    for what, data in steps:
        match what:
            case "say":
                before = log.log.line_number
                log.say(data)
                written += data
                assert log.log.line_number >= before
            case "record":
                log.log.record(WasReset(), log.now)
            case "cut":
                log.log.cut(log.now)
            case "later":
                log.later(len(data) / 10)
        stored = sum(map(cost, log.events))
        assert stored <= burst + rate * (log.now - begin) + 1e-6
    log.log.cut(log.now)
    passed = log.of(Line)
    lines = len(passed) + log.log.dropped_lines
    size = sum(len(line) for line in log.lines) + log.log.dropped_bytes
    assert size == len(written) - written.count(b"\n"), "every byte passed or was counted"
    assert lines >= len([line for line in written.split(b"\n") if line])
    said = [event for event in log.events if isinstance(event, LinesDropped)]
    assert sum(event.lines for event in said) + log.log.unsaid_lines == log.log.dropped_lines
    assert sum(event.bytes for event in said) + log.log.unsaid_bytes == log.log.dropped_bytes
    assert all(event.lines and event.bytes for event in said)


@settings(max_examples=60)
@given(rate=st.sampled_from([1, 50, 256, 5000]), burst=st.sampled_from([0, 64, 150, 1000, 8000]), steps=STEPS)
def test_delay_stores_at_most_burst_and_rate_by_time_and_the_frame_in_hand(
    rate: int, burst: int, steps: list[tuple[str, bytes]]
) -> None:
    log = Log(Limits(rate=rate, burst=burst, delay=True, flush_after=1.0))
    begin = log.now
    written = b""
    in_hand = 0
    for what, data in steps:
        match what:
            case "say":
                data = data[:4096]
                log.log.charge_frame(len(data), log.now)
                log.say(data)
                written += data
                in_hand = len(data) + 64 * (data.count(b"\n") + 2)
            case "record":
                log.log.record(WasReset(), log.now)
            case "cut":
                log.log.cut(log.now)
                in_hand += 64
            case "later":
                log.later(len(data) / 10)
        stored = sum(map(cost, log.events))
        assert stored <= burst + rate * (log.now - begin) + in_hand + 64 + 1e-6
        while (seconds := log.log.hold(log.now)) > 0:
            log.later(seconds + 1e-6)
    log.log.cut(log.now)
    assert sum(map(len, log.lines)) == len(written) - written.count(b"\n"), "delay loses nothing"
    assert log.log.dropped_lines == 0
    assert log.of(LinesDropped) == []


def test_a_flood_of_long_lines_is_dropped_at_once_where_a_short_one_could_pass() -> None:
    it = Log(Limits(rate=100, burst=400))
    it.say((b"x" * 99 + b"\n") * 5)
    it.now += 1.3  # one of 64 could pass, with the record before it
    before = it.log.line_number
    it.say((b"y" * 200 + b"\n") * 3)
    assert it.log.line_number == before + 3
    assert len(it.lines) == 4
    it.say(b"short\n")
    assert it.lines[-1] == b"short"
    assert it.of(LinesDropped) == [LinesDropped(4, 699)]


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"b" * 70, b"c" * 4100, b"\r"]), max_size=40),
    st.integers(1, 40),
)
def test_a_flood_is_counted_as_if_line_by_line(pieces: list[bytes], together: int) -> None:
    limits = Limits(rate=1, burst=300)
    data = b"".join(pieces)
    one, other = Log(limits), Log(limits)
    for it in (one, other):
        it.say(b"x" * 300 + b"\n" + b"x" * 300 + b"\n")
    for byte in data:
        one.say(bytes((byte,)))
    for at in range(0, len(data), together):
        other.say(data[at:at + together])
    assert one.events == other.events
    assert one.log.partial == other.log.partial
    assert (one.log.dropped_lines, one.log.dropped_bytes) == (other.log.dropped_lines, other.log.dropped_bytes)
    assert (one.log.unsaid_lines, one.log.line_number) == (other.log.unsaid_lines, other.log.line_number)


def test_what_was_dropped_is_said_by_the_next_drop_where_the_timer_is_late() -> None:
    log = Log(Limits(rate=10, burst=200))
    log.say(b"x" * 100 + b"\n" + b"y" * 300 + b"\n")
    assert log.of(LinesDropped) == []
    log.now += REPORT_INTERVAL  # and no tick
    log.say(b"z" * 300 + b"\n")
    assert log.of(LinesDropped) == [LinesDropped(2, 600)]
    assert log.lines == [b"x" * 100]
