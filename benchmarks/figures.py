"""What a benchmark found: a figure with its rounds, its goal and how noisy the machine was, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NOISY = 0.15
"""What is compared with may differ this much between rounds (quartiles, relative to the median)."""

Line = tuple[str, ...]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table."""

    name: str
    values: tuple[float, ...]
    """One of each round."""
    goal: float
    unit: str = ""
    """"" for a ratio."""
    least: bool = False
    """The goal is the least that is aimed at, not the most."""
    reference: tuple[float, ...] = ()
    """What a ratio compares with, in each round: how steady the machine was."""
    absolute: str = ""
    """What lies behind a ratio, for people."""

    @property
    def median(self) -> float:
        """What is reported."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the rounds."""
        return quartiles(self.values)

    @property
    def reached(self) -> bool:
        """Whether the median is within the goal."""
        return self.median >= self.goal if self.least else self.median <= self.goal

    @property
    def noise(self) -> float:
        """How much the reference differs from itself: the distance of its quartiles over its median."""
        if not self.reference:
            return 0.0
        low, high = quartiles(self.reference)
        return (high - low) / statistics.median(self.reference)

    @property
    def noisy(self) -> bool:
        """Whether the machine was too busy to say."""
        return self.noise > NOISY


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.2f}" if 0.095 <= abs(value) < 10 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def table(figures: Iterable[Figure]) -> str:
    """The figures for people, and for docs/performance.md."""
    lines: list[Line] = [("figure", "median", "quartiles", "goal", "", "behind it")]
    for one in figures:
        low, high = one.spread
        verdict = "reached" if one.reached else "not reached"
        lines.append((
            one.name, f"{number(one.median)} {one.unit}".strip(), f"{number(low)}-{number(high)}",
            f"{'>=' if one.least else '<='} {one.goal:g} {one.unit}".strip(),
            f"{verdict}?" if one.noisy else verdict, one.absolute,
        ))  # fmt: skip
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def warnings(figures: Iterable[Figure]) -> list[str]:
    """What cannot be said of this run."""
    return [
        f"WARNING: {one.name}: what it compares with differed by {one.noise:.0%} between rounds. This machine was too"
        " busy to say; run it again when it is quiet."
        for one in figures
        if one.noisy
    ]
