"""The configured blacklist: which nodes it wants in xenstore, and what it decides by itself (contract section 2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.core.blacklist import LAST_BUILD, BlacklistEntry, BlacklistRange, Configured, node


def test_an_entry_is_a_node_of_xenstore() -> None:
    configured = Configured([BlacklistEntry("xensource-windows", 86451, "loses data")])
    assert configured.nodes == {"/mh/driver-blacklist/xensource-windows/86451": "loses data"}
    assert configured.decide("xensource-windows", 86451) is None, "xenstore is asked"


def test_a_product_that_no_path_can_name_is_decided_here() -> None:
    configured = Configured([BlacklistEntry("xenserver-windows-v7.0+", 7, "old")])
    assert configured.nodes == {}
    assert configured.decide("xenserver-windows-v7.0+", 7) == "old"
    assert configured.decide("xenserver-windows-v7.0+", 8) is None
    assert node("xenserver-windows-v7.2+", 1) is None


def test_builds_are_unsigned_decimals() -> None:
    assert node("linux", 2**32 - 1) == "/mh/driver-blacklist/linux/4294967295"


@pytest.mark.parametrize(
    ("build", "reason"), [(0x07FFFF, None), (0x080000, "fixed in 8.2"), (0x0801FF, "fixed in 8.2"), (0x080200, None)]
)
def test_both_ends_of_a_range_are_in_it(build: int, reason: str | None) -> None:
    configured = Configured(ranges=[BlacklistRange("experimental", 0x080000, 0x0801FF, "fixed in 8.2")])
    assert configured.decide("experimental", build) == reason
    assert configured.decide("linux", build) is None


def test_either_end_may_be_left_out() -> None:
    configured = Configured(ranges=[BlacklistRange("linux", last=5), BlacklistRange("gplpv-windows", first=9)])
    assert configured.decide("linux", 0) == ""
    assert configured.decide("linux", 6) is None
    assert configured.decide("gplpv-windows", LAST_BUILD) == ""
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
