"""Contract section 2 and the life of a domain, against the real C xenstored and the real oxenstored."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab import xenspeak
from tests.lab import xenstored as lab
from tests.lab.daemon import Daemon, Run, Wire, eventually, merged, running, uuid
from tests.lab.frames import frame, outs
from tests.lab.xenspeak import XenstoreError
from tests.lab.xenstored import KINDS, Kind, Xenstored

BLACKLIST = "/mh/driver-blacklist"
CONFIGURED: dict[str, Any] = {
    "products": {"house-drivers": 0x1234, "dotted.drivers": 0x1235},
    "blacklist": {
        "entry": [
            {"product": "xensource-windows", "build": 86451, "reason": "loses data on resume"},
            {"product": "xenserver-windows-v7.0+", "build": 70},
            {"product": "dotted.drivers", "build": 7},
        ],
        "range": [
            {"product": "experimental", "from": 0x080000, "to": 0x0801FF, "reason": "fixed in 8.2"},
            {"product": "xenserver-windows-v7.2+", "from": 0xFFFFFF00},
            {"product": "gplpv-windows", "to": 9},
            {"product": "house-drivers", "from": 5, "to": 5},
        ],
    },
}


def store(xenstored: Xenstored, **changes: Any) -> dict[str, Any]:
    """A configuration that uses this xenstored."""
    return merged({"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}}, changes)


@dataclass
class World:
    """A xenstored with an unplugd, and domids that nobody used before."""

    xenstored: Xenstored
    daemon: Daemon
    domids: Iterator[int]

    def create(self, name: str | None = None) -> int:
        """A new domain that unplugd has heard of."""
        domid = next(self.domids)
        self.xenstored.create(domid, name or f"vm{domid}", uuid(domid))
        eventually(lambda: self.daemon.domain(domid))
        return domid

    def fact(self, domid: int, key: str) -> Any:
        """What unplugd's API says of a domain."""
        return (self.daemon.domain(domid) or {}).get(key)

    def exists(self, path: str) -> bool:
        """Whether there is such a node."""
        try:
            self.xenstored.dom0.read(path)
        except XenstoreError as error:
            if error.code != "ENOENT":
                raise
            return False
        return True


