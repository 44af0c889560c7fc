"""The sources of the compiled part: includes point one way, no number of the protocol is in them, they stay small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import unplugd
from unplugd.core import protocol
from unplugd.core.guestlog import LINE_LIMIT, Limits
from unplugd.core.ioreq import BAR, FRAME_SIZE, PAYLOAD_LIMIT

SOURCES = Path(unplugd.__file__).parents[1] / "fastpath"
LINES = 1300
"""Lines of C at most: it answers constants and appends bytes. All else is done in Python."""

LAYERS = (("loop",), ("connection", "page"), ("poller",), ("table",), ("log",), ("frame",))
"""From the top down: a file includes only headers of layers below its own, and its own header."""

DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}

FILES = sorted(SOURCES.glob("*.[ch]"))


def code(path: Path) -> str:
    """The text without comments and strings."""
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"", " ", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_includes_point_down(path: Path) -> None:
    included = re.findall(r'#include "(\w+)\.h"', path.read_text())
    assert included or path.name in {"frame.h", "log.h"}
    for name in included:
        own = path.suffix == ".c" and name == path.stem
        assert own or DEPTH[name] > DEPTH[path.stem], f"{path.name} includes {name}.h"


def test_every_source_is_built() -> None:
    """What setup.py and MANIFEST.in name is what there is."""
    root = SOURCES.parents[1]
    built = re.search(r"PARTS = \(([^)]*)\)", (root / "setup.py").read_text())
    assert built is not None
    assert set(re.findall(r"\w+", built[1])) == {path.stem for path in FILES if path.suffix == ".c"}
    assert "-D_FORTIFY_SOURCE=3" in (root / "setup.py").read_text()


PROTOCOL = {
    0x10, 0x11, 0x12, 0x13, 0x1F, protocol.MAGIC, protocol.MAGIC_BLACKLISTED, BAR, BAR + 4, BAR + 8, 0x100FF, 0xFFFF,
    0xFFFF_FFFF, LINE_LIMIT, Limits().burst,
}  # fmt: skip
"""Ports, answers, products and limits. Masks and flags are too small to be told from other numbers."""

ELSEWHERE = {
    "frame.h": {0x10},  # a bit of struct ioreq
    "log.h": {0xFFFF, 16},  # bits of the word that are the length, and where they end
    "poller.h": {16},  # KiB of a buffer
    "table.h": {16},  # rows at most
}
"""The same numbers where they mean something else."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_number_of_the_protocol_is_in_c(path: Path) -> None:
    found = re.findall(r"\b(0x[0-9a-fA-F]+|[1-9][0-9]*)[uUlL]*\b", code(path))
    assert {int(number, 0) for number in found} & (PROTOCOL - ELSEWHERE.get(path.name, set())) == set()


def test_the_numbers_that_c_shares_with_python() -> None:
    enums = dict(re.findall(r"\b([A-Z_]+) = (\d+)\b", (SOURCES / "frame.h").read_text()))
    assert (int(enums["FRAME"]), int(enums["PAYLOAD_LIMIT"])) == (FRAME_SIZE, PAYLOAD_LIMIT)


@pytest.mark.parametrize("word", [
    "blacklist", "verdict", "product", "mask", "journal", "limit_rate", "balance", "tokens", "checksum", "crc", "uuid",
    "uid_t", "SO_PEERCRED", "accept",
])  # fmt: skip
def test_what_c_does_not_know(word: str) -> None:
    """No policy, no limiter, no records, no checksums, no access control."""
    assert [path.name for path in FILES if word.lower() in code(path).lower()] == []


def test_c_is_small() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert sum(lines.values()) <= LINES, lines
