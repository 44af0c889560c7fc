import asyncio
import errno
import os
import re
import resource
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.core.escape import escape_text
from unplugd.errors import HostError
from unplugd.sinks import files
from unplugd.sinks.files import GuestFiles, file_name, format_line

HOSTILE = [
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/",
    "\0",
    "a/b",
    "é",
    "\udcff",
    "\ud800",
    "a b",
    "%41",
    "é" * 99,
]
ANY_NAME = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=400), st.text("a%/.-7", max_size=210))
DOMID = st.integers(1, 0x7FF0)


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work
            await settled()

    asyncio.run(limited())


async def settled() -> None:
    """Wait for all appends and renames that were begun."""
    if begun := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(begun)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel end every write at `size` bytes of a file, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "logs"


# Names


@given(ANY_NAME, DOMID)
def test_name_is_one_file_in_the_directory(name: str, domid: int) -> None:
    found = file_name(name, domid)
    assert re.fullmatch(r"guest-[A-Za-z0-9._+%-]*\.log", found)
    assert len(found + ".1") <= 255


@given(ANY_NAME, DOMID, ANY_NAME, DOMID)
def test_names_never_share_a_file(one: str, domid: int, other: str, domid_of_other: int) -> None:
    if one != other and domid != domid_of_other:
        assert file_name(one, domid) != file_name(other, domid_of_other)


@given(st.lists(ANY_NAME, max_size=8))
def test_taken_names_are_never_given_again(names: list[str]) -> None:
    taken: set[str] = set()
    for domid, name in enumerate(names, 1):
        found = file_name(name, domid, taken=taken.__contains__)
        assert found not in taken
        assert len(found + ".1") <= 255
        taken.add(found)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("web-01", "guest-web-01.log"),
        ("a_b.c+d", "guest-a_b.c+d.log"),
        ("..", "guest-...log"),
        ("a/b c", "guest-a%2Fb%20c.log"),
        ("%41", "guest-%2541.log"),
        ("é", "guest-%C3%A9.log"),
        ("\udcff", "guest-%FF.log"),
        ("", "guest-.log"),
        ("x" * 200, f"guest-{'x' * 200}.log"),
        ("x" * 201, f"guest-{'x' * 200}-7.log"),
    ],
)
def test_name_examples(name: str, file: str) -> None:
    assert file_name(name, 7) == file


def test_later_of_two_gets_its_domid() -> None:
    assert file_name("web", 9, taken={"guest-web.log"}.__contains__) == "guest-web-9.log"
    both = {"guest-web.log", "guest-web-9.log"}
    assert file_name("web", 9, taken=both.__contains__) == "guest-web-9-9.log"


@given(st.floats(0, 4e9), st.binary(max_size=50))
def test_line(time: float, raw: bytes) -> None:
    line = format_line(time, raw)
    match = re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ([ -~]*)\n", line)
    assert match is not None
    assert match[1].decode() == escape_text(raw)


def test_line_example() -> None:
    assert format_line(1.9996, b"a\x1b") == b"1970-01-01T00:00:01.999Z a\\x1b\n"


# Appending


