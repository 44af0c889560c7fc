"""Actions, rules for some guests and verdicts (contract section 2), against the real C xenstored and oxenstored.

Each action meets each driver family: its answers, orders, records, nodes and metrics.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import xenstored as lab
from tests.lab.daemon import Daemon, eventually, running, uuid
from tests.lab.frames import outs
from tests.lab.xenspeak import XenstoreError
from tests.lab.xenstored import KINDS, Xenstored
from unplugd.simulator.cli import play
from unplugd.simulator.devicemodel import DeviceModel
from unplugd.simulator.drivers import CITRIX, GPLPV, LINUX, VMDP_VARIANTS, XENBUS, XENBUS_2026, Driver

ACTIONS = ("report", "refuse", "withhold")
FAMILIES = {
    "linux": LINUX, "xensource-windows": CITRIX, "gplpv-windows": GPLPV, "vmdp": VMDP_VARIANTS[0],
    "experimental": XENBUS,
}  # fmt: skip
BUILDS = {"linux": 1, "xensource-windows": 86451, "gplpv-windows": 1, "vmdp": 20501, "experimental": 0x090100}


@dataclass
class World:
    """A xenstored with an unplugd, and domids that no other test uses."""

    xenstored: Xenstored
    daemon: Daemon
    domids: Iterator[int]

    def create(self, name: str | None = None) -> int:
        """A new domain that unplugd serves."""
        domid = next(self.domids)
        self.xenstored.create(domid, name or f"vm{domid}", uuid(domid))
        eventually(lambda: self.daemon.domain(domid))
        return domid

    def rename(self, domid: int, name: str) -> None:
        """The toolstack renames a domain."""
        self.xenstored.dom0.write(f"/local/domain/{domid}/name", name.encode())
        eventually(lambda: self.domain(domid)["name"], lambda found: found == name)

    def domain(self, domid: int) -> dict[str, Any]:
        """What the API says of a domain."""
        found = self.daemon.domain(domid)
        assert found is not None
        return found

    def played(self, driver: Driver, name: str | None = None) -> tuple[int, int]:
        """A new domain in which a driver ran: its domid, and the order that it got in all."""
        domid = self.create(name)
        with DeviceModel(self.daemon.socket(domid)) as device:
            return domid, play(driver, device).order

    def node(self, domid: int, name: str) -> str | None:
        """A published node; None until it is there."""
        try:
            return self.xenstored.dom0.read(f"/local/domain/{domid}/unplug/{name}").decode()
        except XenstoreError:
            return None

    def set_rules(self, **sections: Any) -> None:
        """Reload with these sections; nothing is left of those of an earlier test."""
        for section in ("blacklist", "guest", "policy"):
            self.daemon.config.pop(section, None)
        self.daemon.configure(sections)
        self.daemon.reload()


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with lab.running(request.param) as xenstored, running() as run:
        config = {"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}, "products": {"vmdp": 205}}
        yield World(xenstored, run(config), itertools.count(1))


VERDICTS = {
    ("report", True): ("reported", 0x49D2), ("report", False): ("reported", 0x49D2),
    ("refuse", True): ("refused", 0xD249), ("refuse", False): ("ignored", 0xD249),
    ("withhold", True): ("refused", 0xD249), ("withhold", False): ("withheld", 0xD249),
}  # fmt: skip


@pytest.mark.parametrize("product", FAMILIES)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("where", ["entry", "range", "node"])
def test_each_action_meets_each_family(world: World, where: str, action: str, product: str) -> None:
    driver, build = FAMILIES[product], BUILDS[product]
    verdict, magic = VERDICTS[action, driver is not XENBUS]
    path = f"/mh/driver-blacklist/{product}/{build}"
    match where:
        case "entry":
            world.set_rules(blacklist={
                "entry": [{"product": product, "build": build, "reason": "old", "action": action}]})
        case "range":
            world.set_rules(blacklist={"action": action, "range": [{"product": product, "from": build}]})
        case "node":
            world.set_rules(blacklist={"action": action})
            world.xenstored.dom0.write(path, b"by hand")
    try:
        result = "reported" if action == "report" else "blacklisted"
        before = world.daemon.value("unplugd_blacklist_lookups_total", result=result) or 0
        domid, order = world.played(driver)
        found = world.domain(domid)
    finally:
        if where == "node":
            world.xenstored.dom0.remove(path)
    asked = {"linux": 3, "xensource-windows": 3, "gplpv-windows": 3, "vmdp": 7, "experimental": 3}[product]
    assert order == (asked if verdict in ("reported", "ignored") else 0)
    assert (found["verdict"], found["unplugged_mask"]) == (verdict, order)
    assert found["blacklisted"] is (magic == 0xD249)
    assert action in found["rule"]
    assert ("node" in found["rule"]) is (where == "node" or (where, action) == ("entry", "refuse"))
    with world.daemon.connect(domid) as wire:
        assert wire.read(0x10, 2) == magic
    assert world.daemon.value("unplugd_blacklist_lookups_total", result=result) == before + 1
    labels = {"domid": domid, "uuid": uuid(domid)}
    assert world.daemon.samples("unplugd_domain_verdict").get(
        frozenset({**{key: str(value) for key, value in labels.items()}, "verdict": verdict}.items())) == 1
    wanted = {"blacklisted": str(int(magic == 0xD249)), "unplugged": str(order), "verdict": verdict}
    eventually(lambda: {name: world.node(domid, name) for name in wanted}, lambda nodes: nodes == wanted)
    said = world.daemon.stderr()
    who = rf"vm{domid} (domain {domid}): "
    assert (who + "refused, and unplugs" in said) is (verdict == "ignored")
    assert (f"build {build} is on the blacklist and only reported" in said) or verdict != "reported"
    assert (who + "unplug of" in said and "withheld" in said) or verdict != "withheld"


def test_what_xenstore_cannot_express_is_not_written_there(world: World) -> None:
    world.set_rules(blacklist={"action": "withhold", "entry": [
        {"product": "linux", "build": 11},
        {"product": "linux", "build": 12, "action": "withhold"},
        {"product": "linux", "build": 13, "action": "refuse"},
        {"product": "linux", "build": 14, "guests": ["*"]},
    ]})
    assert sorted(world.xenstored.dom0.directory("/mh/driver-blacklist/linux")) == ["11", "12"]
    domid = world.create()
    with world.daemon.connect(domid) as wire:
        for build, order in ((11, 0), (12, 0), (13, 3), (14, 0)):
            wire.reset()
            assert wire.announce(3, build) == 0xD249
            assert wire.write(0x10, 2, 3) == order


def test_a_less_strict_entry_does_not_save_from_a_node(world: World) -> None:
    world.set_rules(blacklist={"entry": [{"product": "linux", "build": 21, "action": "report"}]})
    domid = world.create()
    with world.daemon.connect(domid) as wire:
        assert wire.announce(3, 21) == 0x49D2
        world.xenstored.dom0.write("/mh/driver-blacklist/linux/21", b"")
        try:
            assert wire.announce(3, 21) == 0xD249
        finally:
            world.xenstored.dom0.remove("/mh/driver-blacklist/linux/21")


def test_observing_hits_nobody(world: World) -> None:
    world.set_rules(blacklist={"mode": "observe", "entry": [
        {"product": "experimental", "build": 0x09035E},
        {"product": "linux", "build": 1, "action": "withhold", "guests": ["*"]},
    ]}, guest=[{"match": ["canary-*"], "blacklist": "enforce"}, {"match": ["vip"], "blacklist": "exempt"}])
    for driver, order in ((XENBUS_2026, 11), (LINUX, 3)):
        domid, got = world.played(driver)
        assert (got, world.domain(domid)["verdict"]) == (order, "reported")
        assert 'blacklist.mode = "observe"' in world.domain(domid)["rule"]
    domid, got = world.played(LINUX, "canary-1")
    assert (got, world.domain(domid)["verdict"], world.domain(domid)["guest_rule"]) == (
        0, "refused", "[[guest]] canary-*")
    domid, got = world.played(LINUX, "vip")
    assert (got, world.domain(domid)["verdict"]) == (3, "allowed")
    assert "exempt" in world.domain(domid)["rule"]


def test_rules_follow_a_guest_that_migrates(world: World) -> None:
    world.set_rules(blacklist={"entry": [{"product": "linux", "build": 31, "guests": ["db-*"], "action": "withhold"}]},
              guest=[{"match": ["web-*", uuid(9999)], "allow_unplug": ["nics"], "rate": 7, "burst": 900}])
    domid = world.create("web-1--incoming")
    with world.daemon.connect(domid) as wire:
        for name in ("web-1--incoming", "web-1", "web-1--migratedaway"):
            if name != "web-1--incoming":
                world.rename(domid, name)
            assert wire.write(0x10, 2, 3) == 2
            assert (world.domain(domid)["log"]["rate"], world.domain(domid)["log"]["burst"]) == (7, 900)
        world.rename(domid, "db-1--incoming")
        assert wire.write(0x10, 2, 3) == 3
        assert world.domain(domid)["log"]["rate"] == 256
        assert wire.announce(3, 31) == 0xD249
        world.rename(domid, "other")
        assert wire.read(0x10, 2) == 0xD249, "a verdict that stands is not taken back"
        assert wire.write(0x10, 2, 3) == 0
        assert wire.announce(3, 31) == 0xD249
        wire.reset()
        assert wire.announce(3, 31) == 0x49D2
    world.daemon.wait_for_record(r"\[\[guest\]\] web-\*.* counts from now on|no \[\[guest\]\] table counts from now on")


def test_delay_for_some_guests_follows_a_rename(world: World) -> None:
    world.set_rules(guest=[{"match": ["slow"], "on_limit": "delay", "rate": 1000, "burst": 100}])
    domid = world.create()
    with world.daemon.connect(domid) as wire:
        wire.log(b"x" * 600 + b"\n")
        world.rename(domid, "slow")
        wire.send(outs(0x12, b"y" * 599 + b"\n"))
        assert wire.is_quiet(0.2)
        wire.take(32)
        assert world.domain(domid)["log"]["dropped_lines"]["rate-limit"] == 0


def test_a_reload_changes_the_action_of_a_refused_driver(world: World) -> None:
    path = "/mh/driver-blacklist/linux/41"
    world.xenstored.dom0.write(path, b"")
    try:
        world.set_rules()
        domid = world.create()
        with world.daemon.connect(domid) as wire:
            assert wire.announce(3, 41) == 0xD249
            world.set_rules(blacklist={"action": "withhold"})
            assert wire.write(0x10, 2, 3) == 0
            assert world.domain(domid)["verdict"] == "withheld"
            world.set_rules(blacklist={"mode": "observe"})
            assert (wire.read(0x10, 2), wire.write(0x10, 2, 3)) == (0xD249, 0)
            world.daemon.kill()
            world.daemon.start()
    finally:
        world.xenstored.dom0.remove(path)
    with world.daemon.connect(domid) as wire:
        assert (wire.read(0x10, 2), world.domain(domid)["verdict"]) == (0xD249, "withheld")
        assert "linux/41" in world.domain(domid)["rule"]
        world.set_rules()
        assert wire.write(0x10, 2, 3) == 3
        assert world.domain(domid)["verdict"] == "ignored"
    world.daemon.wait_for_record(rf'\(domain {domid}\): its driver stays refused; .* the action is "withhold"')


def test_a_reload_changes_the_action_of_an_entry(world: World) -> None:
    def listed(action: str) -> None:
        world.set_rules(blacklist={"entry": [{"product": "linux", "build": 43, "action": action}]})

    listed("withhold")
    domid = world.create()
    with world.daemon.connect(domid) as wire:
        assert wire.announce(3, 43) == 0xD249
        for action, order in (("withhold", 0), ("refuse", 3), ("withhold", 0), ("refuse", 3)):
            listed(action)
            assert wire.write(0x10, 2, 3) == order, action


def test_the_deprecated_key_still_works_and_warns(world: World) -> None:
    world.set_rules(blacklist={"entry": [{"product": "linux", "build": 51}]}, policy={"blacklisted_unplug": "deny"})
    domid = world.create()
    with world.daemon.connect(domid) as wire:
        assert wire.announce(3, 51) == 0xD249
        assert wire.write(0x10, 2, 3) == 0
    world.daemon.wait_for_record(r'policy.blacklisted_unplug: is deprecated; write blacklist.action = "withhold"')


def test_a_full_slot_of_xenbus_does_not_swallow_the_next_line(world: World) -> None:
    domid = world.create()
    with world.daemon.connect(domid) as wire:
        for number in range(3):
            wire.send(outs(0x12, bytes((0x61 + number,)) * 256))
            wire.take(32)
            wire.log(b"next\n")
    lines = eventually(lambda: world.daemon.guest_lines(f"vm{domid}"), lambda found: len(found) == 6)
    assert lines == ["a" * 256, "next", "b" * 256, "next", "c" * 256, "next"]


def test_unplugctl_says_all_of_it(world: World) -> None:
    world.set_rules(blacklist={"entry": [
        {"product": "experimental", "build": 0x090100, "reason": "hangs"},
        {"product": "experimental", "build": 0x090101, "action": "withhold", "guests": ["vm*"]},
    ]})
    ignored, _ = world.played(XENBUS)
    withheld, _ = world.played(XENBUS.announcing(build=0x090101))
    def ctl(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "unplugd.ctl", *arguments, "--config", str(world.daemon.file)],
            capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (status, "")
        return done.stdout

    listed = {line.split()[1]: line.split()[4] for line in ctl("list").splitlines()}
    assert (listed[str(ignored)], listed[str(withheld)]) == ("IGNORED", "WITHHELD")
    shown = ctl("show", str(ignored))
    assert "It falls back to emulated disks" in shown
    assert "Decided by    xenstore's node experimental/590080 (refuse)" in shown
    assert "and got nothing" in ctl("show", str(withheld))
    impact = ctl("blacklist", "impact", status=1)
    assert {"ignored", "withheld"} <= set(impact.split())
    rows = [line.split() for line in ctl("blacklist", "list").splitlines()[1:]]
    assert [row[:2] + row[4:6] for row in rows] == [
        ["experimental", "590080", "refuse", "all"], ["experimental", "590081", "withhold", "vm*"]]
