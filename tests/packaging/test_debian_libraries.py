"""Debian 12's pyxs is a development version of its own: our client must work on it as on the released one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.packaging.tree import ROOT, run


def test_the_xenstore_client_works_on_debians_pyxs(tmp_path: Path) -> None:
    # apt downloads as its own user where it can
    tmp_path.chmod(0o777)
    subprocess.run(["apt-get", "-q", "download", "python3-pyxs"], cwd=tmp_path, check=True, capture_output=True)
    (package,) = tmp_path.glob("python3-pyxs_*.deb")
    run("dpkg-deb", "-x", package, tmp_path)
    libraries = tmp_path / "usr/lib/python3/dist-packages"
    environment = os.environ | {"PYTHONPATH": str(libraries)}
    found = subprocess.run(
        [sys.executable, "-c", "import pyxs; print(pyxs.__file__)"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert found.startswith(str(libraries))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/unit/test_wire.py", "tests/unit/test_xenstore_connection.py",
         "tests/integration/test_xenstore_client.py"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
