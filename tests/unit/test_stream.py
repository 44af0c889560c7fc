"""One connection's bytes: order, framing in any pieces, waits, faults (contract section 1)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.frames import RESET, Answer, answers, frame
from tests.lab.portio import BAR, UNLIMITED, Machine
from unplugd.core.events import Event
from unplugd.core.guest import Guest, Verdict
from unplugd.core.guestlog import Limits
from unplugd.core.protocol import Action, Rules
from unplugd.core.stream import FRAMES_LIMIT, OUTPUT_LIMIT, Alone, NeedTokens, NeedVerdict

LEGACY = Rules(legacy_unplug=True)
MAGIC = frame(0x10, 2, read=True)
TIGHT_DELAY = Limits(rate=100, burst=300, delay=True)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is no fault, often one with an effect, with its payload."""
    if draw(st.integers(0, 15)) == 0:
        return draw(st.binary(min_size=30, max_size=30)) + bytes((draw(st.integers(0, 15)) << 4, 7))
    read = draw(st.booleans())
    string = draw(st.booleans())
    size = draw(st.sampled_from([1, 1, 2, 4, 8]))
    count = draw(st.integers(1, 12)) if string else 1
    head = frame(
        draw(st.sampled_from([0x0F, 0x10, 0x10, 0x12, 0x12, 0x13, BAR, BAR + 4, BAR + 8])),
        size,
        data=draw(st.one_of(st.integers(0, 5), st.sampled_from([10, 13, 65]), st.integers(0, 2**64 - 1))),
        read=read,
        string=string,
        count=count,
        eport=draw(st.integers(0, 2**32 - 1)),
        pad=draw(st.integers(0, 2**16 - 1)),
        high=draw(st.sampled_from([0, 0, 0x40, 0x80])),
    )
    if read or not string:
        return head
    letters = draw(st.lists(st.sampled_from(b"a\n\r\1\3\0"), min_size=count, max_size=count))
    return head + b"".join(bytes((letter,)) + bytes(size - 1) for letter in letters)


def play(limits: Limits, pieces: list[bytes]) -> tuple[bytes, list[Event], list[tuple[int, int]], float]:
    """What comes of bytes that arrive in these pieces: responses, events, lookups, virtual time."""
    machine = Machine(LEGACY, limits, blacklist={("linux", 1), ("xensource-windows", 65)})
    out = b"".join([machine.feed(piece) for piece in pieces])
    return out, machine.said, machine.looked_up, machine.waited


