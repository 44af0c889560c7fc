"""Parts of a page in docs/ that a script writes, between two markers; the rest of the page is people's.

    <!-- generated: NAME -->
    ...
    <!-- end: NAME -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


class PageError(Exception):
    """A page and the parts that are written for it do not fit together."""


def fill(text: str, parts: Mapping[str, str]) -> str:
    """`text` with every part in its place. Raises PageError where markers and parts are not the same."""
    marked = re.findall(r"^<!-- generated: ([a-z-]+) -->$", text, re.MULTILINE)
    if sorted(marked) != sorted(parts):
        raise PageError(f"marked are {sorted(marked)}, made are {sorted(parts)}")
    for name, part in parts.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->\n"
        if text.count(end) != 1:
            raise PageError(f"{name} has no end, or two")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{part.strip()}\n{end}{after}"
    return text


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; a `|` in a cell stays one."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main(name: str, parts: Mapping[str, str]) -> int:
    """Write the parts into docs/`name`; with --check only say whether they are there. Returns the exit status."""
    page = DOCS / name
    text = page.read_text()
    try:
        filled = fill(text, parts)
    except PageError as error:
        print(f"docs/{name}: {error}", file=sys.stderr)
        return 1
    if sys.argv[1:] == ["--check"]:
        if filled != text:
            print(f"docs/{name} is not what the code says: run {sys.argv[0]}", file=sys.stderr)
            return 1
        return 0
    page.write_text(filled)
    return 0
