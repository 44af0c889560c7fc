"""Long work lets others in, and comes to its end however much they want."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from unplugd.host import longwork
from unplugd.host.longwork import LongWork


class World:
    """A clock, guests who take some of it, and the loop's turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.guests_take = 0.0
        self.turn_takes = 0.0
        self.wanted = False
        self.served = 0
        self.turns = 0
        monkeypatch.setattr(longwork, "serve_guests", self.serve)
        monkeypatch.setattr("unplugd.host.longwork.time.monotonic", lambda: self.now)
        monkeypatch.setattr("unplugd.host.longwork.asyncio.sleep", self.turn)

    def serve(self) -> bool:
        self.served += 1
        self.now += self.guests_take
        return self.wanted

    async def turn(self, _seconds: float) -> None:
        self.turns += 1
        self.now += self.turn_takes

    async def do(self, work: LongWork, pieces: int, each: float) -> float:
        """How long it takes in all."""
        began = self.now
        for _ in range(pieces):
            self.now += each
            await work.let_others()
        return self.now - began


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def run(work: Coroutine[Any, Any, float]) -> float:
    """Without an event loop, whose clock and sleep these are."""
    with pytest.raises(StopIteration) as stopped:
        work.send(None)
    return float(stopped.value.value)


def test_guests_are_served_after_each_piece_and_the_loop_turns_now_and_then(it: World) -> None:
    it.guests_take, it.turn_takes = 6e-6, 60e-6
    run(it.do(LongWork(at_most=0.5e-3), 800, 25e-6))
    assert it.served == 800
    assert 40 < it.turns < 60


def test_the_loop_turns_at_once_where_somebody_wants_it(it: World) -> None:
    it.wanted = True
    run(it.do(LongWork(at_most=0.5e-3), 10, 25e-6))
    assert it.turns == 10


def test_but_not_more_often_than_is_said(it: World) -> None:
    it.wanted = True
    run(it.do(LongWork(at_least=2e-3, at_most=2e-3), 40, 0.5e-3))
    assert 9 <= it.turns <= 11


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("each", [25e-6, 0.5e-3])
def test_it_comes_to_its_end_beside_guests_that_take_all_they_can(it: World, each: float, wanted: bool) -> None:
    it.guests_take = it.turn_takes = 25e-3  # fifty guests with half a millisecond each
    it.wanted = wanted
    took = run(it.do(LongWork(at_most=0.5e-3), 800, each))
    assert took < 12 * 800 * each + 0.1
    assert it.served > 1


def test_work_that_cannot_wait_serves_guests_the_same_way(it: World) -> None:
    work = LongWork()
    it.guests_take = 1e-3
    for _ in range(100):
        it.now += 50e-6
        work.serve()
    assert 30 <= it.served <= 55
    assert it.turns == 0


def test_real_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(longwork, "serve_guests", lambda: True)
        turned = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(turned.set_result, None)
        await LongWork().let_others()
        assert turned.done()

    asyncio.run(main())