@settings(max_examples=60)
@given(data=st.data(), limits=st.sampled_from([UNLIMITED, Limits(), TIGHT_DELAY, Limits(rate=10, burst=200)]))
def test_any_split_of_the_bytes_gives_the_same_responses_and_events(data: st.DataObject, limits: Limits) -> None:
    whole = b"".join(data.draw(st.lists(requests(), max_size=20)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert play(limits, pieces) == play(limits, [whole])


@settings(max_examples=15)
@given(whole=st.lists(requests(), max_size=5).map(b"".join))
def test_byte_by_byte_is_the_same_too(whole: bytes) -> None:
    assert play(TIGHT_DELAY, [bytes((byte,)) for byte in whole]) == play(TIGHT_DELAY, [whole])


@settings(max_examples=50)
@given(st.lists(requests(), max_size=20))
def test_one_response_for_each_request_in_order_with_all_opaque_fields(sent: list[bytes]) -> None:
    machine = Machine(LEGACY, blacklist={("linux", 1)})
    out = machine.feed(b"".join(sent))
    for request in sent:
        state, read, string = request[30] & 15, request[30] & 0x20, request[30] & 0x10
        if state == 0:
            assert out[:32] == request
            out = out[32:]
            continue
        payload = int.from_bytes(request[16:20], "little") * int.from_bytes(request[20:24], "little")
        assert out[:8] + out[16:30] + out[31:32] == request[:8] + request[16:30] + request[31:32]
        assert out[30] == request[30] & 0xF0 | 3
        if string and read:
            assert out[8:16] == bytes(8)
        out = out[32 + (payload if string and read else 0) :]
    assert out == b""
    assert sum(machine.counters.ioreqs.values()) == len(sent)


@settings(max_examples=150)
@given(raw=st.binary(min_size=32, max_size=32), after=st.binary(max_size=80))
def test_any_bytes_set_a_fault_or_are_served_and_never_raise(raw: bytes, after: bytes) -> None:
    stream = Machine().stream
    out, used = stream.receive(raw, 1.0)
    if stream.fault is not None:
        assert stream.fault.reason
        assert (out, used) == (b"", 0)
    if stream.waiting is None:
        stream.receive(raw[used:] + after, 2.0)


@settings(max_examples=80)
@given(
    bits=st.integers(0, 255), kind=st.sampled_from([0, 0, 0, 1]), count=st.integers(0, 5000), size=st.integers(0, 9),
    addr=st.integers(0, 0x10105), after=st.binary(max_size=80),
)  # fmt: skip
def test_nearly_right_bytes_never_raise(bits: int, kind: int, count: int, size: int, addr: int, after: bytes) -> None:
    machine = Machine()
    head = frame(addr, size, count=count, kind=kind)
    machine.feed(head[:30] + bytes((bits,)) + head[31:])
    machine.feed(after)


def test_responses_before_a_fault_are_given_and_nothing_after_it_is_served() -> None:
    machine = Machine()
    bad = frame(0x10, 2, state=2)
    out = machine.feed(frame(0x10, 2, read=True) + bad + frame(0x12, 2, data=3))
    assert [answer.data for answer in answers(out)] == [0x49D2]
    assert machine.stream.fault is not None
    assert machine.stream.fault.reason == "bad-state"
    assert machine.feed(frame(0x12, 2, data=3)) == b""
    assert machine.guest.platform.product is None


def test_a_fault_changes_nothing() -> None:
    machine = Machine()
    machine.outw(0x12, 3)
    before = machine.guest.snapshot()
    for bad in (frame(0x12, 1, count=9), frame(0x12, 3), frame(0x10, 2, kind=1)):
        one = machine.connect()
        assert one.receive(bad, machine.now) == (b"", 0)
        assert one.fault is not None
    assert machine.guest.snapshot() == before


def test_a_frame_waits_for_its_verdict_and_what_follows_waits_too() -> None:
    machine = Machine()
    machine.outw(0x12, 3)
    stream = machine.stream
    build, magic = frame(0x10, 4, data=1), frame(0x10, 2, read=True)
    out, used = stream.receive(magic + build + magic, machine.now)
    assert ([answer.data for answer in answers(out)], used) == ([0x49D2], 64)
    assert stream.waiting == NeedVerdict(3, 1, first=True)
    out = stream.resume(Verdict(blacklisted=True), machine.now)
    assert [answer.data for answer in answers(out)] == [0]
    out, used = stream.receive(magic, machine.now)
    assert ([answer.data for answer in answers(out)], used) == ([0xD249], 32)


def test_no_verdict_is_an_allowed_one() -> None:
    machine = Machine()
    machine.outw(0x12, 3)
    machine.stream.receive(frame(0x10, 4, data=1), machine.now)
    assert len(machine.stream.resume(None, machine.now)) == 32
    assert not machine.guest.platform.blacklisted


def test_string_of_build_numbers_is_looked_up_one_by_one_and_only_the_first_says_so() -> None:
    machine = Machine()
    machine.outw(0x12, 3)
    stream = machine.stream
    firsts, out = [], b""
    stream.receive(frame(0x10, 4, count=3, string=True) + b"\1\0\0\0\2\0\0\0\3\0\0\0", machine.now)
    while isinstance(stream.waiting, NeedVerdict):
        firsts.append((stream.waiting.build, stream.waiting.first))
        out += stream.resume(Verdict(blacklisted=False), machine.now)
    assert firsts == [(1, True), (2, False), (3, False)]
    assert len(out) == 32
    machine.stream.receive(frame(0x10, 4, data=9), machine.now)
    assert machine.stream.waiting == NeedVerdict(3, 9, first=True)


def test_the_order_of_string_masks_is_their_union() -> None:
    machine = Machine()
    assert machine.outs(0x10, 2, b"\1\0\2\0\0\0\xf0\0") == 3


def test_string_elements_act_in_order() -> None:
    machine = Machine()
    machine.outs(0x12, 2, b"\1\0\3\0")
    assert machine.guest.platform.product == 3
    machine.outs(0x10, 1, b"\1\0")
    assert machine.inb(0x10) == 0


def test_string_legacy_unplug() -> None:
    machine = Machine(LEGACY)
    assert machine.outs(BAR + 8, 4, b"\7\0\0\0\1\0\0\0\2\0\0\0") == 3
    assert machine.counters.ioreqs["unplug"] == 1
    assert machine.outs(BAR + 8, 4, b"\7\0\0\0") == 0
    assert machine.counters.ioreqs["other"] == 1


def test_string_read_gives_the_payload_and_data_0() -> None:
    answer = Machine().ask(frame(0x10, 2, data=7, read=True, string=True, count=3))
    assert answer == Answer(0x10, 0, 3, 2, 0, 0, 0x33, 0, b"\xd2\x49" * 3)


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (frame(0x10, 2, read=True), "magic"),
        (frame(0x12, 1, read=True), "version"),
        (frame(0x12, 2, data=3), "product"),
        (frame(0x10, 4, data=3), "build"),
        (frame(0x10, 2, data=3), "unplug"),
        (frame(0x12, 1, data=3), "log"),
        (frame(BAR + 8, 1, data=3), "log"),
        (frame(0x12, 1, string=True, count=3) + b"abc", "log"),
        (frame(0x10, 1, read=True), "flags"),
        (frame(BAR, 1, data=3), "flags"),
        (frame(BAR + 4, 4, data=1), "other"),
        (frame(0x1F, 1, read=True), "other"),
        (RESET, "reset"),
    ],
)
def test_frames_are_counted_by_kind_and_strings_once(request_: bytes, kind: str) -> None:
    machine = Machine()
    machine.feed(request_)
    assert {key: count for key, count in machine.counters.ioreqs.items() if count} == {kind: 1}


