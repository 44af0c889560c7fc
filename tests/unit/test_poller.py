"""Both Pollers: a connection is read, answered by its table, and handed to its owner in order, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.lab.frames import frame
from tests.lab.host import until
from unplugd.core.answers import answers as rows_of
from unplugd.core.counters import Counters
from unplugd.core.ioreq import FRAME_SIZE, PAYLOAD_LIMIT
from unplugd.core.protocol import Platform, Rules
from unplugd.domains import table as pure
from unplugd.domains.table import READ_SIZE, Table
from unplugd.sockets import loop as eventloop
from unplugd.sockets.loop import open_poller, table_types
from unplugd.sockets.poller import ReadsConnections

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"pure": asyncio.SelectorEventLoop}
with contextlib.suppress(ImportError):
    from unplugd.sockets import _fastpath

    LOOPS["compiled"] = lambda: eventloop.Loop(_fastpath.Poller)
BOTH = pytest.mark.parametrize("loop", LOOPS)

MAGIC = frame(0x10, 2, read=True)
ANSWER = frame(0x10, 2, read=True, state=3, data=0x49D2)
PRODUCT = frame(0x12, 2, data=3)
"""A frame that no row answers."""
LINE = frame(0x12, 1, data=0x0A)


def string(data: bytes) -> bytes:
    return frame(0x12, 1, count=len(data), string=True) + data


class Owner:
    """A table and one connection; what is handed over, and what is done then."""

    def __init__(self, counters: Counters, poller: ReadsConnections) -> None:
        self.counters = counters
        self.poller = poller
        self.memory = bytearray(64 * 1024)
        self.calls: list[int] = []
        self.woken: Callable[[], object] = lambda: self.calls.append(self.table.text)
        tables, rows = table_types()
        self.table: Table = tables(self.memory, 0, self._woken)
        self.table.use(rows(rows_of(Platform(Rules()), delay=False), counters.frames))
        self.table.place(1, 4096, 32 * 1024, 0)
        self.table.wake = 1 << 40
        self.handed: list[tuple[bytes, bytes | None]] = []
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
        self.fd = self.ours.fileno()
        self.attached = True
        poller.attach(self.fd, self.table, self.take)

    def _woken(self) -> None:
        self.woken()

    def take(self, unsent: bytes, data: bytes | None) -> None:
        self.handed.append((unsent, data))

    def detach(self) -> None:
        self.attached = False
        self.poller.detach(self.fd)

    def close(self) -> None:
        if self.attached:
            self.detach()
        self.ours.close()
        self.theirs.close()

    async def receive(self, size: int) -> bytes:
        got = b""
        deadline = time.monotonic() + 20
        while len(got) < size:
            with contextlib.suppress(BlockingIOError):
                piece = self.theirs.recv(size - len(got))
                if not piece:
                    break
                got += piece
            assert time.monotonic() < deadline, (len(got), size)
            await asyncio.sleep(0)
        return got

    async def ask(self, request: bytes) -> bytes:
        self.theirs.send(request)
        return await self.receive(32)

    async def quiet(self) -> None:
        """Nothing more comes of what was sent."""
        await asyncio.sleep(0.02)
        with contextlib.suppress(BlockingIOError):
            assert self.theirs.recv(1) == b"never"


Test = Callable[[Owner], Coroutine[Any, Any, None]]


def run(loop: str, test: Test, *, faults: int = 0) -> None:
    """A test with one connection; the loop is told of so many faults."""
    said: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        counters = Counters()
        owner = Owner(counters, open_poller(counters))
        try:
            async with asyncio.timeout(30):
                await test(owner)
        finally:
            owner.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    assert len(said) == faults, said


# --- what is answered


@BOTH
def test_what_rows_answer_is_answered(loop: str) -> None:
    async def test(it: Owner) -> None:
        for _ in range(3):
            assert await it.ask(MAGIC) == ANSWER
        it.theirs.send(MAGIC * 300)
        assert await it.receive(300 * 32) == ANSWER * 300
        assert it.handed == []
        assert it.counters.ioreqs["magic"] == 303
        assert 4 <= sum(it.counters.duration_counts) <= 303

    run(loop, test)


@BOTH
def test_a_newline_calls_the_owner_before_the_answer(loop: str) -> None:
    async def test(it: Owner) -> None:
        seen: list[int] = []

        def woken() -> None:
            with pytest.raises(BlockingIOError):
                it.theirs.recv(1)
            seen.append(it.table.text)

        it.woken = woken
        assert len(await it.ask(string(b"one\ntwo\n"))) == 32
        assert seen == [8]

    run(loop, test)


@BOTH
def test_a_frame_in_pieces(loop: str) -> None:
    async def test(it: Owner) -> None:
        whole = MAGIC + string(b"x" * PAYLOAD_LIMIT) + string(b"abc\n") + MAGIC
        for size in (1, 7, 32, 4000):
            for at in range(0, len(whole), size):
                it.theirs.send(whole[at:at + size])
                await asyncio.sleep(0)
                for unsent, data in it.handed:  # Python's hands the beginning of a frame to its owner
                    assert (unsent, data is None) == (b"", False)
                    it.poller.resume(it.fd, data or b"")
                it.handed.clear()
            assert len(await it.receive(128)) == 128
            it.table.place(1, 4096, 32 * 1024, 0)
        assert it.counters.ioreqs["log"] == 8

    run(loop, test)


@BOTH
def test_a_read_that_cuts_a_frame(loop: str) -> None:
    async def test(it: Owner) -> None:
        it.ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        it.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        data = string(b"y" * 3000 + b"\n") * 10
        assert len(data) > READ_SIZE
        it.theirs.send(data)
        deadline = time.monotonic() + 20
        while it.counters.ioreqs["log"] < 10:
            for _, rest in it.handed:
                assert rest is not None
                assert len(rest) < FRAME_SIZE + PAYLOAD_LIMIT
                it.poller.resume(it.fd, rest)
            it.handed.clear()
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        assert len(await it.receive(320)) == 320

    run(loop, test)


# --- what is handed over


@BOTH
def test_a_frame_without_a_row_and_all_behind_it_is_handed_over_in_order(loop: str) -> None:
    async def test(it: Owner) -> None:
        it.theirs.send(MAGIC + PRODUCT + MAGIC)
        await until(lambda: it.handed)
        assert it.handed == [(b"", PRODUCT + MAGIC)]
        assert await it.receive(32) == ANSWER
        it.theirs.send(MAGIC)
        await it.quiet()
        assert len(it.handed) == 1, "it is not read meanwhile"
        assert it.poller.send(it.fd, b"P" * 32 + b"M" * 32) == 64
        it.poller.resume(it.fd, b"")
        assert await it.receive(96) == b"P" * 32 + b"M" * 32 + ANSWER

    run(loop, test)


@BOTH
def test_the_beginning_of_a_frame_that_the_owner_gives_back(loop: str) -> None:
    async def test(it: Owner) -> None:
        it.theirs.send(PRODUCT + MAGIC[:20])
        await until(lambda: it.handed)
        assert it.handed == [(b"", PRODUCT + MAGIC[:20])]
        it.poller.resume(it.fd, MAGIC[:20])
        await it.quiet()
        assert await it.ask(MAGIC[20:]) == ANSWER

    run(loop, test)


@BOTH
@pytest.mark.parametrize("begun", [b"", MAGIC[:5]])
@pytest.mark.parametrize("how", ["close", "shutdown", "reset"])
def test_a_client_that_is_gone(loop: str, begun: bytes, how: str) -> None:
    async def test(it: Owner) -> None:
        it.theirs.send(MAGIC + begun)
        assert await it.receive(32) == ANSWER
        await asyncio.sleep(0.01)
        if it.handed:  # the beginning of a frame, in Python
            it.poller.resume(it.fd, it.handed.pop()[1] or b"")
        match how:
            case "close":
                it.theirs.close()
            case "shutdown":
                it.theirs.shutdown(socket.SHUT_WR)
            case "reset":  # with something that it has not read
                it.ours.send(b"?")
                it.theirs.close()
        await until(lambda: it.handed)
        assert it.handed == [(b"", None)]
        await asyncio.sleep(0.02)
        assert len(it.handed) == 1, "once"

    run(loop, test)


@BOTH
def test_a_client_that_sends_no_more_has_its_answers(loop: str) -> None:
    async def test(it: Owner) -> None:
        it.theirs.send(MAGIC * 10)
        it.theirs.shutdown(socket.SHUT_WR)
        assert await it.receive(320) == ANSWER * 10
        await until(lambda: it.handed)
        assert it.handed == [(b"", None)]

    run(loop, test)


@BOTH
def test_a_client_that_does_not_read_is_not_read(loop: str) -> None:
    async def test(it: Owner) -> None:
        it.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent = 0
        deadline = time.monotonic() + 20
        while not it.handed:
            with contextlib.suppress(BlockingIOError):
                sent += it.theirs.send((MAGIC * 64)[sent % 32:])
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        unsent, data = it.handed[0]
        assert unsent
        assert data is not None
        assert it.poller.send(it.fd, unsent) == 0, "there is still no room"
        writable = asyncio.Event()
        asyncio.get_running_loop().add_writer(it.fd, writable.set)
        await asyncio.sleep(0.02)
        assert not writable.is_set()
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += it.theirs.send((MAGIC * 64)[sent % 32:])
        got = b""
        while not writable.is_set():
            with contextlib.suppress(BlockingIOError):
                got += it.theirs.recv(1 << 16)
            await asyncio.sleep(0)
        asyncio.get_running_loop().remove_writer(it.fd)
        left = unsent
        while left:
            left = left[it.poller.send(it.fd, left):]
            with contextlib.suppress(BlockingIOError):
                got += it.theirs.recv(1 << 16)
        it.handed.clear()
        it.poller.resume(it.fd, data)
        while len(got) < sent // 32 * 32:
            with contextlib.suppress(BlockingIOError):
                got += it.theirs.recv(1 << 16)
            for unsent, data in it.handed:
                while unsent:
                    unsent = unsent[it.poller.send(it.fd, unsent):]
                    with contextlib.suppress(BlockingIOError):
                        got += it.theirs.recv(1 << 16)
                assert data is not None
                it.poller.resume(it.fd, data)
            it.handed.clear()
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        assert got == ANSWER * (sent // 32)

    run(loop, test)


@BOTH
def test_answers_to_a_client_that_is_gone_are_dropped(loop: str) -> None:
    async def test(it: Owner) -> None:
        it.theirs.send(PRODUCT)
        await until(lambda: it.handed)
        it.theirs.close()
        assert it.poller.send(it.fd, ANSWER) == 32, "that it is gone is noticed when it is read"
        it.poller.resume(it.fd, b"")
        await until(lambda: len(it.handed) == 2)
        assert it.handed[1] == (b"", None)

    run(loop, test)


@BOTH
def test_a_connection_that_was_detached_is_not_looked_at(loop: str) -> None:
    async def test(it: Owner) -> None:
        it.theirs.send(MAGIC)
        it.detach()
        it.detach()
        await it.quiet()
        assert it.handed == []
        it.poller.attach(it.fd, it.table, it.take)
        assert await it.receive(32) == ANSWER
        it.theirs.send(PRODUCT)
        await until(lambda: it.handed)
        it.detach()
        it.attached = False

    run(loop, test)


# --- an owner that does something in its callback


@BOTH
@pytest.mark.parametrize("behind", [b"", MAGIC, PRODUCT, MAGIC[:9]], ids=["nothing", "row", "no row", "begun"])
def test_an_owner_that_closes_its_table_within_the_callback(loop: str, behind: bytes) -> None:
    async def test(it: Owner) -> None:
        it.woken = it.table.close
        it.theirs.send(MAGIC + string(b"line\n") + behind)
        # what was answered, and kept, before it is sent; nothing is answered after it
        await until(lambda: it.handed or behind != PRODUCT)
        got = await it.receive(96 if behind == MAGIC else 64)
        assert got[:32] == ANSWER
        assert bytes(it.memory[4096:4101]) == b"line\n"
        if it.handed:
            it.poller.resume(it.fd, b"")
            it.handed.clear()
        it.theirs.send(MAGIC)
        await until(lambda: it.handed)
        assert (it.handed[-1][1] or b"").endswith(MAGIC)

    run(loop, test)


@BOTH
@pytest.mark.parametrize("closes", ["connection", "connection and table", "all, and the descriptor is used again"])
def test_an_owner_that_closes_its_connection_within_the_callback(loop: str, closes: str) -> None:
    async def test(it: Owner) -> None:
        again: list[socket.socket] = []

        def woken() -> None:
            it.detach()
            if "table" in closes or "all" in closes:
                it.table.close()
            if "all" in closes:
                it.ours.close()
                again.extend(socket.socketpair())
                for end in again:
                    end.setblocking(False)

        it.woken = woken
        it.theirs.send(MAGIC + LINE + MAGIC + PRODUCT)
        await asyncio.sleep(0.02)
        with contextlib.suppress(BlockingIOError):
            assert it.theirs.recv(100) == b"", "nothing is sent"
        assert it.handed == []
        for end in again:
            with contextlib.suppress(BlockingIOError):
                assert end.recv(100) == b"nothing, on another's descriptor either"
        for end in again:
            end.close()

    run(loop, test)


@BOTH
@pytest.mark.parametrize("closes", [False, True])
def test_a_fault_within_the_callback_ends_the_connection_without_an_answer(
    loop: str, closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)

    async def test(it: Owner) -> None:
        other = Owner(it.counters, it.poller)

        def woken() -> None:
            if closes:
                it.detach()
                it.table.close()
            raise MemoryError("here")

        it.woken = woken
        it.theirs.send(MAGIC + LINE)
        await asyncio.sleep(0.02)
        await until(lambda: closes or it.handed)
        assert it.handed == ([] if closes else [(b"", None)])
        with contextlib.suppress(BlockingIOError):
            assert it.theirs.recv(100) == b"nothing is acknowledged"
        assert await other.ask(MAGIC) == ANSWER, "others go on"
        other.close()

    run(loop, test, faults=1 if loop == "pure" else 0)
    assert len(unraisable) == (0 if loop == "pure" else 1)


@BOTH
def test_an_owner_that_attaches_hundreds_of_others_within_the_callback(loop: str) -> None:
    async def test(it: Owner) -> None:
        others: list[Owner] = []
        it.woken = lambda: others.extend(Owner(it.counters, it.poller) for _ in range(200))
        it.theirs.send(MAGIC + LINE + MAGIC)
        assert (await it.receive(96))[:32] == ANSWER
        for other in others:
            assert await other.ask(MAGIC) == ANSWER
        for other in others:
            other.close()

    run(loop, test)


# --- turns


@BOTH
def test_no_domain_keeps_others_waiting(loop: str) -> None:
    """Each call takes longer than a turn: one batch of it, then the others have theirs."""

    async def test(it: Owner) -> None:
        other = Owner(it.counters, it.poller)
        it.woken = lambda: time.sleep(0.002)
        connections = [it]
        for _ in range(8):  # of the same domain
            more = Owner(it.counters, it.poller)
            more.detach()
            it.poller.attach(more.fd, it.table, more.take)
            more.attached = True
            connections.append(more)
        for one in connections:
            one.theirs.send(LINE * 3)
        begin = time.monotonic()
        assert await other.ask(MAGIC) == ANSWER
        assert time.monotonic() - begin < 1
        for one in connections:
            assert len(await one.receive(96)) == 96
        for one in [other, *connections[1:]]:
            one.close()

    run(loop, test)


# --- what is refused


def test_nonsense_is_refused() -> None:
    if "compiled" not in LOOPS:
        pytest.skip("the compiled part was not built")

    async def test(it: Owner) -> None:
        poller: Any = it.poller
        with pytest.raises(ValueError, match="not a descriptor"):
            poller.attach(-1, it.table, it.take)
        with pytest.raises(ValueError, match="attached already"):
            poller.attach(it.fd, it.table, it.take)
        with pytest.raises(TypeError):
            poller.attach(it.fd, pure.Table(bytearray(64), 0, lambda: None), it.take)
        closed = os.dup(it.fd)
        os.close(closed)
        with pytest.raises(OSError, match="Bad file descriptor"):
            poller.attach(closed, it.table, it.take)
        for fd in (-1, it.fd, closed, 100_000):
            with pytest.raises(ValueError, match="not a connection that was handed over"):
                poller.send(fd, b"")
            with pytest.raises(ValueError, match="not a connection that was handed over"):
                poller.resume(fd, b"")
        for fd in (-5, closed, 100_000):
            poller.detach(fd)
        it.theirs.send(PRODUCT)
        await until(lambda: it.handed)
        with pytest.raises(ValueError, match="no frame is so long"):
            poller.resume(it.fd, bytes(FRAME_SIZE + PAYLOAD_LIMIT + 1))
        poller.resume(it.fd, b"")
        assert await it.ask(MAGIC) == ANSWER

    run("compiled", test)
