"""Which guests a rule is for, and which of several counts (contract section 2, "Actions")."""

from __future__ import annotations

import pytest

from unplugd.core.guestrules import GuestRule, Patterns, Stance, bare_name, first_match, stance

UUID = "4f0e0c5e-0000-4000-8000-000000000007"


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("web-01", "web-01"), ("web-01--incoming", "web-01"), ("web-01--migratedaway", "web-01"),
        ("--incoming", ""), ("web--incoming-2", "web--incoming-2"), ("", ""),
    ],
)  # fmt: skip
def test_libxl_renames_a_guest_while_it_migrates(name: str, bare: str) -> None:
    assert bare_name(name) == bare


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("web-01", True), ("web-*", True), ("web-0?", True), ("web-[0-3]1", True), ("*", True), (UUID, True),
        (UUID.upper(), True), ("web", False), ("WEB-01", False), ("web-0", False), ("eb-01", False),
        ("web-[!0]1", False), (UUID[:-1] + "*", False), ("web.01", False), ("(web-01)+", False), ("[", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["web-01", "web-01--incoming", "web-01--migratedaway"])
def test_a_pattern_means_a_whole_name_or_a_whole_uuid(pattern: str, name: str, *, meant: bool) -> None:
    assert Patterns(pattern).match(name, UUID) is meant
    assert Patterns("nobody", pattern).match(name, UUID) is meant


def test_a_guest_whose_uuid_is_not_known_yet_is_known_by_its_name() -> None:
    assert Patterns("dom7").match("dom7", "")
    assert not Patterns(UUID).match("dom7", "")


def test_many_stars_cost_no_time() -> None:
    assert not Patterns("*a" * 60 + "b").match("a" * 250, "")


def test_patterns_are_compared_by_what_they_say() -> None:
    one = Patterns("a", "b")
    assert (one, hash(one)) == (Patterns("a", "b"), hash(Patterns("a", "b")))
    assert one != Patterns("a")
    assert one != "a, b"
    assert repr(one) == "a, b"


def test_the_first_table_that_matches_counts() -> None:
    rules = [GuestRule(Patterns("web-*"), "observe"), GuestRule(Patterns("*"), "exempt", rate=1.0)]
    assert first_match(rules, "web-01", "") is rules[0]
    assert first_match(rules, "db-01", "") is rules[1]
    assert first_match(rules[:1], "db-01", "") is None


@pytest.mark.parametrize(
    ("blacklist", "mode", "expected"),
    [
        (None, "enforce", (False, False)), (None, "observe", (True, False)), ("observe", "enforce", (True, False)),
        ("enforce", "observe", (False, False)), ("exempt", "enforce", (False, True)),
    ],
)  # fmt: skip
def test_how_the_blacklist_counts_for_a_guest(blacklist: str | None, mode: str, expected: tuple[bool, bool]) -> None:
    assert stance(GuestRule(Patterns("vdi-*"), blacklist), mode)[:2] == expected


def test_what_decided_is_said() -> None:
    assert stance(None, "observe") == Stance(observe=True, rule='blacklist.mode = "observe"')
    assert stance(GuestRule(Patterns("vdi-*"), "exempt"), "observe").rule == '[[guest]] vdi-*, blacklist = "exempt"'
