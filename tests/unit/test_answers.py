"""The rows of a guest: what is answered without the protocol is what the protocol would answer, and changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.portio import BAR, Machine
from unplugd.core.answers import Answer, answers, state_of
from unplugd.core.counters import KINDS
from unplugd.core.guestlog import SLOT
from unplugd.core.protocol import Action, Platform, Rules

RULES = st.builds(Rules, st.sampled_from([0, 1]), st.integers(0, 15), st.booleans())


def platform(rules: Rules, *, blacklisted: bool = False, flags: int = 0) -> Platform:
    one = Platform(rules)
    one.action, one.flags = Action.REFUSE if blacklisted else Action.NONE, flags
    return one


def shown(rows: tuple[Answer, ...]) -> set[tuple[str, str, int, int, int | None]]:
    return {("read" if row.read else "write", KINDS[row.kind], row.addr, row.size, row.value) for row in rows}


def test_the_rows_of_a_new_guest() -> None:
    assert shown(answers(platform(Rules()), delay=False)) == {
        ("read", "magic", 0x10, 2, 0x49D2),
        ("read", "version", 0x12, 1, 1),
        ("read", "flags", 0x10, 1, 0),
        ("read", "flags", BAR, 1, 0),
        ("write", "log", 0x12, 1, None),
        ("write", "log", BAR + 8, 1, None),
    }


@pytest.mark.parametrize(("blacklisted", "magic"), [(False, 0x49D2), (True, 0xD249)])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("flags", [0, 1])
def test_constants_follow_the_state(blacklisted: bool, magic: int, version: int, flags: int) -> None:
    rows = answers(platform(Rules(version), blacklisted=blacklisted, flags=flags), delay=False)
    values = {KINDS[row.kind]: row.value for row in rows}
    assert (values["magic"], values["version"], values["flags"]) == (magic, version, flags)


def test_strings_that_may_be_cut_lines_are_left_to_the_protocol() -> None:
    rows = answers(platform(Rules()), delay=False)
    assert {KINDS[row.kind]: row.left for row in rows if row.left} == {"log": SLOT}


def test_with_delay_log_bytes_have_no_row() -> None:
    assert {KINDS[row.kind] for row in answers(platform(Rules()), delay=True)} == {"magic", "version", "flags"}


@given(RULES, st.sampled_from(Action), st.booleans())
def test_a_row_answers_what_the_protocol_answers_and_changes_no_row(
    rules: Rules, action: Action, flags: bool
) -> None:
    machine = Machine(rules)
    machine.guest.platform.action, machine.guest.platform.flags = action, int(flags)
    rows = answers(machine.guest.platform, delay=False)
    for row in rows:
        if row.value is None:
            before = bytes(machine.guest.log.partial)
            assert machine.outb(row.addr, 0x41) == 0
            assert machine.guest.log.partial == before + b"A"
        else:
            read = {1: machine.inb, 2: machine.inw, 4: machine.inl}[row.size]
            assert read(row.addr) == row.value
        assert answers(machine.guest.platform, delay=False) == rows
    counted = machine.counters.ioreqs
    assert sum(counted.values()) == len(rows)
    assert {kind for kind, count in counted.items() if count} == {KINDS[row.kind] for row in rows}


@given(RULES, RULES, *[st.booleans()] * 6)
def test_equal_states_have_equal_rows_and_the_rest_of_the_state_does_not_matter(
    rules: Rules, other: Rules, black: bool, flags: bool, black2: bool, flags2: bool, delay: bool, delay2: bool
) -> None:
    one, two = platform(rules, blacklisted=black, flags=flags), platform(other, blacklisted=black2, flags=flags2)
    one.product, one.build, one.unplugged = 3, 1, 15
    if state_of(one, delay=delay) == state_of(two, delay=delay2):
        assert answers(one, delay=delay) == answers(two, delay=delay2)


