"""The client against real xenstoreds, C and OCaml: what every store does, and what only a real one can do to it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from tests.lab.xenbus import XenbusStandIn
from tests.lab.xenstored import Xenstored
from tests.store_behaviour import PATIENCE, Drive, Seen, StoreBehaviour
from unplugd.config.load import XenstoreConfig
from unplugd.errors import NoSuchNode, StoreRefused, StoreUnavailable
from unplugd.xenstore import connection
from unplugd.xenstore.choice import open_store, socket_paths
from unplugd.xenstore.client import Client, Endpoint
from unplugd.xenstore.store import Store

UUID = "4f0e0c5e-0000-4000-8000-000000000007"


class Link:
    """How a client's connection fares."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.said: list[str] = []
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(client.run(self._connected, self._lost))

    def _connected(self) -> None:
        assert self.client.connected
        self.said.append("connected")
        self._changed.set()

    def _lost(self, reason: str) -> None:
        assert not self.client.connected
        self.said.append(reason)
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until that holds; looked at whenever the connection comes or goes."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def connected(self, times: int = 1) -> None:
        await self.until(lambda: self.said.count("connected") >= times and self.client.connected)

    async def lost(self) -> None:
        await self.until(lambda: not self.client.connected)


@asynccontextmanager
async def linked(*endpoints: Endpoint) -> AsyncIterator[Link]:
    """A running client; afterwards it has no task and no thread."""
    client = Client(endpoints)
    link = Link(client)
    try:
        yield link
    finally:
        await client.close()
        async with asyncio.timeout(PATIENCE):
            await link.task
    assert asyncio.all_tasks() == {asyncio.current_task()}
    async with asyncio.timeout(PATIENCE):
        while any(thread.name == "xenbus writer" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)


def run(xenstored: Xenstored, scenario: Callable[[Client, Link], Awaitable[None]]) -> None:
    async def main() -> None:
        async with linked(Endpoint(str(xenstored.socket))) as link:
            await link.connected()
            await scenario(link.client, link)

    asyncio.run(main())


class TestAsEveryStore(StoreBehaviour):
    @pytest.fixture
    def drive(self, xenstored: Xenstored) -> Drive:
        def driver(scenario: Callable[[Store], Awaitable[None]]) -> None:
            run(xenstored, lambda client, link: scenario(client))

        return driver


@pytest.mark.parametrize("xenstored", ["c"], indirect=True)
class TestByTheDevice(StoreBehaviour):
    """The same by a stand-in for /dev/xen/xenbus: a pseudo-terminal, bridged to the C xenstored."""

    @pytest.fixture
    def drive(self, xenstored: Xenstored) -> Drive:
        def driver(scenario: Callable[[Store], Awaitable[None]]) -> None:
            async def main(device: str) -> None:
                async with linked(Endpoint(device, is_device=True)) as link:
                    await link.connected()
                    await scenario(link.client)

            with XenbusStandIn(xenstored.socket) as device:
                asyncio.run(main(device.path))

        return driver


# --- domains and guests ---


def test_domains_come_and_go(xenstored: Xenstored) -> None:
    async def scenario(client: Client, link: Link) -> None:
        come, gone = Seen(), Seen()
        await client.watch("@introduceDomain", come)
        await client.watch("@releaseDomain", gone)
        xenstored.create(7, "web-01", UUID)
        await come.until("@introduceDomain")
        assert await client.is_introduced(7)
        assert await client.read("/local/domain/7/name") == b"web-01"
        assert await client.read("/local/domain/7/vm") == f"/vm/{UUID}".encode()
        assert "7" in await client.directory("/local/domain")

        xenstored.set_state(7, "s")  # shut down, and still there
        await gone.until("@releaseDomain")
        assert await client.is_introduced(7)

        gone.paths.clear()
        xenstored.destroy(7)
        await gone.until("@releaseDomain")
        assert not await client.is_introduced(7)

    run(xenstored, scenario)


def test_what_a_guest_writes_is_seen_and_what_is_ours_it_cannot_touch(xenstored: Xenstored) -> None:
    async def scenario(client: Client, link: Link) -> None:
        xenstored.create(7, "web-01", UUID)
        guest = xenstored.guest(7)
        seen = Seen()
        await client.watch("/local/domain/7/data", seen)
        guest.write("data/report", b"\x00hostile\xff")
        await seen.until("/local/domain/7/data/report")
        assert await client.read("/local/domain/7/data/report") == b"\x00hostile\xff"

        async with client.transaction() as tx:
            await client.write("/local/domain/7/unplug/product", b"3", tx=tx)
            for path in ("/local/domain/7/unplug", "/local/domain/7/unplug/product"):
                await client.set_permissions(path, ["n0"], tx=tx)
        assert xenstored.dom0.permissions("/local/domain/7/unplug/product") == ["n0"]
        for request in (lambda: guest.read("unplug/product"), lambda: guest.write("unplug/product", b"4")):
            with pytest.raises(Exception, match="EACCES"):
                request()

    run(xenstored, scenario)


