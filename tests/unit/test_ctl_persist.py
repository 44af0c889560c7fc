"""ctl/persist.py: entries come into conf.d and go out of it, and nothing else of a file changes."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.config.load import load
from unplugd.core.protocol import Action
from unplugd.core.registry import PUBLIC
from unplugd.ctl import persist
from unplugd.ctl.failure import Failure

EDITED = """\
# kept by hand
publish = false   # why: tests

[[blacklist.entry]]
# about this one
product = "linux"
build = 7

# between

[[ blacklist . entry ]]
product = "gplpv-windows"
build = 0x10
reason = \"\"\"\\
[not a table\"\"\"

[log]
# after
rate = 512
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "unplugd.toml"
    file.write_text("# the administrator's\n")
    return file


def entries(config: Path) -> list[tuple[str, int, str]]:
    return [(one.product, one.build, one.reason) for one in load(config).blacklist.entries]


def test_an_entry_is_added_once(config: Path) -> None:
    path = persist.add(config, "linux", 1, 'it is "every" Linux \\ ü')
    assert path == config.with_name("unplugd.toml.d") / persist.FILE
    assert persist.add(config, "linux", 1, "again") is None
    assert persist.add(config, "xensource-windows", 86451, "") == path
    assert entries(config) == [("linux", 1, 'it is "every" Linux \\ ü'), ("xensource-windows", 86451, "")]
    assert config.read_text() == "# the administrator's\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(each.name for each in path.parent.iterdir()) == [persist.FILE]
    assert path.read_text("utf-8").startswith("# Blacklist entries")


def test_what_is_added_can_be_removed(config: Path) -> None:
    path = persist.add(config, "linux", 1, "a")
    assert path is not None
    before = path.read_text("utf-8")
    persist.add(config, "linux", 2, "b")
    assert persist.remove(config, "linux", 2) == ([path], [])
    assert path.read_text("utf-8") == before
    assert persist.remove(config, "linux", 1) == ([path], [])
    assert entries(config) == []
    assert persist.remove(config, "linux", 1) == ([], [])


def test_comments_and_everything_else_stay(config: Path) -> None:
    directory = config.with_name("unplugd.toml.d")
    directory.mkdir()
    path = directory / persist.FILE
    path.write_text(EDITED)
    path.chmod(0o600)
    persist.add(config, "linux", 9, "")
    assert path.read_text("utf-8").startswith(EDITED)
    assert persist.remove(config, "linux", 7) == ([path], [])
    assert persist.remove(config, "linux", 9) == ([path], [])
    text = path.read_text("utf-8")
    assert path.stat().st_mode & 0o777 == 0o600
    for kept in ("# kept by hand", "publish = false   # why: tests", "# about this one", "# between", "# after",
                 "rate = 512", "0x10"):  # fmt: skip
        assert kept in text
    assert [entry["build"] for entry in tomllib.loads(text)["blacklist"]["entry"]] == [0x10]
    assert load(config).log.rate == 512


def test_another_file_of_conf_d_is_edited_too_and_the_main_file_is_not(config: Path) -> None:
    config.write_text('[[blacklist.entry]]\nproduct = "linux"\nbuild = 3\n')
    directory = config.with_name("unplugd.toml.d")
    directory.mkdir()
    other = directory / "10-site.toml"
    other.write_text('[[blacklist.entry]]\nproduct = "linux"\nbuild = 3\n')
    assert persist.remove(config, "linux", 3) == ([other], [config])
    assert entries(config) == [("linux", 3, "")]


def test_a_way_of_writing_that_cannot_be_edited_is_left_alone(config: Path) -> None:
    directory = config.with_name("unplugd.toml.d")
    directory.mkdir()
    path = directory / persist.FILE
    text = '[blacklist]\nentry = [{ product = "linux", build = 3 }]\n'
    path.write_text(text)
    with pytest.raises(Failure, match="cannot edit"):
        persist.remove(config, "linux", 3)
    with pytest.raises(Failure, match="cannot edit"):
        persist.add(config, "linux", 4, "")
    assert path.read_text() == text
    assert sorted(each.name for each in directory.iterdir()) == [persist.FILE]


def test_a_broken_configuration_is_not_edited(config: Path) -> None:
    config.write_text("nonsense = 1\n")
    with pytest.raises(Failure) as failure:
        persist.add(config, "linux", 1, "")
    assert failure.value.status == 2
    assert not (config.with_name("unplugd.toml.d") / persist.FILE).exists()


def test_where_the_entries_stand(config: Path) -> None:
    config.write_text('[[blacklist.range]]\nproduct = "linux"\nto = 5\nreason = "old"\n')
    path = persist.add(config, "linux", 9, "new")
    assert persist.configured(config) == [
        (config, "linux", 0, 5, "old", True, None, None), (path, "linux", 9, 9, "new", False, None, None)]  # fmt: skip


def test_an_entry_with_an_action_for_some_guests(config: Path) -> None:
    path = persist.add(config, "linux", 9, "new", "withhold", ["web-*", 'a "b"'])
    assert path is not None
    assert persist.configured(config)[-1] == (
        path, "linux", 9, 9, "new", False, Action.WITHHOLD, ("web-*", 'a "b"'))
    assert persist.add(config, "linux", 9, "new", "withhold", ["web-*", 'a "b"']) is None, "it is there"
    assert persist.add(config, "linux", 9, "new") == path, "that is another one"
    assert persist.remove(config, "linux", 9) == ([path], [])
    assert not [one for one in persist.configured(config) if one.first == 9]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_without_the_right_to_write(config: Path) -> None:
    config.parent.chmod(0o500)
    with pytest.raises(Failure, match="denied"):
        persist.add(config, "linux", 1, "")


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(Failure) as failure:
        persist.add(tmp_path / "none" / "unplugd.toml", "linux", 1, "")
    assert failure.value.status == 7


REASON = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)


@given(st.lists(st.tuples(st.sampled_from(sorted(PUBLIC)), st.integers(0, 9), REASON, st.booleans()), max_size=12))
def test_any_order_of_adding_and_removing(actions: list[tuple[str, int, str, bool]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "unplugd.toml"
        config.write_text("")
        wanted: dict[tuple[str, int], str] = {}
        for product, build, reason, adding in actions:
            if adding:
                persist.add(config, product, build, reason)
                wanted.setdefault((product, build), reason)
            else:
                persist.remove(config, product, build)
                wanted.pop((product, build), None)
        assert {(product, build): reason for product, build, reason in entries(config)} == wanted
