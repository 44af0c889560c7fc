"""ctl/report.py: one tar, whatever is broken, with bounds, and without what must not leave the host."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
from pathlib import Path

import pytest

from unplugd.ctl import report as module
from unplugd.ctl.cli import main
from unplugd.ctl.failure import Failure
from unplugd.ctl.report import PART_LIMIT, _made, _output


def parts(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        members = {member.name.split("/")[1]: tar.extractfile(member) for member in tar.getmembers()}
        assert len({member.name.split("/")[0] for member in tar.getmembers()}) == 1
        return {name: stream.read().decode() for name, stream in members.items() if stream is not None}


def run(file: Path, *arguments: str) -> int:
    return main(["report", "--config", str(file), "--socket", str(file.parent / "none.sock"), *arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "unplugd.toml"
    path.write_text(f'''# password: hunter2
runtime_dir = "{tmp_path}/run"
[xenstore]
backend = "embedded"
[log]
directory = "{tmp_path}/log"
[[blacklist.entry]]
product = "xensource-windows"
build = 86451
reason = "loses data on resume"
''')
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "guest-web.log").write_text("what a guest wrote\n")
    return path


def test_without_a_daemon_all_else_is_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "report.tar"
    assert run(file, "-o", str(out)) == 0
    said = capsys.readouterr().out
    assert str(out) in said
    assert "without status.json: unplugd does not run" in said
    assert out.stat().st_mode & 0o777 == 0o600
    found = parts(out)
    assert 'reason = "loses data on resume"' in found["configuration.toml"]
    assert str(file) in found["configuration-files.txt"]
    assert "Python 3." in found["versions.txt"]
    assert f"{file.parent}/log/guest-web.log" in found["directories.txt"]
    assert f"{file.parent}/run: No such file" in found["directories.txt"]
    assert "status.json could not be made: unplugd does not run" in found["README.txt"]
    everything = "\n".join(found.values())
    assert "hunter2" not in everything
    assert "what a guest wrote" not in everything
    assert "Environment=" not in everything


def test_with_a_configuration_that_is_wrong(file: Path) -> None:
    file.write_text("[log]\nrate = 'x'\n# hunter2\n")
    out = file.parent / "report.tar"
    assert run(file, "-o", str(out)) == 0
    found = parts(out)
    assert "log.rate: is 'x', must be a number" in found["configuration.toml"]
    assert "hunter2" not in "\n".join(found.values())


def test_a_file_that_is_there_is_left_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "there.tar").write_text("mine")
    (file.parent / "link.tar").symlink_to("elsewhere")
    for name in ("there.tar", "link.tar"):
        assert run(file, "-o", str(file.parent / name)) == 7
        assert "File exists" in capsys.readouterr().err
    assert (file.parent / "there.tar").read_text() == "mine"
    assert not (file.parent / "elsewhere").exists()
    assert run(file, "-o", str(file.parent / "none" / "x.tar")) == 7


def test_to_standard_output(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.TextIOWrapper(io.BytesIO(), write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    assert run(file, "-o", "-") == 0
    path = file.parent / "piped.tar"
    assert isinstance(out.buffer, io.BytesIO)
    path.write_bytes(out.buffer.getvalue())
    assert "README.txt" in parts(path)
    assert "without status.json" in capsys.readouterr().err


def test_its_name_is_the_time_where_none_is_given(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert run(file) == 0
    assert [path.name.startswith("unplugd-report-2") for path in file.parent.glob("*.tar")] == [True]


def test_a_part_is_bounded_and_escaped() -> None:
    data, problem = _made(lambda: "line \x1b[2J\n" * 200_000)
    assert len(data) < PART_LIMIT + 100
    assert data.startswith(b"line \\x1b[2J\n")
    assert data.endswith(b"line \\x1b[2J\n... cut here\n")
    assert problem == ""


def test_a_part_that_fails_says_why() -> None:
    def fails(error: Exception) -> str:
        def make() -> str:
            raise error

        data, problem = _made(make)
        assert problem
        assert problem.isprintable()
        assert data.decode().startswith(problem[:20])
        return problem

    assert fails(Failure(7, "journalctl is not installed")) == "journalctl is not installed"
    assert fails(FileNotFoundError(2, "No such file", "systemctl")) == "systemctl: No such file"
    assert fails(ZeroDivisionError("by\nzero")).startswith("ZeroDivisionError: by")


def test_a_program_is_bounded_in_time_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    assert len(_output("yes")) == PART_LIMIT + 1
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    _output("sh", "-c", "echo early; exec sleep 60")
    assert time.monotonic() - began < 30
    with pytest.raises(Failure, match="sh ended with status 5"):
        _output("sh", "-c", "exit 5")
    with pytest.raises(FileNotFoundError):
        _output("no-such-program")


def test_directories_are_listed_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    for number in range(5):
        (tmp_path / f"{number}\x1b").touch()
    lines = list(module._entries_of(tmp_path))
    assert len(lines) == 1 + 3 + 1
    assert lines[-1] == "... and 2 more"
    assert f"{os.getuid()}:" in lines[0]
