"""An upgrade over a running 0.1.0: what its state files say is read once, and nothing of it is lost.

The bytes are made here as that version made them, by the layout and nothing of unplugd's.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from tests.lab.host import OTHER_UUID, UUID, Host, host
from unplugd.config.load import Config, LogConfig
from unplugd.core.protocol import Action
from unplugd.domains import oldstate
from unplugd.domains.statefile import StateFile, read_note

HEADER = struct.Struct("<8sQ16s64sqqqqqddqqqq128sqq")
BOOT = bytes(range(16))
SIZE = 3 * 4096


class Old:
    """A state file of version 0.1.0."""

    def __init__(self, boot: bytes = BOOT, uuid: str = UUID) -> None:
        self.raw = bytearray(SIZE)
        self.boot = boot
        self.uuid = uuid
        self.sequence = 0
        self.area = 0

    def commit(
        self, partial: bytes = b"", *, product: int = 1, build: int = 86451, blacklisted: bool = True,
        unplugged: int = 3, flags: int = 1, balance: float = 500.0, unsaid: tuple[int, int] = (4, 40),
        reason: str = "loses data", magic: bytes = b"unplugd1",
    ) -> Old:
        """A header: the partial line is in the other area from now on."""
        self.sequence += 1
        self.area ^= 1
        at = 4096 * (1 + self.area)
        self.raw[at:at + len(partial)] = partial
        header = HEADER.pack(
            magic, self.sequence, self.boot, self.uuid.encode(), product, build, blacklisted, unplugged, flags, balance,
            7.0, 0, *unsaid, bool(unsaid[0]), reason.encode(), self.area, len(partial),
        )  # fmt: skip
        at = (self.sequence & 1) * 512
        self.raw[at:at + len(header) + 4] = header + struct.pack("<I", zlib.crc32(header))
        return self

    def grow(self, partial: bytes, recorded: int = 0) -> Old:
        """The word: the partial line is longer, and (the compiled part) so much of it is recorded."""
        at = 4096 * (1 + self.area)
        self.raw[at:at + len(partial)] = partial
        word = recorded << 44 | (self.sequence & 0xFFFFFFFF) << 12 | len(partial)
        self.raw[1024:1032] = struct.pack("<Q", word)
        return self

    def note(self, note: bytes) -> Old:
        """What xenstore said."""
        self.raw[2048:2048 + 8 + len(note)] = struct.pack("<II", len(note), zlib.crc32(self.boot + note)) + note
        return self

    def write(self, directory: Path) -> Path:
        path = directory / "dom7"
        path.write_bytes(self.raw)
        return path


def read(old: Old, directory: Path) -> tuple[bytes, bytes] | None:
    """uuid and text."""
    found = oldstate.read(old.write(directory), BOOT)
    return None if found is None else (found[0], found[2])


# --- what is read


def test_the_guest_is_read(tmp_path: Path) -> None:
    found = oldstate.read(Old().commit(b"half a li").write(tmp_path), BOOT)
    assert found is not None
    uuid, guest, text = found
    assert (uuid, text) == (UUID.encode(), b"half a li")
    assert (guest.product, guest.build, guest.unplugged, guest.flags) == (1, 86451, 3, 1)
    assert (guest.action, guest.reason) == (Action.REFUSE, "loses data")
    assert (guest.balance, guest.balance_at) == (500.0, 7.0)
    assert (guest.unsaid_lines, guest.unsaid_bytes, guest.throttled) == (4, 40, True)


def test_a_guest_that_has_not_said_anything(tmp_path: Path) -> None:
    old = Old().commit(product=-1, build=-1, blacklisted=False, unplugged=0, flags=0, unsaid=(0, 0), reason="")
    found = oldstate.read(old.write(tmp_path), BOOT)
    assert found is not None
    assert (found[1].product, found[1].build, found[1].action, found[1].reason) == (None, None, Action.NONE, "")


def test_the_newer_header_counts_and_where_it_is_torn_the_other(tmp_path: Path) -> None:
    old = Old().commit(b"one").commit(b"two")
    assert read(old, tmp_path) == (UUID.encode(), b"two")
    for torn in range(0, HEADER.size + 4, 7):
        again = Old().commit(b"one").commit(b"two")
        at = (again.sequence & 1) * 512
        again.raw[at + torn] ^= 0xFF
        assert read(again, tmp_path) == (UUID.encode(), b"one")
    old.raw[:1024] = bytes(1024)
    assert read(old, tmp_path) is None


@pytest.mark.parametrize(("recorded", "text"), [
    (0, b"first\nsecond\nhalf"), (6, b"second\nhalf"), (13, b"half"), (17, b""), (4000, b""),
])  # fmt: skip
def test_lines_that_journald_has_are_not_read_again(tmp_path: Path, recorded: int, text: bytes) -> None:
    old = Old().commit(b"fir").grow(b"first\nsecond\nhalf", recorded)
    assert read(old, tmp_path) == (UUID.encode(), text)


def test_a_word_of_another_header_does_not_count(tmp_path: Path) -> None:
    old = Old().commit(b"a").grow(b"abc")
    assert read(old, tmp_path) == (UUID.encode(), b"abc")
    old.commit(b"d")
    assert read(old, tmp_path) == (UUID.encode(), b"d")
    old.raw[1024:1032] = struct.pack("<Q", old.sequence << 12 | 4095)
    assert read(old, tmp_path) == (UUID.encode(), b"d"), "too long"
    old.raw[1024:1032] = struct.pack("<Q", old.sequence << 12)
    assert read(old, tmp_path) == (UUID.encode(), b"d"), "too short"


@pytest.mark.parametrize("old", [
    Old(boot=bytes(16)).commit(), Old().commit(magic=b"unplugd2"), Old(),
], ids=["another boot", "another magic", "no header"])  # fmt: skip
def test_what_is_not_its_is_not_read(tmp_path: Path, old: Old) -> None:
    assert read(old, tmp_path) is None


def test_a_file_of_another_size_or_none(tmp_path: Path) -> None:
    whole = bytes(Old().commit().raw)
    for raw in (b"", whole[:-1], whole + b"\0", whole + bytes(8192)):
        (tmp_path / "dom7").write_bytes(raw)
        assert oldstate.read(tmp_path / "dom7", BOOT) is None
    assert oldstate.read(tmp_path / "dom8", BOOT) is None
    (tmp_path / "dom9").symlink_to(tmp_path / "dom7")
    (tmp_path / "dom7").write_bytes(whole)
    assert oldstate.read(tmp_path / "dom9", BOOT) is None


def test_a_balance_that_is_no_number_is_none(tmp_path: Path) -> None:
    found = oldstate.read(Old().commit(balance=float("nan")).write(tmp_path), BOOT)
    assert found is not None
    assert found[1].balance == 0.0


# --- what becomes of it


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path: Path) -> None:
    old = Old().commit(b"open").note(b"web-01")
    path = old.write(tmp_path)
    assert read_note(tmp_path, 7, BOOT) == b"web-01"
    (tmp_path / "dom7.new").write_bytes(b"left by one that was killed meanwhile" * 1000)
    for _ in range(2):  # killed before the first commit
        state = StateFile(tmp_path, 7, BOOT)
        assert (state.kept_uuid, state.text(state.length)) == (UUID, b"open")
        state.close()
        assert path.read_bytes() == bytes(old.raw)
    state = StateFile(tmp_path, 7, BOOT)
    state.discard()
    state.remove()


def run(
    tmp_path: Path, test: Callable[[Host], Coroutine[None, None, None]], log: LogConfig | None = None
) -> None:
    async def main() -> None:
        async with host(tmp_path, Config(log=log or LogConfig())) as one:
            await test(one)

    asyncio.run(main())


def test_a_domain_goes_on_where_it_was_and_nothing_is_lost_or_said_twice(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        state = one.directory / "state"
        Old(one.settings.boot).commit(b"fir", unsaid=(0, 0)).grow(b"first\nsecond\nhalf", 6).write(state)
        domain = one.domain()
        assert (domain.product, domain.build, domain.blacklisted, domain.unplugged) == (1, 86451, True, 3)
        assert one.journald.lines == ["second"]
        assert sorted(path.name for path in state.iterdir() if path.name.startswith("dom7")) == ["dom7"]
        assert (state / "dom7").stat().st_size != SIZE
        again = one.domain()  # after SIGKILL
        assert (again.product, again.blacklisted, bytes(again.guest.log.partial)) == (1, True, b"half")
        assert one.journald.lines == ["second"]
        again.release()
        assert one.journald.lines == ["second", "half"]
        assert [path.name for path in state.iterdir() if path.name.startswith("dom7")] == []

    run(tmp_path, main)


def test_the_old_state_of_another_guest_is_left_behind(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        state = one.directory / "state"
        Old(one.settings.boot).commit(b"secret\n").write(state)
        domain = one.domain(7, "db-01", OTHER_UUID)
        assert (domain.product, domain.blacklisted) == (None, False)
        assert one.journald.lines == []
        assert (state / "dom7").stat().st_size != SIZE
        again = one.domain(7, "db-01", OTHER_UUID)
        assert again.product is None
        again.stop()
        domain.stop()

    run(tmp_path, main)


def test_a_balance_of_before_counts(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        Old(one.settings.boot).commit(b"", balance=64.0, unsaid=(0, 0)).grow(b"one\ntwo\nthree\n").write(
            one.directory / "state")
        domain = one.domain()
        assert one.journald.lines == ["one"]
        assert domain.dropped_lines["rate-limit"] == 2
        domain.stop()

    run(tmp_path, main, LogConfig(rate=0, burst=1000))
