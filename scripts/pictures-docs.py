#!/usr/bin/env python3
"""Draws docs/pictures/*.svg from the terminal recordings beside them. With --check, says whether they are so.

With --record it makes the recordings anew, from the real programs: the demo, and unplugctl asking a daemon whose guests
are the demo's.
"""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from terminal import COLUMNS, ROWS, draw, read

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "daemon"))

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"


def record(name: str, title: str, command: Sequence[str], *, shows: str) -> None:
    """Run a command at a terminal of its own, and write its recording. `shows` is what a person would have typed."""
    begin = time.monotonic()
    events: list[tuple[float, str, str]] = [(0.0, "o", f"\x1b[32m$\x1b[0m \x1b[1m{shows}\x1b[0m\n")]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "TMPDIR": "/tmp"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    while True:
        select.select([ours], [], [])
        try:
            piece = os.read(ours, 65536)
        except OSError:     # the other end is closed
            break
        if not piece:
            break
        events.append((round(time.monotonic() - begin, 3), "o", piece.decode().replace("\r\n", "\n")))
    os.close(ours)
    if process.wait() != 0:
        raise SystemExit(f"{shows}: exit status {process.returncode}")
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": title}
    lines = [json.dumps(header), *(json.dumps(event) for event in events)]
    (PICTURES / f"{name}.cast").write_text("\n".join(lines) + "\n")


def record_all() -> None:
    """All recordings anew."""
    from unplugd.simulator.demo import Demo
    from unplugd.simulator.stage import Stage

    PICTURES.mkdir(exist_ok=True)
    record("demo", "unplugd: make demo", [sys.executable, "-m", "unplugd.demo"], shows="make demo")

    class Staying(Demo):
        def _refusals(self) -> None:
            """The guests are shown as they are before that."""

        def _stay(self) -> None:
            ctl = [sys.executable, "-m", "unplugd.ctl", "--socket", str(self.run / "control.sock")]
            record("list", "unplugctl list", [*ctl, "list"], shows="unplugctl list")
            record("show", "unplugctl show", [*ctl, "show", "old-win"], shows="unplugctl show old-win")

    with tempfile.TemporaryDirectory(prefix="unplugd-", dir="/tmp") as directory:
        Staying(Path(directory), Stage(colour=False)).perform(stay=True)


# --- the command


def pictures() -> dict[str, str]:
    """File name to picture; the demo's moves."""
    casts = sorted(PICTURES.glob("*.cast"))
    return {f"{path.stem}.svg": draw(read(path), moving=path.stem == "demo") for path in casts}


def main() -> int:
    """Returns the exit status."""
    if sys.argv[1:] == ["--record"]:
        record_all()
    made = pictures()
    if sys.argv[1:] == ["--check"]:
        stale = [name for name, picture in made.items()
                 if not (PICTURES / name).exists() or (PICTURES / name).read_text() != picture]
        for name in stale:
            print(f"docs/pictures/{name} is not its recording: run scripts/pictures-docs.py", file=sys.stderr)
        return bool(stale)
    for name, picture in made.items():
        (PICTURES / name).write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
