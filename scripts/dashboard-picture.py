#!/usr/bin/env python3
"""dashboard-picture.py [SECONDS] : docs/pictures/dashboard.svg, from config/grafana/unplugd.json and a real Prometheus.

Two hosts of the tests serve guests for SECONDS (120), Prometheus scrapes them, and each panel's query is asked as
Grafana asks it. What is drawn is drawn here, in the dashboard's own layout: Grafana's lines and colours are its own.
"""

from __future__ import annotations

import html
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.lab.fleet import Fleet, running  # noqa: E402 (the checkout is on the path only now)

COLUMN, ROW, GAP = 50, 34, 8
COLOURS = ("#1f6fb4", "#d9731a", "#3a923a", "#b8384a", "#7b5aa6", "#7f5d50", "#c76aa7", "#6f6f6f", "#a3a52a", "#2aa3b5")
STATES = {"green": "#2f8f46", "orange": "#d9731a", "red": "#b8384a"}
VARIABLES = {"$__rate_interval": "15s", "$__range": "2m", "$instance": ".*"}
NAMES = {"a": "dom0-a", "b": "dom0-b"}

Line = tuple[str, list[tuple[float, float]]]


def text(x: float, y: float, words: str, **style: object) -> str:
    """One line of text; style as attributes of SVG."""
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:.0f}" y="{y:.0f}"{attributes}>{html.escape(words)}</text>'


def figure(value: float, unit: str | None) -> str:
    """A value as a panel's unit has it."""
    if unit == "s":
        return f"{value * 1e6:.0f} µs" if value < 1e-3 else f"{value * 1e3:.1f} ms"
    return f"{value:.3g}" + (" /s" if unit == "ops" else "")


