"""config/prometheus and config/grafana: the real promtool reads rules and queries; alerts have their runbook."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.prometheus import binary
from unplugd.http.metrics import CATALOGUE, Type

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "config" / "prometheus"
RULES = (PROMETHEUS / "unplugd.rules.yml").read_text()
DASHBOARD: dict[str, Any] = json.loads((ROOT / "config" / "grafana" / "unplugd.json").read_text())
FLEET = (ROOT / "docs" / "fleet.md").read_text()


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        [binary("promtool"), *arguments], capture_output=True, text=True, check=False, cwd=PROMETHEUS, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> Iterator[str]:
    """All PromQL that people are given."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    yield from re.findall(r"^\| .* \| `(.*)` \|$", FLEET, re.MULTILINE)
    page = (ROOT / "docs" / "metrics.md").read_text()
    yield from re.findall(r"^\| `(.*)` \| [^|]* \|$", page.partition("## What to alert on")[2], re.MULTILINE)


def names() -> set[str]:
    """Every series that there is: of the exporter, and of the recording rules."""
    known = {"up"} | set(re.findall(r"- record: (\S+)", RULES))
    for metric in CATALOGUE:
        suffixes = ("_bucket", "_sum", "_count") if metric.type is Type.HISTOGRAM else ("",)
        known |= {metric.name + suffix for suffix in suffixes}
    return known


def test_the_rules_are_right_and_do_what_they_say() -> None:
    promtool("check", "rules", "unplugd.rules.yml")
    promtool("check", "config", "unplugd.yml")
    promtool("test", "rules", "unplugd.rules.test.yml")


def test_every_query_that_people_are_given_is_promql(tmp_path: Path) -> None:
    found = list(queries())
    assert len(found) > 25
    groups = "groups:\n- name: queries\n  rules:\n"
    for number, query in enumerate(found):
        plain = query.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$instance", ".*")
        groups += f"  - record: query:{number}\n    expr: {json.dumps(plain)}\n"
    file = tmp_path / "queries.yml"
    file.write_text(groups)
    assert f"{len(found)} rules found" in promtool("check", "rules", file)


def test_only_series_that_exist_are_asked_for() -> None:
    known = names()
    for text in (RULES, *queries()):
        for name in re.findall(r"\bunplugd[_:][a-z0-9_:]+", re.sub(r"(?m)^\s*- (record|name): .*$", "", text)):
            assert name in known, name


def test_every_alert_is_tested_and_has_its_runbook() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES)
    assert len(alerts) == len(set(alerts)) > 8
    runbook = (ROOT / "docs" / "operations.md").read_text()
    tests = (PROMETHEUS / "unplugd.rules.test.yml").read_text()
    for alert in alerts:
        assert re.search(rf"^### {alert}\n.{{60,}}", runbook, re.MULTILINE), alert
        assert f'runbook: "docs/operations.md#{alert.lower()}"' in RULES
        assert re.search(rf"alertname: {alert}\n\s+eval_time: \d+m\n\s+exp_alerts:\n\s+- ", tests), alert
    assert set(re.findall(r"^### (\w+)$", runbook, re.MULTILINE)) == set(alerts)


def test_the_dashboard_has_the_form_that_grafana_wants() -> None:
    """What Grafana's schema asks of a dashboard and its panels, as far as this one uses it."""
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time", "version"} <= set(DASHBOARD)
    assert DASHBOARD["id"] is None
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", DASHBOARD["uid"])
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in {"row", "stat", "table", "timeseries"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["expr"] for target in panel["targets"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\}?", json.dumps(panels))) - {"__range", "__rate_interval"}
    assert used <= variables
