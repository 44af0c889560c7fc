from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from unplugd.attach import broker
from unplugd.attach.broker import ChildEnd


def run(work: Callable[[ChildEnd, socket.socket, list[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        ours, theirs = broker.pair()
        happened: list[str] = []
        child = ChildEnd(theirs, lambda: happened.append("detach"), lambda: happened.append("gone"))
        child.start()
        try:
            async with asyncio.timeout(30):
                await work(child, ours, happened)
        finally:
            child.stop()
            ours.close()
            theirs.close()

    asyncio.run(main())


async def message(end: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(end, broker.MESSAGE_LIMIT)


def test_a_descriptor_is_passed() -> None:
    async def work(child: ChildEnd, ours: socket.socket, _: list[str]) -> None:
        asked = asyncio.create_task(child.connect("qemu"))
        assert await message(ours) == b"connect qemu"
        one, other = socket.socketpair()
        socket.send_fds(ours, [b"connected qemu"], [one.fileno()])
        one.close()
        with await asked as connection, other:
            assert not connection.getblocking()
            other.sendall(b"x")
            assert connection.recv(1) == b"x"

    run(work)


def test_refusals_and_second_requests() -> None:
    async def work(child: ChildEnd, ours: socket.socket, _: list[str]) -> None:
        asked = asyncio.create_task(child.connect("unplugd"))
        assert await message(ours) == b"connect unplugd"
        with pytest.raises(BlockingIOError):
            await child.connect("unplugd")
        ours.send(b"refused unplugd")
        with pytest.raises(ConnectionRefusedError):
            await asked

    run(work)


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    async def work(child: ChildEnd, ours: socket.socket, happened: list[str]) -> None:
        one, other = socket.socketpair()
        socket.send_fds(ours, [b"connected unplugd"], [one.fileno()])
        one.close()
        ours.send(b"detach")
        while happened != ["detach"]:
            await asyncio.sleep(0.005)
        assert other.recv(1) == b""
        other.close()

    run(work)


def test_the_supervisors_end_is_noticed() -> None:
    async def work(child: ChildEnd, ours: socket.socket, happened: list[str]) -> None:
        ours.close()
        while happened != ["gone"]:
            await asyncio.sleep(0.005)
        child.log("nobody hears this")

    run(work)


def test_log_texts_are_cut() -> None:
    async def work(child: ChildEnd, ours: socket.socket, _: list[str]) -> None:
        child.log("x" * 5000)
        assert len(await message(ours)) == broker.MESSAGE_LIMIT
        child.say("attached", "server 1")
        assert await message(ours) == b"attached server 1"

    run(work)


def test_connections_to_both_are_asked_for_side_by_side() -> None:
    async def work(child: ChildEnd, ours: socket.socket, _: list[str]) -> None:
        unplugd, pages = (asyncio.create_task(child.connect(what)) for what in ("unplugd", "pages"))
        assert [await message(ours), await message(ours)] == [b"connect unplugd", b"connect pages"]
        ours.send(b"refused pages")
        with pytest.raises(ConnectionRefusedError, match="pages"):
            await pages
        ours.send(b"refused unplugd")
        with pytest.raises(ConnectionRefusedError, match="unplugd"):
            await unplugd

    run(work)
