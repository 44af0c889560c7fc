"""The counters of the hot path: from zero, with all their labels, and in the right bucket."""

from __future__ import annotations

import ast
import inspect
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.core import ioreq
from unplugd.core.counters import DURATION_BOUNDS, KINDS, PROTOCOL_ERRORS, Counters
from unplugd.core.protocol import Effect


def test_every_effect_of_an_access_is_a_kind() -> None:
    assert {effect.kind for effect in Effect} | {"reset"} == set(KINDS)


def test_every_reason_to_close_a_connection_has_a_series() -> None:
    raised = {
        call.args[0].value
        for call in ast.walk(ast.parse(inspect.getsource(ioreq)))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "ClientFault"
        and isinstance(call.args[0], ast.Constant)
    }
    assert raised == set(PROTOCOL_ERRORS)


def test_counters_start_at_zero_and_with_all_their_labels() -> None:
    counters = Counters()
    kinds = ("magic", "version", "product", "build", "unplug", "log", "flags", "other", "reset")
    assert counters.ioreqs == dict.fromkeys(kinds, 0)
    results = ("allowed", "blacklisted", "reported", "unknown-product", "fallback")
    assert counters.blacklist_lookups == dict.fromkeys(results, 0)
    assert set(counters.protocol_errors.values()) == {0}
    assert (counters.denied_connections, counters.xenstore_reconnects, counters.duration_sum) == (0, 0, 0.0)


def test_buckets_reach_from_ten_microseconds_to_a_second() -> None:
    assert DURATION_BOUNDS[0] == 10e-6
    assert DURATION_BOUNDS[-1] == 1.0
    assert list(DURATION_BOUNDS) == sorted(set(DURATION_BOUNDS))


@given(st.lists(st.floats(0, 100)))
def test_a_bucket_counts_what_is_not_over_its_bound(observed: list[float]) -> None:
    counters = Counters()
    for seconds in observed:
        counters.observe(seconds)
    for bound, count in zip((*DURATION_BOUNDS, float("inf")), accumulate(counters.duration_counts), strict=True):
        assert count == sum(seconds <= bound for seconds in observed)
    assert counters.duration_sum == pytest.approx(sum(observed), abs=1e-9 * (1 + len(observed)))
