"""The documentation as tests see it: pages, headings, links, and blocks of code with what is said about each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code."""

    page: str
    language: str
    note: str
    """The comment on the line before it; "" where there is none."""
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks of a page."""
    found = re.findall(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(page.name, language, note, text) for note, language, text in found]


def prose(page: Path) -> str:
    """A page without its blocks of code and without code in lines."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def links(page: Path) -> list[str]:
    """Where a page's links lead."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as forges make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]

RUNS_HERE = "runs in the checkout"
RUNS_BESIDE = "runs beside a daemon"
CI = "run by .ci/run"
IN_DOM0 = "runs in a dom0"
DOM0 = "needs dom0: "
