"""The compiled part (daemon/fastpath) under AddressSanitizer and UBSan: built below .cache, never into the tree.

    environment()          builds the extension, and returns the environment for a process that uses it
    -p tests.fuzz.sanitized    a pytest plugin: the tests of that process use it
    guided()               builds the coverage-guided fuzzer (tests/fuzz/compiled.c, libFuzzer)
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "daemon/fastpath"
BUILT = ROOT / ".cache/sanitize"
LIBRARY = "UNPLUGD_SANITIZED"
"""In the environment: the sanitized extension, in a process that uses it."""
MODULE = "unplugd.sockets._fastpath"

_FLAGS = (
    "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror",
)  # fmt: skip


def missing() -> str:
    """What this machine lacks for the sanitized extension; "" for nothing."""
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    if not Path(_sanitizer()).is_absolute():
        return "gcc has no AddressSanitizer"
    if not (_include() / "Python.h").exists():
        return "Python.h is not installed"
    return ""


def missing_for_guided() -> str:
    """What this machine lacks for the coverage-guided fuzzer; "" for nothing."""
    if shutil.which("clang") is None:
        return "clang is not installed"
    if not _runtime().is_absolute():
        return "clang has no libFuzzer (libclang-rt-dev)"
    if not (_include() / "Python.h").exists():
        return "Python.h is not installed"
    if not _libpython().exists():
        return f"{_libpython()} is not installed"
    return ""


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _sanitizer() -> str:
    return _output("gcc", "-print-file-name=libasan.so")


def _runtime() -> Path:
    """clang's libFuzzer; a path that is not absolute where there is none."""
    directory = Path(_output("clang", "-print-runtime-dir"))
    for name in ("libclang_rt.fuzzer-x86_64.a", "libclang_rt.fuzzer.a", "libclang_rt.fuzzer-aarch64.a"):
        if (directory / name).exists():
            return directory / name
    return Path("libFuzzer")


def _include() -> Path:
    return Path(sysconfig.get_path("include"))


def _libpython() -> Path:
    """libpython as a shared library: what links with it is a process of its own that has a Python in it."""
    library = sysconfig.get_config_var("LDLIBRARY") or "libpython.so"
    directories = (sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL"))
    places = [Path(directory) / library for directory in directories if directory]
    return next((place for place in places if place.exists()), places[0])


def _build(name: str, compiler: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Compile and link, unless the same was made before."""
    every = [*sources, *sorted(SOURCES.glob("*.h"))]
    inputs = [repr((compiler, flags, sys.version)).encode(), *(path.read_bytes() for path in every)]
    made = BUILT / f"{hashlib.sha256(bytes(1).join(inputs)).hexdigest()[:16]}-{name}"
    if not made.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        for old in BUILT.glob(f"*-{name}"):
            old.unlink()
        new = made.with_name(f"{made.name}.{os.getpid()}")
        command = [compiler, *_FLAGS, f"-I{_include()}", f"-I{SOURCES}", *map(str, sources), *flags, "-o", str(new)]
        subprocess.run(command, check=True, timeout=300)
        new.rename(made)
    return made


def environment() -> dict[str, str]:
    """Build the sanitized extension; the environment of a process that uses it."""
    library = _build("fastpath.so", "gcc", sorted(SOURCES.glob("*.c")),
                     ["-fsanitize=address,undefined", "-fPIC", "-shared"])
    return os.environ | {
        "LD_PRELOAD": _sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at the end of a process
        "PYTHONMALLOC": "malloc",  # so that objects of Python are guarded too
        LIBRARY: str(library),
    }


def guided() -> Path:
    """Build the coverage-guided fuzzer."""
    library = _libpython()
    return _build("compiled", "clang", [Path(__file__).with_name("compiled.c"), *sorted(SOURCES.glob("*.c"))], [
        "-fsanitize=fuzzer,address,undefined", str(library), f"-Wl,-rpath,{library.parent}",
    ])


def load() -> None:
    """Have the sanitized extension be unplugd.sockets._fastpath in this process."""
    loader = importlib.machinery.ExtensionFileLoader(MODULE, os.environ[LIBRARY])
    spec = importlib.util.spec_from_file_location(MODULE, os.environ[LIBRARY], loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[MODULE] = module
    vars(importlib.import_module("unplugd.sockets"))["_fastpath"] = module


if LIBRARY in os.environ:
    load()
