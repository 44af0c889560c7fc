"""What survives SIGKILL: the file of a domain, whatever is in it, and how its text moves on.

What is left by a process that dies between two stores is test_crash.py's.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unplugd.core.guest import Guest, Snapshot, Verdict
from unplugd.core.guestlog import LINE_LIMIT, Limits
from unplugd.core.ioreq import PAYLOAD_LIMIT
from unplugd.core.protocol import Effect, Rules
from unplugd.core.registry import Registry
from unplugd.domains.statefile import (
    AREA,
    COMPACT_OVER,
    NOTE_LIMIT,
    WORD,
    StateFile,
    boot_id,
    read_note,
    state_path,
)
from unplugd.domains.table import Table

BOOT = bytes(range(16))
UUID = "4f0e0c5e-0000-4000-8000-000000000007"
SIZE = 20 * 1024


def guest() -> Guest:
    return Guest(Rules(), Limits(rate=1, burst=100_000), Registry(), 0.0)


def found(directory: Path, boot: bytes = BOOT) -> tuple[Snapshot, bytes] | None:
    """What the next process finds: the guest, and the text that is not recorded."""
    state = StateFile(directory, 7, boot)
    try:
        return None if state.kept is None else (state.kept, state.text(state.length))
    finally:
        state.close()


class Kept:
    """A state file with the guest and the table that belong to it; text is written as the domain does."""

    def __init__(self, directory: Path, uuid: str = UUID) -> None:
        self.state = StateFile(directory, 7, BOOT)
        self.guest = guest()
        if self.state.kept is not None:
            self.guest.restore(self.state.kept, 0.0)
        self.state.own(uuid)
        self.table = Table(self.state.memory, WORD, lambda: None)
        self.table.place(*self.state.place)

    def say(self, data: bytes) -> None:
        """Text that a table appends."""
        assert len(data) <= PAYLOAD_LIMIT
        self.state.append(data, self.table.text)
        self.table.place(*self.state.place)

    def record(self) -> list[object]:
        """The log takes the text: what it makes of it, and it is kept."""
        text = self.state.text(self.table.text)
        self.guest.log.write_all(text, 0.0)
        self.state.recorded += len(text)
        events: list[object] = [*self.guest.take_events()]
        self.state.commit(self.guest)
        return events

    def compact(self) -> None:
        self.state.compact(self.guest)
        self.table.place(*self.state.place)

    def close(self) -> None:
        self.table.close()
        self.state.close()


def test_everything_comes_back(tmp_path: Path) -> None:
    it = Kept(tmp_path)
    assert it.state.kept is None
    one = it.guest
    one.write(Effect.PRODUCT, 1, 0.0)
    one.judge(1, 2**32 - 1, Verdict(blacklisted=True, reason="loses data", rule="by hand"), 0.0)
    one.write(Effect.UNPLUG, 3, 0.0)
    one.write(Effect.FLAGS_WRITE, 1, 0.0)
    one.log.unsaid_lines, one.log.unsaid_bytes, one.log.throttled = 5, 500, True
    it.say(b"line\npartial")
    it.record()
    assert not one.changed
    it.close()
    again = StateFile(tmp_path, 7, BOOT)
    assert again.kept_uuid == UUID
    assert again.kept == one.snapshot()
    assert again.text(again.length) == b"partial", "the open line; what was recorded is not said again"
    again.close()


def test_a_new_file_has_nothing(tmp_path: Path) -> None:
    assert found(tmp_path) is None
    assert stat.S_IMODE((tmp_path / "dom7").stat().st_mode) == 0o600
    assert state_path(tmp_path, 7) == tmp_path / "dom7"


def test_another_boot_of_dom0_is_another_world(tmp_path: Path) -> None:
    it = Kept(tmp_path)
    it.say(b"text")
    it.state.commit(it.guest)
    it.close()
    assert found(tmp_path) is not None
    assert found(tmp_path, bytes(16)) is None


def test_whose_state_it_is_follows_what_is_known(tmp_path: Path) -> None:
    for known in ("", UUID):
        it = Kept(tmp_path, known)
        it.state.commit(it.guest)
        it.close()
        again = StateFile(tmp_path, 7, BOOT)
        assert again.kept_uuid == known
        again.close()


def test_the_state_of_another_is_discarded_and_its_text_with_it(tmp_path: Path) -> None:
    it = Kept(tmp_path)
    it.say(b"another's\nlines")
    it.state.commit(it.guest)
    it.close()
    state = StateFile(tmp_path, 7, BOOT)
    state.discard()
    assert (state.kept, state.kept_uuid, state.place[3], state.recorded) == (None, "", 0, 0)
    state.own("another")
    table = Table(state.memory, WORD, lambda: None)
    table.place(*state.place)
    state.commit(guest())
    table.close()
    state.close()
    assert found(tmp_path) == (guest().snapshot(), b"")


# --- text


def test_text_counts_as_soon_as_the_word_says_so(tmp_path: Path) -> None:
    it = Kept(tmp_path)
    it.state.commit(it.guest)
    for count, byte in enumerate(b"a guest writes byte by byte", 1):
        it.state.append(bytes((byte,)), it.table.text)
        kept = found(tmp_path)
        assert kept is not None
        assert kept[1] == b"a guest writes byte by byte"[:count - 1]
        it.table.place(*it.state.place)
        kept = found(tmp_path)
        assert kept is not None
        assert kept[1] == b"a guest writes byte by byte"[:count]
    it.close()


def test_an_open_line_leaves_room_for_a_string_write() -> None:
    assert AREA - COMPACT_OVER == PAYLOAD_LIMIT
    assert LINE_LIMIT <= COMPACT_OVER


def test_compaction_moves_the_open_line_and_nothing_is_said_again(tmp_path: Path) -> None:
    it = Kept(tmp_path)
    it.state.commit(it.guest)
    generations, said = [it.state.generation], 0
    for number in range(9):
        it.say(b"x" * 4000 + b"\nopen %d" % number)
        said += len(it.record())
        it.compact()
        generations.append(it.state.generation)
        kept = found(tmp_path)
        assert kept is not None
        assert kept[1] == bytes(it.guest.log.partial), number
        assert it.table.text == len(it.guest.log.partial)
    assert generations == list(range(10))
    assert said == 9
    it.close()


def test_between_header_and_word_of_a_compaction_the_headers_length_counts(tmp_path: Path) -> None:
    it = Kept(tmp_path)
    it.say(b"line\nopen")
    it.record()
    it.state.compact(it.guest)  # and the table is not placed
    kept = found(tmp_path)
    assert kept is not None
    assert kept[1] == b"open"
    it.table.place(*it.state.place)
    it.say(b"er")
    kept = found(tmp_path)
    assert kept is not None
    assert kept[1] == b"opener"
    it.close()


@pytest.mark.parametrize("word", [0, 0xFFFF, AREA + 1, 1 << 16 | 20, 0xFFFF_FFFF_FFFF_FFFF, 3])
def test_a_word_that_does_not_fit_its_header_does_not_count(tmp_path: Path, word: int) -> None:
    it = Kept(tmp_path)
    it.say(b"line\nopen")
    it.record()
    it.close()
    content = bytearray((tmp_path / "dom7").read_bytes())
    content[WORD:WORD + 8] = word.to_bytes(8, "little")
    (tmp_path / "dom7").write_bytes(content)
    kept = found(tmp_path)
    assert kept is not None
    assert kept[1] == b"open"


# --- whatever is in it


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 10, b"\xff" * SIZE, b"unplugd2" * (SIZE // 8), b"unplugd1" + bytes(SIZE), b"x" * 99999],
    ids=["empty", "short", "ones", "magic", "older", "long"],
)
def test_garbage_is_discarded_without_a_word(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dom7").write_bytes(content)
    assert found(tmp_path) is None
    it = Kept(tmp_path)
    it.guest.write(Effect.PRODUCT, 3, 0.0)
    it.state.commit(it.guest)
    it.close()
    assert found(tmp_path) == (it.guest.snapshot(), b"")
    assert (tmp_path / "dom7").stat().st_size == SIZE


def test_a_truncated_file_is_discarded_or_whole(tmp_path: Path) -> None:
    it = Kept(tmp_path)
    it.say(b"abc")
    it.state.commit(it.guest)
    it.close()
    whole = (tmp_path / "dom7").read_bytes()
    for size in (0, 1, 100, 511, 600, 1100, 4095, 4096, SIZE - 1):
        (tmp_path / "dom7").write_bytes(whole[:size])
        again = found(tmp_path)
        assert again is None or again[0] == it.guest.snapshot()


@given(damage=st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), min_size=1, max_size=20))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_seen(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    (tmp_path / "dom7").unlink(missing_ok=True)
    it = Kept(tmp_path)
    it.state.commit(it.guest)
    before = it.guest.snapshot()
    it.guest.write(Effect.PRODUCT, 3, 0.0)
    it.state.commit(it.guest)
    it.close()
    content = bytearray((tmp_path / "dom7").read_bytes())
    for at, value in damage:
        content[at] = value
    (tmp_path / "dom7").write_bytes(content)
    kept = found(tmp_path)
    assert kept is None or kept[0] in (before, it.guest.snapshot())


@pytest.mark.parametrize("size", [128, 200])
def test_texts_that_are_too_long_are_cut_between_letters(tmp_path: Path, size: int) -> None:
    it = Kept(tmp_path)
    it.guest.write(Effect.PRODUCT, 3, 0.0)
    it.guest.judge(3, 1, Verdict(blacklisted=True, reason="\N{GREEK SMALL LETTER PI}" * size, rule="r" * size), 0.0)
    it.state.commit(it.guest)
    it.close()
    kept = found(tmp_path)
    assert kept is not None
    assert set(kept[0].reason) == {"\N{GREEK SMALL LETTER PI}"}
    assert set(kept[0].rule) == {"r"}


# --- the file


def test_a_state_in_memory_keeps_nothing(tmp_path: Path) -> None:
    state = StateFile.in_memory(BOOT)
    assert state.kept is None
    state.append(b"abc", 0)
    state.commit(guest())
    state.remove()


def test_a_released_domain_leaves_no_file(tmp_path: Path) -> None:
    state = StateFile(tmp_path, 7, BOOT)
    state.remove()
    assert list(tmp_path.iterdir()) == []
    gone = StateFile(tmp_path, 8, BOOT)
    (tmp_path / "dom8").unlink()
    gone.remove()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "dom7").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="dom7"):
        StateFile(tmp_path, 7, BOOT)
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert read_note(tmp_path, 7, BOOT) is None


def test_a_pipe_or_a_directory_in_its_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "dom7")
    (tmp_path / "dom8").mkdir()
    for domid in (7, 8):
        with pytest.raises(OSError, match=f"dom{domid}|Invalid argument|Illegal seek|No such device"):
            StateFile(tmp_path, domid, BOOT)
        assert read_note(tmp_path, domid, BOOT) is None


def test_no_room_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        StateFile(tmp_path, 7, BOOT)


def test_boot_id_is_this_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(boot_id()) == 16
    assert boot_id() == boot_id() != bytes(16)

    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert boot_id() == bytes(16)


# --- what xenstore said of the domain, for the next process's begin


def test_a_note_is_found_beside_the_state(tmp_path: Path) -> None:
    path = tmp_path / "dom7"
    assert read_note(tmp_path, 7, BOOT) is None
    state = StateFile(tmp_path, 7, BOOT)
    assert read_note(tmp_path, 7, BOOT) is None
    state.note(b"a longer one")
    state.note(b"web-01")
    state.append(b"half a line", 0)
    state.commit(guest())
    assert read_note(tmp_path, 7, BOOT) == b"web-01"
    assert read_note(tmp_path, 7, bytes(16)) is None, "another boot's"
    state.note(bytes(NOTE_LIMIT + 1))
    assert read_note(tmp_path, 7, BOOT) == b"web-01"
    state.note(b"n" * NOTE_LIMIT)
    assert read_note(tmp_path, 7, BOOT) == b"n" * NOTE_LIMIT
    state.close()
    assert found(tmp_path) is not None
    path.write_bytes(path.read_bytes()[:3000])
    assert read_note(tmp_path, 7, BOOT) is None, "half of it"


@given(st.binary(min_size=1, max_size=200), st.integers(0, 4095), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_a_note_that_was_being_written_is_none(tmp_path: Path, note: bytes, place: int, byte: int) -> None:
    path = tmp_path / "dom7"
    state = StateFile(tmp_path, 7, BOOT)
    state.note(note)
    state.close()
    content = bytearray(path.read_bytes())
    content[place] = byte
    path.write_bytes(content)
    assert read_note(tmp_path, 7, BOOT) in (note, None)
