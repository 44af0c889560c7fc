"""A domain: its records and their fields, what is kept over a restart, what metrics and the API show."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from tests.lab.frames import frame
from tests.lab.host import OTHER_UUID, UUID, Host, host, until
from unplugd.config.load import BlacklistConfig, Config, LogConfig, PolicyConfig
from unplugd.core.blacklist import BlacklistRange
from unplugd.core.guest import Verdict
from unplugd.core.guestrules import GuestRule, Patterns
from unplugd.core.protocol import Action, Effect
from unplugd.core.stream import IoreqStream
from unplugd.domains.domain import Domain
from unplugd.domains.labels import CHANGES
from unplugd.domains.records import COMPLAINTS
from unplugd.domains.view import describe, published
from unplugd.sinks.records import Event
from unplugd.sockets import loop as eventloop

TABLES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"pure": asyncio.SelectorEventLoop}
with contextlib.suppress(ImportError):
    from unplugd.sockets._fastpath import Poller

    TABLES["compiled"] = lambda: eventloop.Loop(Poller)


def say(domain: Domain, data: bytes) -> None:
    """Log bytes as a connection takes them in, of which rows answer what they can."""
    send(domain, *(data[at:at + 4096] for at in range(0, len(data), 4096)))


def send(domain: Domain, *strings: bytes) -> None:
    frames = b"".join(frame(0x12, 1, count=len(data), string=True) + data for data in strings)
    _, used = domain.table.answer(frames, 0)
    while used < len(frames):
        stream = IoreqStream(domain.guest, domain.settings.counters, domain)
        used += stream.receive(frames[used:], time.monotonic())[1]
        domain.settle(time.monotonic())


def say_byte(domain: Domain, byte: int) -> None:
    """A log byte that a row answers."""
    _, used = domain.table.answer(frame(0x12, 1, data=byte), 0)
    assert used == 32


def announce(domain: Domain, product: int = 3, build: int = 1, verdict: Verdict | None = None) -> None:
    now = time.monotonic()
    domain.guest.write(Effect.PRODUCT, product, now)
    domain.guest.judge(product, build, verdict or Verdict(blacklisted=False), now)
    domain.settle(now)


def unplug(domain: Domain, mask: int = 3) -> int:
    order = domain.guest.write(Effect.UNPLUG, mask, time.monotonic())
    domain.settle(time.monotonic())
    return order


def reset(domain: Domain) -> None:
    domain.guest.reset(time.monotonic())
    domain.settle(time.monotonic())


def run(
    tmp_path: Path, test: Callable[[Host], Coroutine[None, None, None]], config: Config | None = None
) -> None:
    """Run a test with each kind of table; nothing may be told to the loop's exception handler."""

    async def main(directory: Path) -> None:
        failed: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        directory.mkdir()
        async with host(directory, config) as one:
            await test(one)
        assert failed == []

    for name, loop in TABLES.items():
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(main(tmp_path / name))


