"""The way of records to their sinks: in order, bounded, counted, and where SIGKILL does not reach them."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.lab.host import OTHER_UUID, UUID, FakeJournald, delivery, until
from unplugd.config.load import LogConfig
from unplugd.errors import HostError
from unplugd.sinks.delivery import Delivery
from unplugd.sinks.outbox import OVERHEAD, Outbox
from unplugd.sinks.records import Entry, Event
from unplugd.sinks.spool import Spool, load


def line(text: str, domid: int = 7) -> Entry:
    return Entry(
        1700000000.0,
        text.encode(),
        (
            ("MESSAGE_ID", Event.GUEST_LINE.message_id),
            ("XEN_DOMID", str(domid)),
            ("XEN_DOMAIN_NAME", f"guest-{domid}"),
        ),
    )


class World:
    """A Delivery with a journald that reads when it is told to."""

    def __init__(self, tmp_path: Path, *sinks: str) -> None:
        self.directory = tmp_path
        self.files = tmp_path / "logs"
        self.state = tmp_path / "state"
        self.state.mkdir(exist_ok=True)
        self.journald = FakeJournald(tmp_path / "journal")
        self.config = LogConfig(sinks=sinks, directory=self.files)
        self.lost = [0, 0]
        self.delivery = self.start()

    def start(self) -> Delivery:
        """A process that starts."""
        return delivery(self.config, self.state, self.journald.path)

    def open(self, domid: int = 7, uuid: str = UUID) -> Outbox:
        """A domain's outbox."""
        return self.delivery.open(domid, f"guest-{domid}", uuid, self.count)

    def count(self, lines: int, size: int) -> None:
        self.lost[0] += lines
        self.lost[1] += size

    def text(self, domid: int = 7) -> list[str]:
        """The lines in a guest's file."""
        path = self.files / f"guest-guest-{domid}.log"
        if not path.exists():
            return []
        return [row.split(" ", 1)[1] for row in path.read_text().splitlines()]

    @property
    def spools(self) -> list[str]:
        """Files that are there because something is on its way."""
        return sorted(path.name for path in self.state.iterdir())

    def kill(self) -> None:
        """SIGKILL: nothing of the process acts any more."""
        for outbox in self.delivery._outboxes.values():
            if outbox.task is not None:
                outbox.task.cancel()
        self.delivery._journal.close()


@asynccontextmanager
async def world(tmp_path: Path, *sinks: str) -> AsyncIterator[World]:
    it = World(tmp_path, *sinks)
    try:
        yield it
    finally:
        await it.delivery.stop(deadline=0.0)
        it.journald.stop()


def numbers(count: int) -> list[str]:
    return [f"line {number}" for number in range(count)]


def test_a_journald_that_reads_gets_it_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            outbox = it.open()
            it.delivery.put(outbox, line("hello"))
            assert it.journald.lines == ["hello"], "no loop turn in between"
            assert it.journald.entries[0]["XEN_DOMID"] == "7"
            assert it.spools == []
            assert it.delivery.problem is None

    asyncio.run(main())


