"""pyproject.toml: its commands exist, and it gives the version that the package does."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import unplugd

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_version() -> None:
    assert PROJECT["version"] == unplugd.__version__


@pytest.mark.parametrize("command", sorted(PROJECT["scripts"]))
def test_commands(command: str) -> None:
    module, function = PROJECT["scripts"][command].split(":")
    # What the installed script does, whether or not the environment was set up since the command came.
    script = f"import sys; from {module} import {function}; sys.argv[0] = {command!r}; sys.exit({function}())"
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {command}")