class Asked:
    """What Prometheus answers to the panels."""

    def __init__(self, fleet: Fleet, begin: float, end: float) -> None:
        self._prometheus = fleet.prometheus
        self._hosts = {address: NAMES[letter] for letter, address in fleet.hosts.items()}
        self.begin, self.end = begin, end

    def _plain(self, expression: str) -> str:
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        return expression

    def _labels(self, metric: dict[str, str]) -> dict[str, str]:
        return {name: self._hosts.get(value, value) for name, value in metric.items()}

    def now(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of an instant query."""
        return [(self._labels(metric), value) for metric, value in self._prometheus.query(self._plain(expression))]

    def lines(self, target: dict[str, Any]) -> Iterator[Line]:
        """The lines of a query over the time that is drawn, each with its legend."""
        found = self._prometheus.api(
            "query_range", query=self._plain(target["expr"]), start=str(self.begin), end=str(self.end), step="1"
        )
        for series in found["result"]:
            name = target["legendFormat"]
            for label, value in self._labels(series["metric"]).items():
                name = name.replace("{{" + label + "}}", value)
            yield name, [(float(at), float(value)) for at, value in series["values"] if not math.isnan(float(value))]


def stat(panel: dict[str, Any], asked: Asked, width: float, height: float) -> Iterator[str]:
    """One number, in the colour of its threshold."""
    ((_, value),) = asked.now(panel["targets"][0]["expr"])
    colour = "#333"
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", ()):
        if step["value"] is None or value >= step["value"]:
            colour = STATES[step["color"]]
    yield text(width / 2, height / 2 + 22, f"{value:.0f}", font_size=38, text_anchor="middle", fill=colour)


def table(panel: dict[str, Any], asked: Asked, width: float, height: float) -> Iterator[str]:
    """The rows of an instant query, with the columns that the transformation leaves."""
    options = next(each["options"] for each in panel["transformations"] if each["id"] == "organize")
    hidden = {name for name, hides in options["excludeByName"].items() if hides}
    rows = [labels | {"Value": f"{value:g}"} for labels, value in asked.now(panel["targets"][0]["expr"])]
    shown = {name for row in rows for name in row} - hidden
    names = sorted(shown, key=lambda name: options["indexByName"].get(name, 99))
    wide = {"uuid": 4.6}
    space = (width - 24) / max(1.0, sum(wide.get(name, 1.0) for name in names))
    x = 12.0
    for name in names:
        yield text(x, 50, options["renameByName"].get(name, name), font_weight="bold", fill="#1f6fb4")
        for number, row in enumerate(sorted(rows, key=lambda row: [row.get(each, "") for each in names])):
            yield text(x, 76 + 24 * number, row.get(name, ""))
        x += space * wide.get(name, 1.0)


def timeseries(panel: dict[str, Any], asked: Asked, width: float, height: float) -> Iterator[str]:
    """The lines over the time, an axis and the legend."""
    lines = sorted(line for target in panel["targets"] for line in asked.lines(target))
    unit = panel["fieldConfig"]["defaults"].get("unit")
    top = max((value for _, points in lines for _, value in points), default=0) * 1.15 or 1.0
    left, right, high, low = 64.0, width - 12, 40.0, height - 46
    for part in range(5):
        y = low - (low - high) * part / 4
        yield f'<line x1="{left}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
        yield text(left - 6, y + 4, figure(top * part / 4, unit), text_anchor="end", font_size=11, fill="#666")
    x = left
    for number, (name, points) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(
            f"{left + (right - left) * (at - asked.begin) / (asked.end - asked.begin):.1f},"
            f"{low - (low - high) * value / top:.1f}"
            for at, value in points
        )
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        if x < right - 7 * len(name):
            yield f'<rect x="{x:.0f}" y="{height - 26:.0f}" width="12" height="4" fill="{colour}"/>'
            yield text(x + 16, height - 20, name, font_size=11)
            x += 30 + 6.3 * len(name)


KINDS = {"stat": stat, "table": table, "timeseries": timeseries}


def draw(dashboard: dict[str, Any], asked: Asked) -> str:
    """All panels in their places."""
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {bottom * ROW}" font-size="13">',
        "<style>text { font-family: sans-serif }</style>",
        "<title>The panels of config/grafana/unplugd.json with what Prometheus answers, drawn without Grafana</title>",
        '<rect width="100%" height="100%" fill="#f4f5f5"/>',
    ]
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place["x"] * COLUMN + GAP / 2, place["y"] * ROW + GAP / 2
        width, height = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
        parts.append(f'<g transform="translate({x:.0f},{y:.0f})">')
        if panel["type"] == "row":
            parts.append(text(4, 20, panel["title"], font_size=16, fill="#333"))
        else:
            parts.append(f'<rect width="{width}" height="{height}" fill="white" stroke="#dcdcdc"/>')
            parts.append(text(10, 20, panel["title"], font_weight="bold", fill="#333"))
            parts += KINDS[panel["type"]](panel, asked, width, height)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def live(fleet: Fleet, seconds: float) -> None:
    """Guests that start again, say something or ask for their magic number, by chance (always the same)."""
    chance = random.Random(8)
    end = time.monotonic() + seconds
    guests = [("a", 8, 3, 1), ("b", 7, 3, 1), ("b", 8, 2, 0x90002)]
    wires = [(fleet.daemons[host].connect(domid), product, build) for host, domid, product, build in guests]
    while time.monotonic() < end:
        for wire, product, build in wires:
            for _ in range(chance.randrange(4)):
                wire.log(b"the paravirtual network is connected\n")
            if chance.random() < 0.15:
                wire.reset()
                wire.read(0x10, 2)
                wire.read(0x12, 1)
                wire.announce(product, build)
                wire.write(0x10, 2, 3)
        time.sleep(0.5)
    for wire, *_ in wires:
        wire.close()


def main(arguments: Sequence[str]) -> int:
    """Draw the picture."""
    seconds = float(arguments[0]) if arguments else 120.0
    dashboard = json.loads((ROOT / "config" / "grafana" / "unplugd.json").read_text())
    with tempfile.TemporaryDirectory() as directory, running(Path(directory)) as fleet:
        begin = time.time()
        live(fleet, seconds)
        picture = draw(dashboard, Asked(fleet, begin, time.time()))
    (ROOT / "docs" / "pictures" / "dashboard.svg").write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
