"""The event loop that reads where it waits: nothing else that a loop does comes late or is lost by that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from unplugd.sockets import pureloop


class Flood:
    """Connections that can be read all the time: each sends to itself what it reads."""

    def __init__(self, connections: int) -> None:
        self.pairs = [socket.socketpair() for _ in range(connections)]
        self.reads = [0] * connections
        self.also: Callable[[], object] = lambda: None
        readers = pureloop.readers()
        assert readers is not None
        for number, (ours, _) in enumerate(self.pairs):
            read = self._reader(number)
            asyncio.get_running_loop().add_reader(ours.fileno(), read)
            readers[ours.fileno()] = read

    def _reader(self, number: int) -> Callable[[], None]:
        ours, theirs = self.pairs[number]

        def read() -> None:
            theirs.send(ours.recv(100))
            self.reads[number] += 1
            self.also()

        return read

    def begin(self) -> None:
        for _, theirs in self.pairs:
            theirs.send(b"x")

    def close(self) -> None:
        for ours, theirs in self.pairs:
            asyncio.get_running_loop().remove_reader(ours.fileno())
            ours.close()
            theirs.close()


@contextlib.contextmanager
def flood(connections: int = 1) -> Iterator[Flood]:
    with contextlib.closing(Flood(connections)) as one:
        one.begin()
        yield one


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    with asyncio.Runner(loop_factory=pureloop.Loop) as runner:
        runner.run(main())


def test_it_reads_without_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    select_ = pureloop.Selector.select

    def counted(self: pureloop.Selector, timeout: float | None = None) -> list[Any]:
        nonlocal turns
        turns += 1
        return select_(self, timeout)

    monkeypatch.setattr(pureloop.Selector, "select", counted)

    async def test() -> None:
        with flood(3) as one:
            await asyncio.sleep(0)
            before = turns
            await asyncio.sleep(0.1)
            assert turns - before < 10
            assert min(one.reads) > 50

    run(test)


def test_timers_are_in_time() -> None:
    async def test() -> None:
        with flood():
            for _ in range(5):
                begin = time.monotonic()
                await asyncio.sleep(0.02)
                assert 0.02 <= time.monotonic() - begin < 1

    run(test)


def test_a_timer_that_a_reader_sets_is_in_time() -> None:
    async def test() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        with flood() as one:

            def also() -> None:
                one.also = lambda: None
                loop.call_later(0.01, done.set)

            one.also = also
            begin = time.monotonic()
            await done.wait()
            assert time.monotonic() - begin < 1

    run(test)


def test_what_a_reader_asks_for_is_done_before_it_reads_again() -> None:
    async def test() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        reads: list[int] = []
        with flood() as one:

            def asked_for() -> None:
                reads.append(one.reads[0])
                done.set()

            def also() -> None:
                one.also = lambda: None
                reads.append(one.reads[0])
                loop.call_soon(asked_for)

            one.also = also
            await done.wait()
        assert reads[0] == reads[1]

    run(test)


def test_a_loop_that_is_always_busy_reads_too() -> None:
    async def test() -> None:
        with flood(2) as one:
            while min(one.reads) < 50:
                await asyncio.sleep(0)

    run(test)


def test_other_descriptors_and_threads_have_their_turn() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with flood(2), ours, theirs:
            for _ in range(20):
                theirs.send(b"y")
                assert await loop.sock_recv(ours, 1) == b"y"
            assert await asyncio.to_thread(lambda: 42) == 42

    run(test)


def test_signals_arrive() -> None:
    async def test() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, done.set)
        with flood():
            loop.call_later(0.01, os.kill, os.getpid(), signal.SIGUSR1)
            await done.wait()
        loop.remove_signal_handler(signal.SIGUSR1)

    run(test)


def test_more_descriptors_than_a_round_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pureloop, "_EVENTS", 4)

    async def test() -> None:
        with flood(30) as one:
            while min(one.reads) < 20:
                await asyncio.sleep(0.01)
            assert max(one.reads) < 4 * min(one.reads)

    run(test)


def test_who_hangs_up_is_the_loops() -> None:
    async def test() -> None:
        seen: list[int] = []
        loop, readers = asyncio.get_running_loop(), pureloop.readers()
        assert readers is not None
        ours, theirs = socket.socketpair()
        with ours:
            readers[ours.fileno()] = lambda: seen.append(select.EPOLLIN)

            def called() -> None:
                seen.append(0)
                loop.remove_reader(ours.fileno())

            loop.add_reader(ours.fileno(), called)
            theirs.close()
            while not seen:
                await asyncio.sleep(0.01)
            assert seen == [0]

    run(test)


def test_stopping_from_a_reader() -> None:
    with contextlib.closing(pureloop.Loop()) as loop:

        async def begin() -> Flood:
            return Flood(1)

        one = loop.run_until_complete(begin())
        one.also = loop.stop
        one.begin()
        loop.run_forever()
        assert one.reads[0] >= 1

        async def end() -> None:
            one.close()

        loop.run_until_complete(end())


def test_another_loop_has_no_readers() -> None:
    async def test() -> None:
        assert pureloop.readers() is None

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(test())
