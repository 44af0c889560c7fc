"""sdist and wheel in a clean virtual environment: what `pip install unplugd` gives."""

from __future__ import annotations

import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.lab.daemon import embedded, toml
from tests.packaging.tree import ROOT, run
from unplugd import __version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with sdist and wheel, the wheel made from the sdist."""
    directory = tmp_path_factory.mktemp("dist")
    sources = directory / "sources"
    sources.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".", ":!tests/xen"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout  # fmt: skip
    subprocess.run(
        f"xargs -0 tar -c --ignore-failed-read | tar -x -C {sources}", shell=True, input=files, cwd=ROOT, check=True
    )
    environment(directory / "build", "build")
    run(directory / "build/bin/python", "-m", "build", "--outdir", directory, sources)
    return directory


def package(built: Path, kind: str) -> Path:
    (found,) = built.glob(f"unplugd-{__version__}*.{kind}")
    return found


def environment(directory: Path, *packages: str | Path) -> Path:
    venv.create(directory, with_pip=True)
    run(directory / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)
    return directory


def test_what_is_in_them(built: Path) -> None:
    with zipfile.ZipFile(package(built, "whl")) as wheel:
        names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT / "daemon")) for path in (ROOT / "daemon" / "unplugd").rglob("*.py")}
    assert modules <= names
    assert "unplugd/py.typed" in names
    assert {name for name in names if name.startswith("unplugd/_fastpath.") and name.endswith(".so")}
    assert not {name for name in names if name.startswith(("tests", "benchmarks"))}
    with tarfile.open(package(built, "tar.gz")) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "daemon/unplugd/_fastpath.c"} <= inside


@pytest.mark.parametrize("kind", ["whl", "tar.gz"])
def test_installed_into_a_clean_environment_it_serves(built: Path, tmp_path: Path, kind: str) -> None:
    bin_directory = environment(tmp_path / "venv", package(built, kind)) / "bin"
    for command in ("unplugd", "unplugctl", "unplugd-attach"):
        assert run(bin_directory / command, "--help").stdout.startswith(f"usage: {command}")
    assert run(bin_directory / "python", "-m", "pip", "check").stdout.startswith("No broken")
    config = tmp_path / "unplugd.toml"
    runtime = Path("/tmp") / f"u-{tmp_path.name}"[:60]
    config.write_text(toml(embedded(7) | {"runtime_dir": str(runtime), "http": {"listen": ""},
                                          "log": {"sinks": ["stderr"]}}))  # fmt: skip
    process = subprocess.Popen([bin_directory / "unplugd", "--config", config], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "xenstore connected" in line:
                break
        assert "vm7" in run(bin_directory / "unplugctl", "list", "--config", config).stdout
    finally:
        process.terminate()
        assert process.wait(30) == 0
        if process.stderr is not None:
            process.stderr.close()
        run("rm", "-rf", runtime)


def test_nothing_of_the_checkout_is_needed(built: Path, tmp_path: Path) -> None:
    bin_directory = environment(tmp_path / "venv", package(built, "whl")) / "bin"
    done = run(bin_directory / "python", "-I", "-c", "import unplugd, unplugd.service; print(unplugd.__file__)")
    assert done.stdout.startswith(str(tmp_path))
