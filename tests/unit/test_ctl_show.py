"""ctl/show.py: nothing that a guest or a toolstack chose reaches the terminal as anything but characters."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.ctl import show

ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def _no_colour() -> None:
    show.use_colour("never")


@given(ANY)
def test_safe_is_visible_and_can_be_encoded(text: str) -> None:
    shown = show.safe(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in shown)
    shown.encode("utf-8")


def test_other_languages_and_backslashes_stay() -> None:
    assert show.safe("Gerät C:\\temp bereit") == "Gerät C:\\temp bereit"
    assert show.safe(b"\xff\x1b[2J") == "\\xff\\x1b[2J"


def test_columns_are_the_terminals() -> None:
    assert [show.columns(text) for text in ("abc", "größe", "gro\u0308ße", "名前", "カナ", "")] == [3, 5, 5, 4, 4, 0]
    assert show.cut("名前名前名前", 8) == "名前..."
    assert len(show.cut("a" + "\u0308" * 3000, 8)) <= 16
    lines = show.table(("Name", "ID"), [("größe", "1"), ("名前", "2")], right=(1,))
    assert lines == ["Name   ID", "größe   1", "名前    2"]


@given(st.lists(st.tuples(ANY, ANY, ANY), max_size=5))
def test_no_name_breaks_a_column(rows: list[tuple[str, str, str]]) -> None:
    cells = [tuple(show.cut(show.safe(cell), show.NAME_WIDTH) for cell in row) for row in rows]
    lines = show.table(("A", "B", "C"), cells, right=(1,))
    assert len(lines) == len(rows) + 1
    first, second = (max([1, *(show.columns(row[at]) for row in cells)]) for at in (0, 1))
    for row, line in zip(cells, lines[1:], strict=True):
        assert "\n" not in line
        cell = row[0] + " " * (first - show.columns(row[0])) + "  " + " " * (second - show.columns(row[1])) + row[1]
        assert line == f"{cell}  {row[2]}".rstrip(" ")


def test_colours_do_not_move_columns() -> None:
    rows = [("a", "bb"), ("ccc", "d")]
    plain = show.table(("X", "Y"), rows)
    show.use_colour("always")
    painted = show.table(("X", "Y"), rows, colours=[(show.RED, ""), ("", show.GREEN)])
    assert [COLOUR.sub("", line) for line in painted] == plain
    assert "\x1b[31ma\x1b[0m" in painted[1]


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    show.use_colour("auto")
    assert show.paint("x", show.RED) == "x"
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show.use_colour("auto")
    assert show.paint("x", show.RED) == "\x1b[31mx\x1b[0m"
    for variable, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(variable, value)
            show.use_colour("auto")
            assert show.paint("x", show.RED) == "x"


def test_sizes_and_plurals() -> None:
    assert [show.size(n) for n in (0, 1023, 1024, 1 << 20, 5 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "1.0 MiB", "5120.0 GiB"]  # fmt: skip
    assert (show.plural(1, "line"), show.plural(0, "line")) == ("1 line", "0 lines")
    assert show.cut("abcdefgh", 6) == "abc..."
    assert show.cut("abcdef", 6) == "abcdef"


@given(ANY)
def test_json_is_ascii_without_control_characters(text: str) -> None:
    import contextlib
    import io

    for write in (show.print_json, show.print_json_line):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            write({"name": text})
        assert all(c == "\n" or c.isprintable() for c in out.getvalue())
        assert out.getvalue().isascii()
        assert json.loads(out.getvalue()) == {"name": text}


def test_this_module_has_no_other_way_to_the_terminal() -> None:
    """Every `print` of a name in the commands goes through safe() or name()."""
    for path in Path(show.__file__).parent.glob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "print(" in line:
                assert not re.search(r"""\{[^}]*\[['"](name|uuid|reason|message|product_name)['"]\]\}""", line), (
                    f"{path.name}:{number}")
