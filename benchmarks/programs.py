"""The C programs of the benchmarks: compiled when they are missing or older than their source, and run."""

from __future__ import annotations

import compileall
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SOURCES = Path(__file__).parent
BUILD = SOURCES.parent / ".cache" / "benchmarks"


def build() -> None:
    """Compile what has to be."""
    # unplugd itself too, as an installed one is: where Python may not write what it compiled, each start does it anew
    compileall.compile_dir(SOURCES.parent / "daemon", quiet=1)
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
def echo_server(paths: Sequence[str]) -> Iterator[None]:
    """The C reference, listening on `paths`."""
    with subprocess.Popen([BUILD / "echo", *paths], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit("benchmarks: the echo server did not start")
            yield
        finally:
            process.kill()


def portload(paths: Sequence[str], *options: str) -> list[str]:
    """The client's command."""
    return [str(BUILD / "portload"), *options, *paths]


def measured(paths: Sequence[str], *options: str) -> dict[str, float]:
    """One run of the client, its figures."""
    done = subprocess.run(portload(paths, *options), stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@contextlib.contextmanager
def beside(command: Sequence[str]) -> Iterator[None]:
    """A client that goes on meanwhile."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            time.sleep(0.2)
            yield
            if process.poll() is not None:
                raise OSError("the neighbour ended before the others did")
        finally:
            process.kill()
