"""What becomes of a domain from its introduction to its release."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.lab.client import allowed
from tests.lab.host import OTHER_UUID, UUID, Host, host, until
from unplugd import lifecycle
from unplugd.domains.domain import Domain
from unplugd.domains.nodes import DomainNodes
from unplugd.domains.statefile import read_note
from unplugd.host import longwork
from unplugd.lifecycle import Domains
from unplugd.sinks.records import Event
from unplugd.sockets.access import ConnectionPolicy

FACTS = DomainNodes("web-01", UUID)


class World:
    """A host whose domains are served, and what others were told of them."""

    def __init__(self, one: Host) -> None:
        self.one = one
        self.tasks: list[asyncio.Task[None]] = []
        self.gone: list[int] = []
        self.verified: list[Domain] = []
        self.numbers: list[int] = []
        self.calm = asyncio.Event()
        self.served = Domains(
            one.settings, ConnectionPolicy([os.geteuid()]), allowed, one.poller, {}, self.spawn,
            gone=self.forget, quiet=self.calm.wait, verify=self.verified.append)
        self.served.changed_number = lambda: self.numbers.append(len(self.served.domains))

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def forget(self, domain: Domain) -> None:
        self.gone.append(domain.domid)

    def path(self, domid: int) -> Path:
        return self.one.directory / f"dom{domid}.sock"

    def said(self, event: Event) -> list[str]:
        return self.one.journald.of(event)


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    async with host(directory) as one:
        it = World(one)
        try:
            yield it
        finally:
            for task in it.tasks:
                task.cancel()
            await asyncio.gather(*it.tasks, return_exceptions=True)
            it.served.stop()


def test_a_domain_comes_and_goes(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.served.introduced(7, FACTS)
            status = it.path(7).lstat()
            assert stat.S_ISSOCK(status.st_mode)
            assert stat.S_IMODE(status.st_mode) == 0o600
            assert it.said(Event.INTRODUCED) == [f"web-01 (domain 7): served at {it.path(7)}"]
            note = read_note(tmp_path / "state", 7, it.one.settings.boot)
            assert note is not None
            assert DomainNodes.unpack(note) == FACTS
            it.served.released(7)
            assert it.gone == [7]
            assert not it.path(7).exists()
            assert not (tmp_path / "state" / "dom7").exists()
            assert it.said(Event.RELEASED) == ["web-01 (domain 7): released"]
            assert it.numbers == [1, 0]

    asyncio.run(main())


def test_another_uuid_is_another_guest(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.served.introduced(7, FACTS)
            first = it.served.domains[7]
            it.served.changed(7, DomainNodes("web-02", UUID, unlimited=True))
            assert it.served.domains[7] is first
            assert (first.name, first.unlimited) == ("web-02", True)
            it.served.changed(7, DomainNodes("db-01", OTHER_UUID))
            assert it.served.domains[7] is not first
            assert it.gone == [7]
            assert it.path(7).exists()

    asyncio.run(main())


def test_a_socket_that_is_not_to_be_had_is_tried_again_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "SOCKET_RETRY", 0.01)

    async def main() -> None:
        async with world(tmp_path) as it:
            (tmp_path / "dom7.new").mkdir()  # in the way
            it.served.introduced(7, FACTS)
            it.served.introduced(8, DomainNodes("db-01", OTHER_UUID))
            assert it.path(8).exists()
            assert [text.partition(": ")[2].partition(":")[0] for text in it.said(Event.SINK_FAILED)] == ["no socket"]
            await asyncio.sleep(0.05)
            assert len(it.said(Event.SINK_FAILED)) == 1, "once"
            (tmp_path / "dom7.new").rmdir()
            await until(it.path(7).exists)
            assert len(it.said(Event.INTRODUCED)) == 2

    asyncio.run(main())


def test_a_domain_that_goes_before_it_has_a_socket_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "SOCKET_RETRY", 0.01)

    async def main() -> None:
        async with world(tmp_path) as it:
            (tmp_path / "dom7.new").mkdir()
            it.served.introduced(7, FACTS)
            it.served.released(7)
            (tmp_path / "dom7.new").rmdir()
            await asyncio.wait_for(it.tasks[0], 20)
            assert not it.path(7).exists()

    asyncio.run(main())


def test_a_stale_socket_and_one_that_was_being_made_are_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.served.introduced(7, FACTS)
            os.rename(it.path(7), tmp_path / "kept")
            os.link(tmp_path / "kept", tmp_path / "dom8.new")
            os.link(tmp_path / "kept", it.path(8))
            before = it.path(8).lstat().st_ino
            it.served.introduced(8, DomainNodes("db-01", OTHER_UUID))
            assert it.path(8).lstat().st_ino != before
            assert not (tmp_path / "dom8.new").exists()

    asyncio.run(main())


def test_guests_are_served_between_two_domains_that_follow_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            for domid in range(1, 6):
                it.served.introduced(domid, DomainNodes(f"vm{domid}", ""))
            uids: list[list[int]] = []
            access = ConnectionPolicy(None)

            def serve() -> bool:
                uids.append([domid for domid in range(1, 6) if it.served._listeners[domid]._access is access])
                return False

            monkeypatch.setattr(longwork, "serve_guests", serve)
            it.served.configure(access)
            assert uids == [list(range(1, domid + 1)) for domid in range(1, 6)]

    asyncio.run(main())


def test_another_guest_of_the_same_domid_and_uuid_begins_anew(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.served.introduced(7, FACTS)
            assert it.verified == []
            first = it.served.domains[7]
            first.guest.platform.product = 3
            first.state.commit(first.guest)
            it.served.touched(7)
            assert it.verified == []  # it has published nothing
            it.served.noted(first, True)
            it.served.touched(7)
            assert it.verified == [first]
            it.served.replaced(first)
            second = it.served.domains[7]
            assert second is not first
            assert second.product is None
            assert it.said(Event.RELEASED) == ["web-01 (domain 7): released"]
            it.served.noted(first, True)  # too late
            it.served.replaced(first)
            assert it.served.domains[7] is second

    asyncio.run(main())


def test_whether_nodes_are_published_outlives_the_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            it.served.introduced(7, FACTS)
            it.served.noted(it.served.domains[7], True)
            it.served.changed(7, FACTS._replace(name="renamed"))
            it.served.stop()
            it.served.domains.clear()
            it.served.introduced(7, FACTS)
            assert it.verified == [it.served.domains[7]]
            it.served.changed(7, FACTS._replace(uuid=OTHER_UUID))
            assert len(it.verified) == 1

    asyncio.run(main())
