import asyncio
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from unplugd.sinks.stderr import StandardError

DEADLINE = 30.0
LINE = b"x" * 4000


@dataclass
class Reader:
    """Somebody's end of our standard error; `read` never waits."""

    fd: int
    ours: int

    def read(self) -> bytes:
        os.set_blocking(self.fd, False)
        found = b""
        while True:
            try:
                piece = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return found
            if not piece:
                return found
            found += piece

    def close(self) -> None:
        for fd in (self.fd, self.ours):
            try:
                os.close(fd)
            except OSError:
                pass


def pipe() -> Reader:
    return Reader(*os.pipe())


def stream() -> Reader:
    fd, ours = socket.socketpair()
    return Reader(fd.detach(), ours.detach())


def terminal() -> Reader:
    fd, ours = os.openpty()
    return Reader(fd, ours)


KINDS = [pipe, stream, terminal]


@pytest.fixture(params=KINDS)
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    found: Reader = request.param()
    yield found
    found.close()


async def writable(sink: StandardError) -> None:
    event = asyncio.Event()
    sink.when_writable(event.set)
    await asyncio.wait_for(event.wait(), DEADLINE)


def fill(sink: StandardError, text: bytes = LINE) -> int:
    """Write lines until it says no; return how many it took."""
    taken = 0
    while sink.write_line(text):
        taken += 1
        assert taken < 100_000
    return taken


def test_line_and_newline(reader: Reader) -> None:
    sink = StandardError(reader.ours)
    assert sink.write_line(b"one")
    assert sink.write_line(b"two\n")
    assert reader.read().replace(b"\r\n", b"\n") == b"one\ntwo\n"
    assert sink.problem is None
    assert not sink.pending
    sink.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reopened", [True, False])
def test_full_reader_never_blocks_and_gets_whole_lines(
    kind: Callable[[], Reader], reopened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it may not be opened again, as another user's terminal."""
    if not reopened:

        def refused(*_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr("unplugd.sinks.stderr.os.open", refused)

    async def scenario() -> None:
        reader = kind()
        sink = StandardError(reader.ours)
        flags = fcntl.fcntl(reader.ours, fcntl.F_GETFL)
        start = time.monotonic()
        taken = fill(sink)
        assert time.monotonic() - start < DEADLINE  # it did not wait for anybody
        assert taken > 0
        assert fcntl.fcntl(reader.ours, fcntl.F_GETFL) == flags
        found = b""
        waiter = asyncio.create_task(writable(sink))
        while not waiter.done():
            found += reader.read()
            await asyncio.sleep(0.001)
        assert not sink.pending
        while not sink.write_line(b"last"):
            found += reader.read()
            await asyncio.sleep(0.001)
        while not found.endswith(b"last\r\n" if kind is terminal else b"last\n"):
            found += reader.read()
            await asyncio.sleep(0.001)
        assert found.replace(b"\r\n", b"\n") == (LINE + b"\n") * taken + b"last\n"
        sink.close()
        reader.close()

    asyncio.run(asyncio.wait_for(scenario(), 2 * DEADLINE))


def test_unfinished_line_is_finished_without_another(reader: Reader) -> None:
    async def scenario() -> None:
        sink = StandardError(reader.ours)
        long = b"y" * 500_000  # more than any of them holds
        assert sink.write_line(long)
        assert sink.pending
        assert not sink.write_line(b"next")
        found = b""
        while not found.endswith(b"\n"):
            found += reader.read()
            await asyncio.sleep(0.001)
        assert found.replace(b"\r\n", b"\n") == long + b"\n"
        sink.close()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE))


@pytest.mark.parametrize("kind", [pipe, stream])
def test_reader_that_is_gone_is_an_error(kind: Callable[[], Reader]) -> None:
    async def scenario() -> None:
        reader = kind()
        sink = StandardError(reader.ours)
        fill(sink)
        waiter = asyncio.create_task(writable(sink))
        await asyncio.sleep(0)
        os.close(reader.fd)
        await waiter
        with pytest.raises(OSError) as raised:
            sink.write_line(b"x")
        assert raised.value.errno in {errno.EPIPE, errno.ECONNRESET}
        assert sink.problem is not None
        assert not sink.pending
        sink.close()
        reader.close()

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE))


def test_closed_standard_error_is_an_error() -> None:
    reader = pipe()
    reader.close()
    sink = StandardError(reader.ours)
    assert sink.problem is not None
    with pytest.raises(OSError):
        sink.write_line(b"x")
    sink.close()


def test_regular_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (tmp_path / "file").open("wb") as file:
            file.write(b"before\n")
            file.flush()
            sink = StandardError(file.fileno())
            assert sink.write_line(b"one")
            await writable(sink)
            sink.close()
            file.write(b"after\n")  # the descriptor that was given is still open
        assert (tmp_path / "file").read_bytes() == b"before\none\nafter\n"

    asyncio.run(scenario())


def test_full_device_is_tried_again() -> None:
    async def scenario() -> None:
        with open("/dev/full", "wb") as full:
            sink = StandardError(full.fileno())
            assert not sink.write_line(b"one")
            assert sink.problem == os.strerror(errno.ENOSPC)
            await writable(sink)
            assert not sink.write_line(b"one")
            sink.close()

    asyncio.run(scenario())


def test_close_forgets_who_waits() -> None:
    async def scenario() -> None:
        reader = pipe()
        sink = StandardError(reader.ours)
        fill(sink)
        sink.when_writable(lambda: pytest.fail("called after close"))
        sink.close()
        reader.read()
        await asyncio.sleep(0.05)
        reader.close()

    asyncio.run(scenario())
