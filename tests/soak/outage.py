"""journald is stopped for a minute while guests talk, and unplugd is killed in the middle of it: no line is missing."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.lab.bystander import Bystander
from tests.lab.daemon import Daemon, embedded
from tests.lab.journald import Journald, wait_until

GUESTS = 10
PAUSE = 0.5
"""Seconds between two lines of a guest: 64 bytes each, which is half of what the limit lets pass for ever."""


def run(seconds: float = 60.0) -> tuple[dict[str, str], list[str]]:
    """Stop journald for so long; figures and what does not hold."""
    # A unix socket's path is at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="u-") as directory, Journald(Path(directory)) as journald:
        config = embedded(*range(1, GUESTS + 2), log={"sinks": ["journal"]})
        daemon = Daemon(config, command=journald.command)
        with contextlib.closing(daemon):
            daemon.start()
            journald.suspend()
            said, longest = _half(daemon, 0, seconds / 2)
            daemon.kill()
            daemon.start()
            said, again = _half(daemon, said, seconds / 2)
            journald.resume()
            expected = {(str(domid), f"line {number}") for domid in range(1, GUESTS + 1) for number in range(said)}
            found: Counter[tuple[str, str]] = Counter()

            def all_there() -> bool:
                found.clear()
                for entry in journald.entries("SYSLOG_IDENTIFIER=unplugd-guest"):
                    found[entry["XEN_DOMID"], entry["MESSAGE"].split(" x", 1)[0]] += 1
                return expected <= found.keys()

            with contextlib.suppress(Exception):
                wait_until(all_there, "all lines")
            missing = expected - found.keys()
    problems = [f"journald stopped: missing: {sorted(missing)[:5]}, {len(missing)} in all"] if missing else []
    if max(longest, again) > 1:
        problems.append(f"journald stopped: a guest waited {max(longest, again):.2f} s")
    return {
        "journald stopped, seconds": f"{seconds:.0f}",
        "lines said meanwhile": str(len(expected)),
        "recorded afterwards": str(len(expected) - len(missing)),
        "recorded twice": str(sum(count > 1 for count in found.values())),
        "another guest's longest wait": f"{max(longest, again):.3f} s",
    }, problems


def _half(daemon: Daemon, number: int, seconds: float) -> tuple[int, float]:
    """Let all guests talk for so long; the next line's number, and the longest that another guest waited."""
    end = time.monotonic() + seconds
    with Bystander(daemon, GUESTS + 1) as other, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(daemon.connect(domid)) for domid in range(1, GUESTS + 1)]
        while time.monotonic() < end:
            for wire in wires:
                wire.log(b"line %d x%s\n" % (number, b"x" * 40))
            number += 1
            time.sleep(PAUSE)
    return number, other.longest
