"""ctl/control.py: finding the control socket, and what answers there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.control import domain, serving
from unplugd.config.load import Config, load
from unplugd.ctl import control
from unplugd.ctl.control import Control, runtime_directory
from unplugd.ctl.failure import NOT_RUNNING, USAGE, Failure


def test_the_defaults_are_those_of_the_daemon() -> None:
    assert Path(control.DEFAULT_RUNTIME) == Config().runtime_dir


def test_the_runtime_directory_is_read_as_the_daemon_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text("publish = false\n")
    assert runtime_directory(str(file)) == "/run/unplugd"
    drop_ins = tmp_path / "unplugd.toml.d"
    drop_ins.mkdir()
    (drop_ins / "b.toml").write_text('runtime_dir = "/b"\n')
    (drop_ins / "a.toml").write_text('runtime_dir = "/a"\n')
    (drop_ins / "c.txt").write_text('runtime_dir = "/c"\n')
    assert runtime_directory(str(file)) == "/b" == str(load(file).runtime_dir)


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure) as missing:
        runtime_directory(str(tmp_path / "none.toml"))
    assert (missing.value.status, "none.toml" in missing.value.problem) == (USAGE, True)
    broken = tmp_path / "broken.toml"
    broken.write_text("runtime_dir = \n")
    with pytest.raises(Failure) as failure:
        runtime_directory(str(broken))
    assert "is not TOML" in failure.value.problem
    assert "config check" in failure.value.hint


def test_pages() -> None:
    with serving(domain(), domain(8)) as daemon:
        asked = Control(str(daemon.path))
        assert [one["domid"] for one in asked.domains()] == [7, 8]
        assert asked.json("/api/v1/domains/7")["name"] == "web-01"
        assert asked.json("/api/v1/domains/9") is None
        assert asked.get("/-/ready") == (200, b"unplugd is ready.\n")
        assert asked.peer() == (os.getpid(), os.geteuid())


@pytest.mark.parametrize(
    "raw",
    [b"", b"hello\n", b"SSH-2.0-x\r\n\r\n", b'HTTP/1.1 200 OK\r\n\r\n{"domains": [', b"HTTP/1.1 200 OK\r\n\r\n",
     b"HTTP/1.1 500 No\r\n\r\n{}", b"HTTP/1.1 x y\r\n\r\n{}"],
)  # fmt: skip
def test_what_is_no_answer_of_unplugd_is_a_failure(raw: bytes) -> None:
    with serving() as daemon:
        daemon.raw = raw
        with pytest.raises(Failure) as failure:
            Control(str(daemon.path)).domains()
    assert failure.value.status == NOT_RUNNING
    assert failure.value.hint


def test_a_daemon_that_hangs_does_not_hang_us(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control, "DEADLINE", 0.2)
    with serving() as daemon:
        os.rename(daemon.path, daemon.path.with_name("other"))
        import socket

        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(daemon.path))
            silent.listen(1)
            with pytest.raises(Failure, match="does not answer"):
                Control(str(daemon.path)).domains()


@pytest.mark.skipif(os.geteuid() != 0, reason="a mode that root ignores must be tried as somebody else")
def test_a_socket_that_is_not_ours(tmp_path: Path) -> None:
    with serving() as daemon:
        os.chmod(daemon.path.parent, 0o700)
        pid = os.fork()
        if pid == 0:
            os.setuid(65534)
            try:
                Control(str(daemon.path)).domains()
            except Failure as failure:
                os._exit(0 if "sudo" in failure.hint else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_who_is_neither_root_nor_unplugds_user_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """unplugd closes such a connection at once, whatever the socket's mode."""
    with serving(domain()) as server:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1000)
        with pytest.raises(Failure, match="permission denied") as refused:
            Control(str(server.path)).domains()
        assert (refused.value.status, "sudo" in refused.value.hint) == (NOT_RUNNING, True)
