"""docs/pictures: what scripts/terminal.py makes of a terminal recording, and that nothing of it is lost."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from scripts import terminal

ROOT = Path(__file__).parents[2]
CASTS = sorted((ROOT / "docs" / "pictures").glob("*.cast"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "COLUMNS", 20)


def cast(path: Path, *events: tuple[float, str]) -> Path:
    lines = [json.dumps({"version": 2, "width": 20, "height": 5, "title": "a <test>"})]
    path.write_text("\n".join([*lines, *(json.dumps([at, "o", text]) for at, text in events)]) + "\n")
    return path


def test_a_line_begins_when_its_first_piece_came(tmp_path: Path) -> None:
    recording = terminal.read(cast(tmp_path / "x.cast", (0.5, "on"), (1.0, "e\ntwo\n"), (3.0, "three\n")))
    assert [text for _, text in recording.lines] == ["one", "two", "three"]
    assert [at for at, _ in recording.lines] == [1.0, 1.0, 3.0]


def test_colours_become_classes() -> None:
    assert terminal.spans("\x1b[1m$\x1b[0m a\x1b[31mb\x1b[0m") == [("b", "$"), ("", " a"), ("r", "b")]


def test_a_long_line_is_wrapped_and_nothing_is_lost() -> None:
    rows = terminal.wrapped("x" * 15 + "\x1b[32m" + "y" * 30)
    assert [sum(len(text) for _, text in row) for row in rows] == [20, 20, 5]
    assert rows[1] == [("g", "y" * 20)]
    assert terminal.wrapped("") == [[]]


def test_text_is_text(tmp_path: Path) -> None:
    recording = terminal.read(cast(tmp_path / "x.cast", (0.0, "<b> & \x1b[31m</text>\x1b[0m\n")))
    picture = ET.fromstring(terminal.draw(recording, moving=False))
    assert ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")] == ["a <test>", "<b> &</text>"]


def test_a_moving_picture_shows_each_line_in_its_turn(tmp_path: Path) -> None:
    recording = terminal.read(cast(tmp_path / "x.cast", *((at, f"line {at}\n") for at in (0.0, 60.0, 60.01, 60.02))))
    picture = terminal.draw(recording, moving=True)
    frames = [(float(at), int(y)) for at, y in re.findall(r"([0-9.]+)% \{ transform: translateY\((-?\d+)px", picture)]
    assert [at for at, _ in frames] == sorted(at for at, _ in frames)
    offsets = [y for _, y in frames]
    assert offsets == sorted(offsets, reverse=True)
    assert offsets[-1] == 0
    assert "prefers-reduced-motion" in picture
    assert "animation" not in terminal.draw(recording, moving=False)


@pytest.mark.parametrize("path", CASTS, ids=lambda path: path.stem)
def test_what_is_shown_is_what_was_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "COLUMNS", 110)
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for _, line in terminal.read(path).lines]
    picture = ET.fromstring(path.with_suffix(".svg").read_text())
    shown = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")][1:]
    squeezed = "".join("".join(line.split()) for line in plain)
    assert "".join("".join(text.split()) for text in shown) == squeezed
    assert not {"script", "image", "foreignObject", "a"} & {node.tag.removeprefix(SVG) for node in picture.iter()}


def test_the_pictures_there_are() -> None:
    assert [path.stem for path in CASTS] == ["demo", "list", "show"]
