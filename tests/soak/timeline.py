"""One SIGKILL, second by second: who waited for what, and how much of it was the machine's doing.

Two stretches follow each other: until systemd has made the next process, and until that one has answered everybody. In
each of them a wait is the machine's where those who had work to do stood in the kernel's queue for a CPU
(/proc/PID/schedstat, its second number): PID 1 in the first, the new process and the guests' thread in the second.
Nothing else is discounted, and never more than the stretch took.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.systemd import Systemd, wait_for
from tests.soak.load import Load


@dataclass(frozen=True, slots=True)
class Kill:
    """What one SIGKILL caused; all in seconds."""

    wait: float
    """The longest that a guest waited for an answer."""
    spawned: float
    """Until the next process was there."""
    first: float
    """Until the first guest was answered."""
    last: float
    """Until the last one was."""
    starved: float
    """Of the wait: that there was no CPU."""
    busy: float
    """CPU time that the new process took until everybody was answered."""

    @property
    def own(self) -> float:
        """The wait that was not the machine's."""
        return self.wait - self.starved

    def __str__(self) -> str:
        return (
            f"{self.wait:.2f} s: process after {self.spawned:.2f}, answers from {self.first:.2f} to {self.last:.2f}, "
            f"{self.busy:.2f} s of CPU, {self.starved:.2f} s without one"
        )


class Victim:
    """The unit's main process, seen from outside the lab: looking costs systemd nothing."""

    def __init__(self, systemd: Systemd, unit: str) -> None:
        self._processes = systemd.cgroup / "system.slice" / unit / "cgroup.procs"
        self._systemd = systemd
        self.pid = wait_for(self._main, "the unit's process")

    def _main(self) -> int:
        """0 where there is none: systemd has helpers in there while it prepares a process."""
        for pid in self._processes.read_text().split() if self._processes.exists() else ():
            with contextlib.suppress(OSError):
                # In parentheses it is systemd's still, which is about to become ours.
                name, parent = re.findall(r"\((.*)\) \S (\d+)", Path(f"/proc/{pid}/stat").read_text())[0]
                if int(parent) == self._systemd.pid and name in {"unplugd", "(unplugd)"}:
                    return int(pid)
        return 0

    def kill(self, load: Load) -> Kill:
        """SIGKILL; returns when everybody was answered by the next process."""
        for guest in load.guests:
            guest.longest = 0.0
        old, manager = self.pid, _Queue(self._systemd.pid)
        begin = time.monotonic()
        os.kill(old, signal.SIGKILL)
        self.pid = wait_for(lambda: self._next(old), "the next process", pause=0.002)
        spawned = time.monotonic()
        manager_starved = min(manager.starved(), spawned - begin)
        guests = _Queue(load.thread)
        wait_for(lambda: all(guest.resumed > begin for guest in load.guests), "answers for everybody", pause=0.005)
        resumed = [guest.resumed for guest in load.guests]
        process = _Queue(self.pid, since_begin=True)
        starved = min(process.starved() + guests.starved(), time.monotonic() - spawned)
        return Kill(
            wait=max(guest.longest for guest in load.guests),
            spawned=spawned - begin, first=min(resumed) - begin, last=max(resumed) - begin,
            starved=manager_starved + starved, busy=process.busy(),
        )  # fmt: skip

    def _next(self, old: int) -> int:
        found = self._main()
        return 0 if found == old else found


class _Queue:
    """How long a thread was ready to run but had no CPU, from now on or since it began."""

    def __init__(self, pid: int, *, since_begin: bool = False) -> None:
        self._path = Path(f"/proc/{pid}/schedstat")
        self._before = 0 if since_begin else self._read(1)

    def _read(self, which: int) -> int:
        return int(self._path.read_text().split()[which])

    def starved(self) -> float:
        """Seconds."""
        return (self._read(1) - self._before) / 1e9

    def busy(self) -> float:
        """Seconds of CPU since it began."""
        return self._read(0) / 1e9


