"""A terminal's recording as an SVG picture, which browsers and forges show without a player.

A recording (NAME.cast) is in asciinema's format, version 2: a header, then [seconds, "o", output] on each line. Only
line ends and SGR sequences count in the output, which is all that unplugd's programs write.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = 110
"""Columns of the terminal."""

COLOURS = {"1": "b", "2": "d", "31": "r", "32": "g", "33": "y"}
"""SGR parameters that unplugd's programs use, and the class of the style sheet for each."""

CELL, LINE, MARGIN, BAR, ROWS = 7.8, 18, 14, 30, 30
"""Pixels of a column and a line, around the text, of the title bar; lines that a moving picture shows."""

LONGEST_PAUSE, SHORTEST_PAUSE, LAST_PAUSE = 1.5, 0.22, 8.0
"""Seconds between two lines of a moving picture: a recording's pauses are kept within these."""

STYLE = """\
text { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d7dee8; white-space: pre; }
.b { font-weight: 700; fill: #ffffff; } .d { fill: #8a96a5; } .r { fill: #ff7b6b; font-weight: 700; }
.g { fill: #4cc38a; } .y { fill: #f0a35e; } .p { fill: #6db3f8; } .t { fill: #8a96a5; }
"""


@dataclass(frozen=True, slots=True)
class Recording:
    """What a program wrote, line by line: when each line began (seconds), and its text with SGR sequences."""

    title: str
    lines: tuple[tuple[float, str], ...]


def read(path: Path) -> Recording:
    """A recording's file."""
    first, *events = path.read_text().splitlines()
    text, begins = "", []
    for at, _, piece in map(json.loads, events):
        begins += [at] * (piece.count("\n"))
        text += piece
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return Recording(json.loads(first)["title"], tuple(zip([*begins, *begins[-1:]], lines, strict=False)))


def spans(line: str) -> list[tuple[str, str]]:
    """A line's pieces: class and text."""
    found, style = [], ""
    for piece in re.split(r"(\x1b\[[0-9;]*m)", line):
        if sequence := re.fullmatch(r"\x1b\[([0-9;]*)m", piece):
            style = " ".join(COLOURS[each] for each in sequence[1].split(";") if each in COLOURS)
        elif piece:
            found.append((style, piece))
    return found


def wrapped(line: str) -> list[list[tuple[str, str]]]:
    """A line as a terminal of COLUMNS columns has it."""
    rows: list[list[tuple[str, str]]] = [[]]
    used = 0
    for style, text in spans(line):
        while text:
            if used == COLUMNS:
                rows.append([])
                used = 0
            piece, text = text[: COLUMNS - used], text[COLUMNS - used :]
            rows[-1].append((style, piece))
            used += len(piece)
    return rows


def row(pieces: Sequence[tuple[str, str]], y: float) -> str:
    """A row of text. Each piece stands where its column is, whatever font there is."""
    shown, column = [], 0
    for style, text in pieces:
        if text.strip():
            kept = text.lstrip(" ")
            at = column + len(text) - len(kept)
            kept = kept.rstrip(" ")
            about = f' class="{style}"' if style else ""
            shown.append(f'<tspan{about} x="{MARGIN + at * CELL:.1f}" textLength="{len(kept) * CELL:.1f}">'
                         f"{html.escape(kept, quote=False)}</tspan>")
        column += len(text)
    return f'<text y="{y:.0f}" xml:space="preserve">{"".join(shown)}</text>\n' if shown else ""


def draw(recording: Recording, *, moving: bool) -> str:
    """The picture. A moving one scrolls as the terminal did, and shows its end to who wants no motion."""
    rows: list[tuple[float, list[tuple[str, str]]]] = []
    for at, line in recording.lines:
        rows += [(at, each) for each in wrapped(line)]
    columns = COLUMNS if moving else max(sum(len(text) for _, text in pieces) for _, pieces in rows)
    width = round(2 * MARGIN + columns * CELL)
    shown = min(ROWS, len(rows)) if moving else len(rows)
    height = BAR + shown * LINE + MARGIN
    text = "".join(row(pieces, BAR + (number + 0.75) * LINE) for number, (_, pieces) in enumerate(rows))
    style = STYLE + (motion([at for at, _ in rows], shown) if moving else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="Terminal: {html.escape(recording.title)}">\n'
        f"<title>{html.escape(recording.title)}</title>\n<style>\n{style}</style>\n"
        f'<clipPath id="screen"><rect y="{BAR}" width="{width}" height="{shown * LINE + 4}"/></clipPath>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#12161c"/>\n'
        f'<text class="t" x="{MARGIN}" y="20">{html.escape(recording.title)}</text>\n'
        f'<g clip-path="url(#screen)"><g class="scroll">\n{text}</g></g>\n</svg>\n'
    )


def motion(begins: Sequence[float], shown: int) -> str:
    """The style that scrolls: a line comes in at the bottom when it was written."""
    times, now, before = [], 0.0, begins[0]
    for at in begins:
        now += min(LONGEST_PAUSE, max(SHORTEST_PAUSE, at - before))
        before = at
        times.append(now)
    whole = now + LAST_PAUSE
    frames = "".join(
        f"{100 * at / whole:.3f}% {{ transform: translateY({(shown - number - 1) * LINE}px); }}\n"
        for number, at in enumerate(times)
    )
    end = f"translateY({(shown - len(begins)) * LINE}px)"
    return (
        f".scroll {{ transform: {end}; animation: scroll {whole:.1f}s step-end infinite; }}\n"
        f"@keyframes scroll {{\n0% {{ transform: translateY({shown * LINE}px); }}\n{frames}"
        f"100% {{ transform: {end}; }}\n}}\n"
        "@media (prefers-reduced-motion: reduce) { .scroll { animation: none; } }\n"
    )
