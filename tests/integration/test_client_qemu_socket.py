"""clients/qemu/pass-socket.py: a QEMU that lost its connection gets the next one; with a fake of its monitor."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.lab.daemon import PATIENCE, Daemon, Run, embedded
from tests.lab.frames import frame

SCRIPT = Path(__file__).parents[2] / "clients/qemu/pass-socket.py"


class FakeMonitor:
    """A fake of QEMU's monitor, one client at a time; it keeps the descriptor that `getfd` brings."""

    def __init__(self, path: Path, *, device: bool = True, connected: bool = False) -> None:
        self.passed: socket.socket | None = None
        self.asked: list[str] = []
        self._device = device
        self._connected = connected
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client:
                client.settimeout(PATIENCE)
                client.sendall(b'{"QMP": {}}\n')
                rest = b""
                while True:
                    data, descriptors, _, _ = socket.recv_fds(client, 4096, 4)
                    if not data:
                        break
                    for descriptor in descriptors:
                        self.passed = socket.socket(fileno=descriptor)
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        answer = json.dumps(self._answer(json.loads(line))).encode()
                        client.sendall(b'{"event": "RTC_CHANGE"}\n' + answer + b"\n")

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request["execute"])
        arguments = request["arguments"]
        match request["execute"]:
            case "qom-get" | "qom-set" if not self._device:
                return {"error": {"class": "DeviceNotFound", "desc": f"Device '{arguments['path']}' not found"}}
            case "qom-get":
                assert arguments == {"path": "/machine/peripheral/unplugd", "property": "connected"}
                return {"return": self._connected}
            case "getfd":
                assert arguments == {"fdname": "unplugd"}
            case "qom-set":
                assert arguments == {"path": "/machine/peripheral/unplugd", "property": "fd", "value": "unplugd"}
        return {"return": {}}

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE)
        if self.passed is not None:
            self.passed.close()


@pytest.fixture
def daemon(run: Run) -> Daemon:
    return run(embedded(7, 8, 9))


@pytest.fixture
def script(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("pass_socket", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MONITOR", str(tmp_path / "qmp-libxenstat-{}"))
    monkeypatch.setattr(module, "SOCKET", str(daemon.runtime / "dom{}.sock"))
    return module


@pytest.fixture
def monitors(tmp_path: Path) -> Iterator[dict[int, FakeMonitor]]:
    """Domain 7 lost its connection, 8 has one, 9 is another QEMU."""
    made = {
        7: FakeMonitor(tmp_path / "qmp-libxenstat-7"),
        8: FakeMonitor(tmp_path / "qmp-libxenstat-8", connected=True),
        9: FakeMonitor(tmp_path / "qmp-libxenstat-9", device=False),
    }
    yield made
    for monitor in made.values():
        monitor.close()


def called(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["pass-socket.py", *words])
    status: int = script.main()
    return status


def test_only_who_lost_it_gets_one(
    script: ModuleType, monitors: dict[int, FakeMonitor], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert called(script, monkeypatch) == 0
    assert capsys.readouterr().out == "domain 7 got a new connection\ndomain 8 is connected\n"
    assert monitors[7].asked == ["qmp_capabilities", "qom-get", "getfd", "qom-set"]
    passed = monitors[7].passed
    assert passed is not None
    passed.setblocking(True)
    passed.sendall(frame(0x10, 2, read=True))
    assert passed.recv(32, socket.MSG_WAITALL)[8:10] == b"\xd2\x49"
    assert monitors[8].passed is None
    assert monitors[9].passed is None


def test_what_was_named_must_work(
    script: ModuleType, daemon: Daemon, monitors: dict[int, FakeMonitor], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert called(script, monkeypatch, "9") == 1
    assert capsys.readouterr().out == "domain 9 has no QEMU with the device `unplugd`\n"
    assert called(script, monkeypatch, "10", "8") == 1
    assert capsys.readouterr().out.startswith("domain 10 got no connection: ")
    daemon.kill()
    assert called(script, monkeypatch) == 1
    assert "domain 7 got no connection: " in capsys.readouterr().out
    assert monitors[7].passed is None
    daemon.start()
