"""core/history.py: the ring of a guest's last steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unplugd.core.history import LIMIT, Did, History, Noted, Step

BUILD = Step(Did.BUILD, number=86451, product=1, blacklisted=True, source="xenstore", reason="loses data")
STEPS = [
    Step(Did.MAGIC, answer=0x49D2), Step(Did.VERSION, answer=1), Step(Did.PRODUCT, number=1), BUILD,
    Step(Did.UNPLUG, number=3, answer=3), Step(Did.IGNORED_BUILD, number=7), Step(Did.RESET), Step(Did.RESTORED),
]  # fmt: skip


def test_steps_are_kept_in_order_with_their_times() -> None:
    history = History()
    for at, step in enumerate(STEPS):
        history.note(step, 100.0 + at)
    assert [noted.step for noted in history.steps] == STEPS
    assert [noted.first for noted in history.steps] == [100.0 + at for at in range(len(STEPS))]
    assert history.forgotten == 0


def test_a_repeated_step_counts_up_and_keeps_its_first_time() -> None:
    history = History()
    history.note(Step(Did.MAGIC, answer=0x49D2), 1.0)
    history.note(Step(Did.MAGIC, answer=0x49D2), 5.0, times=10)
    history.note(Step(Did.MAGIC, answer=0xD249), 6.0)
    assert history.steps == (
        Noted(Step(Did.MAGIC, answer=0x49D2), 1.0, 5.0, 11), Noted(Step(Did.MAGIC, answer=0xD249), 6.0, 6.0, 1),
    )  # fmt: skip


@given(st.lists(st.sampled_from(STEPS), max_size=4 * LIMIT), st.integers(1, 8))
def test_it_stays_bounded_and_forgets_the_oldest(steps: list[Step], limit: int) -> None:
    history = History(limit)
    for at, step in enumerate(steps):
        history.note(step, float(at))
    runs = [step for at, step in enumerate(steps) if at == 0 or steps[at - 1] != step]
    assert [noted.step for noted in history.steps] == runs[-limit:]
    assert history.forgotten == max(0, len(runs) - limit)
    assert all(noted.first <= noted.last and noted.times >= 1 for noted in history.steps)


def test_what_the_api_shows() -> None:
    history = History()
    for at, step in enumerate(STEPS):
        history.note(step, float(at))
    history.note(STEPS[-1], 9.5)
    shown = history.describe(1000.0)
    common = {"time", "last_time", "times", "did"}
    assert [set(step) - common for step in shown] == [
        {"answer"}, {"answer"}, {"product"}, {"product", "build", "blacklisted", "reported", "source", "reason"},
        {"mask", "order"}, {"build"}, set(), set(),
    ]  # fmt: skip
    assert shown[3] == {
        "time": 1003.0, "last_time": 1003.0, "times": 1, "did": "build", "product": 1, "build": 86451,
        "blacklisted": True, "reported": False, "source": "xenstore", "reason": "loses data",
    }  # fmt: skip
    assert shown[4]["order"] == ["ide-disks", "nics"]
    assert shown[-1] == {"time": 1007.0, "last_time": 1009.5, "times": 2, "did": "restored"}