def test_fields_of_a_guests_line(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        say(domain, b"before\n")
        announce(domain, 1, 86451)
        say(domain, b"a \x1b line\r\n")
        first, *_, last = [
            entry for entry in one.journald.read() if entry["SYSLOG_IDENTIFIER"] == "unplugd-guest"
        ]
        assert first == {
            "MESSAGE": "before", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "unplugd-guest",
            "MESSAGE_ID": Event.GUEST_LINE.message_id, "XEN_DOMID": "7", "XEN_DOMAIN_UUID": UUID,
            "XEN_DOMAIN_NAME": "web-01",
        }  # fmt: skip
        assert last["MESSAGE"] == "a \\x1b line"
        assert (last["UNPLUG_PRODUCT"], last["UNPLUG_PRODUCT_NAME"], last["UNPLUG_BUILD"]) == (
            "1", "xensource-windows", "86451",
        )  # fmt: skip
        assert (domain.log_lines, domain.log_bytes) == (2, 6 + 8)

    run(tmp_path, main)


def test_records_of_its_own_name_the_guest(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        announce(domain, 1, 86451, Verdict(blacklisted=True, reason="loses data"))
        unplug(domain, 0x13)
        reset(domain)
        records = [entry for entry in one.journald.read() if entry["SYSLOG_IDENTIFIER"] == "unplugd"]
        assert [entry["MESSAGE_ID"] for entry in records] == [
            event.message_id
            for event in (
                Event.ANNOUNCED,
                Event.BLACKLISTED,
                Event.UNDEFINED_BITS,
                Event.UNPLUGGED,
                Event.IGNORED,
                Event.RESET,
            )
        ]
        for entry in records:
            assert entry["MESSAGE"].startswith("web-01 (domain 7): ")
            assert (entry["XEN_DOMID"], entry["XEN_DOMAIN_UUID"], entry["XEN_DOMAIN_NAME"]) == (
                "7",
                UUID,
                "web-01",
            )
        assert records[1]["UNPLUG_BUILD"] == "86451"
        assert "loses data" in records[1]["MESSAGE"]
        assert records[1]["PRIORITY"] == "4"

    run(tmp_path, main)


def test_each_kind_of_event_has_an_id_of_its_own() -> None:
    ids = [event.message_id for event in Event]
    assert len(set(ids)) == len(ids)
    assert all(len(message_id) == 32 and int(message_id, 16) for message_id in ids)


def test_what_is_shown(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        announce(domain, 1, 86451, Verdict(blacklisted=True, reason="loses data"))
        unplug(domain)
        say(domain, b"line\n")
        assert (domain.product, domain.build, domain.blacklisted, domain.unplugged) == (1, 86451, True, 3)
        assert (domain.label_product, domain.label_build) == ("1", "86451")
        shown = describe(domain)
        assert shown["domid"] == 7
        assert shown["name"] == "web-01"
        assert shown["uuid"] == UUID
        assert shown["product_name"] == "xensource-windows"
        assert shown["blacklist_reason"] == "loses data"
        assert shown["unplugged"] == ["ide-disks", "nics"]
        reset(domain)
        assert (domain.product, domain.build, domain.blacklisted, domain.unplugged) == (None, None, False, 0)
        assert describe(domain)["blacklist_reason"] == ""

    run(tmp_path, main)


def test_what_is_published(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        announce(domain)
        unplug(domain)
        assert one.published
        assert published(domain) == {
            "product": "3", "product-name": "linux", "build": "1", "blacklisted": "0", "unplugged": "3",
            "verdict": "allowed",
        }  # fmt: skip
        one.published.clear()
        reset(domain)
        assert one.published == [7]
        assert published(domain) is None

    run(tmp_path, main)


def test_a_guest_over_its_limit_is_published_and_labelled_all_the_same(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        say(domain, b"x" * 60 + b"\n")
        announce(domain, 3, 1, Verdict(blacklisted=True, reason="by hand"))
        unplug(domain)
        assert one.journald.of(Event.ANNOUNCED) == []
        assert one.published
        assert (domain.label_product, domain.label_build) == ("3", "1")
        assert describe(domain)["blacklist_reason"] == "by hand"
        one.published.clear()
        reset(domain)
        assert one.published == [7]
        assert (domain.label_product, domain.label_build) == ("", "")

    run(tmp_path, main, Config(log=LogConfig(rate=0, burst=64)))


def test_labels_change_8_times_then_read_other(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        for build in range(CHANGES):
            announce(domain, 3, build)
            assert (domain.label_product, domain.label_build) == ("3", str(build))
        for build in range(100, 103):
            announce(domain, 3, build)
            assert (domain.label_product, domain.label_build) == ("other", "other")
        reset(domain)
        assert (domain.label_product, domain.label_build) == ("other", "other")

    run(tmp_path, main)


def test_another_product_is_not_shown_with_the_build_of_the_last(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        announce(domain, 3, 1)
        domain.guest.write(Effect.PRODUCT, 2, 0.0)
        unplug(domain)
        nodes = published(domain) or {}
        assert (nodes.get("product"), nodes.get("build")) != ("2", "1"), "no driver ever said that"
        assert (domain.label_product, domain.label_build) != ("2", "1")

    run(tmp_path, main)


def test_everything_survives_sigkill(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        announce(domain, 1, 86451, Verdict(blacklisted=True, reason="loses data"))
        unplug(domain)
        say(domain, b"a line\nhalf a li")
        balance = domain.guest.log.bucket.balance
        again = one.domain()
        assert (again.product, again.build, again.blacklisted, again.unplugged) == (1, 86451, True, 3)
        assert describe(again)["blacklist_reason"] == "loses data"
        assert (again.label_product, again.label_build) == ("1", "86451")
        assert again.guest.log.bucket.balance <= balance + 10
        say(again, b"ne\n")
        assert one.journald.lines == ["a line", "half a line"]

    run(tmp_path, main)


def test_a_domid_that_is_used_again_starts_anew(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        announce(one.domain(), 1, 5, Verdict(blacklisted=True))
        other = one.domain(7, "db-01", OTHER_UUID)
        assert (other.product, other.blacklisted) == (None, False)
        assert one.domain(7, "db-01", OTHER_UUID).blacklisted is False

    run(tmp_path, main)


@pytest.mark.parametrize(("uuid", "same"), [(UUID, True), (OTHER_UUID, False)])
def test_a_uuid_that_comes_late(tmp_path: Path, uuid: str, same: bool) -> None:
    async def main(one: Host) -> None:
        announce(one.domain(), 1, 5, Verdict(blacklisted=True))
        early = one.domain(7, "", "")  # restarted, and xenstore has nothing yet
        assert early.name == "dom7"
        assert early.uuid == ""
        assert early.identify(uuid) is same
        if same:
            assert early.uuid == UUID
            assert early.blacklisted
            assert early.identify(UUID)
            assert not early.identify(OTHER_UUID)

    run(tmp_path, main)


def test_a_uuid_that_was_never_known_before(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain(7, "", "")
        announce(domain)
        assert domain.identify(UUID)
        say(domain, b"x\n")
        assert one.journald.read()[-1]["XEN_DOMAIN_UUID"] == UUID
        assert one.domain().product == 3, "its state is this uuid's now"

    run(tmp_path, main)


def test_renames(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain(7, "", UUID)
        domain.rename("web-01--incoming")
        assert one.journald.of(Event.RENAMED) == []
        domain.rename("web-01")
        domain.rename("web-01")
        assert one.journald.of(Event.RENAMED) == ["web-01 (domain 7): renamed from web-01--incoming"]
        say(domain, b"x\n")
        assert one.journald.read()[-1]["XEN_DOMAIN_NAME"] == "web-01"

    run(tmp_path, main)


def test_at_release_the_partial_line_is_recorded_and_the_rest_forgotten(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        announce(domain)
        say(domain, b"last words")
        domain.release()
        assert one.journald.lines == ["last words"]
        assert not (one.directory / "state" / "dom7").exists()

    run(tmp_path, main)


def test_when_unplugd_stops_the_partial_line_stays_for_the_next(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        say(domain, b"to be contin")
        domain.stop()
        again = one.domain()
        say(again, b"ued\n")
        assert one.journald.lines == ["to be continued"]

    run(tmp_path, main)


def test_a_partial_line_is_flushed_by_time(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        say(domain, b"no end")
        await until(lambda: one.journald.lines == ["no end"])
        domain.stop()

    run(tmp_path, main, Config(log=LogConfig(flush_after=0.05)))


def test_a_partial_line_of_before_the_restart_is_flushed_by_time(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        say(domain, b"no end")
        domain.stop()
        again = one.domain()
        await until(lambda: one.journald.lines == ["no end"])
        again.stop()

    run(tmp_path, main, Config(log=LogConfig(flush_after=0.05)))


def test_the_time_of_a_partial_line_counts_from_its_last_byte(tmp_path: Path) -> None:
    """Whenever a timer or a scrape looks at it."""

    async def main(one: Host) -> None:
        domain = one.domain()
        begin = time.monotonic()
        say_byte(domain, 0x61)
        await asyncio.sleep(0.05)
        say_byte(domain, 0x62)
        await asyncio.sleep(0.9)
        assert domain.log_lines == 0, "looked at"
        await until(lambda: one.journald.lines == ["ab"])
        assert 1.05 <= time.monotonic() - begin < 1.8
        domain.stop()

    run(tmp_path, main, Config(log=LogConfig(flush_after=1.0)))


def test_a_line_that_begins_while_a_timer_runs_is_flushed_in_time(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        say(domain, b"one line\n")
        say_byte(domain, 0x61)
        await asyncio.sleep(0.5)
        say(domain, b"\n")
        begin = time.monotonic()
        for byte in b"next":
            say_byte(domain, byte)
        await until(lambda: one.journald.lines[-1] == "next")
        assert 1.0 <= time.monotonic() - begin < 1.4
        assert one.journald.lines == ["one line", "a", "next"]
        domain.stop()

    run(tmp_path, main, Config(log=LogConfig(flush_after=1.0)))


def test_a_domain_that_is_gone_can_be_looked_at(tmp_path: Path) -> None:
    """A transaction of the publisher, or a page of HTTP, may have begun before."""

    async def main(one: Host) -> None:
        for end in (Domain.release, Domain.stop):
            domain = one.domain()
            announce(domain)
            say(domain, b"a line\nand half a li")
            say_byte(domain, 0x6E)
            end(domain)
            assert (domain.product, domain.log_lines > 0) == (3, True)
            assert describe(domain)["build"] == 1

    run(tmp_path, main)


@pytest.mark.parametrize("sent", [
    [b"a\n", b"b" * 3000, b"x\n" + b"y" * 4094],
    [b"a" * 4095, b"b" * 4096, b"c" * 4095 + b"\n"],
    [b"\n" * 4096] * 3,
    [b"z" * 4094, b"z" * 4096] * 3,
])  # fmt: skip
def test_strings_that_fill_the_area_lose_nothing(tmp_path: Path, sent: list[bytes]) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        domain.limit(unlimited=True)
        send(domain, *sent)
        say(domain, b"\n")
        expected = [line[at:at + 4095] for line in b"".join(sent).split(b"\n") for at in range(0, len(line), 4095)]
        await until(lambda: len(one.journald.lines) >= len(expected))
        assert one.journald.lines == [line.decode() for line in expected]
        domain.stop()

    run(tmp_path, main)


def test_work_that_is_over_its_turn_is_recorded_soon_and_in_order(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        domain.limit(unlimited=True)
        domain.turns.charge(1.0)
        say(domain, b"first\nsecond\n")
        assert domain.state.recorded < domain.table.text, "kept, and not recorded yet"
        say(domain, b"third\nhal")
        await until(lambda: len(one.journald.lines) == 3)
        assert one.journald.lines == ["first", "second", "third"]
        assert domain.guest.log.partial == b"hal"
        domain.stop()

    run(tmp_path, main)


@pytest.mark.parametrize("end", ["release", "stop"])
def test_work_that_is_over_its_turn_as_the_domain_goes(tmp_path: Path, end: str) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        domain.turns.charge(1.0)
        say(domain, b"first\nsec")
        getattr(domain, end)()
        await asyncio.sleep(0.01)
        assert one.journald.lines == (["first", "sec"] if end == "release" else ["first"])

    run(tmp_path, main)


def test_domains_with_equal_rows_share_them(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        first, second = one.domain(7), one.domain(8, "db-01", OTHER_UUID)
        assert first._rows is second._rows is not None
        announce(first, 1, 1, Verdict(blacklisted=True))
        assert first._rows is not second._rows
        reset(first)
        assert first._rows is second._rows
        one.settings.configure(one.settings.config._replace(protocol_version=0))
        for domain in (first, second):
            domain.configure()
        assert first._rows is second._rows

    run(tmp_path, main)


def test_throttling_is_told_and_ends(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        told = []
        one.settings.throttling = lambda: told.append(domain.throttled)
        domain = one.domain()
        for _ in range(30):
            say(domain, b"x" * 90 + b"\n")
        assert domain.throttled
        assert domain.dropped_lines["rate-limit"] == 30 - domain.log_lines
        assert domain.dropped_bytes["rate-limit"] == 90 * domain.dropped_lines["rate-limit"]
        assert told == [True]
        domain.limit(unlimited=True)
        domain.limit(unlimited=True)
        say(domain, b"free\n")
        assert told == [True, False]
        await until(lambda: one.journald.lines[-1] == "free")
        assert one.journald.of(Event.LINES_DROPPED)
        domain.limit(unlimited=False)
        assert describe(domain)["log"]["limited"]  # type: ignore[index] # JSON

    run(tmp_path, main, Config(log=LogConfig(rate=1, burst=1000)))


def test_lines_that_no_sink_took_are_counted(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        domain.limit(unlimited=True)
        one.journald.stop()
        for _ in range(700):
            say(domain, b"y" * 1000 + b"\n")
        assert domain.dropped_lines["sink"] > 0
        assert domain.dropped_bytes["sink"] == 1000 * domain.dropped_lines["sink"]

    run(tmp_path, main)


def test_complaints_about_its_device_model_are_bounded(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        for number in range(COMPLAINTS + 50):
            domain.records.complain(Event.PROTOCOL_FAULT, f"fault {number}")
            one.journald.read()
        assert len(one.journald.of(Event.PROTOCOL_FAULT)) == COMPLAINTS
        domain.records._complaints._bucket.balance = 1
        domain.records.complain(Event.PROTOCOL_FAULT, "one more")
        assert "50 more like this" in one.journald.of(Event.PROTOCOL_FAULT)[-1]

    run(tmp_path, main)


def test_without_room_for_its_state_it_is_served_all_the_same(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        (one.directory / "state" / "dom7").mkdir()
        domain = one.domain()
        assert one.journald.of(Event.SINK_FAILED)
        announce(domain)
        assert domain.product == 3
        domain.release()

    run(tmp_path, main)


def test_a_reload_changes_rules_and_limits(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        assert unplug(domain) == 3
        one.settings.configure(
            Config(policy=PolicyConfig(allow_unplug=2), log=LogConfig(burst=500), products={"mine": 0x777})
        )
        domain.configure()
        assert unplug(domain) == 2
        assert domain.guest.log.bucket.balance <= 500
        announce(domain, 0x777, 1)
        assert (published(domain) or {})["product-name"] == "mine"

    run(tmp_path, main)


def follow(one: Host, config: Config, *domains: Domain) -> None:
    """A reload."""
    one.settings.configure(config._replace(runtime_dir=one.directory))
    for domain in domains:
        domain.configure()


WEB = GuestRule(Patterns("web-*"), "observe", allow_unplug=2, rate=7, burst=700, on_limit="delay")
BY_UUID = GuestRule(Patterns(OTHER_UUID), rate=9)


def test_a_table_of_some_guests_replaces_policy_and_limits(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        web, db, other = one.domain(), one.domain(8, "db-01", UUID), one.domain(9, "db-02", OTHER_UUID)
        limits = web.guest.log.limits
        assert (limits.rate, limits.burst, limits.delay) == (7, 700, True)
        assert [unplug(domain) for domain in (web, db, other)] == [2, 3, 3]
        assert (db.guest.log.limits.rate, other.guest.log.limits.rate) == (256, 9)
        assert [domain.stance.observe for domain in (web, db, other)] == [True, False, False]
        assert [describe(domain)["guest_rule"] for domain in (web, db)] == ["[[guest]] web-*", None]
        assert one.journald.of(Event.POLICY_CHANGED) == []

    run(tmp_path, main, Config(guests=(WEB, BY_UUID)))


def test_tables_follow_a_rename_a_uuid_and_a_reload(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain(uuid="")
        for name in ("web-01--incoming", "web-01", "web-01--migratedaway"):
            domain.rename(name)
            assert domain.rule == WEB
        domain.rename("db-01")
        assert (domain.rule, domain.guest.log.limits.rate, unplug(domain)) == (None, 256, 3)
        domain.identify(OTHER_UUID)
        assert (domain.rule, domain.guest.log.limits.rate) == (BY_UUID, 9)
        follow(one, Config(), domain)
        assert domain.rule is None
        assert [message.partition(": ")[2] for message in one.journald.of(Event.POLICY_CHANGED)] == [
            "no [[guest]] table counts from now on", f"[[guest]] {OTHER_UUID} counts from now on",
            "no [[guest]] table counts from now on",
        ]

    run(tmp_path, main, Config(guests=(WEB, BY_UUID)))


def test_what_a_small_default_cuts_a_larger_burst_of_its_own_keeps_over_a_restart(tmp_path: Path) -> None:
    config = Config(log=LogConfig(burst=1000, rate=1), guests=(GuestRule(Patterns("web-*"), burst=50_000),))

    async def main(one: Host) -> None:
        first = one.domain()
        first.stop()
        assert one.domain().guest.log.bucket.balance > 49_000

    run(tmp_path, main, config)


def test_a_reload_says_whether_unplugs_of_a_refused_driver_are_withheld(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        announce(domain, 1, 86451, Verdict(blacklisted=True, by_node=True))
        follow(one, Config(blacklist=BlacklistConfig(action=Action.WITHHOLD)), domain)
        assert (unplug(domain), domain.verdict) == (0, "withheld")
        assert one.journald.of(Event.POLICY_CHANGED) == [
            'web-01 (domain 7): its driver stays refused; from the next unplug mask on the action is "withhold"']
        follow(one, Config(blacklist=BlacklistConfig(mode="observe")), domain)
        assert (unplug(domain), domain.blacklisted) == (0, True), "a verdict that stands is not taken back"
        follow(one, Config(), domain)
        assert (unplug(domain), domain.verdict) == (3, "ignored")
        assert published(domain) == {
            "product": "1", "product-name": "xensource-windows", "build": "86451", "blacklisted": "1",
            "unplugged": "3", "verdict": "ignored",
        }  # fmt: skip

    run(tmp_path, main)


def test_a_range_that_is_for_the_new_name_withholds(tmp_path: Path) -> None:
    ranges = (BlacklistRange("xensource-windows", action=Action.WITHHOLD, guests=Patterns("canary")),)

    async def main(one: Host) -> None:
        domain = one.domain()
        announce(domain, 1, 86451, Verdict(blacklisted=True, rule="an entry"))
        domain.rename("canary")
        assert unplug(domain) == 0
        assert describe(domain)["rule"] == "range xensource-windows 0-4294967295 for guests canary (withhold)"

    run(tmp_path, main, Config(blacklist=BlacklistConfig(ranges=ranges)))


def test_the_verdict_is_kept_over_a_restart_and_follows_the_configuration_of_the_next_process(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        first = one.domain()
        announce(first, 1, 86451, Verdict(blacklisted=True, reason="r" * 200, rule="a rule", by_node=True))
        unplug(first)
        kept = one.domain()     # as after SIGKILL
        assert (kept.verdict, kept.guest.rule, kept.guest.reason[:5]) == ("ignored", "a rule", "rrrrr")
        follow(one, Config(blacklist=BlacklistConfig(action=Action.WITHHOLD)))
        assert unplug(one.domain()) == 0

    run(tmp_path, main)


def test_the_identifier_of_lines_names_the_guest(tmp_path: Path) -> None:
    def identifiers(one: Host) -> list[str]:
        return [entry["SYSLOG_IDENTIFIER"] for entry in one.journald.read()
                if entry["MESSAGE_ID"] == Event.GUEST_LINE.message_id]

    async def main(one: Host) -> None:
        domain = one.domain()
        say(domain, b"a\n")
        domain.rename("{domid}")
        say(domain, b"b\n")
        follow(one, Config(log=LogConfig(identifier="guests")), domain)
        say(domain, b"c\n")
        assert identifiers(one) == ["qemu-dm-7-web-01", "qemu-dm-7-{domid}", "guests"]

    run(tmp_path, main, Config(log=LogConfig(identifier="qemu-dm-{domid}-{name}")))
