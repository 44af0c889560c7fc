"""The supervisor with real processes, but children that know nothing of Xen."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest

from unplugd.attach import child, supervisor
from unplugd.attach.child import AttachedDomain, Ended
from unplugd.attach.confine import Identity
from unplugd.attach.serverids import ServerId, ServerIds
from unplugd.attach.supervisor import DEVICE_MODELS, Supervisor
from unplugd.config.attach import AttachConfig
from unplugd.core import pageoffer
from unplugd.xenstore.embedded import EmbeddedStore

PATIENCE = 30.0


def fake_child(
    domain: AttachedDomain, end: socket.socket, kept: ServerIds, identity: Identity, config: AttachConfig, parent: int
) -> NoReturn:
    """Keeps server 1, says so, asks for all connections, then waits to be told to go. Over the one for pages it says
    something. AttachedDomain 9 is a PV domain, domain 8 dies at once."""
    status = 99
    try:
        end.setblocking(True)
        if domain.domid == 9:
            os._exit(Ended.NOT_HVM)
        if domain.domid == 10:
            compromised(end)
        kept.save(ServerId(domain.domid, domain.uuid, 1))
        end.send(f"attached as {os.getpid()}".encode())
        if domain.domid == 8:
            os._exit(Ended.FAILED)
        for what in ("unplugd", "qemu", "pages"):
            end.send(f"connect {what}".encode())
            data, descriptors, _, _ = socket.recv_fds(end, 100, 1)
            end.send(f"log {data.decode()} {len(descriptors)}".encode())
            if what == "pages" and descriptors:
                pages = socket.socket(fileno=descriptors[0])
                assert pages.type == socket.SOCK_SEQPACKET
                pages.send(b"an offer")
        if end.recv(100) == b"detach":
            status = Ended.HANDED_BACK
    finally:
        os._exit(status)


def compromised(end: socket.socket) -> NoReturn:
    """Sends records and asks for connections as fast as the supervisor takes them."""
    for number in range(5000):
        end.send(f"log flood {number}".encode())
    for _ in range(1000):
        end.send(b"connect unplugd")
        socket.recv_fds(end, 100, 1)
    end.send(b"log done")
    end.recv(100)
    os._exit(Ended.HANDED_BACK)


class World:
    def __init__(self, directory: Path, store: EmbeddedStore) -> None:
        self.directory = directory
        self.store = store
        self.said: list[tuple[int | None, str]] = []
        self.kept = ServerIds(directory)

    async def running(self, domid: int) -> None:
        await self.store.write(f"{DEVICE_MODELS}/{domid}/state", b"running")

    async def until(self, domid: int | None, text: str, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE):
            while sum(about == domid and text in said for about, said in self.said) < times:
                await asyncio.sleep(0.01)

    def pids(self, domid: int) -> list[int]:
        return [int(text.split()[-1]) for about, text in self.said if about == domid and "attached: as" in text]


@pytest.fixture(autouse=True)
def no_xen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "run", fake_child)
    monkeypatch.setattr(supervisor, "libraries", dict)
    monkeypatch.setattr(supervisor, "preload", lambda: None)
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr(supervisor, "_RETRIES", (0.0, 0.05))
    monkeypatch.setattr(supervisor, "_LOOK_AGAIN", 0.1)


def run(directory: Path, work: Callable[[World, Supervisor], Awaitable[None]]) -> World:
    async def main() -> World:
        store = EmbeddedStore()
        world = World(directory, store)
        monitor = str(directory / "qmp-{domid}")
        config = AttachConfig(monitor=monitor)
        one = Supervisor(store, directory, config, lambda domid, text: world.said.append((domid, text)))
        one.prepare()
        serving = asyncio.create_task(one.run())
        async with asyncio.timeout(2 * PATIENCE):
            while not store.connected:
                await asyncio.sleep(0.005)
            await work(world, one)
            one.stop()
            await serving
        assert one.domids == []
        return world

    return asyncio.run(main())


def test_a_domain_gets_a_process_when_its_device_model_runs(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        world.store.introduce(7, "a", "uuid-a")
        await asyncio.sleep(0.05)
        assert one.domids == []
        await world.running(7)
        await world.until(7, "refused qemu 0")
        assert one.domids == [7]
        assert world.kept.load(7, "uuid-a") == 1

    world = run(tmp_path, work)
    assert (7, "handed back to QEMU") in world.said
    assert (7, "refused unplugd 0") in world.said
    assert world.kept.domids() == []


def test_a_device_model_that_cannot_say_so_is_found_by_its_monitor(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        world.store.introduce(7, "a", "uuid-a")
        await world.store.write(f"{DEVICE_MODELS}/7/physmap", b"")
        await asyncio.sleep(0.5)
        assert one.domids == []
        (tmp_path / "qmp-7").touch()
        await world.until(7, "attached")
        (tmp_path / "qmp-7").unlink()

    run(tmp_path, work)


def test_sockets_are_connected_for_it(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        with socket.socket(socket.AF_UNIX) as unplugd, socket.socket(socket.AF_UNIX) as qemu:
            unplugd.bind(str(tmp_path / "dom7.sock"))
            unplugd.listen()
            qemu.bind(str(tmp_path / "qmp-7"))
            qemu.listen()
            world.store.introduce(7, "a", "uuid-a")
            await world.running(7)
            await world.until(7, "connected unplugd 1")
            await world.until(7, "connected qemu 1")

    run(tmp_path, work)


def test_who_lends_its_page_is_the_supervisors_word(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unplugd:
            unplugd.bind(str(tmp_path / pageoffer.SOCKET))
            unplugd.listen()
            world.store.introduce(7, "a", "uuid-a")
            await world.running(7)
            await world.until(7, "connected pages 1")
            connection, _ = unplugd.accept()
            with connection:
                connection.setblocking(False)
                assert pageoffer.greeted(connection.recv(100)) == 7
                async with asyncio.timeout(PATIENCE):
                    assert await asyncio.get_running_loop().sock_recv(connection, 100) == b"an offer"

    run(tmp_path, work)


def test_where_nobody_borrows_pages_that_is_said(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        world.store.introduce(7, "a", "uuid-a")
        await world.running(7)
        await world.until(7, "refused pages 0")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unplugd:
            unplugd.bind(str(tmp_path / pageoffer.SOCKET))  # nobody listens there
            world.store.introduce(6, "b", "uuid-b")
            await world.running(6)
            await world.until(6, "refused pages 0")

    run(tmp_path, work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_socket_of_another_user_is_connected_as_that_user() -> None:
    with TemporaryDirectory() as directory:  # tmp_path is for nobody else
        os.chmod(directory, 0o711)
        _connect_as_owner(Path(directory))


def _connect_as_owner(directory: Path) -> None:
    path = directory / "dom7.sock"

    async def work(world: World, one: Supervisor) -> None:
        with socket.socket(socket.AF_UNIX) as unplugd:
            unplugd.bind(str(path))
            unplugd.listen()
            os.chown(path, 60007, 60007)
            path.chmod(0o600)
            world.store.introduce(7, "a", "uuid-a")
            await world.running(7)
            await world.until(7, "connected unplugd 1")
            connection, _ = unplugd.accept()
            with connection:
                who = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                assert int.from_bytes(who[4:8], "little") == 60007
        assert os.geteuid() == 0

    run(directory, work)


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        world.store.introduce(7, "a", "uuid-a")
        await world.running(7)
        await world.until(7, "attached")
        os.kill(world.pids(7)[0], signal.SIGKILL)
        await world.until(7, "ended by SIGKILL")
        await world.until(7, "attached", 2)
        assert one.domids == [7]
        assert world.kept.load(7, "uuid-a") == 1

    run(tmp_path, work)


def test_one_that_keeps_dying_does_not_stop_the_others(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        for domid in (7, 8):
            world.store.introduce(domid, "", f"uuid-{domid}")
            await world.running(domid)
        await world.until(8, "with status 1", 3)
        await world.until(7, "attached")

    run(tmp_path, work)


def test_a_domain_that_goes_takes_its_process_with_it(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        world.store.introduce(7, "a", "uuid-a")
        await world.running(7)
        await world.until(7, "attached")
        await world.store.remove(f"{DEVICE_MODELS}/7")
        world.store.release(7)
        await world.until(7, "the domain is gone")
        assert world.kept.domids() == []
        assert one.domids == []
        world.store.introduce(7, "b", "uuid-b")  # the domid is used again
        await world.running(7)
        await world.until(7, "attached", 2)
        assert world.kept.load(7, "uuid-b") == 1

    run(tmp_path, work)


def test_a_xenstored_that_comes_back_empty_is_not_believed(tmp_path: Path) -> None:
    """As long as the domain has a device model: an id that is forgotten would leave a vCPU hanging."""

    async def work(world: World, one: Supervisor) -> None:
        (tmp_path / "qmp-7").touch()
        world.store.introduce(7, "a", "uuid-a")
        await world.running(7)
        await world.until(7, "attached")
        world.store.lose("it crashed")
        await world.until(None, "it crashed")
        world.store.release(7)
        world.store.restore()
        async with asyncio.timeout(PATIENCE):
            while not world.store.connected:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)
        assert one.domids == [7]
        assert world.kept.load(7, "uuid-a") == 1
        (tmp_path / "qmp-7").unlink()
        await world.until(7, "the domain is gone")

    run(tmp_path, work)


def test_domains_without_ioreq_servers_are_left_alone(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        world.store.introduce(9, "pv", "uuid-9")
        await world.running(9)
        world.store.introduce(7, "a", "uuid-a")
        await world.running(7)
        await world.until(7, "attached")
        assert all(domid != 9 for domid, _ in world.said)

    run(tmp_path, work)


def test_files_of_domains_that_are_gone_are_removed(tmp_path: Path) -> None:
    kept = ServerIds(tmp_path)
    kept.prepare()
    kept.save(ServerId(12, "old", 1))

    async def work(world: World, one: Supervisor) -> None:
        while world.kept.domids():
            await asyncio.sleep(0.01)

    run(tmp_path, work)


def test_a_process_that_floods_is_limited(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        with socket.socket(socket.AF_UNIX) as unplugd:
            unplugd.bind(str(tmp_path / "dom10.sock"))
            unplugd.listen(2000)
            unplugd.setblocking(False)
            world.store.introduce(10, "evil", "uuid-10")
            world.store.introduce(7, "a", "uuid-a")
            await world.running(10)
            await world.running(7)
            await world.until(7, "attached")
            accepted = 0
            async with asyncio.timeout(PATIENCE):
                while sum(about == 10 for about, _ in world.said) < 100 or accepted < 200:
                    try:
                        unplugd.accept()[0].close()
                        accepted += 1
                    except BlockingIOError:
                        await asyncio.sleep(0.01)
            os.kill(one._children[10].pid, signal.SIGKILL)
            await world.until(10, "were not written")
            said = [text for about, text in world.said if about == 10]
            assert len(said) < 200
            assert sum(len(text) for text in said) < 20_000

    run(tmp_path, work)


def test_a_socket_that_is_not_connected_to_is_said(tmp_path: Path) -> None:
    async def work(world: World, one: Supervisor) -> None:
        with socket.socket(socket.AF_UNIX) as precious:
            precious.bind(str(tmp_path / "precious"))
            precious.listen()
            (tmp_path / "qmp-7").symlink_to(tmp_path / "precious")
            world.store.introduce(7, "a", "uuid-a")
            await world.running(7)
            await world.until(7, "refused qemu 0")
            assert any("qmp-7: is not a socket" in text for _, text in world.said)

    run(tmp_path, work)
