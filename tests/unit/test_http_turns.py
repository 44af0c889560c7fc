"""http/turns.py: one client of all has a turn in an iteration of the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine

import pytest

from unplugd.http import turns as module
from unplugd.http.turns import TURN, HttpTurns


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def run(work: Coroutine[None, None, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(main())


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "serve_guests", lambda: False)


def test_many_clients_have_one_turn_in_an_iteration() -> None:
    turns = HttpTurns()
    iteration, done = 0, 0
    worked: list[int] = []

    def count() -> None:
        nonlocal iteration
        iteration += 1
        if done < 20:
            asyncio.get_running_loop().call_soon(count)

    async def client() -> None:
        nonlocal done
        await turns.begin()
        for _ in range(5):
            worked.append(iteration)
            spin(2 * TURN)
            await turns.go_on()
        done += 1

    async def main() -> None:
        count()
        await asyncio.gather(*(client() for _ in range(20)))

    run(main())
    assert len(worked) == 100
    assert len(set(worked)) == 100


def test_clients_take_turns_in_order() -> None:
    turns = HttpTurns()
    order: list[int] = []

    async def client(number: int) -> None:
        await turns.begin()
        for _ in range(3):
            order.append(number)
            spin(TURN)
            await turns.go_on()

    async def main() -> None:
        await asyncio.gather(*map(client, range(4)))

    run(main())
    assert order == [0, 1, 2, 3] * 3


def test_a_client_that_has_gone_takes_no_turn() -> None:
    turns = HttpTurns()
    served: list[int] = []

    async def client(number: int) -> None:
        await turns.begin()
        served.append(number)

    async def main() -> None:
        tasks = [asyncio.create_task(client(number)) for number in range(4)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client(4)

    run(main())
    assert served == [1, 2, 4]


def test_guests_are_served_within_a_turn_and_http_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests take 1 ms whenever they are let in; HTTP has a tenth of that between."""
    served = 0

    def serve() -> bool:
        nonlocal served
        served += 1
        spin(1e-3)
        return False

    monkeypatch.setattr(module, "serve_guests", serve)

    async def main() -> None:
        turns = HttpTurns()
        await turns.begin()
        for _ in range(100):
            spin(20e-6)
            await turns.go_on()

    run(main())
    assert 5 <= served <= 60
