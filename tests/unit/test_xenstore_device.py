"""The device's transport: what its writes may do that a socket's do not. A pseudo-terminal stands in for the device."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import threading
import tty
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.unit.test_xenstore_connection import PATIENCE, read, reply
from unplugd.errors import StoreRefused, StoreUnavailable
from unplugd.xenstore import device
from unplugd.xenstore.connection import StoreConnection
from unplugd.xenstore.wire import HEADER, Op


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The stand-in: the xenstored side's descriptor, the device's path."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    yield ours, os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


def run(path: str, scenario: Callable[[StoreConnection], Awaitable[None]]) -> None:
    async def main() -> None:
        connection = StoreConnection(lambda path, token: None, device.MAX_PAYLOAD)
        device.DeviceTransport(path, connection)
        async with asyncio.timeout(PATIENCE):
            await scenario(connection)
            connection.drop("over")
            await connection.lost

    asyncio.run(main())


def test_requests_go_out_whole_and_in_order_and_answers_come_in(terminal: tuple[int, str]) -> None:
    ours, path = terminal

    async def scenario(connection: StoreConnection) -> None:
        requests = [read(connection) for _ in range(3)]
        sent = b""
        while len(sent) < 3 * (HEADER.size + 3):
            sent += await asyncio.to_thread(os.read, ours, 65536)
        assert [HEADER.unpack_from(sent, at)[1] for at in range(0, len(sent), HEADER.size + 3)] == [1, 2, 3]
        os.write(ours, b"".join(reply(Op.READ, number, b"%d" % number) for number in (1, 2, 3)))
        assert await asyncio.gather(*requests) == [b"1", b"2", b"3"]

    run(path, scenario)


def test_more_than_the_kernel_takes_is_refused(terminal: tuple[int, str]) -> None:
    async def scenario(connection: StoreConnection) -> None:
        for size, refused in ((device.MAX_PAYLOAD, False), (device.MAX_PAYLOAD + 1, True)):
            request = connection.request(Op.WRITE, "/a", b"x" * size, bytes)
            assert (request.done() and isinstance(request.exception(), StoreRefused)) == refused
            request.cancel()

    run(terminal[1], scenario)


def failing(code: int) -> Callable[[int, bytes], None]:
    def write(fd: int, message: bytes) -> None:
        raise OSError(code, os.strerror(code))

    return write


def test_a_watch_that_the_kernel_refuses_by_the_write_is_that_request_s_answer(
    terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_write_whole", failing(errno.EEXIST))

    async def scenario(connection: StoreConnection) -> None:
        with pytest.raises(StoreRefused) as caught:
            await connection.request(Op.WATCH, "/a", b"/a\x001\0", bytes)
        assert caught.value.code == "EEXIST"
        assert connection.dropped == ""

    run(terminal[1], scenario)


def test_a_device_that_breaks_is_a_lost_connection(
    terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_write_whole", failing(errno.EIO))

    async def scenario(connection: StoreConnection) -> None:
        with pytest.raises(StoreUnavailable):
            await read(connection)
        assert os.strerror(errno.EIO) in await connection.lost

    run(terminal[1], scenario)


def test_a_write_that_hangs_in_the_kernel_holds_nothing_else_up(
    terminal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a WATCH does while xenstored hangs.
    released = threading.Event()

    def hang(fd: int, message: bytes) -> None:
        released.wait(PATIENCE)

    monkeypatch.setattr(device, "_write_whole", hang)

    async def scenario(connection: StoreConnection) -> None:
        with pytest.raises(StoreUnavailable):
            await read(connection, deadline=0.05)

    try:
        run(terminal[1], scenario)
        assert not released.is_set()
    finally:
        released.set()
    for thread in threading.enumerate():
        if thread.name == "xenbus writer":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_what_is_not_there_or_is_no_such_device_is_said_and_leaves_nothing_open() -> None:
    async def main() -> None:
        connection = StoreConnection(lambda path, token: None)
        before = os.listdir("/proc/self/fd")
        for path in ("/nonexistent/xenbus", "/dev/null"):
            with pytest.raises(OSError, match=r"."):
                device.DeviceTransport(path, connection)
        assert os.listdir("/proc/self/fd") == before

    asyncio.run(main())