def test_lines_are_appended(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        assert os.listdir(directory) == []
        await guests.append(7, [b"one\n", b"two\n"])
        await guests.append(7, [b"three\n"])
        await guests.append(7, [])
        assert (directory / "guest-web.log").read_bytes() == b"one\ntwo\nthree\n"
        assert (directory / "guest-web.log").stat().st_mode & 0o777 & ~0o640 == 0

    run(scenario())


def test_file_of_an_earlier_domain_is_continued(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        await guests.append(7, [b"one\n"])
        guests.close(7)
        guests.open(8, "web")
        await guests.append(8, [b"two\n"])
        assert (directory / "guest-web.log").read_bytes() == b"one\ntwo\n"
        with pytest.raises(KeyError):
            await guests.append(7, [b"late\n"])

    run(scenario())


class Noted:
    """A ledger of a process that came after one that was killed."""

    def __init__(self, begun: tuple[int, int]) -> None:
        self.begun: tuple[int, int] | None = begun
        self.began: list[int] = []

    def begin(self, inode: int, size: int) -> None:
        self.began.append(size)

    def end(self, begun: tuple[int, int] | None) -> None:
        self.begun = begun


def test_what_an_earlier_process_wrote_is_not_written_again(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        await guests.append(7, [b"old\n", b"one\n", b"two\n", b"thr"])
        path = directory / "guest-web.log"
        ledger = Noted((path.stat().st_ino, len(b"old\n")))
        await guests.append(7, [b"one\n"], ledger)
        assert not ledger.began
        await guests.append(7, [b"two\n", b"three\n"], ledger)
        assert ledger.began == [len(b"old\none\ntwo\nthr")]
        assert ledger.begun is None
        assert path.read_bytes() == b"old\none\ntwo\nthr\nthree\n"
        await guests.append(7, [b"two\n"], ledger)
        assert path.read_bytes() == b"old\none\ntwo\nthr\nthree\ntwo\n"

    run(scenario())


@pytest.mark.parametrize("change", ["rotated", "replaced", "truncated", "removed"])
def test_what_became_of_the_file_meanwhile(directory: Path, change: str) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        await guests.append(7, [b"old\n", b"one\n"])
        path = directory / "guest-web.log"
        ledger = Noted((path.stat().st_ino, len(b"old\n")))
        match change:
            case "rotated":
                path.rename(f"{path}.1")
            case "replaced":
                (directory / "other").write_bytes(b"xyz\none\n")
                (directory / "other").rename(path)
            case "truncated":
                os.truncate(path, 0)
            case "removed":
                path.unlink()
        before = path.read_bytes() if path.exists() else b""
        await guests.append(7, [b"one\n", b"two\n"], ledger)
        expected = b"two\n" if change == "rotated" else before + b"one\ntwo\n"
        assert path.read_bytes() == expected

    run(scenario())


def test_rotation_keeps_one_older_file(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 10)
        guests.open(7, "web")
        path = directory / "guest-web.log"
        await guests.append(7, [b"123456789\n"])
        assert path.read_bytes() == b"123456789\n"
        await guests.append(7, [b"a\n"])
        assert (path.read_bytes(), Path(f"{path}.1").read_bytes()) == (b"a\n", b"123456789\n")
        await guests.append(7, [b"bbbbb\n", b"ccccc\n", b"ddddd\n"])  # more than a file holds
        assert (path.read_bytes(), Path(f"{path}.1").read_bytes()) == (b"ddddd\n", b"ccccc\n")
        await guests.append(7, [b"a line over the limit\n"])  # whole all the same
        assert path.read_bytes() == b"a line over the limit\n"
        assert sorted(os.listdir(directory)) == ["guest-web.log", "guest-web.log.1"]

    run(scenario())


def test_removed_and_moved_files_are_made_anew(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        path = directory / "guest-web.log"
        await guests.append(7, [b"one\n"])
        path.rename(directory / "moved")
        await guests.append(7, [b"two\n"])
        assert path.read_bytes() == b"two\n"
        path.unlink()
        (directory / "moved").unlink()
        directory.rmdir()
        await guests.append(7, [b"three\n"])
        assert path.read_bytes() == b"three\n"
        guests.reopen()

    run(scenario())


def test_half_a_line_of_a_killed_process_ends(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        (directory / "guest-web.log").write_bytes(b"one\nhal")
        await guests.append(7, [b"two\n"])
        assert (directory / "guest-web.log").read_bytes() == b"one\nhal\ntwo\n"

    run(scenario())


def test_short_write_leaves_nothing_behind(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1 << 20)
        guests.open(7, "web")
        await guests.append(7, [b"one\n"])
        lines = [b"x" * 4000 + b"\n"] * 3
        with largest_file(6000), pytest.raises(OSError) as raised:
            await guests.append(7, lines)
        assert raised.value.errno == errno.EFBIG
        assert (directory / "guest-web.log").read_bytes() == b"one\n"
        await guests.append(7, lines)
        assert (directory / "guest-web.log").read_bytes() == b"one\n" + b"".join(lines)

    run(scenario())


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory"])
def test_nothing_but_a_regular_file_is_written(directory: Path, kind: str) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        path, elsewhere = directory / "guest-web.log", directory / "elsewhere"
        match kind:
            case "link":
                elsewhere.write_bytes(b"precious\n")
                path.symlink_to(elsewhere)
            case "dangling link":
                path.symlink_to(elsewhere)
            case "fifo":
                os.mkfifo(path)
            case _:
                path.mkdir()
        with pytest.raises(OSError):
            await guests.append(7, [b"one\n"])
        assert not elsewhere.exists() or elsewhere.read_bytes() == b"precious\n"

    run(scenario())


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_stay_in_the_directory(directory: Path, name: str) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, name)
        await guests.append(7, [b"one\n"])
        guests.rename(7, name + "x")
        await settled()
        assert [path.read_bytes() for path in directory.iterdir()] == [b"one\n"]
        assert os.listdir(directory.parent) == [directory.name]

    run(scenario())


def test_one_append_at_a_time(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        first = asyncio.create_task(guests.append(7, [b"one\n"]))
        await asyncio.sleep(0)
        with pytest.raises(OSError) as raised:
            await guests.append(7, [b"two\n"])
        assert raised.value.errno == errno.EBUSY
        await first
        assert (directory / "guest-web.log").read_bytes() == b"one\n"

    run(scenario())


def test_hanging_disk_has_a_deadline(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        answers = threading.Event()
        for _ in range(files.THREADS):
            guests._threads.submit(answers.wait)
        with pytest.raises(TimeoutError):
            await guests.append(7, [b"one\n"], deadline=0.05)
        with pytest.raises(OSError) as raised:
            await guests.append(7, [b"two\n"], deadline=0.05)
        assert raised.value.errno == errno.EBUSY
        guests.rename(7, "db")
        answers.set()
        await settled()
        assert (directory / "guest-db.log").read_bytes() == b"one\n"

    run(scenario())


def test_cancelled_append_keeps_its_place(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(7, "web")
        task = asyncio.create_task(guests.append(7, [b"one\n"]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        guests.rename(7, "db")
        await settled()
        assert (directory / "guest-db.log").read_bytes() == b"one\n"
        assert not (directory / "guest-web.log").exists()

    run(scenario())


# Renaming


def test_file_follows_its_domain(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 10)
        guests.open(7, "web--incoming")
        await guests.append(7, [b"older678\n"])
        await guests.append(7, [b"one\n"])
        guests.rename(7, "web")
        guests.rename(7, "web")
        await guests.append(7, [b"two\n"])
        guests.open(7, "db")  # open again: a rename
        await settled()
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found == {"guest-db.log": b"one\ntwo\n", "guest-db.log.1": b"older678\n"}

    run(scenario())


def test_silent_domain_has_nothing_to_rename(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 100, lambda domid, error: pytest.fail(f"{domid}: {error}"))
        guests.open(7, "a")
        guests.rename(7, "b")
        await guests.append(7, [b"one\n"])
        assert (directory / "guest-b.log").read_bytes() == b"one\n"

    run(scenario())


def test_swap_of_names_mixes_nothing(directory: Path) -> None:
    """A local migration: `web` steps aside and `web--incoming` takes its name, while both are being written."""

    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(3, "web")
        guests.open(4, "web--incoming")
        await guests.append(4, [b"4 one\n"])
        late = asyncio.create_task(guests.append(3, [b"3 one\n"]))
        await asyncio.sleep(0)
        guests.rename(3, "web--migratedaway")
        guests.rename(4, "web")
        await asyncio.gather(late, guests.append(4, [b"4 two\n"]))
        await guests.append(3, [b"3 two\n"])
        await settled()
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found == {
            "guest-web.log": b"4 one\n4 two\n",
            "guest-web--migratedaway.log": b"3 one\n3 two\n",
        }

    run(scenario())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_guest_that_migrates_away_and_returns_goes_on_in_its_file(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        for domid, text in ((3, b"here\n"), (4, b"here again\n")):
            guests.open(domid, "web--incoming")
            await guests.append(domid, [text])
            guests.rename(domid, "web")
            guests.rename(domid, "web--migratedaway")
            await guests.append(domid, [b"away\n"])
            guests.close(domid, [b"last\n"])
        await settled()
        assert contents(directory) == {"guest-web.log": b"here\naway\nlast\nhere again\naway\nlast\n"}

    run(scenario())


def test_a_migration_that_fails_changes_nothing(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(3, "web")
        await guests.append(3, [b"one\n"])
        guests.rename(3, "web--migratedaway")
        guests.rename(3, "web")
        await guests.append(3, [b"two\n"])
        guests.close(3)
        await settled()
        assert contents(directory) == {"guest-web.log": b"one\ntwo\n"}

    run(scenario())


@pytest.mark.parametrize("renamed_first", [True, False])
def test_a_guest_that_migrates_to_its_own_host_keeps_its_log(directory: Path, renamed_first: bool) -> None:
    """Several times, and while both domains write."""

    async def scenario() -> None:
        guests = GuestFiles(directory, 30)
        guests.open(1, "web")
        await guests.append(1, [b"1 before\n"])
        for domid in (1, 2, 3):
            guests.open(domid + 1, "web--incoming")
            await guests.append(domid + 1, [b"%d in\n" % (domid + 1)])
            guests.rename(domid, "web--migratedaway")
            late = asyncio.create_task(guests.append(domid, [b"%d out\n" % domid]))
            await asyncio.sleep(0)
            if renamed_first:
                guests.rename(domid + 1, "web")
            guests.close(domid)
            guests.rename(domid + 1, "web")
            await asyncio.gather(late, guests.append(domid + 1, [b"%d here\n" % (domid + 1)]))
            await settled()
            if domid == 1:
                here, there = b"1 before\n1 out\n", b"2 in\n2 here\n"
                assert contents(directory) == (
                    {"guest-web.log": there, "guest-web.log.1": here} if renamed_first
                    else {"guest-web.log": here + there})  # fmt: skip
        found = contents(directory)
        assert sorted(found) == ["guest-web.log", "guest-web.log.1"]
        # in their order, the newest complete, and never more than two full files
        text = found["guest-web.log.1"] + found["guest-web.log"]
        every = b"1 before\n1 out\n2 in\n2 here\n2 out\n3 in\n3 here\n3 out\n4 in\n4 here\n"
        assert every.endswith(text)
        assert text.endswith(b"3 in\n3 here\n3 out\n4 in\n4 here\n")
        assert max(map(len, found.values())) <= 30

    run(scenario())


def test_a_full_file_stays_where_it_is_rather_than_be_lost(directory: Path) -> None:
    """The guest has written more at its new place than a file takes, before its old domain was gone."""

    async def scenario() -> None:
        guests = GuestFiles(directory, 10)
        guests.open(3, "web")
        await guests.append(3, [b"3 one\n"])
        guests.rename(3, "web--migratedaway")
        guests.open(4, "web")
        for text in (b"4 one\n", b"4 two\n"):
            await guests.append(4, [text])
        guests.close(3)
        await settled()
        assert contents(directory) == {
            "guest-web--migratedaway.log": b"3 one\n", "guest-web.log.1": b"4 one\n", "guest-web.log": b"4 two\n",
        }

    run(scenario())


def test_a_domain_created_with_the_name_of_one_that_left_replaces_nothing(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 10)
        for domid, name in ((3, "web"), (4, "web--migratedaway")):
            guests.open(domid, name)
            await guests.append(domid, [b"%d one\n" % domid])
            guests.close(domid)
        await settled()
        assert contents(directory) == {"guest-web.log": b"3 one\n", "guest-web--migratedaway.log": b"4 one\n"}

    run(scenario())


def test_a_silent_guest_that_migrates_away_leaves_nothing(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 100, lambda domid, error: pytest.fail(f"{domid}: {error}"))
        for other in (False, True):
            guests.open(3, "web")
            guests.rename(3, "web--migratedaway")
            if other:
                guests.open(4, "web")
            guests.close(3)
            await settled()
        assert contents(directory) == {}

    run(scenario())


def test_new_domain_waits_for_the_name_it_takes(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(3, "web")
        await guests.append(3, [b"3\n"])
        guests.rename(3, "old")
        guests.open(4, "web")
        await guests.append(4, [b"4\n"])
        await settled()
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found == {"guest-old.log": b"3\n", "guest-web.log": b"4\n"}

    run(scenario())


def test_lines_on_their_way_outlive_their_domain(directory: Path) -> None:
    """Left by domains that are gone: each opens, appends and closes without waiting, and their order holds."""

    async def scenario() -> None:
        guests = GuestFiles(directory, 1 << 20)
        expected, waiting = b"", []
        for number in range(50):
            guests.open(7, "web")
            waiting.append(guests.append(7, [b"%d\n" % number]))
            guests.close(7)
            expected += b"%d\n" % number
        guests.open(8, "db")
        guests.rename(8, "web")
        await guests.append(8, [b"last\n"])
        assert (directory / "guest-web.log").read_bytes() == expected + b"last\n"
        await asyncio.gather(*waiting)

    run(scenario())


def test_two_domains_of_one_name(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        guests.open(3, "web")
        guests.open(4, "web")
        await guests.append(3, [b"3\n"])
        await guests.append(4, [b"4\n"])
        guests.close(3)
        guests.rename(4, "web2")
        guests.rename(4, "web")
        await settled()
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found == {"guest-web.log": b"3\n4\n"}

    run(scenario())


def test_renamed_onto_a_full_file_of_an_earlier_domain(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 10)
        (directory / "guest-web.log").write_bytes(b"1234567\n")
        guests.open(4, "web--incoming")
        await guests.append(4, [b"new\n"])
        guests.rename(4, "web")
        await settled()
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        assert found == {"guest-web.log": b"new\n", "guest-web.log.1": b"1234567\n"}

    run(scenario())


def test_renamed_onto_a_link(directory: Path) -> None:
    async def scenario() -> None:
        guests = GuestFiles(directory, 1000)
        precious = directory.parent / "precious"
        precious.write_bytes(b"precious\n")
        (directory / "guest-web.log").symlink_to(precious)
        guests.open(4, "a")
        await guests.append(4, [b"new\n"])
        guests.rename(4, "web")
        await settled()
        assert precious.read_bytes() == b"precious\n"
        assert (directory / "guest-web.log").read_bytes() == b"new\n"
        assert not (directory / "guest-web.log").is_symlink()

    run(scenario())


def test_failed_rename_is_told_and_lines_go_on(directory: Path) -> None:
    async def scenario() -> None:
        failures: list[tuple[int, int | None]] = []
        guests = GuestFiles(directory, 10, lambda domid, error: failures.append((domid, error.errno)))
        guests.open(4, "a")
        await guests.append(4, [b"12345678\n"])
        (directory / "guest-b.log").mkdir()
        (directory / "guest-b.log.1").write_bytes(b"")
        guests.rename(4, "b")
        guests.rename(4, "c")
        await guests.append(4, [b"new\n"])
        await settled()
        assert failures == [(4, errno.ENOTDIR), (4, errno.EINVAL)]
        assert (directory / "guest-a.log").read_bytes() == b"12345678\n"
        assert (directory / "guest-c.log").read_bytes() == b"new\n"

    run(scenario())


# The directory


def test_directory_is_made(tmp_path: Path) -> None:
    GuestFiles(tmp_path / "a" / "b", 1000)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 & ~0o750 == 0


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_directory_that_cannot_be_is_the_hosts_fault(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError) as raised:
        GuestFiles(tmp_path / where, 1000)
    assert raised.value.where == str(tmp_path / where)
    assert "not a directory" in raised.value.why


@pytest.mark.parametrize("kind", ["link", "foreign", "open to all"])
def test_directory_that_somebody_else_can_change_is_refused(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "logs"
    directory.mkdir(mode=0o750)
    if kind == "link":
        directory.rename(tmp_path / "moved")
        directory.symlink_to(tmp_path / "moved")
    elif kind == "open to all":
        directory.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(directory, 65534, -1)
    else:
        pytest.skip("only root can give directories away")
    with pytest.raises(HostError, match=r"remove it|chmod o-w") as raised:
        GuestFiles(directory, 1000)
    assert raised.value.where == str(directory)
