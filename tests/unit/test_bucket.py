"""The token bucket: one token a byte, starts full, refills by time (contract section 3)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.core.bucket import RecordLimit, TokenBucket


def test_starts_full() -> None:
    bucket = TokenBucket(256, 131072, 5.0)
    assert bucket.take(131072, 5.0)
    assert not bucket.take(1, 5.0)


def test_refills_up_to_its_burst() -> None:
    bucket = TokenBucket(10, 100, 0.0)
    bucket.overdraw(100, 0.0)
    assert bucket.refill(3.0) == pytest.approx(30)
    assert bucket.refill(1000.0) == 100


def test_a_refused_take_costs_nothing() -> None:
    bucket = TokenBucket(10, 100, 0.0)
    assert not bucket.take(101, 0.0)
    assert bucket.balance == 100


def test_may_be_overdrawn_and_says_how_long_that_takes() -> None:
    bucket = TokenBucket(10, 100, 0.0)
    assert bucket.overdraw(150, 0.0) == -50
    assert bucket.wait(0, 0.0) == pytest.approx(5)
    assert bucket.wait(20, 1.0) == pytest.approx(6)
    assert bucket.wait(0, 5.1) == 0


def test_what_never_comes() -> None:
    assert TokenBucket(10, 100, 0.0).wait(101, 0.0) == math.inf
    empty = TokenBucket(0, 100, 0.0)
    empty.overdraw(100, 0.0)
    assert empty.wait(1, 50.0) == math.inf
    assert empty.wait(0, 50.0) == 0


def test_a_clock_that_goes_back_earns_nothing() -> None:
    bucket = TokenBucket(10, 100, 50.0)
    bucket.overdraw(100, 50.0)
    assert bucket.refill(40.0) == 0
    assert bucket.refill(51.0) == pytest.approx(10)


def test_survives_the_process() -> None:
    bucket = TokenBucket(10, 100, 60.0)
    bucket.restore(-20.0, 55.0, 60.0)
    assert bucket.refill(60.0) == pytest.approx(30)


def test_a_smaller_burst_holds_for_what_was_kept() -> None:
    bucket = TokenBucket(10, 100, 60.0)
    bucket.restore(5000.0, 10.0, 60.0)
    assert bucket.refill(60.0) == 100


def test_kept_time_in_the_future_counts_as_now() -> None:
    bucket = TokenBucket(10, 100, 60.0)
    bucket.restore(0.0, 1e9, 60.0)
    assert bucket.refill(61.0) == pytest.approx(10)


def test_other_figures_from_now_on() -> None:
    bucket = TokenBucket(10, 100, 0.0)
    bucket.overdraw(100, 0.0)
    bucket.configure(1000, 50, 2.0)
    assert bucket.balance == pytest.approx(20), "earned at the old rate"
    assert bucket.refill(2.01) == pytest.approx(30)
    assert bucket.refill(9.0) == 50


@given(
    rate=st.floats(0, 1e6), burst=st.floats(0, 1e6),
    steps=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e5), st.booleans()), max_size=40),
)  # fmt: skip
def test_never_gives_more_than_burst_and_rate_by_time(
    rate: float, burst: float, steps: list[tuple[float, float, bool]]
) -> None:
    bucket = TokenBucket(rate, burst, 10.0)
    now, taken, overdrawn = 10.0, 0.0, 0.0
    for pause, tokens, may_overdraw in steps:
        now += pause
        if may_overdraw and bucket.balance >= 0:
            overdrawn = max(overdrawn, -bucket.overdraw(tokens, now))
            taken += tokens
        elif bucket.take(tokens, now):
            taken += tokens
        assert taken <= (burst + rate * (now - 10.0)) * (1 + 1e-9) + overdrawn + 1e-6


@given(rate=st.floats(1, 1e6), burst=st.floats(1, 1e6), spent=st.floats(0, 2e6), begin=st.floats(0, 1e6))
def test_after_the_wait_it_is_there(rate: float, burst: float, spent: float, begin: float) -> None:
    bucket = TokenBucket(rate, burst, begin)
    bucket.overdraw(spent, begin)
    seconds = bucket.wait(1.0, begin)
    assert bucket.take(1.0, begin + seconds + 1e-6 + seconds * 1e-9)


def test_records_beyond_the_limit_are_counted_and_said_with_the_next() -> None:
    limit = RecordLimit(3, 0.5, 10.0)
    assert [limit.admit(f"fault {number}", 10.0) for number in range(5)] == ["fault 0", "fault 1", "fault 2", "", ""]
    assert limit.admit("fault 5", 10.0) == ""
    assert limit.left_out == 3
    assert limit.admit("fault 6", 11.9) == ""
    assert limit.admit("fault 7", 12.0) == "fault 7 (4 more like this not recorded)"
    assert limit.left_out == 0
    assert limit.admit("fault 8", 14.0) == "fault 8"
