"""The runtime directory: its modes, one unplugd at a time, and what gone domains left."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from unplugd.errors import HostError
from unplugd.host.runtimedir import RuntimeDirectory


def test_it_is_made_for_everybody_to_pass_and_its_state_for_nobody(tmp_path: Path) -> None:
    path = tmp_path / "run" / "unplugd"
    directory = RuntimeDirectory(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE(directory.state.stat().st_mode) == 0o700


def test_another_unplugd_has_it(tmp_path: Path) -> None:
    first = RuntimeDirectory(tmp_path)
    with pytest.raises(HostError, match="another unplugd"):
        RuntimeDirectory(tmp_path)
    assert first.path == tmp_path


def test_a_file_is_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(HostError):
        RuntimeDirectory(tmp_path / "run")


@pytest.mark.parametrize("name", ["", "state", "state/lock"])
@pytest.mark.parametrize("kind", ["link", "foreign", "fifo"])
def test_what_is_not_ours_is_refused_with_its_path(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "run" / name
    RuntimeDirectory(tmp_path / "run")
    if kind == "link":
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
    elif kind == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(path, 65534, -1)
    else:
        path.rename(tmp_path / "moved")
        os.mkfifo(path)
    with pytest.raises(HostError) as raised:
        RuntimeDirectory(tmp_path / "run")
    assert raised.value.where == str(path)
    assert "remove it" in raised.value.why


def test_what_gone_domains_left_is_removed(tmp_path: Path) -> None:
    directory = RuntimeDirectory(tmp_path)
    kept = [tmp_path / "dom7.sock", tmp_path / "control.sock", directory.state / "dom7", directory.state / "domino"]
    gone = [tmp_path / "dom8.sock", directory.state / "dom8"]
    for path in kept + gone:
        path.touch()
    directory.remove_stale({7})
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