@pytest.mark.timeout(300)
def test_a_thousand_domains_are_read_at_once(xenstored: Xenstored) -> None:
    async def scenario(client: Client, link: Link) -> None:
        come = Seen()
        await client.watch("@introduceDomain", come)
        domids = range(1, 1001)
        for domid in domids:
            await asyncio.gather(
                client.write(f"/local/domain/{domid}/name", b"guest-%d" % domid, deadline=PATIENCE),
                client.write(f"/local/domain/{domid}/vm", b"/vm/%d" % domid, deadline=PATIENCE),
            )
            xenstored.introduce(domid)
        await come.until("@introduceDomain")
        listed = await client.directory("/local/domain", deadline=PATIENCE)
        assert set(map(int, listed)) - {0} == set(domids)
        names = asyncio.gather(*(client.read(f"/local/domain/{d}/name", deadline=PATIENCE) for d in domids))
        introduced = asyncio.gather(*(client.is_introduced(d, deadline=PATIENCE) for d in domids))
        assert await names == [b"guest-%d" % d for d in domids]
        assert all(await introduced)
        seen = [Seen() for _ in domids]
        watches = (client.watch(f"/local/domain/{d}/name", s) for d, s in zip(domids, seen, strict=True))
        await asyncio.gather(*watches)
        await client.write("/local/domain/777/name", b"renamed")
        await seen[776].until("/local/domain/777/name")
        assert [s.paths for s in seen].count([]) == 999

    run(xenstored, scenario)


# --- quotas, limits ---


def test_a_directory_that_changes_while_it_is_read_is_never_a_mixture(xenstored: Xenstored) -> None:
    # On the C xenstored a large directory comes by parts.
    async def scenario(client: Client, link: Link) -> None:
        names = {f"entry-{number:05}" for number in range(1000)}
        await asyncio.gather(*(client.write(f"/test/{name}", b"", deadline=PATIENCE) for name in names))
        done = False

        async def replace() -> None:
            for turn in range(60):
                await client.write(f"/test/aaaa-{turn}", b"")
                await client.remove(f"/test/aaaa-{turn}")

        async def read() -> None:
            while not done:
                try:
                    listed = await client.directory("/test", deadline=PATIENCE)
                except StoreUnavailable as error:
                    # It gives up in the end, rather than tell what never was.
                    if "faster than it can be read" not in str(error):
                        raise
                else:
                    assert len(listed) == len(set(listed))
                    assert {name for name in listed if not name.startswith("aaaa-")} == names

        reading = asyncio.create_task(read())
        await replace()
        done = True
        await reading
        assert set(await client.directory("/test")) == names

    run(xenstored, scenario)


def test_a_value_over_the_daemon_s_own_limit_is_refused_by_its_word(xenstored: Xenstored) -> None:
    async def scenario(client: Client, link: Link) -> None:
        xenstored.create(7, "web-01", UUID)
        await client.write("/test/a", b"x" * 2000)
        if xenstored.kind == "ocaml":  # the C one does not limit dom0
            with pytest.raises(StoreRefused) as caught:
                await client.write("/test/a", b"x" * 4000)
            assert caught.value.code == "E2BIG"

    run(xenstored, scenario)


# --- hanging, dying, coming back ---


def test_deadlines_hold_when_xenstored_hangs_and_late_answers_harm_nobody(xenstored: Xenstored) -> None:
    async def scenario(client: Client, link: Link) -> None:
        await client.write("/test/a", b"1")
        xenstored.pause()
        begun = time.monotonic()
        hasty = [client.read("/test/a", deadline=0.2) for _ in range(500)]
        patient = client.read("/test/a", deadline=PATIENCE)
        late_write = client.write("/test/b", b"late", deadline=0.2)
        late_transaction = asyncio.create_task(client.transaction().__aenter__())
        for result in await asyncio.gather(*hasty, late_write, return_exceptions=True):
            assert isinstance(result, StoreUnavailable)
        assert time.monotonic() - begun < PATIENCE
        late_transaction.cancel()
        await asyncio.wait([late_transaction])
        assert client.connected
        xenstored.resume()
        assert await patient == b"1"
        # What nobody waited for was done all the same, and the connection is in step.
        assert await client.read("/test/b") == b"late"
        assert link.said == ["connected"]

    run(xenstored, scenario)


