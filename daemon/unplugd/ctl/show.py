"""Output on a terminal: escaped, in aligned columns, with colour only on a terminal.

Text from a guest or a toolstack goes through `safe` before it is printed. The result is printable ASCII, one column per
character, on any terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from unplugd.core.escape import escape_journal, escape_text

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
    """Text of whatever origin as printable ASCII (core.escape), so that it can do nothing to a terminal."""
    return escape_text(_raw(str(text)))


def _raw(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:      # JSON can say any half of a pair
        return text.encode("utf-8", "surrogatepass")


def line(text: str | bytes) -> str:
    """A whole line of log, of whatever origin, safe for a terminal: UTF-8 without control characters.

    For what ends a line only: its characters may be wider than one column. A backslash stays as it is, for what comes
    from journal and files was escaped once already.
    """
    return escape_journal(text if isinstance(text, bytes) else _raw(text)).decode("utf-8")


def cut(text: str, width: int) -> str:
    """At most `width` characters; what was cut ends in `...`."""
    return text if len(text) <= width else text[: width - 3] + "..."


def name(domain: dict[str, Any], width: int = NAME_WIDTH) -> str:
    """A domain's name, safe and short."""
    return cut(safe(domain["name"]), width)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (),
          colours: Sequence[Sequence[str]] = ()) -> list[str]:
    """The lines of a table; `right` are the columns that stand to the right, `colours` one of each cell."""
    widths = [max([len(head), *(len(row[at]) for row in rows)]) for at, head in enumerate(heads)]

    def line(cells: Sequence[str], paints: Sequence[str]) -> str:
        parts = []
        for at, cell in enumerate(cells):
            padding = " " * (widths[at] - len(cell))
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