@pytest.mark.parametrize("how", ["full", "absent"])
def test_a_journald_that_does_not_take_it_gets_it_later_in_order(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            outbox = it.open()
            if how == "absent":
                it.journald.stop()
            for text in numbers(600):
                it.delivery.put(outbox, line(text))
            assert outbox.pending
            assert it.spools == [f"dom7-{UUID}.spool"]
            assert it.delivery.problem
            if how == "absent":
                it.journald.start()
            await until(lambda: it.journald.lines == numbers(600))
            assert it.lost == [0, 0]
            assert outbox.pending == 0
            assert it.spools == []
            assert it.delivery.problem is None

    asyncio.run(main())


def test_the_turns_of_several_domains(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            it.journald.stop()
            boxes = [it.open(domid) for domid in (7, 8, 9)]
            for text in numbers(100):
                for outbox in boxes:
                    it.delivery.put(outbox, line(text, outbox.domid))
            it.journald.start()
            await until(lambda: len(it.journald.lines) == 300)
            for domid in ("7", "8", "9"):
                entries = [entry["MESSAGE"] for entry in it.journald.entries if entry["XEN_DOMID"] == domid]
                assert entries == numbers(100)

    asyncio.run(main())


def test_files_get_it_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "file") as it:
            outbox = it.open()
            for text in numbers(300):
                it.delivery.put(outbox, line(text))
            assert it.spools, "acknowledged before the disk has it"
            await until(lambda: it.text() == numbers(300))
            await until(lambda: it.spools == [])

    asyncio.run(main())


def test_standard_error_names_the_guest_and_escapes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with world(tmp_path, "stderr") as it:
            it.delivery.put(it.open(), line("red \x1b[31m"))
            it.delivery.record(line("of its own"))

    asyncio.run(main())
    first, second = capfd.readouterr().err.splitlines()
    assert first.endswith(" guest-7: red \\x1b[31m")
    assert second.endswith(" unplugd: of its own")


def test_all_sinks_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal", "file", "stderr") as it:
            outbox = it.open()
            for text in numbers(20):
                it.delivery.put(outbox, line(text))
            await until(lambda: it.text() == numbers(20) and it.journald.lines == numbers(20))

    asyncio.run(main())
    assert len(capfd.readouterr().err.splitlines()) == 20


def test_own_records_go_to_the_journal_or_to_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal", "file") as it:
            it.delivery.record(line("to the journal"))
            assert it.journald.lines == ["to the journal"]
            it.delivery.configure(LogConfig(sinks=("file",), directory=it.files))
            it.delivery.record(line("to standard error"))
            assert it.journald.lines == ["to the journal"]

    asyncio.run(main())
    assert "to standard error" in capfd.readouterr().err


def test_what_waits_is_bounded_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            it.journald.stop()
            outbox = it.open()
            text = "x" * 1000
            limit = 131072 // 64 * (64 + OVERHEAD)  # a default burst of the shortest lines
            for _ in range(1000):
                it.delivery.put(outbox, line(text))
                assert outbox.pending <= limit
            kept = limit // (1000 + OVERHEAD)
            assert it.lost == [1000 - kept, (1000 - kept) * 1000]
            other = it.open(8)
            it.delivery.put(other, line("other guests have room", 8))
            it.journald.start()
            await until(lambda: len(it.journald.lines) == kept + 1)

    asyncio.run(main())


def test_a_whole_burst_of_short_lines_waits_for_two_sinks(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal", "stderr") as it:
            it.journald.stop()
            outbox = it.open()
            for _ in range(131072 // 64):
                it.delivery.put(outbox, line("short"))
            assert it.lost == [0, 0]

    asyncio.run(main())


def test_all_domains_together_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unplugd.sinks.delivery.TOTAL_LIMIT", 5000)

    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            it.journald.stop()
            for domid in range(1, 20):
                it.delivery.put(it.open(domid), line("y" * 500, domid))
            assert it.lost[0] == 19 - 5000 // (500 + OVERHEAD)

    asyncio.run(main())


def test_lost_own_records_are_said_when_there_is_room_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            it.journald.stop()
            for _ in range(400):
                it.delivery.record(line("z" * 1000))
            it.journald.start()
            await until(lambda: it.journald.of(Event.RECORDS_LOST))
            lost = int(it.journald.of(Event.RECORDS_LOST)[0].split()[0])
            assert lost + len(it.journald.lines) == 400

    asyncio.run(main())


def test_an_entry_that_no_journald_can_take_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:

            def too_long(entry: Entry) -> bool:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))

            monkeypatch.setattr(it.delivery._journal, "send", too_long)
            it.delivery.put(it.open(), line("abc"))
            assert it.lost == [1, 3]

    asyncio.run(main())


def test_a_disk_that_fails_is_said_once_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "file", "journal") as it:
            outbox = it.open()
            blocked = it.files / "guest-guest-7.log"
            blocked.mkdir()
            for text in numbers(5):
                it.delivery.put(outbox, line(text))
            await until(lambda: it.journald.of(Event.SINK_FAILED))
            assert "guest-guest-7.log" in it.journald.of(Event.SINK_FAILED)[0]
            assert "1 guest logs" in (it.delivery.problem or "")
            blocked.rmdir()
            await until(lambda: it.text() == numbers(5))
            await until(lambda: it.journald.of(Event.SINK_RECOVERED))
            assert it.delivery.problem is None
            assert len(it.journald.of(Event.SINK_FAILED)) == 1

    asyncio.run(main())


def test_a_failing_guest_that_goes_is_no_problem_any_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "file", "journal") as it:
            outbox = it.open()
            (it.files / "guest-guest-7.log").mkdir()
            it.delivery.put(outbox, line("never"))
            await until(lambda: it.delivery.problem)
            it.delivery.close(outbox)
            await until(lambda: it.delivery.problem is None)
            await until(lambda: it.lost == [1, 5])
            await until(lambda: it.spools == [])

    asyncio.run(main())


@pytest.mark.parametrize("sinks", [("journal",), ("file",), ("journal", "file")])
def test_what_was_put_survives_sigkill(tmp_path: Path, sinks: tuple[str, ...]) -> None:
    async def main() -> None:
        async with world(tmp_path, *sinks) as it:
            outbox = it.open()
            it.journald.stop()
            for text in numbers(50):
                it.delivery.put(outbox, line(text))
            it.kill()
            it.journald.start()
            it.delivery = it.start()
            it.open()
            for text in numbers(60)[50:]:
                it.delivery.put(it.delivery._outboxes[7], line(text))
            if "journal" in sinks:
                await until(lambda: it.journald.lines == numbers(60))
            if "file" in sinks:
                await until(lambda: it.text()[-60:] == numbers(60))
            await until(lambda: it.spools == [])

    asyncio.run(main())


