"""What the fuzzers have found, as frames: each test failed before its fix."""

from __future__ import annotations

import asyncio
import mmap
import os
import select
import socket
from array import array
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from tests.lab.frames import frame, outs
from tests.lab.host import Host, host
from unplugd.core.guest import ALLOWED, Verdict
from unplugd.core.stream import NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.sockets import loop as eventloop
from unplugd.sockets.access import ConnectionPolicy
from unplugd.sockets.listener import Listener


@pytest.fixture(params=["compiled", "pure"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[object, object, None]], None]:
    """Run a test on each kind of event loop."""
    loop = asyncio.SelectorEventLoop
    if request.param == "compiled":
        pytest.importorskip("unplugd.sockets._fastpath", reason="the compiled part was not built")
        loop = eventloop.new_event_loop  # type: ignore[assignment] # a function that makes one serves too
    def in_loop(test: Coroutine[object, object, None]) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test)
    return in_loop


def judge(_domain: Domain, _need: NeedVerdict, _deadline: float) -> asyncio.Future[Verdict]:
    answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    answer.set_result(ALLOWED)
    return answer


async def answered(one: Host, domain: Domain, data: bytes, size: int) -> None:
    """Send `data` to the domain's socket, and wait for so many bytes of answers."""
    loop = asyncio.get_running_loop()
    listener = Listener(domain, one.directory, ConnectionPolicy([os.geteuid()]), judge, one.poller)
    listener.start(None, {})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as ours:
        await loop.sock_connect(ours, str(listener.path))
        await loop.sock_sendall(ours, data)
        got = b""
        async with asyncio.timeout(20):
            while len(got) < size:
                more = await loop.sock_recv(ours, 1 << 16)
                assert more, "closed"
                got += more
    listener.close()


def test_lines_behind_an_unplug_mask_are_recorded_in_their_order(
    run: Callable[[Coroutine[object, object, None]], None], tmp_path: Path,
) -> None:
    """The record of the mask looked at the domain, which recorded the lines that came behind the first one."""
    async def test() -> None:
        async with host(tmp_path) as one:
            domain = one.domain()
            await answered(one, domain, frame(0x10, 2, 0xFFF3) + outs(0x12, b"first\nsecond\nthird\n"), 64)
            assert one.journald.lines == ["first", "second", "third"]
            domain.release()

    run(test())


# --- found by reading the C code, as an attacker would


def test_objects_that_were_never_initialised_harm_nothing() -> None:
    fastpath = pytest.importorskip("unplugd.sockets._fastpath", reason="the compiled part was not built")
    poller = fastpath.Poller.__new__(fastpath.Poller)
    with mmap.mmap(-1, 4096) as memory:
        table = fastpath.Table.__new__(fastpath.Table)
        with pytest.raises(ValueError, match="the word"):
            table.__init__(memory, 3, print)
        with pytest.raises(ValueError, match="the area"):
            table.place(1, 0, 10, 0)
        with pytest.raises(ValueError, match="not a descriptor"):
            poller.attach(0, table, print)
    del poller
    os.fstat(0)  # its end closed nothing of ours


def test_a_poller_is_made_once_and_takes_no_impossible_descriptor() -> None:
    fastpath = pytest.importorskip("unplugd.sockets._fastpath", reason="the compiled part was not built")
    with select.epoll() as epoll, mmap.mmap(-1, 4096) as memory:
        poller = fastpath.Poller(epoll.fileno(), (), array("Q", [0, 0]))
        table = fastpath.Table(memory, 0, print)
        with pytest.raises(RuntimeError, match="made once"):
            poller.__init__(epoll.fileno(), (), array("Q", [0, 0]))
        for impossible in (-1, 2**31 - 1):
            with pytest.raises(ValueError, match="not a descriptor"):
                poller.attach(impossible, table, print)
        table.close()


def test_guests_are_not_served_while_answers_wait_in_the_buffer() -> None:
    """What `woken` does could overwrite the answers that it holds up: then the other guest would get them."""
    fastpath = pytest.importorskip("unplugd.sockets._fastpath", reason="the compiled part was not built")
    with select.epoll() as epoll, mmap.mmap(-1, 4096) as memory:
        poller = fastpath.Poller(epoll.fileno(), (), array("Q", [0, 0]))
        refused: list[RuntimeError] = []

        def woken() -> None:
            try:
                poller.serve()
            except RuntimeError as error:
                refused.append(error)

        table = fastpath.Table(memory, 0, woken)
        table.place(1, 64, 1024, 0)
        table.use(fastpath.Rows(((False, 0x12, 1, None, 0),), array("Q", [0])))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            poller.attach(theirs.fileno(), table, print)
            ours.send(outs(0x12, b"line\n"))
            poller.poll(0.0)
            assert len(ours.recv(100)) == 32
            poller.detach(theirs.fileno())
        assert len(refused) == 1
        table.close()