def test_counted_before_the_response_is_handed_out() -> None:
    machine = Machine()
    machine.outw(0x12, 3)
    machine.stream.receive(frame(0x10, 4, data=1), machine.now)
    assert machine.stream.waiting is not None
    assert machine.counters.ioreqs["build"] == 1


def test_delay_holds_the_response_until_the_balance_is_not_negative() -> None:
    machine = Machine(limits=Limits(rate=100, burst=1000, delay=True))
    machine.outs(0x12, 1, b"x" * 900 + b"\n")
    assert machine.waited == 0
    stream = machine.stream
    assert stream.receive(frame(0x12, 1, string=True, count=600) + b"y" * 600, machine.now) == (b"", 632)
    assert isinstance(stream.waiting, NeedTokens)
    assert stream.waiting.seconds == pytest.approx(5.01, abs=0.02)
    assert stream.resume(None, machine.now + 1) == b"", "too early: it goes on waiting"
    assert isinstance(stream.waiting, NeedTokens)
    assert len(stream.resume(None, machine.now + 10)) == 32


def test_delay_waits_frame_by_frame_and_keeps_their_order() -> None:
    machine = Machine(limits=Limits(rate=10, burst=64, delay=True))
    out = answers(machine.feed(b"".join(frame(0x12, 1, data=byte, eport=at) for at, byte in enumerate(b"a\nb\nc\n"))))
    assert [answer.eport for answer in out] == list(range(6))
    assert machine.lines == [b"a", b"b", b"c"], "delay loses nothing"
    assert machine.waited > 0


def test_other_accesses_do_not_wait_for_a_balance() -> None:
    machine = Machine(limits=Limits(rate=1, burst=10, delay=True))
    machine.guest.log.bucket.overdraw(1000, machine.now)
    assert machine.inw(0x10) == 0x49D2
    assert machine.outw(0x10, 3) == 3
    assert machine.waited == 0


def test_responses_to_string_reads_stop_at_a_limit_and_go_on() -> None:
    machine = Machine()
    stream = machine.stream
    read = frame(0x10, 2, read=True, string=True, count=2048)
    pieces, rest = [], read * 100
    while rest:
        piece, used = stream.receive(rest, machine.now)
        pieces.append(piece)
        rest = rest[used:]
        assert stream.stopped == bool(rest)
    assert len(answers(b"".join(pieces))) == 100
    assert all(OUTPUT_LIMIT <= len(piece) < OUTPUT_LIMIT + 5000 for piece in pieces[:-1])
    assert len(pieces) > 5


def test_other_rules_from_the_next_frame_on() -> None:
    machine = Machine()
    assert machine.outl(BAR + 4, 1) == 0
    machine.guest.platform.rules = LEGACY
    assert machine.outl(BAR + 4, 1) == 3


