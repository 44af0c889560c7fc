"""man/: clean, complete, and what the commands say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unplugd import cli
from unplugd.config.keys import KEYS, TABLE_LISTS
from unplugd.ctl import cli as ctl_cli
from unplugd.ctl.completion import tree

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "man").glob("*.[0-9]"))


def plain(name: str) -> str:
    """A page as a terminal shows it, without what only roff sees."""
    return (ROOT / "man" / name).read_text().replace("\\-", "-").replace("\\:", "").replace("\\(aq", "'")


def test_the_pages_there_are() -> None:
    assert [page.name for page in PAGES] == ["unplugctl.1", "unplugd-attach.8", "unplugd.8", "unplugd.toml.5"]


def test_they_are_what_commands_and_configuration_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "man-docs.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_has_nothing_to_say_about_them(page: Path) -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("man is not installed")
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-Tutf8", "-l", page],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    shown = re.sub(".\b", "", done.stdout)  # overstruck for bold
    assert page.name.rpartition(".")[0].upper() in shown
    assert "SEE ALSO" in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_apropos_finds_them(page: Path) -> None:
    if shutil.which("lexgrog") is None:
        pytest.skip("man-db is not installed")
    done = subprocess.run(["lexgrog", page], capture_output=True, text=True, check=True)
    assert f'"{page.name.rpartition(".")[0]} - ' in done.stdout


def test_every_option_has_its_line() -> None:
    page = plain("unplugctl.1")
    for command in tree(ctl_cli.parser()):
        for option in command.options:
            assert all(f"\\fB{name}\\fR" in page for name in option.names)
        if command.path and not command.commands:
            assert f".SS {' '.join(command.path)}\n" in page
    for name in re.findall(r"--[a-z]+", cli.parser().format_help()):
        assert name in plain("unplugd.8")


@pytest.mark.parametrize(("module", "page"), [
    ("unplugd", "unplugd.8"), ("unplugd.attach.cli", "unplugd-attach.8"), ("unplugd.ctl", "unplugctl.1"),
])  # fmt: skip
def test_the_page_has_what_the_commands_help_has(module: str, page: str) -> None:
    """As it is typed, in a process of its own: --help ends with 0, and each option that it lists has its line."""
    program = f"import sys; from {module}{'.cli' if module == 'unplugd.ctl' else ''} import main; sys.exit(main())"
    command = [sys.executable, "-m", module] if module == "unplugd" else [sys.executable, "-c", program]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    named = re.findall(r"^  +(-[-a-z]+)(?:,? (--[a-z]+))?", done.stdout, re.MULTILINE)
    for option in filter(None, (each for pair in named for each in pair)):
        assert f"\\fB{option}\\fR" in plain(page)
    assert len(named) > 1
    if page != "unplugctl.1":
        assert ".SH EXIT STATUS" in plain(page)


def test_every_key_is_explained() -> None:
    page = plain("unplugd.toml.5")
    for key in (*KEYS, *TABLE_LISTS):
        assert key in page, key
    assert "Allowed: a string.\n" not in page
