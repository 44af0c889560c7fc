"""privatedaemon.py: when a daemon counts as ready, what is said when it never is, and that it never stays behind."""

from __future__ import annotations

import http.server
import os
import socketserver
import threading
from pathlib import Path

import pytest

from unplugd.errors import HostError
from unplugd.simulator.privatedaemon import PrivateDaemon, fetch

SAY_READY = """
import os, socket
address = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
    s.sendto(b"STATUS=starting", address)
    s.sendto(b"STATUS=serving\\nREADY=1", address)
"""


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that runs the text of this file whatever it is asked to run."""
    script = tmp_path / "daemon.py"
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec "{os.path.realpath("/proc/self/exe")}" "{script}" "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(interpreter))
    return script


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_daemon_that_gets_ready_and_stops(
    daemon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocked from the start, so that a quick SIGTERM waits for sigwait().
    block = "import signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    tell = "print(sys.argv[1:], os.environ.get('LISTEN_FDS'), flush=True)\n"
    daemon.write_text(block + SAY_READY + tell + "signal.sigwait([signal.SIGTERM])\nsys.exit(3)\n")
    monkeypatch.setenv("LISTEN_FDS", "1")
    with PrivateDaemon(tmp_path, "publish = true\n") as trial:
        pid = trial.pid
        assert trial.ready_after > 0
        assert trial.stop() == 3
    assert gone(pid)
    assert (tmp_path / "unplugd.toml").read_text() == "publish = true\n"
    expected = ["-m", "unplugd", "--config", str(tmp_path / "unplugd.toml")]
    assert trial.log.read_text() == f"{expected} None\n"


def test_a_daemon_that_ends_early_is_quoted(daemon: Path, tmp_path: Path) -> None:
    daemon.write_text("import sys\nsys.exit('port 9877 is in use')\n")
    with pytest.raises(HostError, match=r"(?s)exit status 1\n    port 9877 is in use"), PrivateDaemon(tmp_path, ""):
        pass


def test_a_daemon_that_never_gets_ready_is_killed(daemon: Path, tmp_path: Path) -> None:
    daemon.write_text("import time\ntime.sleep(99)\n")
    trial = PrivateDaemon(tmp_path, "", patience=1)
    with pytest.raises(HostError, match=r"(?s)not ready after 1 s.*its log is empty"), trial:
        pass
    assert gone(trial.pid)


def test_a_daemon_that_does_not_stop_is_told_of_and_killed(daemon: Path, tmp_path: Path) -> None:
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    daemon.write_text(deaf + SAY_READY + "time.sleep(99)\n")
    with PrivateDaemon(tmp_path, "") as trial:
        trial.patience = 0.2
        with pytest.raises(HostError, match="did not end after SIGTERM"):
            trial.stop()
    assert gone(trial.pid)


def test_what_was_not_started_has_no_process(tmp_path: Path) -> None:
    trial = PrivateDaemon(tmp_path, "")
    with pytest.raises(RuntimeError, match="not started"):
        trial.stop()
    with pytest.raises(RuntimeError, match="not started"):
        _ = trial.pid


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/nonsense":
            self.wfile.write(b"nonsense\r\n\r\n")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def address_string(self) -> str:
        return ""

    def log_message(self, format: str, *args: object) -> None:
        pass


class UnixServer(socketserver.UnixStreamServer):
    pass


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_fetch(kind: str, tmp_path: Path) -> None:
    server: socketserver.BaseServer
    address: Path | tuple[str, int]
    if kind == "unix":
        address = tmp_path / "s"
        server = UnixServer(str(address), Hello)
    else:
        tcp = socketserver.TCPServer(("127.0.0.1", 0), Hello)
        address = ("127.0.0.1", tcp.server_address[1])
        server = tcp
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert fetch(address, "/x") == (200, "/x")
            with pytest.raises(OSError, match="/nonsense: BadStatusLine"):
                fetch(address, "/nonsense")
        finally:
            server.shutdown()
            thread.join()
