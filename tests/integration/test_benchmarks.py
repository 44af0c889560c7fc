"""`make bench` runs: its C programs build, its table and its figures come out. What the figures are is not asserted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: apt-get install gcc libc6-dev")
def test_one_round(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--rounds", "1", "--scale", "0.01", "--access-only",
         "--json", str(figures), "--picture", str(tmp_path / "picture.svg")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| one access at a time" in done.stdout
    assert "one access at a time" in (tmp_path / "picture.svg").read_text()
    found = json.loads(figures.read_text())
    assert len(found["figures"]) == (4 if found["compiled"] else 2)
    assert all(one["median"] > 0 and len(one["values"]) == 1 for one in found["figures"])


def test_bytecodes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bytecodes"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line[:52].strip(): line[52:].split() for line in done.stdout.splitlines()[1:]}
    assert all(float(pure) > 100 for pure, _ in counts.values())
    assert "magic number" in counts