def test_a_xenstored_that_hangs_for_long_is_left_and_met_again(
    xenstored: Xenstored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE", 0.5)

    async def scenario(client: Client, link: Link) -> None:
        seen = Seen()
        await client.watch("/test/a", seen)
        xenstored.pause()
        with pytest.raises(StoreUnavailable, match="has not answered for"):
            await client.read("/test/a", deadline=PATIENCE)
        await link.lost()
        # Its socket's backlog still takes connections, and then no more; neither may be taken for an answer.
        await link.until(lambda: len(link.said) >= 3)
        assert not client.connected
        with pytest.raises(StoreUnavailable):
            await client.read("/test/a")
        xenstored.resume()
        await link.connected(times=2)
        await client.write("/test/a", b"1")
        await seen.until("/test/a")

    run(xenstored, scenario)


def test_after_a_crash_requests_fail_and_watches_come_back(xenstored: Xenstored) -> None:
    async def scenario(client: Client, link: Link) -> None:
        seen, come, ended = Seen(), Seen(), Seen()
        await client.write("/test/a", b"1")
        await client.watch("/test/a", seen)
        await client.watch("/test/a", ended)
        await client.watch("@introduceDomain", come)

        xenstored.pause()
        pending = [client.read("/test/a", deadline=PATIENCE) for _ in range(100)]
        xenstored.kill()
        for result in await asyncio.gather(*pending, return_exceptions=True):
            assert isinstance(result, StoreUnavailable)
        await link.lost()
        with pytest.raises(StoreUnavailable):
            await client.read("/test/a")
        meanwhile = Seen()
        armed = client.watch("/test/b", meanwhile)
        await client.unwatch("/test/a", ended)
        await link.until(lambda: "Connection refused" in link.said[-1])
        assert str(xenstored.socket) in link.said[-1]

        xenstored.start()
        await link.connected(times=2)
        await armed
        assert client.reconnects == 1
        with pytest.raises(NoSuchNode):
            await client.read("/test/a")
        assert (seen.paths, come.paths, meanwhile.paths) == ([], [], [])
        await client.write("/test/a", b"1")
        await client.write("/test/b", b"1")
        xenstored.create(7, "web-01", UUID)
        await seen.until("/test/a")
        await meanwhile.until("/test/b")
        await come.until("@introduceDomain")
        assert ended.paths == []

    run(xenstored, scenario)


def test_a_transaction_does_not_outlive_its_connection(xenstored: Xenstored) -> None:
    async def scenario(client: Client, link: Link) -> None:
        async def be_overtaken_by_a_crash() -> None:
            async with client.transaction() as tx:
                await client.write("/test/a", b"1", tx=tx)
                xenstored.kill()
                xenstored.start()
                await link.connected(times=2)
                # xenstored counts from the start again: the other transaction has the same number there.
                async with client.transaction() as other:
                    with pytest.raises(StoreUnavailable):
                        await client.write("/test/stray", b"1", tx=tx)
                    await client.write("/test/b", b"1", tx=other)

        with pytest.raises(StoreUnavailable, match="the transaction"):
            await be_overtaken_by_a_crash()
        assert await client.directory("/test") == ["b"]

    run(xenstored, scenario)


def test_it_crashes_again_and_again(xenstored: Xenstored) -> None:
    async def scenario(client: Client, link: Link) -> None:
        seen = Seen()
        await client.watch("/test/a", seen)
        for crash in range(1, 4):
            xenstored.kill()
            xenstored.start()
            await link.connected(times=crash + 1)
            seen.paths.clear()
            await client.write("/test/a", b"%d" % crash)
            await seen.until("/test/a")
        assert client.reconnects == 3

    run(xenstored, scenario)


def test_the_device_is_opened_again_when_xenstored_says_nothing(
    xenstored: Xenstored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stand-in. Like the kernel's device it does not tell that xenstored is gone: only silence does."""
    monkeypatch.setattr(connection, "SILENCE", 0.5)

    async def main(device: str) -> None:
        async with linked(Endpoint(device, is_device=True)) as link:
            await link.connected()
            seen = Seen()
            await link.client.watch("/test/a", seen)
            xenstored.kill()
            with pytest.raises(StoreUnavailable):
                await link.client.read("/test/a", deadline=PATIENCE)
            xenstored.start()
            await link.connected(times=2)
            await link.client.write("/test/a", b"1")
            await seen.until("/test/a")

    with XenbusStandIn(xenstored.socket) as device:
        asyncio.run(main(device.path))


# --- without a xenstored that works ---


def test_it_waits_for_a_xenstored_that_is_not_there_yet(xenstored: Xenstored) -> None:
    async def main() -> None:
        xenstored.kill()
        xenstored.socket.unlink()
        async with linked(Endpoint(str(xenstored.socket)), Endpoint("/nonexistent/xenbus", True)) as link:
            armed = link.client.watch("/test/a", seen := Seen())
            await link.until(lambda: bool(link.said))
            assert "No such file or directory" in link.said[0]
            assert str(xenstored.socket) in link.said[0]
            with pytest.raises(StoreUnavailable):
                await link.client.read("/test/a")
            xenstored.start()
            await link.connected()
            await armed
            assert link.client.reconnects == 0
            await link.client.write("/test/a", b"1")
            await seen.until("/test/a")

    asyncio.run(main())


class Impostor:
    """Listens where xenstored should, takes connections, and says `words` to each, if any."""

    def __init__(self, path: Path, words: bytes) -> None:
        self.path = path
        self._words = words

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._words)
        await reader.read()
        writer.close()


def test_who_does_not_speak_xenstore_is_left(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        client = Client([Endpoint(str(path))])
        async with Impostor(path, b"220 mail.example.org ESMTP\r\n"):
            link = Link(client)
            await link.until(lambda: bool(link.said))
            assert "broke its protocol" in link.said[0]
            await client.close()
            await link.task

    asyncio.run(main())


def test_a_full_backlog_is_no_connection(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as hung:
            hung.bind(path)
            hung.listen(0)
            waiting = []
            while True:
                one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                waiting.append(one)
                if one.connect_ex(path):
                    break
            async with linked(Endpoint(path)) as link:
                await link.until(lambda: bool(link.said))
                assert "Resource temporarily unavailable" in link.said[0]
            for one in waiting:
                one.close()

    asyncio.run(main())


def test_what_is_waited_for_ends_with_close(xenstored: Xenstored) -> None:
    async def main() -> None:
        async with linked(Endpoint(str(xenstored.socket))) as link:
            client = link.client
            await link.connected()
            await client.write("/test/a", b"1")
            xenstored.pause()
            waiting: list[asyncio.Future[Any]] = [
                client.read("/test/a", deadline=1000),
                client.watch("/test/a", Seen()),
            ]
            await client.close()
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, StoreUnavailable)
            requests: list[asyncio.Future[Any]] = [client.read("/test/a"), client.watch("/test/a", Seen())]
            for request in requests:
                with pytest.raises(StoreUnavailable, match="closed"):
                    await request
            with pytest.raises(RuntimeError):
                await client.run(lambda: None, lambda reason: None)

    asyncio.run(main())


def open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:  # the directory itself
            pass
    return found


def test_close_leaves_no_file_open(xenstored: Xenstored) -> None:
    async def use(endpoint: Endpoint) -> None:
        async with linked(endpoint) as link:
            await link.connected()
            await link.client.watch("/test/a", Seen())
            await link.client.write("/test/a", b"1")

    async def fail(endpoint: Endpoint) -> None:
        async with linked(endpoint) as link:
            await link.until(lambda: bool(link.said))

    before = open_files()
    by_socket = Endpoint(str(xenstored.socket))
    asyncio.run(use(by_socket))
    assert open_files() == before
    with XenbusStandIn(xenstored.socket) as device:
        asyncio.run(use(Endpoint(device.path, is_device=True)))
    assert open_files() == before
    xenstored.kill()
    before = open_files()
    asyncio.run(fail(by_socket))
    asyncio.run(fail(Endpoint("/dev/null", is_device=True)))  # a device that epoll does not take
    assert open_files() == before


def test_run_can_be_cancelled_and_begun_again(xenstored: Xenstored) -> None:
    async def main() -> None:
        client = Client([Endpoint(str(xenstored.socket))])
        link = Link(client)
        await link.connected()
        link.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await link.task
        assert not client.connected
        again = Link(client)
        await again.connected()
        await client.write("/test/a", b"1")
        with pytest.raises(RuntimeError):
            await client.run(lambda: None, lambda reason: None)
        await client.close()
        await again.task

    asyncio.run(main())


# --- which xenstored ---


def test_where_the_socket_is() -> None:
    assert socket_paths({}) == ["/run/xenstored/socket", "/var/run/xenstored/socket"]
    assert socket_paths({"XENSTORED_RUNDIR": "/x"}) == ["/x/socket"]
    assert socket_paths({"XENSTORED_RUNDIR": "/x", "XENSTORED_PATH": "/y"}) == ["/y"]


def test_the_configuration_chooses(xenstored: Xenstored) -> None:
    async def main(config: XenstoreConfig) -> None:
        store = open_store(config)
        connected = asyncio.Event()
        task = asyncio.create_task(store.run(connected.set, lambda reason: None))
        async with asyncio.timeout(PATIENCE):
            await connected.wait()
        await store.write("/test/chosen", b"1")
        await store.close()
        await task

    for backend in ("auto", "socket"):
        asyncio.run(main(XenstoreConfig(backend=backend, socket=str(xenstored.socket))))
        assert xenstored.dom0.read("/test/chosen") == b"1"
        xenstored.dom0.remove("/test/chosen")
