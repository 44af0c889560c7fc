"""A guest that libxl migrates keeps its rules and its log, against the real C xenstored and oxenstored.

libxl makes a domain `NAME--incoming` on the host that the guest comes to. On the host that it leaves, it renames the
domain to `NAME--migratedaway` and destroys it, or renames it back if the migration has failed. Both have the guest's
uuid. Here the nodes are written in this order; tests/xen does it with xl.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.test_ctl import ctl
from tests.lab import xenstored as lab
from tests.lab.daemon import Daemon, eventually, running, uuid
from tests.lab.xenstored import KINDS, Xenstored

WITHHELD = {"product": "experimental", "build": 0x9035E, "action": "withhold", "guests": ["web"]}
RULES: dict[str, Any] = {
    "blacklist": {"entry": [WITHHELD]},
    "guest": [{"match": ["web"], "rate": 77, "burst": 4000}],
}
GUEST = uuid(4000)


class Host:
    """A host with its xenstored and unplugd."""

    def __init__(self, xenstored: Xenstored, daemon: Daemon) -> None:
        self.xenstored = xenstored
        self.daemon = daemon
        self._domids = itertools.count(1)

    def receive(self, name: str = "web--incoming") -> int:
        """A domain of the guest, which unplugd serves."""
        domid = next(self._domids)
        self.xenstored.create(domid, name, GUEST)
        eventually(lambda: self.daemon.domain(domid))
        return domid

    def rename(self, domid: int, name: str) -> None:
        """Give a domain another name."""
        self.xenstored.dom0.write(f"/local/domain/{domid}/name", name.encode())
        eventually(lambda: (self.daemon.domain(domid) or {}).get("name"), lambda found: found == name)

    def destroy(self, domid: int) -> None:
        """Destroy a domain."""
        self.xenstored.destroy(domid)
        eventually(lambda: self.daemon.domain(domid) is None)

    def say(self, domid: int, text: str) -> None:
        """A line of the guest."""
        with self.daemon.connect(domid) as wire:
            wire.log(text.encode() + b"\n")

    def is_ruled(self, domid: int) -> None:
        """The guest's rules count, whatever it is called: the table, and the entry."""
        with self.daemon.connect(domid) as wire:
            wire.reset()
            assert wire.announce(0xFFFF, 0x9035E) == 0xD249
            assert [wire.write(0x10, 2, mask) for mask in (9, 2)] == [0, 0]
        known = self.daemon.domain(domid)
        assert known is not None
        assert (known["verdict"], known["log"]["rate"], known["log"]["burst"]) == ("withheld", 77, 4000)

    def log(self, what: object) -> list[str]:
        """The guest's lines, as `unplugctl log` shows them."""
        shown = ctl(self.daemon.file, "log", str(what)).splitlines()
        return [line.rsplit("  ", 1)[1] for line in shown]

    def files(self) -> set[str]:
        """The names of all guests' files."""
        return {path.name for path in self.daemon.log_directory.iterdir()}


@pytest.fixture(params=KINDS)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with lab.running(request.param) as xenstored, running() as run:
        config = {"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}, **RULES}
        yield Host(xenstored, run(config))


def test_away_and_back(host: Host) -> None:
    """To another host and back, after unplugd was killed meanwhile."""
    first = host.receive("web")
    host.say(first, "before")
    host.is_ruled(first)
    host.rename(first, "web--migratedaway")
    host.is_ruled(first)
    host.say(first, "leaving")
    eventually(lambda: host.log(first), lambda lines: lines == ["before", "leaving"])
    host.destroy(first)
    eventually(host.files, lambda files: files == {"guest-web.log"})
    assert host.log("web") == host.log("web--migratedaway") == ["before", "leaving"]
    host.daemon.kill()
    assert host.log("web") == ["before", "leaving"]
    host.daemon.start()

    second = host.receive()
    host.say(second, "returning")
    host.is_ruled(second)
    eventually(lambda: host.log(second), lambda lines: lines == ["returning"])
    host.rename(second, "web")
    host.is_ruled(second)
    host.say(second, "here")
    expected = ["before", "leaving", "returning", "here"]
    eventually(lambda: host.log("web"), lambda lines: lines == expected)
    assert host.files() == {"guest-web.log"}


def test_to_its_own_host(host: Host) -> None:
    first = host.receive("web")
    host.say(first, "before")
    second = host.receive()
    host.is_ruled(second)
    host.rename(first, "web--migratedaway")
    eventually(lambda: host.log(first), lambda lines: lines == ["before"])
    host.rename(second, "web")
    host.say(second, "after")
    eventually(lambda: host.log(second), lambda lines: lines == ["after"])
    host.destroy(first)
    eventually(lambda: host.log("web"), lambda lines: lines == ["before", "after"])
    assert host.log(GUEST) == ["before", "after"]
    assert host.files() == {"guest-web.log", "guest-web.log.1"}
    host.is_ruled(second)


def test_a_migration_that_fails(host: Host) -> None:
    first = host.receive("web")
    host.say(first, "before")
    second = host.receive()
    host.say(second, "not for long")
    host.rename(first, "web--migratedaway")
    host.destroy(second)
    host.rename(first, "web")
    host.say(first, "after")
    eventually(lambda: host.log("web"), lambda lines: lines == ["before", "after"])
    host.is_ruled(first)
