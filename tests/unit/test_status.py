"""The status line and the watchdog's ping; and what /api/v1/status says of the process, without a service."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.host import until
from unplugd.host.status import ServiceStatus, StatusLine


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    one.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return one


def test_changes_are_told_together_and_pings_on_their_own(manager: socket.socket) -> None:
    said: list[bytes] = []

    def read() -> bool:
        try:
            said.append(manager.recv(4096))
        except BlockingIOError:
            return False
        return True

    async def main() -> None:
        line = StatusLine(lambda: "7 domains")
        for _ in range(5):
            line.soon()
        assert not read()
        await until(read)
        line.tell()
        assert read()
        assert not read()
        assert said == [b"STATUS=7 domains"] * 2
        task = asyncio.get_running_loop().create_task(line.ping(0.01))
        await until(lambda: read() and said[-1] == b"WATCHDOG=1\nSTATUS=7 domains")
        task.cancel()

    with manager:
        asyncio.run(main())


def configuration(standing: ServiceStatus) -> Any:
    return standing.describe()["configuration"]


def test_at_the_start_the_files_are_those_that_were_read(tmp_path: Path) -> None:
    file, drop_in = tmp_path / "unplugd.toml", tmp_path / "unplugd.toml.d" / "10-more.toml"
    file.touch()
    drop_in.parent.mkdir()
    drop_in.touch()
    begin = time.time()
    described = ServiceStatus(file).describe()
    assert described["pid"] == os.getpid()
    started = described["started"]
    assert isinstance(started, float)
    assert begin - 0.01 <= started <= time.time() + 0.01
    assert described["configuration"] == {
        "files": [str(file), str(drop_in)], "since": started, "reloads": 0, "refused": None,
    }  # fmt: skip


def test_a_refused_reload_is_told_until_one_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "unplugd.toml"
    standing = ServiceStatus(file)
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
    standing.taken([str(file), str(drop_in)])
    now = configuration(standing)
    assert now["files"] == [str(file), str(drop_in)]
    assert (now["reloads"], now["refused"]) == (1, None)
    assert now["since"] >= before["since"]


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert isinstance(configuration(ServiceStatus())["files"], list)
    (tmp_path / "gone").mkdir()
    assert configuration(ServiceStatus(tmp_path / "gone" / "unplugd.toml"))["reloads"] == 0