@pytest.fixture(scope="module", params=KINDS)
def calm(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world for tests that leave it as it was."""
    with lab.running(request.param) as xenstored, running() as run:
        changes = merged(CONFIGURED, {"log": {"max_file_bytes": 1 << 23}})
        yield World(xenstored, run(store(xenstored, **changes)), itertools.count(1))


@pytest.fixture(params=KINDS)
def xenstored(request: pytest.FixtureRequest) -> Iterator[Xenstored]:
    """A xenstored of this test alone."""
    with lab.running(request.param) as own:
        yield own


# --- the life of a domain


def test_a_domain_comes_and_goes(calm: World) -> None:
    daemon = calm.daemon
    domid = calm.create("web-01")
    with daemon.connect(domid) as wire:
        assert wire.announce(3, 1) == 0x49D2
        labels = {"domid": domid, "uuid": uuid(domid)}
        assert daemon.value("unplugd_domain_info", name="web-01", product=3, build=1, **labels) == 1
        calm.xenstored.destroy(domid)
        assert wire.take(1) == b""
    eventually(lambda: not daemon.socket(domid).exists())
    assert daemon.domain(domid) is None
    assert not any(dict(labels).get("domid") == str(domid) for _, labels in daemon.metrics())


def test_a_released_domain_that_is_still_listed_has_gone(calm: World) -> None:
    domid = calm.create()
    calm.xenstored.release(domid)
    eventually(lambda: not calm.daemon.socket(domid).exists())
    assert calm.exists(f"/local/domain/{domid}/name")
    calm.xenstored.fire(lab.PORT_DOM_EXC)  # spurious
    other = calm.create()
    assert calm.daemon.domain(domid) is None
    assert calm.daemon.domain(other)


def test_a_domain_that_shut_down_stays(calm: World) -> None:
    domid, other = calm.create(), calm.create()
    calm.xenstored.set_state(domid, "s")
    calm.xenstored.release(other)
    eventually(lambda: calm.daemon.domain(other) is None)
    with calm.daemon.connect(domid) as wire:
        assert wire.read(0x10, 2) == 0x49D2


def test_a_domain_without_any_node_and_its_name_later(calm: World) -> None:
    domid = next(calm.domids)
    calm.xenstored.introduce(domid)
    with calm.daemon.connect(domid) as wire:
        assert wire.announce(1, 86451) == 0xD249
        known = calm.daemon.domain(domid)
        assert known is not None
        assert (known["name"], known["uuid"]) == (f"dom{domid}", "")
        wire.log(b"before\n")
        assert eventually(lambda: calm.daemon.guest_lines(f"dom{domid}")) == ["before"]
        calm.xenstored.dom0.write(f"/local/domain/{domid}/name", b"late")
        eventually(lambda: calm.fact(domid, "name"), lambda name: name == "late")
        calm.xenstored.dom0.write(f"/local/domain/{domid}/vm", f"/vm/{uuid(domid)}".encode())
        eventually(lambda: calm.fact(domid, "uuid"), lambda found: found == uuid(domid))
        assert wire.read(0x10, 2) == 0xD249  # the same guest
        wire.log(b"after\n")
        expected = ["before", "after"]
        eventually(lambda: calm.daemon.guest_lines("late"), lambda lines: lines == expected)
        # published as soon as it is known who it is
        eventually(lambda: calm.exists(f"/local/domain/{domid}/unplug/build"))


def test_a_migrated_guest_is_renamed(calm: World) -> None:
    domid = calm.create("mail--incoming")
    with calm.daemon.connect(domid) as wire:
        wire.log(b"one\n")
        eventually(lambda: calm.daemon.guest_lines("mail--incoming"))
        calm.xenstored.dom0.write(f"/local/domain/{domid}/name", b"mail")
        eventually(lambda: calm.fact(domid, "name"), lambda name: name == "mail")
        wire.log(b"two\n")
    eventually(lambda: calm.daemon.guest_lines("mail"), lambda lines: lines == ["one", "two"])
    assert not calm.daemon.guest_file("mail--incoming").exists()
    info = {"domid": domid, "uuid": uuid(domid), "product": "", "build": ""}
    assert calm.daemon.value("unplugd_domain_info", name="mail", **info) == 1
    assert calm.daemon.value("unplugd_domain_info", name="mail--incoming", **info) is None


def test_log_throttling_0_switches_the_limit_off(calm: World) -> None:
    domid = calm.create()
    node = f"/local/domain/{domid}/log-throttling"
    labels = {"domid": domid, "uuid": uuid(domid)}
    lines = (b"x" * 99 + b"\n") * 40  # a frame of whole lines: however slow the machine is, none is flushed half

    def dropped() -> float | None:
        return calm.daemon.value("unplugd_log_dropped_lines_total", reason="rate-limit", **labels)

    with calm.daemon.connect(domid) as wire:
        calm.xenstored.dom0.write(node, b"0")
        eventually(lambda: calm.fact(domid, "log")["limited"], lambda limited: not limited)
        for _ in range(75):
            wire.log(lines)
        assert dropped() == 0
        assert calm.daemon.value("unplugd_log_lines_total", **labels) == 3000
        assert calm.daemon.value("unplugd_log_bytes_total", **labels) == 3000 * 99
        calm.xenstored.dom0.write(node, b"1")
        eventually(lambda: calm.fact(domid, "log")["limited"])
        for _ in range(75):
            wire.log(lines)
        assert eventually(dropped) or 0 > 1000
        calm.xenstored.dom0.write(node, b"0")
        eventually(lambda: calm.fact(domid, "log")["limited"], lambda limited: not limited)
        calm.xenstored.dom0.remove(node)
        eventually(lambda: calm.fact(domid, "log")["limited"])


def test_a_domid_that_is_used_again_is_a_new_guest(calm: World) -> None:
    daemon, domid = calm.daemon, calm.create("first")
    with daemon.connect(domid) as wire:
        assert wire.announce(1, 86451) == 0xD249
        wire.write(0x10, 1, 1)
        calm.xenstored.destroy(domid)
        calm.xenstored.create(domid, "second", uuid(900 + domid))
        assert wire.take(1) == b""
    eventually(lambda: calm.fact(domid, "name"), lambda name: name == "second")
    with daemon.connect(domid) as wire:
        assert (wire.read(0x10, 2), wire.read(0x10, 1)) == (0x49D2, 0)
    assert calm.fact(domid, "uuid") == uuid(900 + domid)


def test_another_uuid_without_a_release_is_a_new_guest_too(calm: World) -> None:
    domid = calm.create()
    with calm.daemon.connect(domid) as wire:
        assert wire.announce(1, 86451) == 0xD249
        calm.xenstored.dom0.write(f"/local/domain/{domid}/vm", f"/vm/{uuid(800 + domid)}".encode())
        assert wire.take(1) == b""
    eventually(lambda: calm.fact(domid, "uuid"), lambda found: found == uuid(800 + domid))
    with calm.daemon.connect(domid) as wire:
        assert wire.read(0x10, 2) == 0x49D2


def test_releases_seen_twice_and_spurious_events(calm: World) -> None:
    domid, other = calm.create(), calm.create()
    dom0 = calm.xenstored.dom0
    with calm.daemon.connect(domid) as wire:
        wire.announce(1, 86451)
        calm.xenstored.release(other)
        for _ in range(5):
            calm.xenstored.fire(lab.PORT_DOM_EXC)
            for node in ("name", "vm", "log-throttling", "image/device-model-kill-uid"):
                path = f"/local/domain/{domid}/{node}"
                dom0.write(path, dom0.read(path) if calm.exists(path) else b"")
            calm.xenstored.introduce(domid)  # once more: xenstored fires @introduceDomain or refuses
        eventually(lambda: calm.daemon.domain(other) is None)
        third = calm.create()
        assert calm.daemon.domain(third)
        assert wire.read(0x10, 2) == 0xD249
    assert calm.daemon.socket(domid).exists()


# --- the blacklist


def test_an_entry_counts_at_once_and_so_does_its_removal(calm: World) -> None:
    dom0 = calm.xenstored.dom0
    with calm.daemon.connect(calm.create()) as wire:
        for build in (1, 0, 86452, 0x80000000, 0xFFFFFFFF):
            path = f"{BLACKLIST}/linux/{build}"
            assert wire.announce(3, build) == 0x49D2
            dom0.write(path, b"" if build % 2 else b"a reason for people")
            assert wire.announce(3, build) == 0xD249
            wire.reset()
            dom0.remove(path)
            assert wire.announce(3, build) == 0x49D2
        dom0.remove(f"{BLACKLIST}/linux")


def test_entries_are_counted_and_a_directory_may_be_large(calm: World) -> None:
    dom0 = calm.xenstored.dom0
    before = 1  # configuration's; the mirror may still be reading what an earlier test left
    eventually(lambda: calm.daemon.value("unplugd_blacklist_entries"), lambda count: count == before)
    for build in range(4_000_000_000, 4_000_000_700):
        dom0.write(f"{BLACKLIST}/experimental/{build}", b"")
    eventually(lambda: calm.daemon.value("unplugd_blacklist_entries"), lambda count: count == before + 700)
    with calm.daemon.connect(calm.create()) as wire:
        assert wire.announce(0xFFFF, 4_000_000_699) == 0xD249
        wire.reset()
        assert wire.announce(0xFFFF, 4_000_000_700) == 0x49D2
    dom0.remove(f"{BLACKLIST}/experimental")
    eventually(lambda: calm.daemon.value("unplugd_blacklist_entries"), lambda count: count == before)


@pytest.mark.parametrize(
    ("product", "build", "blacklisted"),
    [
        (1, 86451, True), (1, 86452, False),
        (4, 70, True), (4, 71, False),
        (5, 0xFFFFFF00, True), (5, 0xFFFFFFFF, True), (5, 0xFFFFFEFF, False),
        (2, 0, True), (2, 9, True), (2, 10, False),
        (0xFFFF, 0x080000, True), (0xFFFF, 0x0801FF, True), (0xFFFF, 0x080200, False), (0xFFFF, 0x07FFFF, False),
        (0x1234, 5, True), (0x1234, 6, False),
        (0x1235, 7, True), (0x1235, 8, False),
        (6, 70, False),
    ],
)  # fmt: skip
def test_what_configuration_says(calm: World, product: int, build: int, blacklisted: bool) -> None:
    domid = 500
    if not calm.daemon.domain(domid):
        calm.xenstored.create(domid, "driver", uuid(domid))
    with calm.daemon.connect(domid) as wire:
        wire.reset()
        assert wire.announce(product, build) == (0xD249 if blacklisted else 0x49D2)


def test_configurations_entries_are_in_xenstore(calm: World) -> None:
    assert calm.xenstored.dom0.read(f"{BLACKLIST}/xensource-windows/86451") == b"loses data on resume"
    assert calm.xenstored.dom0.directory(BLACKLIST) == ["xensource-windows"]


def test_every_judged_build_is_counted(calm: World) -> None:
    results = ("allowed", "blacklisted", "unknown-product", "fallback")

    def counts() -> list[float]:
        return [calm.daemon.value("unplugd_blacklist_lookups_total", result=result) or 0 for result in results]

    before = counts()
    with calm.daemon.connect(calm.create()) as wire:
        for product, build in ((3, 1), (1, 86451), (4, 70), (4, 71), (0x9999, 1), (0xFFFF, 0x080000), (3, 2)):
            wire.announce(product, build)
    assert [after - then for after, then in zip(counts(), before, strict=True)] == [3, 3, 1, 0]


def test_beyond_32_lookups_a_second_the_mirror_answers(calm: World) -> None:
    before = calm.daemon.value("unplugd_blacklist_lookups_total", result="fallback") or 0
    with calm.daemon.connect(calm.create()) as wire:
        wire.write(0x12, 2, 3)
        builds = b"".join(build.to_bytes(4, "little") for build in range(1024))
        assert wire.ask(outs(0x10, builds, size=4)) == 0
        after = calm.daemon.value("unplugd_blacklist_lookups_total", result="fallback") or 0
        assert 900 <= after - before <= 992
        wire.write(0x12, 2, 1)
        wire.write(0x10, 4, 86451)  # the mirror knows it too
        assert wire.read(0x10, 2) == 0xD249


# --- publishing


def nodes(world: World, domid: int) -> dict[str, bytes]:
    """What is published of a domain."""
    base = f"/local/domain/{domid}/unplug"
    try:
        names = world.xenstored.dom0.directory(base)
        return {name: world.xenstored.dom0.read(f"{base}/{name}") for name in names}
    except XenstoreError:
        return {}


def test_what_is_published(calm: World) -> None:
    domid = calm.create()
    base = f"/local/domain/{domid}/unplug"
    with calm.daemon.connect(domid) as wire:
        wire.announce(3, 1)
        wire.write(0x10, 2, 1)
        wire.write(0x10, 2, 2)
        expected = {"product": b"3", "product-name": b"linux", "build": b"1", "blacklisted": b"0", "unplugged": b"3",
                    "verdict": b"allowed"}
        eventually(lambda: nodes(calm, domid), lambda found: found == expected)
        for name in expected:
            assert calm.xenstored.dom0.permissions(f"{base}/{name}") == ["n0"]
        with pytest.raises(XenstoreError, match="EACCES"):
            calm.xenstored.guest(domid).read(f"{base}/blacklisted")
        wire.announce(1, 86451)
        wire.write(0x10, 2, 8)
        expected |= {"product": b"1", "product-name": b"xensource-windows", "build": b"86451", "blacklisted": b"1"}
        expected |= {"unplugged": b"11", "verdict": b"ignored"}
        eventually(lambda: nodes(calm, domid), lambda found: found == expected)
        wire.reset()
        eventually(lambda: nodes(calm, domid), lambda found: found == {})
        assert not calm.exists(base)


def test_what_is_published_of_a_driver_that_only_unplugs_or_is_not_registered(calm: World) -> None:
    domid = calm.create()
    with calm.daemon.connect(domid) as wire:
        wire.write(0x10, 2, 3)
        eventually(lambda: nodes(calm, domid), lambda found: found == {"blacklisted": b"0", "unplugged": b"3"})
        wire.announce(0x4242, 0xFFFFFFFF)
        expected = {"product": b"16962", "build": b"4294967295", "blacklisted": b"0", "unplugged": b"3",
                    "verdict": b"allowed"}
        eventually(lambda: nodes(calm, domid), lambda found: found == expected)


def test_a_late_write_does_not_bring_a_domain_back(calm: World) -> None:
    domids = [calm.create() for _ in range(5)]
    for domid in domids:
        with calm.daemon.connect(domid) as wire:
            wire.announce(3, 1)  # published at once
            wire.write(0x10, 2, 3)  # a second later
        calm.xenstored.dom0.remove(f"/local/domain/{domid}")  # as libxl, before the release
    time.sleep(1.5)
    listed = calm.xenstored.dom0.directory("/local/domain")
    assert not {str(domid) for domid in domids} & set(listed)
    for domid in domids:
        calm.xenstored.release(domid)
    eventually(lambda: all(calm.daemon.domain(domid) is None for domid in domids))
    assert not {str(domid) for domid in domids} & set(calm.xenstored.dom0.directory("/local/domain"))


def test_publish_off(xenstored: Xenstored, run: Run) -> None:
    xenstored.create(7, "web", uuid(7))
    daemon = run(store(xenstored, publish=False))
    world = World(xenstored, daemon, itertools.count(8))
    with daemon.connect(7) as wire:
        wire.announce(3, 1)
        wire.write(0x10, 2, 3)
        time.sleep(0.5)
        assert nodes(world, 7) == {}
        daemon.configure({"publish": True})
        daemon.reload()
        eventually(lambda: nodes(world, 7).get("unplugged"), lambda found: found == b"3")
        wire.write(0x10, 2, 8)
        eventually(lambda: nodes(world, 7).get("unplugged"), lambda found: found == b"11")


# --- xenstored fails


def fallbacks(daemon: Daemon) -> float:
    """How many verdicts were not xenstored's."""
    return daemon.value("unplugd_blacklist_lookups_total", result="fallback") or 0


def test_xenstored_crashes_and_comes_back_empty(xenstored: Xenstored, run: Run) -> None:
    for domid in (7, 8):
        xenstored.create(domid, f"vm{domid}", uuid(domid))
    xenstored.dom0.write(f"{BLACKLIST}/linux/13", b"by hand")
    daemon = run(store(xenstored, **CONFIGURED))
    with daemon.connect(7) as wire, daemon.connect(8) as other:
        assert other.announce(1, 86451) == 0xD249
        xenstored.kill()
        eventually(lambda: daemon.value("unplugd_xenstore_up"), lambda up: up == 0)
        assert daemon.get("/-/ready")[0] == 503
        assert daemon.get("/-/healthy")[0] == 200
        # the mirror, within lookup_timeout
        begin = time.monotonic()
        assert wire.announce(3, 13) == 0xD249
        assert time.monotonic() - begin < 5
        wire.reset()
        assert wire.announce(3, 14) == 0x49D2
        assert fallbacks(daemon) == 2
        wire.log(b"while it is away\n")
        assert wire.write(0x10, 2, 3) == 3
        with daemon.connect(8) as another:
            assert another.read(0x10, 2) == 0xD249

        xenstored.start()
        eventually(lambda: daemon.get("/-/ready")[0], lambda status: status == 200)
        assert daemon.value("unplugd_xenstore_reconnects_total") == 1
        assert xenstored.dom0.read(f"{BLACKLIST}/xensource-windows/86451") == b"loses data on resume"
        # it answers F for everybody: no release
        assert wire.read(0x12, 1) == 1
        assert other.read(0x10, 2) == 0xD249
        known = daemon.domain(7)
        assert known is not None
        assert (known["name"], known["uuid"]) == ("vm7", uuid(7))
        # the mirror is rebuilt: what was written by hand is gone with xenstored
        wire.reset()
        assert wire.announce(3, 13) == 0x49D2
        eventually(lambda: daemon.value("unplugd_blacklist_entries"), lambda count: count == 1)
        # watches are armed again: one comes anew, others come
        xenstored.create(7, "vm7", uuid(7))
        xenstored.create(9, "vm9", uuid(9))
        eventually(lambda: daemon.domain(9))
        assert wire.read(0x12, 1) == 1
        assert daemon.socket(8).exists()
        # a later @releaseDomain finds 8 gone, but not 7
        xenstored.release(9)
        eventually(lambda: not daemon.socket(8).exists())
        eventually(lambda: daemon.domain(9) is None)
        assert other.take(1) == b""
        assert daemon.domain(7)
        assert wire.read(0x12, 1) == 1


def test_a_domid_introduced_anew_after_a_crash_is_another_guest(xenstored: Xenstored, run: Run) -> None:
    xenstored.create(7, "old", uuid(7))
    daemon = run(store(xenstored, **CONFIGURED))
    with daemon.connect(7) as wire:
        assert wire.announce(1, 86451) == 0xD249
        xenstored.kill()
        xenstored.start()
        xenstored.create(7, "new", uuid(70))
        assert wire.take(1) == b""
    eventually(lambda: (daemon.domain(7) or {}).get("uuid"), lambda found: found == uuid(70))
    with daemon.connect(7) as wire:
        assert wire.read(0x10, 2) == 0x49D2


@pytest.mark.parametrize(("on_error", "magic"), [("mirror", 0x49D2), ("allow", 0x49D2), ("deny", 0xD249)])
def test_a_hung_xenstored_and_on_error(run: Run, on_error: str, magic: int) -> None:
    with lab.running("c") as xenstored:
        xenstored.create(7, "vm7", uuid(7))
        xenstored.create(8, "vm8", uuid(8))
        daemon = run(store(xenstored, blacklist={"on_error": on_error, "lookup_timeout": 0.4}))
        with daemon.connect(7) as wire, daemon.connect(8) as other:
            xenstored.pause()
            request = frame(0x10, 4, 1)
            wire.write(0x12, 2, 3)
            begin = time.monotonic()
            wire.send(request + outs(0x10, bytes(40), size=4) + frame(read=True))
            assert {other.read(0x10, 2) for _ in range(50)} == {0x49D2}
            wire.answer(request)
            assert time.monotonic() - begin >= 0.3
            wire.answer(outs(0x10, bytes(40), size=4))  # ten lookups, one timeout
            assert time.monotonic() - begin < 4
            assert wire.answer(frame(read=True)) == magic
            assert fallbacks(daemon) == 11
            daemon.wait_for_record(r"vm7 \(domain 7\): .*xenstore")
            xenstored.resume()


def test_what_changed_while_xenstored_hung_is_published(xenstored: Xenstored, run: Run) -> None:
    xenstored.create(7, "vm7", uuid(7))
    xenstored.create(8, "vm8", uuid(8))
    daemon = run(store(xenstored, blacklist={"lookup_timeout": 0.2}))
    world = World(xenstored, daemon, itertools.count(9))
    with daemon.connect(7) as wire, daemon.connect(8) as other:
        other.write(0x10, 2, 3)
        eventually(lambda: nodes(world, 8))
        xenstored.pause()
        assert wire.write(0x10, 2, 3) == 3
        other.reset()
        time.sleep(6.5)  # past the deadline of a request (5 s), within that of the connection (10 s)
        xenstored.resume()
        eventually(lambda: nodes(world, 7).get("unplugged"), lambda found: found == b"3")
        eventually(lambda: nodes(world, 8), lambda found: found == {})


def test_a_long_hang_ends_the_connection_and_nothing_else(run: Run) -> None:
    with lab.running("c") as xenstored:
        xenstored.create(7, "vm7", uuid(7))
        daemon = run(store(xenstored, blacklist={"lookup_timeout": 0.2}))
        world = World(xenstored, daemon, itertools.count(9))
        with daemon.connect(7) as wire:
            wire.write(0x10, 2, 3)
            eventually(lambda: nodes(world, 7))
            xenstored.pause()
            wire.reset()  # its nodes cannot be removed now
            eventually(lambda: daemon.value("unplugd_xenstore_up"), lambda up: up == 0)
            xenstored.resume()
            eventually(lambda: daemon.get("/-/ready")[0], lambda status: status == 200)
            assert wire.read(0x10, 2) == 0x49D2
            eventually(lambda: nodes(world, 7), lambda found: found == {})


def test_reset_that_a_killed_daemon_did_not_publish(run: Run) -> None:
    with lab.running("c") as xenstored:
        xenstored.create(7, "vm7", uuid(7))
        daemon = run(store(xenstored))
        world = World(xenstored, daemon, itertools.count(9))
        with daemon.connect(7) as wire:
            wire.write(0x10, 2, 3)
            eventually(lambda: nodes(world, 7))
            xenstored.pause()
            wire.reset()
            daemon.kill()
        xenstored.resume()
        daemon.start()
        eventually(lambda: nodes(world, 7), lambda found: found == {})


# --- configuration's entries


def test_only_what_is_ours_is_taken_out(xenstored: Xenstored, run: Run) -> None:
    dom0, base = xenstored.dom0, f"{BLACKLIST}/linux"
    dom0.write(f"{base}/1", b"somebody else's")
    entries = [{"product": "linux", "build": build, "reason": f"build {build}"} for build in (1, 2, 3)]
    daemon = run(store(xenstored, blacklist={"entry": entries}))
    assert {build: dom0.read(f"{base}/{build}") for build in (1, 2, 3)} == {
        1: b"somebody else's", 2: b"build 2", 3: b"build 3",
    }  # fmt: skip
    dom0.write(f"{base}/4", b"by hand")
    daemon.configure({"blacklist": {"entry": [entries[1], {"product": "linux", "build": 5}]}})
    daemon.reload()
    assert sorted(dom0.directory(base)) == ["1", "2", "4", "5"]
    # stopping removes nothing, and whose they are is remembered
    assert daemon.stop() == 0
    assert sorted(dom0.directory(base)) == ["1", "2", "4", "5"]
    daemon.start()
    assert sorted(dom0.directory(base)) == ["1", "2", "4", "5"]
    daemon.configure({"blacklist": {"entry": []}})
    daemon.reload()
    assert sorted(dom0.directory(base)) == ["1", "4"]
    assert dom0.read(f"{base}/1") == b"somebody else's"


def test_entries_are_put_again_after_a_crash_and_taken_out_later(xenstored: Xenstored, run: Run) -> None:
    entries = [{"product": "linux", "build": build} for build in (1, 2)]
    daemon = run(store(xenstored, blacklist={"entry": entries}))
    xenstored.kill()
    eventually(lambda: daemon.value("unplugd_xenstore_up"), lambda up: up == 0)
    daemon.configure({"blacklist": {"entry": entries[:1]}})
    daemon.reload()  # while xenstored is away
    xenstored.start()
    eventually(lambda: daemon.get("/-/ready")[0], lambda status: status == 200)
    assert xenstored.dom0.directory(f"{BLACKLIST}/linux") == ["1"]
    daemon.configure({"blacklist": {"entry": []}})
    daemon.reload()
    assert xenstored.dom0.directory(f"{BLACKLIST}/linux") == []


# --- restart and size


def test_a_guest_that_went_while_unplugd_was_away(run: Run) -> None:
    with lab.running("ocaml") as xenstored:
        for domid in (7, 8, 9):
            xenstored.create(domid, f"vm{domid}", uuid(domid))
        daemon = run(store(xenstored, **CONFIGURED))
        for domid in (7, 8, 9):
            with daemon.connect(domid) as wire:
                assert wire.announce(1, 86451) == 0xD249
        daemon.kill()
        xenstored.destroy(7)
        xenstored.create(7, "another", uuid(70))
        xenstored.destroy(8)
        daemon.start()
        for domid, magic in ((7, 0x49D2), (9, 0xD249)):
            with daemon.connect(domid) as wire:
                assert wire.read(0x10, 2) == magic
        assert not daemon.socket(8).exists()
        assert not list(Path(daemon.runtime / "state").glob("dom8*"))


def create_many(xenstored: Xenstored, domids: range) -> None:
    """Domains with `vm` and `name`, many requests under way: to wait for each takes minutes on a busy machine."""
    dom0 = xenstored.dom0
    for at in range(0, len(domids), 50):
        requests = []
        for domid in domids[at : at + 50]:
            xenstored.set_state(domid, "r")
            home = f"/local/domain/{domid}"
            requests += [
                (xenspeak.WRITE, f"{home}/vm\0/vm/{uuid(domid)}"),
                (xenspeak.WRITE, f"{home}/name\0vm{domid}"),
                (xenspeak.INTRODUCE, f"{domid}\x001\x001\0"),
            ]
        dom0.send(b"".join(xenspeak.HEADER.pack(kind, 0, 0, len(text)) + text.encode() for kind, text in requests))
        for kind, _ in requests:
            assert dom0.receive()[0] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_domains(kind: Kind, run: Run) -> None:
    with lab.running(kind) as xenstored:
        create_many(xenstored, range(1, 1001))
        xenstored.dom0.write(f"{BLACKLIST}/linux/7", b"")
        begin = time.monotonic()
        daemon = run(store(xenstored))
        print(f"{kind}: ready after {time.monotonic() - begin:.1f} s")
        assert daemon.value("unplugd_domains") == 1000
        wires: list[Wire] = []
        try:
            wires += [daemon.connect(domid) for domid in range(1, 1001)]
            requests = [frame(0x12, 2, 3), frame(0x10, 4, 7), frame(0x10, 2, read=True), frame(0x10, 2, 3)]
            begin = time.monotonic()
            for wire in wires:
                wire.send(b"".join(requests))
            answers = {tuple(wire.answer(request) for request in requests) for wire in wires}
            print(f"{kind}: all answered after {time.monotonic() - begin:.1f} s, {fallbacks(daemon):.0f} by the mirror")
            assert answers == {(0, 0, 0xD249, 3)}
            assert daemon.value("unplugd_connections") == 1000
        finally:
            for wire in wires:
                wire.close()
        eventually(lambda: daemon.value("unplugd_connections"), lambda count: count == 0)
        for domid in range(1, 1001, 50):
            xenstored.release(domid)
        eventually(lambda: daemon.value("unplugd_domains"), lambda count: count == 980)
        eventually(lambda: len(list(daemon.runtime.glob("dom*.sock"))), lambda count: count == 980)


def begins_anew(daemon: Daemon, domid: int) -> bool:
    """Whether the domain has nothing of a driver."""
    domain = daemon.domain(domid)
    return domain is not None and (domain["product"], domain["build"], domain["unplugged_mask"]) == (None, None, 0)


@pytest.mark.parametrize("when", ["running", "killed", "stopped"])
def test_a_guest_made_anew_with_the_same_domid_and_uuid(calm: World, when: str) -> None:
    domid = calm.create()
    with calm.daemon.connect(domid) as wire:
        wire.announce(1, 86451)
        wire.write(0x10, 2, 3)
        assert wire.read(0x10, 2) == 0xD249
        eventually(lambda: calm.exists(f"/local/domain/{domid}/unplug/unplugged"))
        time.sleep(1.2)  # what the guest said last is published by then
    if when != "running":
        calm.daemon.kill() if when == "killed" else calm.daemon.stop()
    calm.xenstored.destroy(domid)
    calm.xenstored.create(domid, f"vm{domid}", uuid(domid))
    if when != "running":
        calm.daemon.start()
    eventually(lambda: begins_anew(calm.daemon, domid))
    assert not calm.exists(f"/local/domain/{domid}/unplug/unplugged")
    with calm.daemon.connect(domid) as wire:
        assert wire.read(0x10, 2) == 0x49D2


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_same_guest_after_a_restart_is_no_other(calm: World, how: str) -> None:
    domid = calm.create()
    with calm.daemon.connect(domid) as wire:
        wire.announce(1, 86451)
        eventually(lambda: calm.exists(f"/local/domain/{domid}/unplug/unplugged"))
        time.sleep(1.2)
    for _ in range(2):
        calm.daemon.kill() if how == "kill" else calm.daemon.stop()
        calm.daemon.start()
        calm.xenstored.dom0.write(f"/local/domain/{domid}/name", b"renamed")
        eventually(lambda: calm.fact(domid, "name") == "renamed")
        time.sleep(0.6)
        assert calm.fact(domid, "build") == 86451
        assert calm.exists(f"/local/domain/{domid}/unplug/unplugged")
        calm.xenstored.dom0.write(f"/local/domain/{domid}/name", b"again")
