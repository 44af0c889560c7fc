"""unplugd as a package installs it: for the distribution's Python, without what the tests need.

The checkout's .venv may be of a Python that was built otherwise, and loads hooks of the tests' tools at every start.
How long guests wait for a restart is measured with what a dom0 has.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.integration.test_units import PROGRAMS, ROOT

SYSTEM = Path("/usr/bin/python3")
_SUITS = "import sys, venv; sys.exit(sys.version_info < (3, 11))"
_PLACE = ROOT / ".cache/installed"


def programs() -> tuple[Path, str]:
    """The directory of the commands and whose Python runs them: the checkout's where the system has none that suits."""
    if not SYSTEM.exists() or subprocess.run([SYSTEM, "-c", _SUITS], check=False).returncode:
        return PROGRAMS, "the checkout's"
    subprocess.run([SYSTEM, "-m", "venv", "--clear", "--without-pip", _PLACE], check=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # what an earlier build left there would be installed, too
    python = str(_PLACE / "bin/python")
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python, "install",
               "--retries", "5"]  # fmt: skip
    done = subprocess.run([*install, str(ROOT)], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"unplugd could not be installed for {SYSTEM}:\n{done.stderr}")
    version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return _PLACE / "bin", f"the system's {version}"
