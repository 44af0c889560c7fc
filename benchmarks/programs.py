"""The C programs of the benchmarks: compiled when they are missing or older than their source, and started."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent
BUILD = SOURCES.parent / ".cache" / "benchmarks"


def build() -> None:
    """Compile what has to be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("benchmarks: a C compiler is needed: apt-get install gcc libc6-dev")
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("echo", "journalload", "portload"):
        source, program = SOURCES / f"{name}.c", BUILD / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(
                [compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", program, source], check=True
            )


@contextlib.contextmanager
def echo_server(*paths: Path) -> Iterator[None]:
    """The C reference, listening on `paths`."""
    with subprocess.Popen([BUILD / "echo", *paths], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit("benchmarks: the echo server did not start")
            yield
        finally:
            process.kill()
