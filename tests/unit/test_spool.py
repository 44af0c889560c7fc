"""Records on their way survive the process: what was kept is found, what was done is not, damage ends it."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unplugd.sinks.records import Entry
from unplugd.sinks.spool import Append, Spool, begun, load

FIELDS = (("PRIORITY", "6"), ("XEN_DOMAIN_NAME", "w\u00e9b\udcff"))


def entry(text: bytes, time: float = 1.5) -> Entry:
    return Entry(time, text, FIELDS)


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    path = tmp_path / "dom7.spool"
    spool = Spool(path)
    kept = [(entry(bytes(range(256))), ["journal", "file"]), (entry(b"", 2.25), ["stderr"])]
    for one, sinks in kept:
        spool.append(one, sinks)
    spool.close()
    assert list(load(path)) == kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_there_before_the_first_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    spool.done("journal", 100)
    spool.clear()
    spool.close()
    assert spool.size == 0
    assert list(tmp_path.iterdir()) == []
    assert list(load(tmp_path / "dom7.spool")) == []


def test_what_a_sink_has_is_not_found_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    first = spool.append(entry(b"1"), ["journal", "file"])
    second = spool.append(entry(b"2"), ["journal", "file"])
    spool.append(entry(b"3"), ["file"])
    spool.done("journal", second)
    spool.done("file", first)
    assert [(one.message, sinks) for one, sinks in load(spool.path)] == [(b"2", ["file"]), (b"3", ["file"])]


def test_clear_takes_the_file_away_and_it_can_be_begun_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    spool.append(entry(b"1"), ["file"])
    spool.clear()
    assert not spool.path.exists()
    spool.append(entry(b"2"), ["file"])
    assert [one.message for one, _ in load(spool.path)] == [b"2"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.binary(max_size=60), min_size=1, max_size=6), data=st.data())
def test_a_torn_tail_is_cut_off(tmp_path: Path, texts: list[bytes], data: st.DataObject) -> None:
    path = tmp_path / "dom7.spool"
    path.unlink(missing_ok=True)
    spool = Spool(path)
    ends = [spool.append(entry(text), ["file"]) for text in texts]
    spool.close()
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut] + data.draw(st.sampled_from([b"", b"\0" * 50])))
    whole = len([end for end in ends if end <= cut])
    assert [one.message for one, _ in load(path)] == texts[:whole]


@given(content=st.binary(max_size=300))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_never_raises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dom7.spool"
    path.write_bytes(content)
    assert list(load(path)) == []


@pytest.mark.parametrize(
    "body", [b"7", b"[]", b"[1, 2, 3, 4]", b'[1, "\\u20ac", [], []]', b'["x", "", [], ["file"]]']
)
def test_a_record_of_another_form_is_left_out(tmp_path: Path, body: bytes) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    end = spool.append(entry(b"1"), ["file"])
    record = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body
    with spool.path.open("r+b") as stream:
        stream.seek(end)
        stream.write(record)
    assert [one.message for one, _ in load(spool.path)] == [b"1"]


def test_a_sink_that_no_longer_exists_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    spool.append(entry(b"1"), ["syslog", "file"])
    spool.append(entry(b"2"), ["syslog"])
    assert [(one.message, sinks) for one, sinks in load(spool.path)] == [(b"1", ["file"])]


def test_rewrite_keeps_what_it_is_given_and_says_where_it_ends(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    first = [spool.append(entry(b"%d" % number), ["file", "journal"]) for number in range(50)]
    spool.done("journal", first[-1])
    offsets = spool.rewrite([(entry(b"48"), ["file"]), (entry(b"49"), ["file"])])
    assert spool.size == offsets[-1] < first[-1]
    spool.done("file", offsets[0])
    spool.append(entry(b"50"), ["file"])
    assert [one.message for one, _ in load(spool.path)] == [b"49", b"50"]
    assert [path.name for path in tmp_path.iterdir()] == ["dom7.spool"]


def no_room_once(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """The `write`-th call of pwrite finds the disk full, the others don't."""
    calls = 0
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == write:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("write", [1, 2, 3])
def test_an_append_that_failed_kept_nothing_and_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    no_room_once(monkeypatch, write)
    spool = Spool(tmp_path / "dom7.spool")
    kept = []
    for number in range(4):
        try:
            spool.append(entry(b"%d" % number), ["file"])
        except OSError:
            continue
        kept.append(b"%d" % number)
    assert len(kept) >= 3
    assert [one.message for one, _ in load(spool.path)] == kept


def test_a_short_write_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    spool.append(entry(b"1"), ["file"])
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:5], offset))
    with pytest.raises(OSError, match="No space left"):
        spool.append(entry(b"2" * 100), ["file"])
    monkeypatch.undo()
    assert [one.message for one, _ in load(spool.path)] == [b"1"]
    spool.append(entry(b"3"), ["file"])
    assert [one.message for one, _ in load(spool.path)] == [b"1", b"3"]


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "dom7.spool").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        list(load(tmp_path / "dom7.spool"))
    assert begun(tmp_path / "dom7.spool") is None
    Spool(tmp_path / "dom7.spool").append(entry(b"1"), ["file"])
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert [one.message for one, _ in load(tmp_path / "dom7.spool")] == [b"1"]


def test_where_an_append_began_is_known_to_the_next_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    first, second = (spool.append(entry(text), ["file"]) for text in (b"1", b"2"))
    assert begun(spool.path) is None
    Append(spool, first).begin(11, 100)
    assert begun(spool.path) == (11, 100)
    Append(spool, first).end(None)
    assert begun(spool.path) is None
    assert [one.message for one, _ in load(spool.path)] == [b"2"]
    Append(spool, second).begin(11, 200)
    spool.begun = begun(spool.path)
    spool.rewrite(list(load(spool.path)))
    assert begun(spool.path) == (11, 200)
    spool.clear()
    assert begun(spool.path) is None


@pytest.mark.parametrize("ended_first", [False, True])
def test_an_append_that_nobody_waits_for_any_longer_is_looked_for_by_the_next(
    tmp_path: Path, ended_first: bool
) -> None:
    spool = Spool(tmp_path / "dom7.spool")
    late = Append(spool, spool.append(entry(b"1"), ["file"]))
    late.begin(11, 100)
    late.abandon()
    if ended_first:
        late.end(None)
    assert Append(spool, 0).begun == (11, 100)