KILLED_WHILE_WRITING = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.lab.host import UUID
from tests.unit.test_delivery import World, line, numbers
from unplugd.sinks import guestfile

path, size, last = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "released"

def write(descriptor, at, data):
    os.write(descriptor, data[:size])
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    it = World(path, "file")
    outbox = it.open()
    it.delivery.put(outbox, line("before"))
    while it.text() != ["before"]:
        await asyncio.sleep(0.01)
    guestfile._write_whole = write
    for text in ["same", "same", *numbers(8)]:
        it.delivery.put(outbox, line(text))
    if last:
        it.delivery.close(outbox)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["there", "released"])
@pytest.mark.parametrize("size", [0, 30, 31, 60, 100, 1 << 16])
def test_a_process_killed_while_it_writes_a_file_repeats_and_loses_nothing(
    tmp_path: Path, how: str, size: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path), str(size), how], check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL

    async def main() -> None:
        async with world(tmp_path, "file") as it:
            outbox = None if how == "released" else it.open()
            it.delivery.adopt_orphans()
            if outbox is not None:
                it.delivery.put(outbox, line("after"))
            expected = ["before", "same", "same", *numbers(8), *["after"] * (outbox is not None)]
            await until(lambda: it.spools == [])
            text = (it.files / "guest-guest-7.log").read_text()
            whole = [row.split(" ", 1)[1] for row in text.splitlines() if row.count(" ")]
            half = [row for row in whole if row not in expected]  # what was cut in the middle stays as it is
            assert len(half) <= 1
            assert [row for row in whole if row not in half] == expected

    asyncio.run(main())