def test_frames_without_a_row_stop_at_a_limit_and_go_on() -> None:
    machine = Machine()
    whole = frame(0x10, 2, read=True) * (2 * FRAMES_LIMIT + 1)
    served = []
    while whole:
        _, used = machine.stream.receive(whole, machine.now)
        served.append(used // 32)
        whole = whole[used:]
    assert served == [FRAMES_LIMIT, FRAMES_LIMIT, 1]


class Rows(Alone):
    """Rows that answer each magic read with 7."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self.did: list[str] = []

    def answer(self, data: bytes, at: int) -> tuple[bytes, int]:
        size = 0
        while data[at + size:at + size + 32] == MAGIC:
            size += 32
        self.did += ["rows"] if size else []
        return b"7" * size, size

    def catch_up(self) -> None:
        self.did.append("catch up")

    def log(self, data: bytes, now: float) -> None:
        self.did.append("log")
        super().log(data, now)


def test_what_rows_answer_comes_before_every_frame_and_the_guest_catches_up_with_it() -> None:
    machine = Machine()
    rows = Rows(machine.guest)
    stream = machine.connect(rows)
    product, log = frame(0x12, 2, data=3), frame(0x12, 1, data=65)
    out, used = stream.receive(MAGIC * 2 + product + MAGIC + log + product + MAGIC[:9], 1.0)
    assert used == 6 * 32
    assert [out[at:at + 1] == b"7" for at in range(0, len(out), 32)] == [True, True, False, True, False, False]
    assert rows.did == ["rows", "catch up", "rows", "catch up", "log", "catch up"]
    assert (machine.counters.ioreqs["product"], machine.counters.ioreqs["magic"]) == (2, 0), "rows count for themselves"
    assert machine.guest.log.partial == b"A"


@pytest.mark.parametrize("blacklisted", [False, True])
def test_frames_on_their_own_and_together_are_the_same(blacklisted: bool) -> None:
    together, alone = Machine(), Machine()
    frames = [frame(0x12, 1, data=byte) for byte in b"ab\n" + b"z" * 4095 + b"tail\r\n"] * 2
    frames += [frame(0x10, 2, read=True)] * 3
    for machine in (together, alone):
        machine.guest.platform.action = Action.REFUSE if blacklisted else Action.NONE
    answered = together.feed(b"".join(frames))
    assert b"".join([alone.feed(one) for one in frames]) == answered
    assert alone.lines == together.lines == [b"ab", b"z" * 4095, b"tail"] * 2
    assert alone.counters.ioreqs == together.counters.ioreqs


def test_resumed_without_anything_to_wait_for() -> None:
    assert Machine().stream.resume(None, 0.0) == b""


def test_a_long_line_byte_by_byte_is_cut_as_one_in_a_string_is() -> None:
    text = b"z" * 4095 + b"tail\n"
    single, string = Machine(), Machine()
    single.feed(b"".join(frame(0x12, 1, data=byte) for byte in text))
    string.outs(0x12, 1, text[:4096])
    string.outs(0x12, 1, text[4096:])
    assert single.lines == string.lines == [b"z" * 4095, b"tail"]


def test_a_reset_is_echoed_whatever_its_fields_say() -> None:
    machine = Machine()
    machine.outw(0x12, 3)
    machine.outs(0x12, 1, b"half a line")
    reset = b"\xff" * 30 + b"\xf0\xff"
    assert machine.feed(reset) == reset
    assert machine.lines == [b"half a line"]
    assert machine.guest.platform.product is None


def test_no_payload_follows_a_reset() -> None:
    machine = Machine()
    reset = frame(0x12, 1, state=0, string=True, count=4000)
    out = machine.feed(reset + frame(0x10, 2, read=True))
    assert out[:32] == reset
    assert len(out) == 64


def test_what_a_frame_waits_for_is_frozen() -> None:
    with pytest.raises(AttributeError):
        NeedVerdict(1, 1, first=True).build = 2  # type: ignore[misc] # it is frozen
    with pytest.raises(AttributeError):
        NeedTokens(1.0).seconds = 0  # type: ignore[misc] # it is frozen


def test_a_verdict_for_one_connection_does_not_hold_up_another() -> None:
    machine = Machine()
    one, other = machine.connect(), machine.connect()
    one.receive(frame(0x12, 2, data=3) + frame(0x10, 4, data=1), 0.0)
    assert one.waiting is not None
    assert len(other.receive(MAGIC, 0.0)[0]) == 32
    one.resume(Verdict(blacklisted=True), 0.0)
    (answer,) = answers(other.receive(MAGIC, 0.0)[0])
    assert answer.data == 0xD249
