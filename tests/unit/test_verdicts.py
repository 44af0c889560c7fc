"""The blacklist: xenstore's word, the mirror's where there is none, and what configuration puts there (section 2)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.lab.host import Host, connected, host, until
from unplugd.blacklist.verdicts import LOOKUPS_A_SECOND, Blacklist
from unplugd.config.load import BlacklistConfig, Config
from unplugd.core.blacklist import BlacklistEntry, BlacklistRange
from unplugd.core.guest import Verdict
from unplugd.core.guestrules import GuestRule, Patterns
from unplugd.core.protocol import Action
from unplugd.core.registry import Registry
from unplugd.core.stream import NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.errors import NoSuchNode, StoreUnavailable
from unplugd.sinks.records import Event
from unplugd.xenstore.embedded import EmbeddedStore

ROOT = "/mh/driver-blacklist"
CITRIX = f"{ROOT}/xensource-windows/86451"
ENTRY = BlacklistEntry("xensource-windows", 86451, "loses data")
BY_HAND = Verdict(blacklisted=True, reason="by hand", source="xenstore",
                  rule="xenstore's node xensource-windows/86451 (refuse)", by_node=True)


class Slow(EmbeddedStore):
    """A xenstored that answers reads only when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = False
        self.reads = 0

    def read(self, path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[bytes]:
        self.reads += 1
        if self.stuck:
            return asyncio.get_running_loop().create_future()
        return super().read(path, tx=tx, deadline=deadline)


class World:
    """A blacklist on an embedded store."""

    def __init__(self, one: Host, store: Slow, config: BlacklistConfig) -> None:
        self.host = one
        self.store = store
        self.domain = one.domain()
        self.blacklist = self.another(config)

    def another(self, config: BlacklistConfig, boot: bytes = bytes(16)) -> Blacklist:
        """The blacklist of a process that was started anew."""
        registry = Registry({"my-drivers": 0x1234})
        blacklist = Blacklist(config, registry, self.host.counters, self.host.directory, boot, self.host.say)
        blacklist.use(self.store, self.store)
        return blacklist

    async def judge(self, product: int, build: int, seconds: float = 5.0, domain: Domain | None = None) -> Verdict:
        """Look up a build number."""
        need = NeedVerdict(product, build, first=True)
        return await self.blacklist.judge(domain or self.domain, need, time.monotonic() + seconds)

    async def read(self, path: str) -> bytes | None:
        """A node, None without one."""
        try:
            return await self.store.read(path)
        except NoSuchNode:
            return None

    @property
    def lookups(self) -> dict[str, int]:
        """What was counted."""
        return {result: count for result, count in self.host.counters.blacklist_lookups.items() if count}


def follow(it: World, config: Config) -> None:
    """The domain follows another configuration."""
    it.host.settings.configure(config._replace(runtime_dir=it.host.settings.config.runtime_dir))
    it.domain.configure()


@asynccontextmanager
async def world(tmp_path: Path, config: BlacklistConfig | None = None) -> AsyncIterator[World]:
    store = Slow()
    async with host(tmp_path) as one, connected(store):
        yield World(one, store, config or BlacklistConfig())


def test_a_node_written_by_hand_counts_for_the_next_build_number(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.blacklist.sync()
            assert not (await it.judge(1, 86451)).blacklisted
            await it.store.write(CITRIX, b"by hand")
            assert await it.judge(1, 86451) == BY_HAND
            await it.store.write(CITRIX, b"")
            assert (await it.judge(1, 86451)).blacklisted, "its existence is what counts"
            await it.store.remove(CITRIX)
            assert not (await it.judge(1, 86451)).blacklisted
            assert it.lookups == {"allowed": 2, "blacklisted": 2}

    asyncio.run(main())


def test_builds_are_unsigned_decimals(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.store.write(f"{ROOT}/linux/4294967295", b"")
            await it.blacklist.sync()
            assert (await it.judge(3, 2**32 - 1)).blacklisted

    asyncio.run(main())


def test_who_is_judged_without_xenstore(tmp_path: Path) -> None:
    config = BlacklistConfig(
        entries=(BlacklistEntry("xenserver-windows-v7.0+", 7, "old"),),
        ranges=(BlacklistRange("experimental", 5, 9, "beta"),),
    )

    async def main() -> None:
        async with world(tmp_path, config) as it:
            await it.blacklist.sync()
            reads = it.store.reads
            assert not (await it.judge(0x777, 1)).blacklisted
            assert await it.judge(4, 7) == Verdict(
                blacklisted=True, reason="old", source="configuration", rule="entry xenserver-windows-v7.0+ 7 (refuse)")
            assert not (await it.judge(4, 8)).blacklisted
            assert await it.judge(0xFFFF, 9) == Verdict(
                blacklisted=True, reason="beta", source="configuration", rule="range experimental 5-9 (refuse)")
            assert it.lookups == {"unknown-product": 1, "blacklisted": 2, "allowed": 1}
            assert it.store.reads == reads

    asyncio.run(main())


def test_a_product_that_configuration_registers_can_be_blacklisted(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.store.write(f"{ROOT}/my-drivers/5", b"")
            await it.blacklist.sync()
            assert (await it.judge(0x1234, 5)).blacklisted

    asyncio.run(main())


def test_without_xenstore_the_mirror_answers(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.store.write(CITRIX, b"")
            await it.blacklist.sync()
            it.store.lose("gone")
            it.blacklist.lost()
            verdict = await it.judge(1, 86451)
            assert verdict.blacklisted
            assert verdict.fallback
            assert not (await it.judge(1, 86452)).blacklisted
            assert it.lookups == {"fallback": 2}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("on_error", "expected"), [("mirror", [True, False]), ("allow", [False, False]), ("deny", [True, True])]
)
def test_a_xenstored_that_does_not_answer_in_time(tmp_path: Path, on_error: str, expected: list[bool]) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(on_error=on_error)) as it:
            await it.store.write(CITRIX, b"")
            await it.blacklist.sync()
            it.store.stuck = True
            begin = time.monotonic()
            verdicts = [await it.judge(1, build, 0.05) for build in (86451, 86452)]
            assert time.monotonic() - begin < 10
            assert [verdict.blacklisted for verdict in verdicts] == expected
            assert all(verdict.fallback for verdict in verdicts)
            assert it.lookups == {"fallback": 2}

    asyncio.run(main())


def test_all_lookups_of_a_frame_share_one_deadline(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.blacklist.sync()
            it.store.stuck = True
            begin = time.monotonic()
            for build in range(20):
                need = NeedVerdict(1, build, first=build == 0)
                await it.blacklist.judge(it.domain, need, begin + 0.3)
            assert time.monotonic() - begin < 5, "not twenty times the deadline"
            assert it.lookups == {"fallback": 20}

    asyncio.run(main())


@pytest.mark.parametrize("on_error", ["mirror", "allow", "deny"])
def test_beyond_32_lookups_a_second_the_mirror_answers_whatever_on_error_says(tmp_path: Path, on_error: str) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(on_error=on_error)) as it:
            await it.store.write(CITRIX, b"")
            await it.blacklist.sync()
            reads = it.store.reads
            begin = time.monotonic()
            for _ in range(200):
                await it.judge(1, 5)
            passed = time.monotonic() - begin
            assert it.store.reads - reads <= LOOKUPS_A_SECOND * (1 + passed) + 1
            assert it.lookups["fallback"] >= 200 - LOOKUPS_A_SECOND * (1 + passed) - 1
            verdicts = [(await it.judge(1, build)).blacklisted for build in (86451, 86452)]
            assert verdicts == [True, False]
            other = it.host.domain(8, "db", "4f0e0c5e-0000-4000-8000-000000000009")
            assert not (await it.judge(1, 5, domain=other)).fallback, "other guests have their own"

    asyncio.run(main())


def test_a_domid_that_is_used_again_has_its_lookups_anew(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.blacklist.sync()
            for _ in range(80):
                await it.judge(1, 5)
            it.blacklist.forget(7)
            it.blacklist.forget(7)
            assert not (await it.judge(1, 5)).fallback

    asyncio.run(main())


def test_what_configuration_says_counts_before_xenstore_has_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(entries=(ENTRY,))) as it:
            verdict = await it.judge(1, 86451)
            assert verdict.blacklisted
            assert it.lookups == {"fallback": 1}

    asyncio.run(main())


def test_configured_entries_are_put_into_xenstore_and_again_after_a_loss(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(entries=(ENTRY,))) as it:
            await it.blacklist.sync()
            assert await it.read(CITRIX) == b"loses data"
            assert it.blacklist.entries == 1
            it.store.lose("crashed")
            it.blacklist.lost()
            it.store.restore()
            await it.store.remove("/mh")
            await it.blacklist.sync()
            assert await it.read(CITRIX) == b"loses data"
            assert it.blacklist.entries == 1

    asyncio.run(main())


def test_a_reload_takes_out_what_is_ours_and_no_longer_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(entries=(ENTRY,))) as it:
            await it.blacklist.sync()
            other = BlacklistEntry("linux", 9, "x")
            it.blacklist.configure(BlacklistConfig(entries=(other,)), Registry())
            await it.blacklist.put_entries()
            assert await it.read(CITRIX) is None
            assert await it.read(f"{ROOT}/linux/9") == b"x"

    asyncio.run(main())


def test_a_reason_that_changed_is_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(entries=(ENTRY,))) as it:
            await it.blacklist.sync()
            changed = BlacklistEntry("xensource-windows", 86451, "new")
            it.blacklist.configure(BlacklistConfig(entries=(changed,)), Registry())
            await it.blacklist.put_entries()
            assert await it.read(CITRIX) == b"new"

    asyncio.run(main())


def test_a_node_that_was_there_before_is_not_ours(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(entries=(ENTRY,))) as it:
            await it.store.write(CITRIX, b"the administrator's")
            await it.blacklist.sync()
            assert await it.read(CITRIX) == b"the administrator's"
            it.blacklist.configure(BlacklistConfig(), Registry())
            await it.blacklist.put_entries()
            assert await it.read(CITRIX) == b"the administrator's"

    asyncio.run(main())


def test_what_is_ours_is_remembered_over_a_restart_but_not_over_a_boot(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(entries=(ENTRY,))) as it:
            await it.blacklist.sync()
            stranger = it.another(BlacklistConfig(), boot=b"another boot....")
            await stranger.put_entries()
            assert await it.read(CITRIX) == b"loses data"
            restarted = it.another(BlacklistConfig())
            await restarted.put_entries()
            assert await it.read(CITRIX) is None
            assert (tmp_path / "owned").read_text().splitlines()[1:] == []

    asyncio.run(main())


SAME_BOOT = "0" * 32


@pytest.mark.parametrize("content", ["", "\n", "/vm\n", "\ud1ff\n/vm\n", SAME_BOOT, f"{SAME_BOOT}\n/vm\n3\n\n"])
def test_a_memory_that_is_damaged_owns_nothing(tmp_path: Path, content: str) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.store.write("/vm", b"precious")
            (tmp_path / "owned").write_bytes(content.encode("utf-8", "surrogatepass"))
            await it.another(BlacklistConfig()).put_entries()
            assert await it.read("/vm") == b"precious"

    asyncio.run(main())


def test_a_memory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(entries=(ENTRY,))) as it:
            (tmp_path / "owned.new").mkdir()
            await it.blacklist.sync()
            assert await it.read(CITRIX) == b"loses data"
            assert it.host.said[0][0] is Event.SINK_FAILED
            assert "owned" in it.host.said[0][1]

    asyncio.run(main())


