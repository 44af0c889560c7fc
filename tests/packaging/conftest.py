"""What several of these tests stand on, made once a run: the package, and the image on a base made here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.engine import Engine
from tests.packaging.tree import BASE, CACHE, ROOT, locked, make_base

DEBIAN = "localhost/debian:bookworm-slim"
IMAGE = "localhost/unplugd"


@pytest.fixture(scope="session")
def package(testrun_uid: str) -> Path:
    """The Debian package of this checkout."""
    stamp = CACHE / "package"
    with locked("package"):
        if not stamp.exists() or stamp.read_text() != testrun_uid:
            subprocess.run([ROOT / "scripts" / "deb.sh"], check=True, stdout=subprocess.DEVNULL, timeout=900)
            stamp.write_text(testrun_uid)
    return max((ROOT / "dist").glob("unplugd_*.deb"), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """podman and buildah; they know a Debian that was made here."""
    for program in ("podman", "buildah", "crun"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    make_base()
    with Engine(CACHE / "engine") as engine:
        engine.build("podman", "import", BASE, DEBIAN)
        yield engine


@pytest.fixture(scope="session")
def image(engine: Engine, package: Path) -> str:
    """The image, as `make image` builds it."""
    assert package.exists()
    engine.build("env", f"BASE={DEBIAN}", ROOT / "scripts" / "image.sh", timeout=900)
    return IMAGE
