"""ctl/completion.py: what the shells themselves make of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.control import domain, serving
from unplugd.core.registry import PUBLIC
from unplugd.ctl.cli import main, parser
from unplugd.ctl.completion import Command, domains, tree

COMMANDS = list(tree(parser()))


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory for PATH where `unplugctl` is this one, with domains that it can complete."""
    (tmp_path / "unplugctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m unplugd.ctl --socket "$SOCKET" "$@"\n')
    (tmp_path / "unplugctl").chmod(0o755)
    return tmp_path


@pytest.fixture
def script(path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", request.param]) == 0
    file = path / f"_{request.param}"
    file.write_text(capsys.readouterr().out)
    return file


def bash(script: Path, line: str, socket: str = "none") -> list[str]:
    words = line.split(" ")
    program = f"""
        source {script}
        COMP_WORDS=({" ".join(f'"{word}"' for word in words)}) COMP_CWORD={len(words) - 1}
        _unplugctl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [shell("bash"), "-u", "-c", program], capture_output=True, text=True, check=True, timeout=60,
        env={"PATH": f"{script.parent}:{os.environ['PATH']}", "SOCKET": socket},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash(script: Path) -> None:
    for command in COMMANDS:
        line = " ".join(["unplugctl", *command.path, ""])
        if command.commands:
            assert sorted(bash(script, line)) == sorted(name for name, _ in command.commands)
        options = {each for option in command.options for each in option.names}
        assert set(bash(script, line + "-")) == options
    assert bash(script, "unplugctl bl") == ["blacklist"]
    assert bash(script, "unplugctl --config x blacklist a") == ["add"]
    assert set(bash(script, "unplugctl blacklist add ")) == set(PUBLIC)
    assert bash(script, "unplugctl list --color a") == ["auto", "always"]
    assert bash(script, "unplugctl list --color always --j") == ["--json"]
    assert bash(script, f"unplugctl --config {script.parent}/_b") == [str(script)]
    assert bash(script, "unplugctl top --delay ") == []


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_asks_for_domains(script: Path) -> None:
    hostile = domain(8, "$(touch pwned) `x`")
    with serving(domain(7, "web-01"), hostile) as control:
        assert bash(script, "unplugctl show ", str(control.path)) == ["web-01", "8"]
        assert bash(script, "unplugctl log w", str(control.path)) == ["web-01"]
    assert bash(script, "unplugctl show ") == []


def test_names_that_a_shell_could_misread_are_left_out() -> None:
    with serving(domain(1, "a b"), domain(2, "$(x)"), domain(3, "-f"), domain(4, "ok.1_2+3-4")) as control:
        assert domains(str(control.path)) == ["1", "2", "3", "ok.1_2+3-4"]
    assert domains("none") == []


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_takes_it(script: Path) -> None:
    program = f"""
        autoload -U compinit && compinit -D -u
        source {script}
        whence -w _unplugctl _unplugctl_blacklist_add
        print -r -- "$_comps[unplugctl]"
    """
    done = subprocess.run([shell("zsh"), "-f", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "_unplugctl: function", "_unplugctl_blacklist_add: function", "_unplugctl"]  # fmt: skip


def names(command: Command) -> str:
    return " ".join(command.path) or "none"


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish(script: Path) -> None:
    def complete(line: str) -> list[str]:
        done = subprocess.run(
            [shell("fish"), "--no-config", "-c", f"source {script}; complete -C '{line}'"],
            capture_output=True, text=True, check=True, timeout=60,
            env=os.environ | {"PATH": f"{script.parent}:{os.environ['PATH']}", "SOCKET": "none",
                              "HOME": str(script.parent)},
        )  # fmt: skip
        assert done.stderr == ""
        return [found.split("\t")[0] for found in done.stdout.splitlines()]

    assert sorted(complete("unplugctl ")) == sorted(name for name, _ in COMMANDS[0].commands)
    assert sorted(complete("unplugctl blacklist ")) == ["add", "check", "impact", "list", "remove"]
    assert set(complete("unplugctl blacklist add ")) == set(PUBLIC)
    assert {"--effective", "--json"} <= set(complete("unplugctl config show --"))


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_in_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", name]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        for option in command.options:
            for each in option.names:
                assert (f" {'-l' if each[1] == '-' else '-s'} {each.lstrip('-')}" if name == "fish" else each) in text
        for word in command.path:
            assert word in text
