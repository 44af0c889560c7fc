"""The command: --check, exit statuses, messages that name file, key and reason (contract section 5)."""

from __future__ import annotations

from pathlib import Path

import pytest

import unplugd.config.files
from unplugd import __version__
from unplugd.cli import main


def test_check_names_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_file = tmp_path / "unplugd.toml"
    main_file.write_text("publish = false\n")
    (tmp_path / "unplugd.toml.d").mkdir()
    (tmp_path / "unplugd.toml.d" / "10-more.toml").write_text("[log]\nrate = 5\n")
    assert main(["--config", str(main_file), "--check"]) == 0
    out = capsys.readouterr().out
    assert str(main_file) in out
    assert "10-more.toml" in out


def test_check_without_any_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unplugd.config.files, "DEFAULT_FILE", str(tmp_path / "none.toml"))
    monkeypatch.setattr(unplugd.config.files, "DEFAULT_DROP_INS", str(tmp_path / "conf.d"))
    assert main(["--check"]) == 0
    assert "defaults" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[log]\nrate = 'fast'\n", ["log.rate", "'fast'", "a number from"]),
        ("colour = 1\n", ["colour", "is not a key"]),
        ("[log\n", ["is not TOML"]),
    ],
)
@pytest.mark.parametrize("check", [["--check"], []])
def test_a_wrong_configuration_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], check: list[str]
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    assert main(["--config", str(file), *check]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for word in [str(file), *words]:
        assert word in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_file_that_is_not_there_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "none.toml"), "--check"]) == 2
    assert "none.toml: cannot be read: No such file" in capsys.readouterr().err


def test_a_host_that_does_not_give_a_directory_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "occupied").write_text("")
    file = tmp_path / "unplugd.toml"
    file.write_text(f'runtime_dir = "{tmp_path}/occupied/run"\n[http]\nlisten = ""\n')
    assert main(["--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/occupied/run" in error
    assert "not a directory" in error


@pytest.mark.parametrize("arguments", [["--colour"], ["extra"], ["--config"]])
def test_wrong_arguments_are_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: unplugd" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"unplugd {__version__}\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Exit status" in capsys.readouterr().out