def test_until_they_have_arrived_they_stay_in_the_spool(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            it.journald.stop()
            outbox = it.open()
            for text in numbers(5):
                it.delivery.put(outbox, line(text))
            for _ in range(3):  # killed again and again
                it.kill()
                it.delivery = it.start()
                it.open()
                (name,) = it.spools
                assert [entry.message.decode() for entry, _ in load(it.state / name)] == numbers(5)

    asyncio.run(main())


def test_what_a_domain_left_that_is_gone_is_adopted(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal", "file") as it:
            it.journald.stop()
            outbox = it.open()
            for text in numbers(40):
                it.delivery.put(outbox, line(text))
            it.kill()
            it.journald.start()
            it.delivery = it.start()
            it.open(8)
            it.delivery.adopt_orphans()
            await until(lambda: it.journald.lines == numbers(40))
            await until(lambda: it.text()[-40:] == numbers(40))
            await until(lambda: it.spools == [])

    asyncio.run(main())


def test_a_spool_whose_fields_are_not_ours_does_not_stop_a_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal", "file") as it:
            fields = (("MESSAGE_ID", Event.GUEST_LINE.message_id), ("XEN_DOMID", "none"))
            Spool(it.state / "dom9.spool").append(Entry(1.0, b"kept", fields), ["journal"])
            it.delivery = it.start()
            it.delivery.adopt_orphans()
            await until(lambda: it.journald.lines == ["kept"])
            await until(lambda: it.spools == [])

    asyncio.run(main())


def test_what_was_said_before_the_uuid_was_known_is_not_lost(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal", "file") as it:
            it.journald.stop()
            outbox = it.open(7, uuid="")
            for text in numbers(10):
                it.delivery.put(outbox, line(text))
            it.kill()
            it.journald.start()
            it.delivery = it.start()
            it.open(7, UUID)
            it.delivery.adopt_orphans()
            await until(lambda: it.journald.lines == numbers(10))
            await until(lambda: it.text()[-10:] == numbers(10), 5.0)

    asyncio.run(main())


def test_a_domid_that_is_used_again_does_not_get_the_others_lines(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            it.journald.stop()
            outbox = it.open(7, UUID)
            it.delivery.put(outbox, line("the old one's"))
            it.delivery.close(outbox)
            fresh = it.open(7, OTHER_UUID)
            assert fresh.pending == 0
            it.delivery.put(fresh, line("the new one's"))
            it.journald.start()
            await until(lambda: sorted(it.journald.lines) == ["the new one's", "the old one's"])
            await until(lambda: it.spools == [])

    asyncio.run(main())


def test_a_released_domains_lines_still_arrive(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal", "file") as it:
            it.journald.stop()
            outbox = it.open()
            for text in numbers(20):
                it.delivery.put(outbox, line(text))
            it.delivery.close(outbox)
            it.delivery.close(outbox)
            it.journald.start()
            await until(lambda: it.journald.lines == numbers(20) and it.text() == numbers(20))
            await until(lambda: it.spools == [])
            assert it.lost == [0, 0]

    asyncio.run(main())


def test_a_rename_takes_the_file_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "file") as it:
            outbox = it.open()
            it.delivery.put(outbox, line("before"))
            await until(lambda: it.text() == ["before"])
            it.delivery.rename(outbox, "guest-9")
            it.delivery.put(outbox, line("after"))
            await until(lambda: it.text(9) == ["before", "after"])

    asyncio.run(main())


def test_without_room_on_tmpfs_it_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            it.journald.stop()
            outbox = it.open()
            monkeypatch.setattr(os, "pwrite", full)
            for text in numbers(10):
                it.delivery.put(outbox, line(text))
            it.journald.start()
            await until(lambda: it.journald.lines == numbers(10))
            assert it.lost == [0, 0]

    asyncio.run(main())


def test_a_spool_that_never_gets_empty_does_not_grow_for_ever(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal", "file") as it:
            outbox = it.open()
            (it.files / "guest-guest-7.log").mkdir()
            it.delivery.put(outbox, line("the disk has not this one"))
            it.journald.stop()
            for round_ in range(40):
                for _ in range(90):
                    it.delivery.put(outbox, line("v" * 1000))
                it.journald.start()
                await until(lambda: it.journald.read() and not outbox.queues["journal"])
                it.journald.stop()
                assert outbox.spool is not None
                assert outbox.spool.size < 6 * (131072 // 64 * (64 + OVERHEAD)), round_
            (it.files / "guest-guest-7.log").rmdir()
            await until(lambda: it.spools == [])

    asyncio.run(main())


def test_a_directory_that_cannot_be_had_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            (tmp_path / "occupied").write_text("")
            with pytest.raises(HostError) as caught:
                it.delivery.configure(LogConfig(sinks=("file",), directory=tmp_path / "occupied" / "logs"))
            assert str(tmp_path / "occupied") in str(caught.value)
            it.delivery.put(it.open(), line("still to the journal"))
            assert it.journald.lines == ["still to the journal"]

    asyncio.run(main())


def test_other_sinks_from_now_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "journal") as it:
            outbox = it.open()
            it.delivery.put(outbox, line("journal"))
            it.delivery.configure(LogConfig(sinks=("file",), directory=it.files))
            it.delivery.put(outbox, line("file"))
            await until(lambda: it.text() == ["file"])
            it.delivery.configure(LogConfig(sinks=("file",), directory=it.files))  # SIGHUP
            other = tmp_path / "other"
            it.delivery.configure(LogConfig(sinks=("file",), directory=other))
            it.delivery.put(outbox, line("elsewhere"))
            await until((other / "guest-guest-7.log").exists)
            assert it.journald.lines == ["journal"]

    asyncio.run(main())


def test_a_sink_that_is_off_since_the_restart_holds_nothing_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path, "file", "journal") as it:
            outbox = it.open()
            (it.files / "guest-guest-7.log").mkdir()
            it.delivery.put(outbox, line("for a file"))
            it.kill()
            it.config = LogConfig(sinks=("journal",), directory=it.files)
            it.delivery = it.start()
            fresh = it.open()
            assert fresh.pending == 0
            assert it.spools == []

    asyncio.run(main())


def test_stopping_lets_what_is_on_its_way_arrive(tmp_path: Path) -> None:
    async def main() -> None:
        it = World(tmp_path, "file")
        outbox = it.open()
        for text in numbers(50):
            it.delivery.put(outbox, line(text))
        await it.delivery.stop(deadline=20.0)
        assert it.text() == numbers(50)
        it.journald.stop()

    asyncio.run(main())


def test_stopping_does_not_wait_for_ever_and_leaves_the_spool(tmp_path: Path) -> None:
    async def main() -> None:
        it = World(tmp_path, "journal")
        it.journald.stop()
        it.delivery.put(it.open(), line("later"))
        await it.delivery.stop(deadline=0.1)
        assert it.spools == [f"dom7-{UUID}.spool"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "sinks", "cost"),
    [
        (b"plain", ("journal",), 5), (b"a\\b", ("journal",), 3), (b"a\\b", ("file",), 4), (b"\x1b", ("stderr",), 4),
        (b"\xff", ("journal",), 4), ("\u00e9".encode(), ("journal",), 2), ("\u00e9".encode(), ("journal", "file"), 8),
    ],
)  # fmt: skip
def test_the_cost_of_a_line_is_what_is_stored(
    tmp_path: Path, text: bytes, sinks: tuple[str, ...], cost: int
) -> None:
    async def main() -> None:
        async with world(tmp_path, *sinks) as it:
            assert it.delivery.cost(text) == cost

    asyncio.run(main())
