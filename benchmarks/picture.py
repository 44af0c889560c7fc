"""A bar chart as SVG, for the documentation: plain text, no library."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

_LEFT, _WIDTH, _ROW = 460, 420, 30


@dataclass(frozen=True, slots=True)
class Bar:
    """One ratio."""

    name: str
    value: float
    spread: tuple[float, float]
    """Its quartiles, as a thin line."""
    goal: float | None
    """A mark; None for none."""


def draw(title: str, bars: Sequence[Bar]) -> str:
    """The bars below each other, 0 to 1 (or what is more), on white: readable on dark pages too."""
    scale = _WIDTH / max(1.0, *(max(bar.value, bar.spread[1]) for bar in bars))
    height = 50 + _ROW * len(bars)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 70}" height="{height}">',
        f"<title>{html.escape(title)}</title>",
        "<style>text { font: 13px sans-serif } .goal { stroke: #c31; stroke-width: 2 }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-weight="bold">{html.escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        y = 35 + _ROW * number
        end = _LEFT + bar.value * scale
        low, high = (_LEFT + value * scale for value in bar.spread)
        lines += [
            f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{html.escape(bar.name)}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="20" fill="#4477aa"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="black"/>',
        ]
        last = max(end, high)
        if bar.goal is not None:
            x = _LEFT + bar.goal * scale
            last = max(last, x)
            lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + 23}" class="goal"/>')
        lines.append(f'<text x="{last + 6:.1f}" y="{y + 15}">{bar.value:.2f}</text>')
    lines.append(f'<text x="{_LEFT}" y="{height - 3}" fill="#c31">red: the goal</text>')
    return "\n".join([*lines, "</svg>", ""])
