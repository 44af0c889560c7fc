"""What /api/v1/status says of the process and its configuration, without a service."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from unplugd.standing import Standing


def configuration(standing: Standing) -> Any:
    return standing.describe()["configuration"]


def test_at_the_start_the_files_are_those_that_were_read(tmp_path: Path) -> None:
    file, drop_in = tmp_path / "unplugd.toml", tmp_path / "unplugd.toml.d" / "10-more.toml"
    file.touch()
    drop_in.parent.mkdir()
    drop_in.touch()
    begin = time.time()
    described = Standing(file).describe()
    assert described["pid"] == os.getpid()
    started = described["started"]
    assert isinstance(started, float)
    assert begin - 0.01 <= started <= time.time() + 0.01
    assert described["configuration"] == {
        "files": [str(file), str(drop_in)], "since": started, "reloads": 0, "refused": None,
    }  # fmt: skip


def test_a_refused_reload_is_told_until_one_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "unplugd.toml"
    standing = Standing(file)
    before = configuration(standing)
    standing.refused("unplugd.toml: log.rate: must be a number")
    after = configuration(standing)
    assert after["refused"]["problem"] == "unplugd.toml: log.rate: must be a number"
    assert after["refused"]["time"] >= before["since"]
    assert {**after, "refused": None} == before
    drop_in = tmp_path / "unplugd.toml.d" / "10-more.toml"
    drop_in.parent.mkdir()
    drop_in.touch()
    assert configuration(standing)["files"] == [str(file)]
    standing.taken()
    now = configuration(standing)
    assert now["files"] == [str(file), str(drop_in)]
    assert (now["reloads"], now["refused"]) == (1, None)
    assert now["since"] >= before["since"]


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert isinstance(configuration(Standing())["files"], list)
    (tmp_path / "gone").mkdir()
    assert configuration(Standing(tmp_path / "gone" / "unplugd.toml"))["reloads"] == 0
