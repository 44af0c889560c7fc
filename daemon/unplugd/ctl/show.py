"""Output on a terminal: escaped, in aligned columns, with colour only on a terminal.

All text that a guest or a toolstack chose goes through `safe` before it is printed: UTF-8 is shown as it is, and what
is invisible or would move other text is escaped.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Sequence
from typing import Any

from unplugd.core.escape import escape_journal, visible

NAME_WIDTH = 40
"""Columns that a name may take in a table, as in `xl list`."""

RED, GREEN, YELLOW, BOLD, DIM = "31", "32", "33", "1", "2"

_colour = False


def use_colour(when: str) -> None:
    """`auto`: on a terminal that is not dumb, and without NO_COLOR in the environment; `always`; `never`."""
    global _colour  # noqa: PLW0603 # one terminal, one process
    wanted = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
    _colour = when == "always" or (when == "auto" and wanted)


def paint(text: str, colour: str) -> str:
    """`text` in a colour, where there are colours."""
    return f"\x1b[{colour}m{text}\x1b[0m" if _colour and colour else text


def safe(text: object) -> str:
    """Text or bytes of whatever origin as UTF-8 in which everything is visible (core.escape): it does nothing to a
    terminal."""
    return escape_journal(text).decode() if isinstance(text, bytes) else visible(str(text))


def columns(text: str) -> int:
    """Columns that visible text takes on a terminal: East Asian letters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.category(one) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(one) in "WF")
               for one in text)


def cut(text: str, width: int) -> str:
    """At most `width` columns; what was cut ends in `...`."""
    if columns(text) <= width and len(text) <= 2 * width:   # marks take no column, but there may be thousands
        return text
    text = text[:width - 3]
    while columns(text) > width - 3:
        text = text[:-1]
    return text + "..."


def name(domain: dict[str, Any], width: int = NAME_WIDTH) -> str:
    """A domain's name, safe and short."""
    return cut(safe(domain["name"]), width)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (),
          colours: Sequence[Sequence[str]] = ()) -> list[str]:
    """The lines of a table; `right` are the columns that stand to the right, `colours` one of each cell."""
    widths = [max([len(head), *(columns(row[at]) for row in rows)]) for at, head in enumerate(heads)]

    def line(cells: Sequence[str], paints: Sequence[str]) -> str:
        parts = []
        for at, cell in enumerate(cells):
            padding = " " * (widths[at] - columns(cell))
            painted = paint(cell, paints[at]) if paints else cell
            parts.append(padding + painted if at in right else painted + padding)
        return "  ".join(parts).rstrip(" ")

    return [line(heads, [BOLD] * len(heads)),
            *(line(row, colours[at] if colours else ()) for at, row in enumerate(rows))]


def moment(seconds: float) -> str:
    """A time of the clock as people of this host read it, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def size(count: float) -> str:
    """A number of bytes, in units that keep it short."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def plural(count: int, what: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def print_json(value: object) -> None:
    """JSON in ASCII: what a guest chose stays escaped there too (DEL is the one control character JSON leaves)."""
    import json

    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def print_json_line(value: object) -> None:
    """As print_json, on one line, at once: for what goes on and on."""
    import json

    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)
