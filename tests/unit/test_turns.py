"""A domain's turn of the event loop: what is beyond its budget waits, in order, behind the other domains."""

from __future__ import annotations

import asyncio
from functools import partial

from unplugd.domains.turns import BUDGET, Turns


def test_a_domain_that_does_little_never_waits() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(100):
            for _ in range(5):
                turns.charge(BUDGET / 10)
                assert not turns.over
            await asyncio.sleep(0)

    asyncio.run(main())


def test_small_work_adds_up_over_iterations_to_less_than_a_turn() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(1000):
            turns.charge(BUDGET / 100)
            await asyncio.sleep(0)
            assert not turns.over

    asyncio.run(main())


def test_what_is_beyond_the_budget_waits_for_the_next_turns_in_order() -> None:
    done: list[int] = []

    async def main() -> None:
        turns = Turns()
        others = 0

        def work(number: int) -> None:
            done.append(number)
            turns.charge(BUDGET / 2)

        turns.charge(BUDGET)
        assert [turns.over] == [True]  # mypy would take it for true to the end
        for number in range(6):
            turns.later(partial(work, number))
        for turn in range(1, 4):
            await asyncio.sleep(0)
            others += 1  # another domain is served in each iteration
            assert len(done) == 2 * turn, "two halves of a budget make a turn"
        assert done == list(range(6))
        assert not turns._queue
        await asyncio.sleep(0)
        assert not turns.over
        assert others == 3

    asyncio.run(main())


def test_who_comes_while_others_of_the_domain_wait_waits_behind_them() -> None:
    done: list[str] = []

    async def main() -> None:
        turns = Turns()

        def first() -> None:
            done.append("first")
            turns.charge(2 * BUDGET)
            turns.later(partial(done.append, "third"))

        turns.charge(BUDGET)
        turns.later(first)
        turns.later(partial(done.append, "second"))
        await asyncio.sleep(0)
        assert done == ["first"]
        assert turns.over, "the second still waits"
        await asyncio.sleep(0)
        assert done == ["first", "second", "third"]

    asyncio.run(main())
