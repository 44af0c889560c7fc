"""streams.py: standard streams that are closed when a command starts, or full when it writes."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from unplugd.host import streams
closed = streams.open_closed()
print("printed", flush=True)
print("complained", file=sys.stderr, flush=True)
taken = os.open("/etc/passwd", os.O_RDONLY)
assert taken > 2, taken
assert sys.stdin is not None and sys.stdout is not None and sys.stderr is not None
os._exit(10 + closed)
"""


@pytest.mark.parametrize(
    ("redirections", "status", "out", "err"),
    [
        ("", 10, "printed\n", "complained\n"), (">&-", 11, "", "complained\n"), ("2>&-", 10, "printed\n", ""),
        ("<&-", 10, "printed\n", "complained\n"), ("<&- >&- 2>&-", 11, "", ""),
    ],
)  # fmt: skip
def test_closed_streams_are_the_null_device(redirections: str, status: int, out: str, err: str) -> None:
    done = subprocess.run(["bash", "-c", f'"$1" -c "$2" {redirections}', "sh", sys.executable, PROGRAM],
                          capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def test_output_that_is_full_is_given_up() -> None:
    program = """
import sys
from unplugd.host import streams
try:
    print("x", flush=True)
except OSError:
    streams.give_up_output()
print("y")
"""
    done = subprocess.run(["bash", "-c", '"$1" -c "$2" >/dev/full', "sh", sys.executable, program],
                          capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
