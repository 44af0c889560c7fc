"""sdist and wheel in clean virtual environments: what `pip install unplugd` gives, with and without a compiler."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.daemon import Wire, embedded, eventually, toml
from tests.packaging.tree import ROOT, run
from unplugd import __version__

NO_COMPILER = ("CC=/bin/false",)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are that build and judge what PyPI gets."""
    directory = tmp_path_factory.mktemp("tools")
    return environment(directory, "build", "setuptools", "wheel", "twine", "auditwheel")


@pytest.fixture(scope="module")
def built(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    # what pyproject.toml asks for is tried where the sdist is installed
    run(tools / "python", "-m", "build", "--no-isolation", "--outdir", directory, sources)
    return directory


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel."""
    return environment(tmp_path_factory.mktemp("wheel"), package(built, "whl"))


def package(built: Path, kind: str) -> Path:
    (found,) = built.glob(f"unplugd-{__version__}*.{kind}")
    return found


def environment(directory: Path, *packages: str | Path) -> Path:
    """A new virtual environment with these packages; where its programs are."""
    venv.create(directory, with_pip=False)
    run(*pip(directory / "bin"), "install", "-q", *packages, timeout=600)
    return directory / "bin"


def pip(programs: Path) -> list[str | Path]:
    """The command line of pip for an environment; its own pip would take longer to make than all else."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python"]


def test_what_is_in_them(built: Path) -> None:
    with zipfile.ZipFile(package(built, "whl")) as wheel:
        names = set(wheel.namelist())
    modules = {str(path.relative_to(built / "sources/daemon")) for path in (built / "sources/daemon").rglob("*.py")}
    assert modules <= names
    assert "unplugd/py.typed" in names
    assert {name for name in names if name.startswith("unplugd/sockets/_fastpath.") and name.endswith(".so")}
    about = f"unplugd-{__version__}.dist-info/"
    others = {name for name in names - modules if not name.startswith(about)}
    assert {Path(name).suffix for name in others} == {".typed", ".pyi", ".so"}
    assert all(name.startswith("unplugd/") for name in others)
    with tarfile.open(package(built, "tar.gz")) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= inside
    sources = {str(path.relative_to(built / "sources")) for path in (built / "sources/daemon/fastpath").iterdir()}
    assert sources
    assert sources <= inside


def test_pypi_would_take_them(tools: Path, built: Path) -> None:
    """Metadata and README; and which Linuxes the compiled part runs on."""
    wheel, sdist = package(built, "whl"), package(built, "tar.gz")
    said = run(tools / "twine", "check", "--strict", wheel, sdist).stdout
    assert said.count("PASSED") == 2
    shown = run(tools / "auditwheel", "show", wheel).stdout
    # any distribution as old as Debian 12 (glibc 2.36) or older
    found = re.search(r'"manylinux_2_(\d+)_\w+"', shown)
    assert found, shown
    assert int(found[1]) <= 36


@contextmanager
def serving(programs: Path) -> Iterator[tuple[Path, Path]]:
    """Its unplugd, with guest 7: the runtime directory and the configuration."""
    # a unix socket's path is short
    with tempfile.TemporaryDirectory(prefix="u-") as name:
        directory = Path(name)
        config, errors = directory / "unplugd.toml", directory / "stderr"
        settings = {"runtime_dir": str(directory / "run"), "http": {"listen": ""}, "log": {"sinks": ["stderr"]}}
        config.write_text(toml(embedded(7) | settings))
        with errors.open("wb") as stderr:
            process = subprocess.Popen([programs / "unplugd", "--config", config], stderr=stderr)
        try:
            eventually(lambda: run(programs / "unplugctl", "list", "--config", config, check=False).returncode == 0)
            yield directory / "run", config
        finally:
            process.terminate()
            status = process.wait(60)
        assert status == 0, errors.read_text()


def is_compiled(programs: Path) -> bool:
    """Whether the environment has the compiled part."""
    script = "import importlib.util as u; print(u.find_spec('unplugd.sockets._fastpath') is not None)"
    return run(programs / "python", "-I", "-c", script).stdout == "True\n"


def works(programs: Path) -> None:
    for command in ("unplugd", "unplugctl", "unplugd-attach"):
        assert run(programs / command, "--help").stdout.startswith(f"usage: {command}")
    assert run(*pip(programs), "check").stdout.startswith("No broken")
    with serving(programs) as (runtime, config):
        with Wire(runtime / "dom7.sock") as guest:
            assert guest.announce(3, 1) == 0x49D2
            assert guest.write(0x10, 2, 3) == 3
        assert "vm7" in run(programs / "unplugctl", "list", "--config", config).stdout


def test_the_wheel_serves_with_its_compiled_part(installed: Path) -> None:
    assert is_compiled(installed)
    works(installed)


def test_the_sdist_installs_and_serves_without_a_compiler(built: Path, tmp_path: Path) -> None:
    """systemd-python is there already, as a distribution's package is."""
    programs = environment(tmp_path / "venv", "systemd-python")
    run("env", *NO_COMPILER, *pip(programs), "install", "-q", package(built, "tar.gz"), timeout=600)
    assert not is_compiled(programs)
    works(programs)


def test_nothing_of_the_checkout_is_needed(installed: Path) -> None:
    done = run(installed / "python", "-I", "-c", "import unplugd, unplugd.service; print(unplugd.__file__)")
    assert done.stdout.startswith(str(installed.parent))


def test_no_module_needs_what_the_wheel_does_not_ask_for(installed: Path) -> None:
    """All of it can be imported with the dependencies that pip installed."""
    script = (
        "import importlib, pkgutil, unplugd\n"
        "for found in pkgutil.walk_packages(unplugd.__path__, 'unplugd.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
    )
    run(installed / "python", "-I", "-W", "error", "-c", script)
