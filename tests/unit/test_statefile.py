"""What survives SIGKILL: a commit is there whole or not at all, whatever of it was stored when the process died."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unplugd.core.events import Line
from unplugd.core.guest import Guest, Verdict
from unplugd.core.guestlog import Limits
from unplugd.core.protocol import Effect, Rules
from unplugd.core.registry import Registry
from unplugd.domains.statefile import NOTE_LIMIT, SIZE, StateFile, boot_id, read_note

BOOT = bytes(range(16))
UUID = "4f0e0c5e-0000-4000-8000-000000000007"


def guest() -> Guest:
    return Guest(Rules(), Limits(rate=1, burst=100_000), Registry(), 0.0)


def keep(state: StateFile, one: Guest) -> None:
    """As the daemon does before a response is sent."""
    if one.changed:
        state.commit(one)
    elif one.grew:
        state.grow(one)


def say(one: Guest, data: bytes) -> None:
    """Log bytes as a connection takes them in."""
    one.log.write(data, 0.0)
    if one.take_events():
        one.changed = True
    one.grew = True


def found(path: Path, boot: bytes = BOOT) -> tuple[object, bytes] | None:
    """What the next process finds."""
    state = StateFile(path, boot)
    one = guest()
    try:
        if not state.restore(one, 0.0):
            return None
        return now(one)
    finally:
        state.close()


def now(one: Guest) -> tuple[object, bytes]:
    """What must be kept of it; `charged` counts with `delay` only, where every log byte is a whole commit."""
    return one.snapshot()._replace(charged=0), bytes(one.log.partial)


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "dom7"
    state = StateFile(path, BOOT)
    assert state.durable
    assert state.kept_uuid is None
    state.own(UUID)
    one = guest()
    one.write(Effect.PRODUCT, 1, 0.0)
    one.judge(1, 2**32 - 1, Verdict(blacklisted=True, reason="loses data"), 0.0)
    one.write(Effect.UNPLUG, 3, 0.0)
    one.write(Effect.FLAGS_WRITE, 1, 0.0)
    one.log.unsaid_lines, one.log.unsaid_bytes, one.log.throttled = 5, 500, True
    say(one, b"line\npartial")
    one.log.charged = 77
    one.changed = True
    keep(state, one)
    state.close()
    again = StateFile(path, BOOT)
    assert again.kept_uuid == UUID
    other = guest()
    assert again.restore(other, 0.0)
    assert other.snapshot() == one.snapshot()
    assert other.log.partial == b"partial"
    again.close()


def test_a_new_file_has_nothing(tmp_path: Path) -> None:
    assert found(tmp_path / "dom7") is None
    assert stat.S_IMODE((tmp_path / "dom7").stat().st_mode) == 0o600


def test_another_boot_of_dom0_is_another_world(tmp_path: Path) -> None:
    path = tmp_path / "dom7"
    state = StateFile(path, BOOT)
    state.commit(guest())
    state.close()
    assert found(path) is not None
    assert found(path, bytes(16)) is None


def test_whose_state_it_is_follows_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "dom7"
    state = StateFile(path, BOOT)
    state.commit(guest())
    state.close()
    again = StateFile(path, BOOT)
    assert again.kept_uuid == ""
    again.own(UUID)
    again.commit(guest())
    again.close()
    third = StateFile(path, BOOT)
    assert third.kept_uuid == UUID
    third.close()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 10, b"\xff" * SIZE, b"unplugd1" * (SIZE // 8), b"unplugd0" + bytes(SIZE), b"x" * 99999],
    ids=["empty", "short", "ones", "magic", "older", "long"],
)
def test_garbage_is_discarded_without_a_word(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dom7"
    path.write_bytes(content)
    assert found(path) is None
    one = guest()
    state = StateFile(path, BOOT)
    one.write(Effect.PRODUCT, 3, 0.0)
    state.commit(one)
    state.close()
    assert found(path) == now(one)


def test_a_truncated_file_is_discarded_or_whole(tmp_path: Path) -> None:
    path = tmp_path / "dom7"
    state = StateFile(path, BOOT)
    one = guest()
    say(one, b"abc")
    keep(state, one)
    state.close()
    whole = path.read_bytes()
    for size in (0, 1, 100, 511, 600, 1100, 4095, 4096, SIZE - 1):
        path.write_bytes(whole[:size])
        again = found(path)
        assert again is None or again[0] == now(one)[0]


@given(damage=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=20))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_seen(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    path = tmp_path / "dom7"
    path.unlink(missing_ok=True)
    state = StateFile(path, BOOT)
    one = guest()
    state.commit(one)
    before = now(one)
    one.write(Effect.PRODUCT, 3, 0.0)
    state.commit(one)
    state.close()
    content = bytearray(path.read_bytes())
    for at, value in damage:
        content[at] = value
    path.write_bytes(content)
    assert found(path) in (None, before, now(one))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(1, 5).map(lambda count: b"z" * count)),
        st.tuples(st.just("say"), st.sampled_from([b"\n", b"ab\n", b"one\ntwo\nthr", b"y" * 4094, b"x" * 5000])),
        st.tuples(st.just("product"), st.just(b"")),
        st.tuples(st.just("reset"), st.just(b"")),
        st.tuples(st.just("restart"), st.just(b"")),
    ),
    min_size=1,
    max_size=14,
)


def torn(before: bytes, after: bytes, chance: random.Random) -> list[bytes]:
    """Files that a process can leave that dies between two states: stores are seen in the order they were made.

    First the partial line's bytes, then the header or the length's word; the copy of a piece may have come to any part
    of it, but the word is one store.
    """
    areas = after[4096:]
    files = [before, after, before[:4096] + areas]
    line = bytearray(before)
    changed = [at for at in range(4096, SIZE) if before[at] != after[at]]
    for at in changed[: chance.randint(0, len(changed))]:
        line[at] = after[at]
    files.append(bytes(line))
    for at in changed:
        if chance.random() < 0.5:
            line[at] = after[at]
    files.append(bytes(line))
    header = bytearray(before[:4096] + areas)
    header[1024:1032] = after[1024:1032] if before[:1024] == after[:1024] else before[1024:1032]
    changed = [at for at in range(1024) if before[at] != after[at]]
    cut = chance.randint(0, len(changed))
    for at in changed[:cut]:
        header[at] = after[at]
    files.append(bytes(header))
    header = bytearray(before[:4096] + areas)
    for at in changed:
        if chance.random() < 0.5:
            header[at] = after[at]
    files.append(bytes(header))
    return files


@given(steps=STEPS, seed=st.integers(0, 2**32))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_torn_commit_leaves_the_old_or_the_new_state(
    tmp_path: Path, steps: list[tuple[str, bytes]], seed: int
) -> None:
    chance = random.Random(seed)
    path, broken = tmp_path / "dom7", tmp_path / "torn"
    path.unlink(missing_ok=True)
    state = StateFile(path, BOOT)
    state.own(UUID)
    one = guest()
    state.commit(one)
    for step, data in steps:
        old, before = now(one), path.read_bytes()
        match step:
            case "say":
                say(one, data)
            case "product":
                one.write(Effect.PRODUCT, chance.randint(0, 9), 0.0)
            case "reset":
                one.reset(0.0)
                one.take_events()
            case "restart":
                state.close()
                state = StateFile(path, BOOT)
                one = guest()
                assert state.restore(one, 0.0)
                assert now(one) == old
        keep(state, one)
        after = path.read_bytes()
        broken.write_bytes(after)
        assert found(broken) == now(one), "what was acknowledged is there"
        for content in torn(before, after, chance):
            broken.write_bytes(content)
            assert found(broken) in (old, now(one))
    state.close()


def test_bytes_are_there_as_soon_as_they_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "dom7"
    state = StateFile(path, BOOT)
    one = guest()
    keep(state, one)
    for count, byte in enumerate(b"a guest writes byte by byte", 1):
        say(one, bytes((byte,)))
        keep(state, one)
        kept = found(path)
        assert kept is not None
        assert kept[1] == b"a guest writes byte by byte"[:count]
    state.close()


def test_what_journald_has_of_gathered_lines_is_not_said_again(tmp_path: Path) -> None:
    """The compiled part keeps lines that journald is to get before the partial line (fastpath/gather.c)."""
    path = tmp_path / "dom7"
    state = StateFile(path, BOOT)
    one = guest()
    state.commit(one)
    one.log.partial += b"first\nsecond\nhalf"
    one.grew = True
    state.grow(one)
    for sent, lines in ((0, [b"first", b"second"]), (6, [b"second"]), (13, []), (4000, None)):
        words = memoryview(state.mapping).cast("Q")
        words[128] = sent << 44 | words[128] & (1 << 44) - 1
        words.release()
        again, other = StateFile(path, BOOT), guest()
        assert again.restore(other, 0.0)
        again.commit(other)
        assert [event.text for event in other.events if isinstance(event, Line)] == (lines or [])
        assert bytes(other.log.partial) == (b"" if lines is None else b"half")
        again.close()
        state.close()
        path.unlink()
        state = StateFile(path, BOOT)
        state.commit(one)
        one.grew = True
        one.log.partial[:] = b""
        state.grow(one)
        one.log.partial += b"first\nsecond\nhalf"
        state.grow(one)
    state.close()


def test_a_state_in_memory_keeps_nothing(tmp_path: Path) -> None:
    state = StateFile.in_memory(BOOT)
    assert not state.durable
    one = guest()
    say(one, b"abc")
    keep(state, one)
    assert not state.restore(guest(), 0.0)
    state.remove()


def test_a_released_domain_leaves_no_file(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "dom7", BOOT)
    state.remove()
    assert list(tmp_path.iterdir()) == []
    gone = StateFile(tmp_path / "dom8", BOOT)
    (tmp_path / "dom8").unlink()
    gone.remove()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "dom7").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="dom7"):
        StateFile(tmp_path / "dom7", BOOT)
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_no_room_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        StateFile(tmp_path / "dom7", BOOT)


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
    assert read_note(path, BOOT) is None
    state = StateFile(path, BOOT)
    assert read_note(path, BOOT) is None
    one = guest()
    state.note(b"a longer one")
    state.note(b"web-01")
    say(one, b"half a line")
    keep(state, one)
    assert read_note(path, BOOT) == b"web-01"
    assert read_note(path, bytes(16)) is None, "another boot's"
    state.note(bytes(NOTE_LIMIT + 1))
    assert read_note(path, BOOT) == b"web-01"
    state.note(b"n" * NOTE_LIMIT)
    assert read_note(path, BOOT) == b"n" * NOTE_LIMIT
    state.close()
    assert found(path) is not None
    path.write_bytes(path.read_bytes()[:3000])
    assert read_note(path, BOOT) is None, "half of it"


@given(st.binary(min_size=1, max_size=200), st.integers(0, 4095), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_a_note_that_was_being_written_is_none(tmp_path: Path, note: bytes, place: int, byte: int) -> None:
    path = tmp_path / "dom7"
    state = StateFile(path, BOOT)
    state.note(note)
    state.close()
    content = bytearray(path.read_bytes())
    content[place] = byte
    path.write_bytes(content)
    assert read_note(path, BOOT) in (note, None)
