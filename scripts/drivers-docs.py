#!/usr/bin/env python3
"""Writes the table of driver families in docs/drivers.md; with --check, only says whether it is what the code says."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "daemon"))

import docspage

from unplugd.core.families import FAMILIES, Family

OBEYS = {True: "yes", False: "**no**", None: "not known"}


def number(family: Family) -> str:
    """How it announces itself."""
    if family.numbering is None:
        return "nothing"
    products = ", ".join(f"{product:#x}" if product > 999 else str(product) for product in family.products)
    return f"product {products}; build: {family.numbering.value}"


def families() -> str:
    """The families, one a row."""
    return docspage.table(
        ("family", "announces", "obeys", "`refuse`", "`withhold`", "source"),
        ((f"{family.name}: {family.title}", number(family), OBEYS[family.obeys], family.refused, family.withheld,
          family.source) for family in FAMILIES),
    )


PARTS = {"families": families()}

if __name__ == "__main__":
    sys.exit(docspage.main("drivers.md", PARTS))
