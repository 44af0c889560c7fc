"""The status line: changes are told together, and the watchdog hears that the loop turns."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.lab.host import until
from unplugd.status import StatusLine


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
