"""ctl/configuration.py: check and show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.control import serving
from unplugd.config.load import Config, load
from unplugd.ctl.cli import main
from unplugd.ctl.configuration import effective, toml

EXAMPLE = Path(__file__).parents[2] / "config" / "unplugd.toml"
ALL = """
runtime_dir = "/run/elsewhere"
publish = false
[xenstore]
backend = "embedded"
[[xenstore.domain]]
domid = 7
name = 'quo"ted \\ ü'
[blacklist]
lookup_timeout = 0.25
[[blacklist.entry]]
product = "my.drivers"
build = 5
reason = "x"
[[blacklist.range]]
product = "linux"
to = 5
[products]
"my.drivers" = 0x1234
entry = 7
[policy]
allow_unplug = ["nics"]
[socket]
device_model_uids = [5, 6]
[log]
sinks = ["file", "stderr"]
rate = 0.5
[http]
listen = "[::1]:1234"
"""


def round_trip(tmp_path: Path, config: Config) -> Config:
    file = tmp_path / "effective.toml"
    file.write_text(toml(effective(config)), "utf-8")
    return load(file)


def test_the_effective_configuration_is_one(tmp_path: Path) -> None:
    assert round_trip(tmp_path, Config()) == Config()
    file = tmp_path / "all.toml"
    file.write_text(ALL, "utf-8")
    config = load(file)
    assert round_trip(tmp_path, config) == config
    assert config.products == {"my.drivers": 0x1234, "entry": 7}


@given(st.floats(0, 1e12), st.floats(0.01, 86400), st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_numbers_and_texts_survive(rate: float, flush: float, reason: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "a.toml"
        file.write_text(
            f"log = {{ rate = {rate!r}, flush_after = {flush!r} }}\n[[blacklist.entry]]\nproduct = 'linux'\nbuild = 3\n"
            f"reason = {json.dumps(reason, ensure_ascii=False)}\n", "utf-8")
        config = load(file)
        assert round_trip(Path(directory), config) == config


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--config", str(EXAMPLE)]) == 0
    assert "is valid" in capsys.readouterr().out
    assert main(["config", "check", "-l", "--config", str(EXAMPLE)]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "files": [str(EXAMPLE)], "warnings": []}
    broken = tmp_path / "broken.toml"
    broken.write_text('[log]\nsinks = ["paper"]\n')
    assert main(["config", "check", "--config", str(broken)]) == 2
    error = capsys.readouterr().err
    assert "log.sinks" in error
    assert '"journal"' in error
    assert main(["config", "check", "-l", "--config", str(broken)]) == 2
    assert set(json.loads(capsys.readouterr().out)) == {"valid", "file", "key", "problem"}


@pytest.mark.parametrize("named", [True, False])
def test_a_running_unplugd_is_asked_about_its_own_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    file = tmp_path / "unplugd.toml"
    with serving() as control:
        file.write_text(f'runtime_dir = "{control.path.parent}"\n')
        control.path.rename(control.path.with_name("control.sock"))
        said = {"configured": str(file) if named else "", "valid": False, "file": "conf.d", "key": "", "problem": "no"}
        control.pages["/api/v1/configuration"] = (200, json.dumps(said).encode())
        assert main(["config", "check", "--config", str(file)]) == (2 if named else 0)
        shown = capsys.readouterr()
        if named:
            assert "unplugctl: conf.d: no\n" in shown.err
            assert main(["config", "check", "-l", "--config", str(file)]) == 2
            assert json.loads(capsys.readouterr().out) == {"valid": False, "file": "conf.d", "key": "", "problem": "no"}
            control.pages["/api/v1/configuration"] = (200, json.dumps(
                {"configured": str(file), "valid": True, "files": [str(file)]}).encode())
            assert main(["config", "check", "--config", str(file)]) == 0
            assert "rights of unplugctl" not in capsys.readouterr().out
        else:
            assert "checked with the rights of unplugctl" in shown.out


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text("# a comment with \x1b[2J\npublish = false\n".replace("\x1b", "x"))
    (tmp_path / "unplugd.toml.d").mkdir()
    (tmp_path / "unplugd.toml.d" / "10.toml").write_text("publish = true\n")
    assert main(["config", "show", "--config", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.index(f"# {file}") < shown.index("publish = false") < shown.index("publish = true")
    assert main(["config", "show", "--effective", "--config", str(file)]) == 0
    assert "publish = true\n" in capsys.readouterr().out
    assert main(["config", "show", "-l", "--config", str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"files", "effective"}
    assert found["effective"]["publish"] is True
    assert len(found["files"]) == 2


def test_show_of_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--effective"], ["-l"]):
        assert main(["config", "show", *more, "--config", str(tmp_path / "none")]) == 2
        assert "none" in capsys.readouterr().err


def test_no_file_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("unplugd.config.files.DEFAULT_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("unplugd.config.files.DEFAULT_DROP_INS", str(tmp_path / "none.d"))
    assert main(["config", "show"]) == 0
    assert "the defaults hold" in capsys.readouterr().out
    assert main(["config", "check"]) == 0
