"""What a domain needs around it, in this process: a stand-in for journald, sinks, settings, an embedded xenstore.

Nothing here starts a process; the real neighbours have rooms of their own beside this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

from unplugd.config.load import Config, LogConfig
from unplugd.core.counters import Counters
from unplugd.domains.domain import Domain
from unplugd.domains.settings import Settings
from unplugd.sinks.delivery import Delivery
from unplugd.sinks.journal import Journal
from unplugd.sinks.records import Event
from unplugd.sockets.loop import open_poller, table_types
from unplugd.xenstore.embedded import EmbeddedStore

UUID = "4f0e0c5e-0000-4000-8000-000000000007"
OTHER_UUID = "4f0e0c5e-0000-4000-8000-000000000008"


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until the condition holds; AssertionError after `seconds`."""
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to hold")


class FakeJournald:
    """A datagram socket that reads the native protocol, when it is asked to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, str]] = []
        self.socket: socket.socket | None = None
        self.start()

    def start(self) -> None:
        """Listen, at a new socket."""
        self.stop()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(self.path))

    def stop(self) -> None:
        """As a journald that is gone."""
        if self.socket is not None:
            self.read()
            self.socket.close()
            self.socket = None
        self.path.unlink(missing_ok=True)

    def read(self) -> list[dict[str, str]]:
        """All entries so far."""
        while self.socket is not None:
            try:
                data = self.socket.recv(1 << 20)
            except BlockingIOError:
                break
            self.entries.append(dict(part.split("=", 1) for part in data.decode().splitlines()))
        return self.entries

    def of(self, event: Event) -> list[str]:
        """The messages of one kind."""
        return [entry["MESSAGE"] for entry in self.read() if entry["MESSAGE_ID"] == event.message_id]

    @property
    def lines(self) -> list[str]:
        """Lines of guests."""
        return self.of(Event.GUEST_LINE)


def delivery(config: LogConfig, directory: Path, journald: Path) -> Delivery:
    """A Delivery whose journal is at `journald`."""
    with patch("unplugd.sinks.delivery.Journal", lambda: Journal(str(journald))):
        return Delivery(config, directory)


class Host:
    """Settings for domains, with what they told."""

    def __init__(self, directory: Path, config: Config) -> None:
        self.directory = directory
        self.journald = FakeJournald(directory / "journal")
        (directory / "state").mkdir(exist_ok=True)
        self.counters = Counters()
        self.poller = open_poller(self.counters)
        self.published: list[int] = []
        self.said: list[tuple[Event, str]] = []
        self._domains: list[Domain] = []
        self.settings = Settings(
            config._replace(runtime_dir=directory),
            delivery(config.log, directory / "state", journald=self.journald.path),
            self.counters,
            directory / "state",
            self.published.append,
        )
        self.settings.table_type, self.settings.rows_type = table_types()

    def say(self, event: Event, message: str) -> None:
        """A record of unplugd's own."""
        self.said.append((event, message))

    def domain(self, domid: int = 7, name: str = "web-01", uuid: str = UUID) -> Domain:
        """A domain of this host."""
        domain = Domain(domid, name, uuid, self.settings)
        self._domains.append(domain)
        return domain

    def stop(self) -> None:
        """The domains that a test has left."""
        for domain in self._domains:
            if domain.state.memory.closed:
                continue
            domain.stop()


@asynccontextmanager
async def host(directory: Path, config: Config | None = None) -> AsyncIterator[Host]:
    """A host, for a while."""
    one = Host(directory, config or Config())
    try:
        yield one
    finally:
        one.stop()
        await one.settings.delivery.stop(deadline=0.0)
        one.journald.stop()


@asynccontextmanager
async def connected(store: EmbeddedStore) -> AsyncIterator[EmbeddedStore]:
    """The store while it runs."""
    task = asyncio.get_running_loop().create_task(store.run(lambda: None, lambda reason: None))
    await until(lambda: store.connected)
    try:
        yield store
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
