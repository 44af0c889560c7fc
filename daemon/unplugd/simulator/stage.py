"""The output of the demo: headlines, rows, tables, and claims that are true or false. Nothing of unplugd belongs here.
"""

from __future__ import annotations

from collections.abc import Sequence


class ClaimFailed(Exception):
    """A claim is false."""


class Stage:
    """Writes to standard output, with colour if wanted, and counts the true claims."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self.claims = 0

    def headline(self, text: str) -> None:
        """The headline of the next part."""
        print(f"\n{self._paint('1', text)}", flush=True)

    def row(self, text: str = "") -> None:
        """One line of output."""
        print(f"  {text}".rstrip())

    def table(self, rows: Sequence[Sequence[object]]) -> None:
        """Rows of equal length as a table; the first row has the column names."""
        texts = [[_cell(value) for value in row] for row in rows]
        widths = [max(len(cell) for cell in column) for column in zip(*texts, strict=True)]
        for row in texts:
            self.row("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))

    def claim(self, holds: bool, text: str, found: object = None) -> None:
        """Print a claim. Raises ClaimFailed if it is false, with the value that was found."""
        if not holds:
            print(f"  {self._paint('31', 'FAILED')} {text}", flush=True)
            raise ClaimFailed(text if found is None else f"{text}; found: {found}")
        self.claims += 1
        print(f"  {self._paint('32', 'ok')} {text}", flush=True)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


def _cell(value: object) -> str:
    match value:
        case None | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(str(item) for item in value)
        case _:
            return str(value)
