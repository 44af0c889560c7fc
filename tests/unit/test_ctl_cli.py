"""ctl/cli.py: the arguments, their help, and how the command ends."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from tests.lab.control import domain, serving
from unplugd.ctl.cli import main, parser
from unplugd.ctl.completion import Command, tree
from unplugd.ctl.failure import EXITS
from unplugd.ctl.journal import KINDS

COMMANDS = list(tree(parser()))
LEAVES = [command for command in COMMANDS if not command.commands]


def name(command: Command) -> str:
    return " ".join(command.path) or "unplugctl"


def test_the_commands_are_those_of_the_issue() -> None:
    assert sorted(name(leaf) for leaf in LEAVES) == [
        "blacklist add", "blacklist check", "blacklist impact", "blacklist list", "blacklist remove", "completion",
        "config check", "config show", "events", "list", "log", "report", "show", "status", "top",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_every_help_can_be_read(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.path, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: unplugctl")
    assert max(len(line) for line in text.splitlines()) <= 110
    for option in command.options:
        assert all(each in text for each in option.names)
        assert option.help
    assert all(below in text and about for below, about in command.commands)


@pytest.mark.parametrize("leaf", LEAVES, ids=name)
def test_every_command_has_json_and_the_common_options(leaf: Command) -> None:
    options = {each for option in leaf.options for each in option.names}
    assert {"--config", "--socket", "--color", "--help"} <= options
    assert ({"-l", "--json"} <= options) == (leaf.path not in {("completion",), ("report",)})


def test_the_help_has_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {number}  {meaning}" in text for number, meaning in EXITS)
    assert [number for number, _ in EXITS] == list(range(len(EXITS)))


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["show"], ["top", "-d", "0"], ["top", "-i", "x"], ["list", "--color", "red"], ["blacklist"],
     ["blacklist", "add", "linux"], ["log"], ["log", "7", "-n", "-1"], ["config"], ["completion", "ksh"]],
)  # fmt: skip
def test_wrong_arguments_say_where_help_is(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("unplugctl ")


def test_common_options_may_stand_before_and_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(domain()) as control:
        assert main(["--socket", str(control.path), "list"]) == 0
        assert main(["list", "--socket", str(control.path)]) == 0
        before, after = capsys.readouterr().out.split("Name")[1:]
        assert before == after
        assert main(["--color", "always", "--socket", str(control.path), "list"]) == 0
    assert "\x1b[" in capsys.readouterr().out


def test_the_socket_is_where_configuration_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(domain()) as control:
        file = tmp_path / "unplugd.toml"
        file.write_text(f'runtime_dir = "{control.path.parent}"\n')
        assert main(["list", "--config", str(file)]) == 0
    assert "web-01" in capsys.readouterr().out


def test_a_daemon_that_does_not_run_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["list"], ["show", "7"], ["top", "-b"], ["status"]):
        assert main([*command, "--socket", str(tmp_path / "none")]) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "unplugd does not run" in captured.err
        assert "systemctl status unplugd" in captured.err


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(options: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("unplugd.ctl.guests.list_domains", interrupt)
    monkeypatch.setattr("unplugd.ctl.top.top", interrupt)
    monkeypatch.setattr("unplugd.ctl.journal.events", interrupt)
    assert main(["list", "--socket", "x"]) == 130
    assert main(["top", "--socket", "x"]) == 0
    assert main(["events", "-f", "--socket", "x"]) == 0
    assert main(["events", "--socket", "x"]) == 130


PAGE = (Path(__file__).parents[2] / "docs" / "unplugctl.md").read_text("utf-8")


def test_the_page_has_every_exit_status() -> None:
    assert all(f"| {number} | {meaning} |" in PAGE for number, meaning in EXITS)


DOCS = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
COMMAND = re.compile(r"(?:`|^ *(?:sudo )?)unplugctl ([a-z][^`#\n]*)", re.MULTILINE)
WRITTEN = sorted({command for page in DOCS for command in COMMAND.findall(page.read_text("utf-8"))})


@pytest.mark.parametrize("command", WRITTEN)
def test_the_commands_of_the_documents_exist(command: str) -> None:
    options = parser().parse_args(shlex.split(re.sub(r" *[|&;>].*| {2,}.*|\)\"$", "", command)))
    for kind in getattr(options, "kind", None) or ():
        assert kind in KINDS.values()
