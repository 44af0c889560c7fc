"""A connection's socket: what is read when, what waits to be sent, and each way in which it ends."""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from unplugd.sockets.wire import HIGH, LOW, Wire

from tests.lab.host import until
from unplugd.sockets import pureloop

Loops = Callable[[], asyncio.AbstractEventLoop]
LOOPS = pytest.mark.parametrize("loops", [asyncio.SelectorEventLoop, pureloop.Loop])


class Echo:
    """Sends back what comes, and notes what it is told."""

    def __init__(self, peer: socket.socket) -> None:
        self.window = 4096
        self.told: list[str] = []
        self.failure: Exception | None = None
        self.stays = False
        self.wire = Wire(peer, self)
        self.wire.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        assert 0 < len(data) <= self.window
        self.wire.write(data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self.stays

    def pause_writing(self) -> None:
        assert self.wire.unsent > HIGH
        self.told.append("pause")
        self.wire.pause_reading()

    def resume_writing(self) -> None:
        if self.failure is not None:
            raise self.failure
        assert self.wire.unsent <= LOW
        self.told.append("resume")
        self.wire.resume_reading()

    def connection_lost(self) -> None:
        self.told.append("lost")


Test = Callable[[Echo, socket.socket], Coroutine[Any, Any, None]]


def run(loops: Loops, test: Test) -> list[dict[str, Any]]:
    """Run a test with a wire and its other end; returns what the loop was told of failures."""
    said: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
        theirs, peer = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            echo = Echo(peer)
            await test(echo, theirs)
            echo.wire.abort()
            await asyncio.sleep(0)
            assert echo.told.count("lost") == 1
            assert peer.fileno() == -1

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main())
    return said


async def receive(theirs: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(theirs, size - len(got)), 10)
        if not piece:
            break
        got += piece
    return got


def fill(echo: Echo, size: int = 1 << 20) -> bytes:
    """Write more than the kernel takes; returns what was written."""
    data = bytes(range(256)) * (size // 256)
    echo.wire.write(data)
    assert echo.wire.unsent > HIGH
    return data


@LOOPS
def test_what_comes_is_sent_back(loops: Loops) -> None:
    async def test(echo: Echo, theirs: socket.socket) -> None:
        for number in range(100):
            theirs.send(b"%d" % number)
            assert await receive(theirs, len(b"%d" % number)) == b"%d" % number
        assert echo.told == []
        assert echo.wire.unsent == 0

    assert run(loops, test) == []


@LOOPS
def test_what_is_not_taken_waits_and_goes_in_order(loops: Loops) -> None:
    async def test(echo: Echo, theirs: socket.socket) -> None:
        data = fill(echo)
        assert echo.told == ["pause"]
        theirs.send(b"not read yet")
        echo.wire.write(b"behind it")
        await asyncio.sleep(0.02)
        assert echo.told == ["pause"]
        everything = data + b"behind it" + b"not read yet"
        assert await receive(theirs, len(everything)) == everything
        assert echo.told == ["pause", "resume"]
        assert echo.wire.unsent == 0

    assert run(loops, test) == []


@LOOPS
def test_closing_waits_for_what_is_unsent(loops: Loops) -> None:
    async def test(echo: Echo, theirs: socket.socket) -> None:
        data = fill(echo)
        echo.wire.close()
        echo.wire.close()
        echo.wire.resume_reading()
        theirs.send(b"read no more")
        await asyncio.sleep(0.02)
        assert "lost" not in echo.told
        assert await receive(theirs, len(data)) == data
        await until(lambda: "lost" in echo.told)
        echo.wire.write(b"too late")
        assert echo.wire.unsent == 0

    assert run(loops, test) == []


@LOOPS
def test_aborting_does_not(loops: Loops) -> None:
    async def test(echo: Echo, theirs: socket.socket) -> None:
        fill(echo)
        echo.wire.abort()
        echo.wire.abort()
        await until(lambda: "lost" in echo.told)

    assert run(loops, test) == []


@LOOPS
@pytest.mark.parametrize("stays", [False, True])
def test_the_client_sends_no_more(loops: Loops, stays: bool) -> None:
    async def test(echo: Echo, theirs: socket.socket) -> None:
        echo.stays = stays
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: "eof" in echo.told)
        await asyncio.sleep(0.02)
        assert echo.told == (["eof"] if stays else ["eof", "lost"])
        if stays:
            echo.wire.write(b"more")
            assert await receive(theirs, 4) == b"more"

    assert run(loops, test) == []


@LOOPS
@pytest.mark.parametrize("waiting", [False, True])
def test_the_client_has_gone(loops: Loops, waiting: bool) -> None:
    async def test(echo: Echo, theirs: socket.socket) -> None:
        echo.wire.pause_reading()
        if waiting:
            fill(echo)
        theirs.close()
        if not waiting:
            echo.wire.write(b"?")
        await until(lambda: "lost" in echo.told)

    assert run(loops, test) == []


@LOOPS
@pytest.mark.parametrize("failure", [MemoryError(), OSError(errno.ENOBUFS, "no room")])
@pytest.mark.parametrize("where", ["reading", "writing"])
def test_a_failure_of_its_owner_ends_it_alone(loops: Loops, failure: Exception, where: str) -> None:
    async def test(echo: Echo, theirs: socket.socket) -> None:
        if where == "writing":
            fill(echo)
        echo.failure = failure
        theirs.send(b"!")
        if where == "writing":
            echo.wire.pause_reading()
            await receive(theirs, 1 << 20)
        await until(lambda: "lost" in echo.told)

    said = run(loops, test)
    assert [context["exception"] for context in said] == ([] if isinstance(failure, OSError) else [failure])


@LOOPS
@pytest.mark.parametrize("times", [1, 2])
def test_no_memory_to_watch_it(loops: Loops, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = times
    register = selectors.EpollSelector.register

    def fail(self: selectors.EpollSelector, fileobj: int, events: int, data: Any = None) -> selectors.SelectorKey:
        nonlocal left
        if fileobj == watched and left:
            left -= 1
            raise OSError(errno.ENOMEM, "no memory")
        return register(self, fileobj, events, data)

    monkeypatch.setattr(selectors.EpollSelector, "register", fail)
    watched = -1

    async def test(echo: Echo, theirs: socket.socket) -> None:
        nonlocal watched
        echo.wire.pause_reading()
        echo.wire.pause_reading()
        watched = echo.wire.descriptor
        theirs.send(b"here")
        if times == 2:
            with pytest.raises(OSError, match="no memory"):
                echo.wire.resume_reading()
        else:
            echo.wire.resume_reading()
            assert await receive(theirs, 4) == b"here"

    assert run(loops, test) == []
