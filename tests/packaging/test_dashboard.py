"""The dashboard against the schema that Grafana itself publishes, of the version that compose.yaml names.

The schema is TypeScript: each panel is written out as a constant of its kind's type, and the compiler judges. An
unknown key, a missing one or a value of another kind is an error.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.tree import CACHE, ROOT, locked, run

DASHBOARD: dict[str, Any] = json.loads((ROOT / "config" / "grafana" / "unplugd.json").read_text())
NODE = CACHE / "node"
TYPESCRIPT = "5.4.5"

TYPES = """
import type * as grafana from "@grafana/schema";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries
  from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type { PrometheusDataQuery }
  from "@grafana/schema/dist/esm/raw/composable/prometheus/dataquery/x/PrometheusDataQuery_types.gen";

// JSON has the value of an enumeration where the schema has its name.
type Json<T> = T extends string ? `${T}` : T extends number ? number : T extends boolean ? boolean
  : T extends Array<infer U> ? Json<U>[] : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
type Of<Options, Custom> = Json<Omit<grafana.Panel, "options" | "targets" | "fieldConfig"> & {
  options: Options;
  targets: PrometheusDataQuery[];
  fieldConfig: Omit<grafana.FieldConfigSource, "defaults">
    & { defaults: Omit<grafana.FieldConfig, "custom"> & { custom?: Custom } };
}>;
"""
KINDS = {
    "row": "Json<grafana.RowPanel>",
    "stat": "Of<stat.Options, {}>",
    "table": "Of<table.Options, grafana.TableFieldOptions>",
    "timeseries": "Of<timeseries.Options, timeseries.FieldConfig>",
}


@pytest.fixture(scope="module")
def compiler() -> Path:
    """TypeScript's, beside the schema."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    found = re.search(r"image: grafana/grafana:(\S+)", (ROOT / "compose.yaml").read_text())
    assert found
    with locked("node"):
        stamp = NODE / "installed"
        wanted = f"@grafana/schema@{found[1]} typescript@{TYPESCRIPT}"
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(NODE, ignore_errors=True)
            NODE.mkdir(parents=True)
            (NODE / "package.json").write_text("{}")
            run("npm", "install", "--prefix", NODE, "--no-audit", "--no-fund", "--ignore-scripts", *wanted.split())
            stamp.write_text(wanted)
    return NODE / "node_modules" / ".bin" / "tsc"


def errors(compiler: Path, name: str, dashboard: dict[str, Any]) -> str:
    """What the compiler says of a dashboard."""
    rest = {key: value for key, value in dashboard.items() if key != "panels"}
    lines = [
        TYPES,
        *(f"export const panel{panel['id']}: {KINDS[panel['type']]} = {json.dumps(panel)};"
          for panel in dashboard["panels"]),
        f'export const dashboard: Json<Omit<grafana.Dashboard, "panels">> = {json.dumps(rest)};',
    ]  # fmt: skip
    source = NODE / f"{name}.ts"
    source.write_text("\n".join(lines))
    done = subprocess.run(
        [compiler, "--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "node", "--module", "esnext",
         "--target", "es2022", source],
        capture_output=True, text=True, timeout=300, check=False, cwd=NODE,
    )  # fmt: skip
    assert bool(done.returncode) == bool(done.stdout)
    return done.stdout


def test_it_is_what_grafanas_schema_asks_for(compiler: Path) -> None:
    assert errors(compiler, "dashboard", DASHBOARD) == ""


def test_the_schema_finds_what_is_wrong(compiler: Path) -> None:
    """Else the test before proves nothing."""
    broken = json.loads(json.dumps(DASHBOARD))
    by_kind = {panel["type"]: panel for panel in broken["panels"]}
    by_kind["stat"]["options"]["colorMode"] = "colourful"
    by_kind["timeseries"]["fieldConfig"]["defaults"]["custom"]["drawStyle"] = "scribble"
    del by_kind["table"]["options"]["showHeader"]
    by_kind["row"]["collapsed"] = "no"
    broken["refreshes"] = "30s"
    said = errors(compiler, "broken", broken)
    # a constant is a line
    assert len(set(re.findall(r"broken\.ts\((\d+),", said))) == 5, said
