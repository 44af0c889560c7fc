"""The event loop with the compiled part where it waits: nothing else that a loop does comes late or is lost by that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from array import array
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import unplugd
from tests.unit.test_poller import ANSWER, LINE, MAGIC, PRODUCT, Owner, string
from tests.unit.test_poller import run as run_poller
from unplugd.core.counters import DURATION_BOUNDS, Counters
from unplugd.core.ioreq import PAYLOAD_LIMIT
from unplugd.domains import table, turns
from unplugd.host.longwork import serve_guests
from unplugd.sockets import loop as eventloop
from unplugd.sockets import poller
from unplugd.sockets.loop import compiled_poller, open_poller, table_types

try:
    from unplugd.sockets import _fastpath
except ImportError:
    pytest.skip("the compiled part was not built", allow_module_level=True)

SOURCES = sorted((Path(unplugd.__file__).parents[1] / "fastpath").glob("*.c"))


def run(test: Callable[[Owner], Coroutine[Any, Any, None]]) -> None:
    """A test with one connection."""
    run_poller("compiled", test)


# --- beside guests that keep coming


@contextlib.asynccontextmanager
async def talking(it: Owner, request: bytes = MAGIC, answer: int = 32) -> Any:
    """A guest that never stops: on the connection, from a thread."""
    stop = threading.Event()
    client = socket.socket(fileno=os.dup(it.theirs.fileno()))
    client.settimeout(20)

    def talk() -> None:
        while not stop.is_set():
            client.sendall(request)
            left = answer
            while left:
                left -= len(client.recv(left))

    task = asyncio.ensure_future(asyncio.to_thread(talk))
    try:
        yield
    finally:
        stop.set()
        await task
        client.close()
        it.theirs.setblocking(False)


def test_timers_are_in_time_while_guests_keep_coming_and_when_they_become_others() -> None:
    async def timers() -> None:
        loop = asyncio.get_running_loop()
        earlier = loop.call_later(0.01, lambda: None)
        for seconds in (0.2, 0.03, 0.001, 0.05):  # later and earlier than what the wait was to end at
            begin = loop.time()
            called: asyncio.Future[None] = loop.create_future()
            loop.call_later(seconds, called.set_result, None)
            earlier.cancel()
            await asyncio.wait_for(called, 20)
            assert seconds <= loop.time() - begin < seconds + 10
            earlier = loop.call_later(seconds / 2, lambda: None)

    async def test(it: Owner) -> None:
        async with talking(it):
            await timers()
        await timers()

    run(test)


def test_others_have_their_turn_beside_a_flood() -> None:
    async def test(it: Owner) -> None:
        other = Owner(it.counters, it.poller)
        async with talking(it, MAGIC * 256, 8192):
            for _ in range(20):
                await asyncio.sleep(0.005)
                assert await other.ask(MAGIC) == ANSWER
        other.close()

    run(test)


def test_signals_arrive_while_it_serves() -> None:
    async def test(it: Owner) -> None:
        arrived = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, arrived.set)
        async with talking(it):
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(arrived.wait(), 20)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    run(test)


def test_threads_have_their_turn_while_it_waits() -> None:
    async def test(_it: Owner) -> None:
        assert await asyncio.to_thread(lambda: 42) == 42

    run(test)


def test_what_a_callback_schedules_is_done_soon() -> None:
    async def test(it: Owner) -> None:
        done = asyncio.Event()
        it.woken = lambda: asyncio.get_running_loop().call_soon(done.set)
        it.theirs.send(LINE)
        await asyncio.wait_for(done.wait(), 20)
        done.clear()
        it.woken = lambda: asyncio.get_running_loop().call_later(0.01, done.set)
        it.theirs.send(LINE)
        begin = time.monotonic()
        await asyncio.wait_for(done.wait(), 20)
        assert time.monotonic() - begin < 1

    run(test)


def test_it_does_not_wake_up_for_timers_that_were_due(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = 0
    select_ = eventloop.Selector.select

    def counted(self: eventloop.Selector, timeout: float | None = None) -> list[Any]:
        nonlocal waits
        waits += 1
        return select_(self, timeout)

    monkeypatch.setattr(eventloop.Selector, "select", counted)

    async def test(_it: Owner) -> None:
        await asyncio.sleep(0.05)
        before = waits
        await asyncio.sleep(0.3)
        assert waits - before < 10

    run(test)


def test_without_descriptors_for_timers_it_waits_all_the_same() -> None:
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with select.epoll() as epoll:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            one = _fastpath.Poller(epoll.fileno(), DURATION_BOUNDS, Counters().durations)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        begin = time.monotonic()
        assert one.poll(0.03) == ([], [])
        assert time.monotonic() - begin >= 0.03


def test_a_descriptor_that_hangs_up_is_said_both_ways() -> None:
    async def test(_it: Owner) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            theirs.close()
            assert await asyncio.wait_for(loop.sock_recv(ours, 1), 20) == b""

    run(test)


# --- between two pieces of something long


def test_guests_are_served_without_a_turn_of_the_loop() -> None:
    async def test(it: Owner) -> None:
        while serve_guests():
            await asyncio.sleep(0)
        for number in range(20):
            it.theirs.send(MAGIC + string(b"line\n"))
            assert not serve_guests()
            assert len(it.theirs.recv(100)) == 64
            assert len(it.calls) == number + 1

    run(test)


def test_what_is_handed_over_wants_a_turn_of_the_loop_and_keeps_its_order() -> None:
    async def test(it: Owner) -> None:
        while serve_guests():
            await asyncio.sleep(0)
        other = Owner(it.counters, it.poller)
        it.theirs.send(MAGIC + PRODUCT + MAGIC)
        other.theirs.send(MAGIC)
        assert serve_guests()
        assert serve_guests(), "as long as it has not turned"
        assert (len(it.theirs.recv(1000)), len(other.theirs.recv(1000))) == (32, 32)
        assert it.handed == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert it.handed == [(b"", PRODUCT + MAGIC)]
        other.close()

    run(test)


def test_a_guest_that_does_not_stop_comes_after_those_that_are_ready_now_and_then() -> None:
    async def test(it: Owner) -> None:
        while serve_guests():
            await asyncio.sleep(0)
        other = Owner(it.counters, it.poller)
        served: list[str] = []
        it.woken = lambda: served.append("flood")
        other.woken = lambda: served.append("other")
        it.theirs.send(string(b"x" * 127 + b"\n") * (3 * table.READ_SIZE // 160))
        serve_guests()
        other.theirs.send(LINE)
        serve_guests()
        assert served == ["flood", "other", "flood"]
        other.close()

    run(test)


def test_another_descriptor_wants_a_turn_of_the_loop() -> None:
    async def test(it: Owner) -> None:
        while serve_guests():
            await asyncio.sleep(0)
        called = Mock()
        ours, theirs = socket.socketpair()
        asyncio.get_running_loop().add_reader(ours, called)
        theirs.send(b"x")
        it.theirs.send(MAGIC)
        assert serve_guests()
        assert it.theirs.recv(100) == ANSWER
        assert called.call_count == 0
        await asyncio.sleep(0.01)
        assert called.call_count > 0
        asyncio.get_running_loop().remove_reader(ours)
        ours.close()
        theirs.close()

    run(test)


def test_any_other_loop_is_to_turn() -> None:
    async def test() -> None:
        assert serve_guests()
        assert compiled_poller() is None
        assert table_types() == (table.Table, table.Rows)
        assert isinstance(open_poller(Counters()), poller.Poller)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(test())


# --- what both must agree on, and which is used


def test_what_is_compiled_serves_its_own_tables_and_counts_in_the_counters() -> None:
    async def test(it: Owner) -> None:
        assert compiled_poller() is it.poller
        assert table_types() == (_fastpath.Table, _fastpath.Rows)
        await it.ask(MAGIC)
        assert sum(it.counters.duration_counts) == 1
        assert 0 < it.counters.duration_sum < 1

    run(test)


def test_constants_are_the_same() -> None:
    headers = "".join(path.read_text() for path in SOURCES[0].parent.glob("*.h"))
    assert f" BUDGET = {turns.BUDGET * 1e6:.0f}," in headers
    assert f" PAYLOAD_LIMIT = {PAYLOAD_LIMIT}," in headers
    assert f" READ_SIZE = {table.READ_SIZE // 1024} * 1024," in headers


@pytest.mark.parametrize(("bounds", "durations"), [
    ((1.0,) * 33, 35), ((1.0,), 2), ((1.0,), 4), ((), 1),
])  # fmt: skip
def test_durations_that_do_not_fit_their_bounds_are_refused(bounds: tuple[float, ...], durations: int) -> None:
    with pytest.raises(ValueError, match="durations are a number for each bound and two more"):
        _fastpath.Poller(0, bounds, array("Q", bytes(8 * durations)))


def test_an_epoll_that_is_none_is_said() -> None:
    one = _fastpath.Poller(-1, DURATION_BOUNDS, Counters().durations)
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.poll(0.0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.serve()


def test_which_loop_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNPLUGD_PURE", raising=False)
    with contextlib.closing(eventloop.new_event_loop()) as loop:
        assert isinstance(loop, eventloop.Loop)
    monkeypatch.setenv("UNPLUGD_PURE", "1")
    with contextlib.closing(eventloop.new_event_loop()) as loop:
        assert type(loop) is asyncio.SelectorEventLoop


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_it_compiles_without_a_warning(source: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    include = sysconfig.get_path("include")
    if compiler is None or not (Path(include) / "Python.h").exists():
        pytest.skip("no compiler, or no Python.h")
    command = [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror", "-fPIC"]
    command += ["-isystem", include, "-c", str(source), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
