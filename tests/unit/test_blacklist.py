"""The configured blacklist: which nodes it wants in xenstore, and what it decides by itself (contract section 2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.core.blacklist import (
    LAST_BUILD,
    BlacklistEntry,
    BlacklistRange,
    Configured,
    Hit,
    build_number,
    describe,
    for_guest,
    node,
    strictest,
)
from unplugd.core.guestrules import Patterns, Stance
from unplugd.core.protocol import Action


def reason(configured: Configured, product: str, build: int) -> str | None:
    """Why a build is listed by configuration alone; None where it is not."""
    hit = configured.decide(product, build)
    return None if hit is None else hit.reason


def test_an_entry_is_a_node_of_xenstore() -> None:
    configured = Configured([BlacklistEntry("xensource-windows", 86451, "loses data")])
    assert configured.nodes == {"/mh/driver-blacklist/xensource-windows/86451": "loses data"}
    assert configured.decide("xensource-windows", 86451) is None, "xenstore is asked"


def test_a_product_that_no_path_can_name_is_decided_here() -> None:
    configured = Configured([BlacklistEntry("xenserver-windows-v7.0+", 7, "old")])
    assert configured.nodes == {}
    assert reason(configured, "xenserver-windows-v7.0+", 7) == "old"
    assert configured.decide("xenserver-windows-v7.0+", 8) is None
    assert node("xenserver-windows-v7.2+", 1) is None


def test_builds_are_unsigned_decimals() -> None:
    assert node("linux", 2**32 - 1) == "/mh/driver-blacklist/linux/4294967295"


@pytest.mark.parametrize(
    ("build", "why"), [(0x07FFFF, None), (0x080000, "fixed in 8.2"), (0x0801FF, "fixed in 8.2"), (0x080200, None)]
)
def test_both_ends_of_a_range_are_in_it(build: int, why: str | None) -> None:
    configured = Configured(ranges=[BlacklistRange("experimental", 0x080000, 0x0801FF, "fixed in 8.2")])
    assert reason(configured, "experimental", build) == why
    assert configured.decide("linux", build) is None


def test_either_end_may_be_left_out() -> None:
    configured = Configured(ranges=[BlacklistRange("linux", last=5), BlacklistRange("gplpv-windows", first=9)])
    assert reason(configured, "linux", 0) == ""
    assert configured.decide("linux", 6) is None
    assert reason(configured, "gplpv-windows", LAST_BUILD) == ""
    assert configured.decide("gplpv-windows", 8) is None


def test_nothing_configured() -> None:
    assert Configured().decide("linux", 1) is None
    assert Configured().nodes == {}


@given(
    ranges=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=5),
    build=st.integers(0, 25),
)
def test_a_build_is_blacklisted_if_it_is_in_any_range(ranges: list[tuple[int, int]], build: int) -> None:
    configured = Configured(ranges=[BlacklistRange("linux", first, last) for first, last in ranges])
    assert (configured.decide("linux", build) is not None) == any(a <= build <= b for a, b in ranges)


CANARY = Patterns("canary-*")


@pytest.mark.parametrize(
    ("entry", "in_xenstore"),
    [
        (BlacklistEntry("linux", 1), True),
        (BlacklistEntry("linux", 1, action=Action.REFUSE), True),
        (BlacklistEntry("linux", 1, action=Action.REPORT), False),
        (BlacklistEntry("linux", 1, action=Action.WITHHOLD), False),
        (BlacklistEntry("linux", 1, guests=CANARY), False),
    ],
)
def test_what_xenstore_cannot_express_is_decided_here(entry: BlacklistEntry, *, in_xenstore: bool) -> None:
    configured = Configured([entry])
    assert bool(configured.nodes) is in_xenstore
    assert (configured.decide("linux", 1, "canary-1") is None) is in_xenstore


def test_the_default_action_decides_what_goes_into_xenstore() -> None:
    entries = [BlacklistEntry("linux", 1, action=Action.REPORT), BlacklistEntry("linux", 2, action=Action.REFUSE)]
    assert list(Configured(entries, action=Action.REPORT).nodes) == ["/mh/driver-blacklist/linux/1"]


def test_an_entry_for_some_guests_says_nothing_of_others() -> None:
    configured = Configured([BlacklistEntry("linux", 1, "slow", guests=CANARY)])
    assert configured.decide("linux", 1, "web-01") is None
    assert configured.decide("linux", 1, "canary-7") == Hit(
        Action.REFUSE, "slow", "entry linux 1 for guests canary-* (refuse)")


def test_of_several_that_hit_the_strictest_counts() -> None:
    configured = Configured(
        [BlacklistEntry("experimental", 7, "seven", Action.REPORT)],
        [BlacklistRange("experimental", 0, 9, "old", Action.WITHHOLD), BlacklistRange("experimental", 0, 99, "all")],
    )
    assert configured.decide("experimental", 7) == Hit(Action.WITHHOLD, "old", "range experimental 0-9 (withhold)")
    assert configured.decide("experimental", 50) == Hit(Action.REFUSE, "all", "range experimental 0-99 (refuse)")
    assert strictest(None, configured.node_hit("linux", 1, ""), None) == Hit(
        Action.REFUSE, "", "xenstore's node linux/1 (refuse)")
    assert strictest(None, None) is None


def test_a_guest_that_is_only_observed_or_exempt() -> None:
    hit = Hit(Action.WITHHOLD, "old", "range linux 0-9 (withhold)")
    assert for_guest(hit, Stance()) == hit
    assert for_guest(None, Stance(observe=True)) is None
    assert for_guest(hit, Stance(observe=True, rule="[[guest]] vdi-*")) == Hit(
        Action.REPORT, "old", "range linux 0-9 (withhold); only observed: [[guest]] vdi-*")
    assert for_guest(hit, Stance(exempt=True)) is None


def test_entries_and_ranges_in_words() -> None:
    assert describe(BlacklistEntry("linux", 1), Action.REPORT) == "entry linux 1 (report)"
    assert describe(BlacklistRange("linux", 1, 2, guests=Patterns("a", "b")), Action.REFUSE) == (
        "range linux 1-2 for guests a, b (refuse)")


@pytest.mark.parametrize(
    ("name", "build"),
    [("0", 0), ("1", 1), ("86451", 86451), ("4294967295", 2**32 - 1), ("4294967296", None), ("9" * 5000, None),
     ("", None), ("01", None), ("+1", None), ("-1", None), (" 1", None), ("0x10", None), ("\u0663", None),
     ("1_0", None)],
)  # fmt: skip
def test_a_build_number_has_one_name(name: str, build: int | None) -> None:
    assert build_number(name) == build


@pytest.mark.parametrize(("action", "there", "whole"), [
    (Action.REFUSE, None, Action.REFUSE), (Action.WITHHOLD, Action.WITHHOLD, Action.WITHHOLD)])
def test_what_is_listed_includes_what_xenstore_says(action: Action, there: Action | None, whole: Action) -> None:
    configured = Configured([BlacklistEntry("linux", 1, "slow", action)])
    decided, listed = configured.decide("linux", 1), configured.listed("linux", 1)
    assert (decided and decided.action) == there
    assert listed is not None
    assert (listed.action, listed.reason) == (whole, "slow")
    assert configured.listed("linux", 2) is None