def test_only_builds_are_counted_as_entries(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            for path in (CITRIX, f"{ROOT}/linux/1", f"{ROOT}/linux/comment", f"{ROOT}/empty"):
                await it.store.write(path, b"")
            await it.blacklist.sync()
            assert it.blacklist.entries == 2

    asyncio.run(main())


@asynccontextmanager
async def following(blacklist: Blacklist) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(blacklist.follow())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_the_mirror_follows_xenstore(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it, following(it.blacklist):
            it.blacklist.arm()
            await it.blacklist.sync()
            await it.store.write(CITRIX, b"")
            await until(lambda: it.blacklist.entries == 1)
            await it.store.remove(ROOT)
            await until(lambda: it.blacklist.entries == 0)

    asyncio.run(main())


def test_a_change_while_the_mirror_is_read_for_the_first_time_is_not_missed(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it, following(it.blacklist):
            it.blacklist.arm()
            await it.store.write(f"{ROOT}/linux/1", b"")
            read = it.store.directory

            async def late(path: str) -> list[str]:
                names = await read(path)
                if path.endswith("/linux"):
                    await it.store.write(f"{ROOT}/linux/2", b"")
                    await asyncio.sleep(0.3)
                return names

            it.store.directory = late  # type: ignore[method-assign,assignment] # a store that misbehaves
            await it.blacklist.sync()
            it.store.directory = read  # type: ignore[method-assign] # and no longer does
            await until(lambda: it.blacklist.entries == 2)

    asyncio.run(main())


def test_a_mirror_that_could_not_be_read_is_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it, following(it.blacklist):
            it.blacklist.arm()
            await it.blacklist.sync()
            read = it.store.directory

            def refused(path: str) -> asyncio.Future[list[str]]:
                it.store.directory = read  # type: ignore[method-assign] # and no longer does
                raise StoreUnavailable("no answer in time")

            it.store.directory = refused  # type: ignore[method-assign,assignment] # a store that misbehaves
            await it.store.write(CITRIX, b"")
            await until(lambda: it.blacklist.entries == 1)
            assert it.host.said[0][0] is Event.STORE_REFUSED

    asyncio.run(main())


def test_a_new_process_knows_what_xenstore_had_last(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.store.write(CITRIX, b"by hand")
            await it.blacklist.sync()
            it.blacklist = it.another(BlacklistConfig())
            it.blacklist.lost()
            assert it.blacklist.entries == 1
            assert (await it.judge(1, 86451)).blacklisted
            assert it.lookups == {"fallback": 1}
            it.blacklist = it.another(BlacklistConfig(), boot=b"another boot's id")
            assert it.blacklist.entries == 0

    asyncio.run(main())


def test_who_asks_before_there_was_a_connection_waits_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            await it.store.write(CITRIX, b"by hand")
            asked = asyncio.ensure_future(it.judge(1, 86451, seconds=30.0))
            await asyncio.sleep(0.01)
            assert not asked.done()
            await it.blacklist.sync()
            assert await asked == BY_HAND
            assert it.lookups == {"blacklisted": 1}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("action", "result"),
    [(Action.REPORT, "reported"), (Action.REFUSE, "blacklisted"), (Action.WITHHOLD, "blacklisted")],
)
def test_what_a_node_means_by_default(tmp_path: Path, action: Action, result: str) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(action=action)) as it:
            await it.store.write(CITRIX, b"by hand")
            await it.blacklist.sync()
            verdict = await it.judge(1, 86451)
            assert (verdict.blacklisted, verdict.action, verdict.by_node) == (True, action, True)
            assert it.lookups == {result: 1}

    asyncio.run(main())


@pytest.mark.parametrize("there", [False, True])
def test_an_entry_that_is_less_strict_than_the_default_does_not_save_from_a_node(tmp_path: Path, there: bool) -> None:
    config = BlacklistConfig(entries=(ENTRY._replace(action=Action.REPORT),))

    async def main() -> None:
        async with world(tmp_path, config) as it:
            if there:
                await it.store.write(CITRIX, b"by hand")
            await it.blacklist.sync()
            verdict = await it.judge(1, 86451)
            assert verdict.action is (Action.REFUSE if there else Action.REPORT)
            assert verdict.source == ("xenstore" if there else "configuration")
            assert verdict.reason == ("by hand" if there else "loses data")
            assert it.lookups == {"blacklisted" if there else "reported": 1}
            assert (await it.read(CITRIX) is not None) is there, "unplugd decides it by itself"

    asyncio.run(main())


def test_an_entry_that_is_stricter_needs_no_word_of_xenstores(tmp_path: Path) -> None:
    config = BlacklistConfig(entries=(ENTRY._replace(action=Action.WITHHOLD, guests=Patterns("web-*")),))

    async def main() -> None:
        async with world(tmp_path, config) as it:
            await it.blacklist.sync()
            reads = it.store.reads
            verdict = await it.judge(1, 86451)
            assert (verdict.action, verdict.rule) == (
                Action.WITHHOLD, "entry xensource-windows 86451 for guests web-* (withhold)")
            assert it.store.reads == reads
            it.domain.rename("db-01")
            assert not (await it.judge(1, 86451)).blacklisted
            it.domain.rename("web-02--incoming")
            assert (await it.judge(1, 86451)).blacklisted

    asyncio.run(main())


def test_observing_makes_every_action_a_report(tmp_path: Path) -> None:
    config = BlacklistConfig(
        mode="observe", on_error="deny", ranges=(BlacklistRange("linux", 0, 9, "old", Action.WITHHOLD),),
    )

    async def main() -> None:
        async with world(tmp_path, config) as it:
            follow(it, Config(blacklist=config))
            await it.store.write(CITRIX, b"by hand")
            await it.blacklist.sync()
            for product, build in ((1, 86451), (3, 1)):
                verdict = await it.judge(product, build)
                assert (verdict.blacklisted, verdict.action) == (True, Action.REPORT)
                assert verdict.rule.endswith('; only observed: blacklist.mode = "observe"')
            it.blacklist.lost()
            assert (await it.judge(1, 5)).action is Action.REPORT
            assert it.lookups == {"reported": 2, "fallback": 1}

    asyncio.run(main())


def test_an_exempt_guest_is_asked_about_nowhere(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as it:
            follow(it, Config(guests=(GuestRule(Patterns("web-01"), "exempt"),)))
            await it.store.write(CITRIX, b"by hand")
            await it.blacklist.sync()
            reads = it.store.reads
            verdict = await it.judge(1, 86451)
            assert (verdict.blacklisted, verdict.rule) == (False, '[[guest]] web-01, blacklist = "exempt"')
            assert (it.store.reads, it.lookups) == (reads, {"allowed": 1})

    asyncio.run(main())


def test_denied_where_xenstored_is_silent_means_the_default_action(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, BlacklistConfig(on_error="deny", action=Action.WITHHOLD)) as it:
            it.blacklist.lost()
            verdict = await it.judge(3, 1)
            assert (verdict.blacklisted, verdict.action, verdict.source) == (True, Action.WITHHOLD, "on-error")
            assert verdict.rule == 'blacklist.on_error = "deny"'
            assert it.lookups == {"fallback": 1}

    asyncio.run(main())
