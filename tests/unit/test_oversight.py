"""Background tasks: a fault of unplugd's own is recorded and ends the service; what must run ends it by ending."""

from __future__ import annotations

import asyncio

import pytest

from tests.lab.host import until
from unplugd.oversight import SURPRISES, Oversight
from unplugd.sinks.records import Event


class Service:
    """What an Oversight tells."""

    def __init__(self) -> None:
        self.said: list[tuple[Event, str]] = []
        self.ended: list[int] = []
        self.oversight = Oversight(lambda event, message: self.said.append((event, message)), self.ended.append)


async def fail() -> None:
    raise ValueError("a bug")


async def end() -> None:
    await asyncio.sleep(0)


def test_an_exception_in_the_background_ends_the_service() -> None:
    async def main() -> None:
        it = Service()
        it.oversight.spawn(fail())
        await until(lambda: it.ended)
        ((event, message),) = it.said
        assert event is Event.INTERNAL
        assert "ValueError: a bug" in message

    asyncio.run(main())


def test_only_what_must_run_ends_the_service_by_ending() -> None:
    async def main() -> None:
        it = Service()
        await it.oversight.spawn(end())
        await asyncio.sleep(0)
        assert it.ended == []
        it.oversight.keep_running(end())
        await until(lambda: it.ended == [1])
        assert it.said == []

    asyncio.run(main())


def test_all_tasks_but_some_are_cancelled() -> None:
    async def main() -> None:
        it = Service()
        ending = it.oversight.keep_running(asyncio.sleep(60))
        staying = it.oversight.keep_running(asyncio.sleep(60))
        await it.oversight.cancel(but={staying})
        assert ending.cancelled()
        assert not staying.done()
        await it.oversight.cancel(but=set())
        assert it.ended == []

    asyncio.run(main())


def test_uncaught_exceptions_are_recorded_up_to_a_bound() -> None:
    async def main() -> None:
        it = Service()
        loop = asyncio.get_running_loop()
        for _ in range(SURPRISES + 5):
            it.oversight.surprised(loop, {"message": "in a callback", "exception": ValueError("a bug")})
        assert [event for event, _ in it.said] == [Event.INTERNAL] * SURPRISES
        assert it.ended == []

    asyncio.run(main())


def test_an_exception_that_nobody_could_catch_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending:
        def __del__(self) -> None:
            raise ValueError("a bug")

    it = Service()
    monkeypatch.setattr("sys.unraisablehook", it.oversight.unraisable)
    Ending()
    ((event, text),) = it.said
    assert event is Event.INTERNAL
    assert "__del__" in text
    assert "ValueError: a bug" in text


def test_connections_that_cannot_be_accepted_are_one_record_a_minute() -> None:
    async def main() -> None:
        it = Service()
        for _ in range(5):
            it.oversight.surprised(asyncio.get_running_loop(), {
                "message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")})
        ((event, message),) = it.said
        assert event is Event.CONNECTION_LIMIT
        assert "Too many open files" in message

    asyncio.run(main())
