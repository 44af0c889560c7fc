"""One SIGKILL or restart, second by second: who waited for what, and how much of it was the machine's doing.

A wait is the machine's while one of those whose work the guests wait for stands in the kernel's queue for a CPU
(/proc/PID/schedstat, its second number): PID 1 and the old process until there is a new one, then that and xenstored,
and the guests' threads, of this process, from the first answer on. Time in which several of them stand there counts
once, and nothing else is discounted.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.systemd import Systemd, wait_for
from tests.soak.load import Load, first_in_line


@dataclass(frozen=True, slots=True)
class Gap:
    """What one SIGKILL or restart caused; all in seconds."""

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

    def __init__(self, systemd: Systemd, unit: str, xenstored: int) -> None:
        """`xenstored` is its process id."""
        first_in_line()  # a look every few milliseconds tells who waited when
        self._xenstored = xenstored
        self._unit = unit
        self._processes = systemd.cgroup / "system.slice" / unit / "cgroup.procs"
        self._systemd = systemd
        self.pid = wait_for(self._main, "the unit's process")

    def _main(self) -> int:
        """0 where there is none: systemd has helpers in there while it prepares a process."""
        pids: list[str] = []
        with contextlib.suppress(OSError):  # systemd removes the group and makes it again
            pids = self._processes.read_text().split()
        for pid in pids:
            with contextlib.suppress(OSError):
                # In parentheses it is systemd's still, which is about to become ours.
                name, parent = re.findall(r"\((.*)\) \S (\d+)", Path(f"/proc/{pid}/stat").read_text())[0]
                if int(parent) == self._systemd.pid and name in {"unplugd", "(unplugd)"}:
                    return int(pid)
        return 0

    def kill(self, load: Load) -> Gap:
        """SIGKILL; returns when everybody was answered by the next process."""
        return self._gap(load, lambda: os.kill(self.pid, signal.SIGKILL))

    def restart(self, load: Load) -> Gap:
        """An ordered restart; returns when everybody was answered by the next process."""
        return self._gap(load, lambda: self._systemd.systemctl("--no-block", "restart", self._unit))

    def _gap(self, load: Load, end: Callable[[], object]) -> Gap:
        for guest in load.guests:
            guest.longest = 0.0
        old = self.pid
        begin = time.monotonic()
        end()
        starved = _Starved([self._systemd.pid, old])

        def next_process() -> int:
            starved.look()
            found = self._main()
            return 0 if found == old else found

        def somebody_answered() -> bool:
            starved.look()
            return any(guest.resumed > begin for guest in load.guests)

        def all_answered() -> bool:
            starved.look()
            return all(guest.settled >= guest.resumed > begin for guest in load.guests)

        self.pid = wait_for(next_process, "the next process", pause=0.002)
        spawned = time.monotonic()
        starved.follow([self._xenstored])
        starved.follow([self.pid], since_begin=True)
        wait_for(somebody_answered, "an answer", pause=0.005)
        starved.follow([load.thread, threading.get_native_id()])  # both need the interpreter's lock
        wait_for(all_answered, "answers for everybody", pause=0.005)
        resumed = [guest.resumed for guest in load.guests]
        busy = int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9
        return Gap(
            wait=max(guest.longest for guest in load.guests),
            spawned=spawned - begin, first=min(resumed) - begin, last=max(resumed) - begin,
            starved=starved.between(begin, time.monotonic()), busy=busy,
        )  # fmt: skip


class _Starved:
    """When threads were ready to run but had no CPU."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._waited: dict[int, float] = {}
        self._spans: list[tuple[float, float]] = []
        self.follow(pids)

    def follow(self, pids: Sequence[int], *, since_begin: bool = False) -> None:
        """Look at these too, from now on or since they began."""
        for pid in pids:
            self._waited[pid] = 0.0 if since_begin else self._read(pid, 0.0)

    def look(self) -> None:
        """To be called often: who has waited since is taken to have waited until now."""
        now = time.monotonic()
        for pid, before in self._waited.items():
            waited = self._read(pid, before)
            if waited > before:
                self._spans.append((now - (waited - before), now))
                self._waited[pid] = waited

    @staticmethod
    def _read(pid: int, before: float) -> float:
        with contextlib.suppress(OSError):  # it may be gone
            return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
        return before

    def between(self, begin: float, end: float) -> float:
        """Seconds in which at least one of them had no CPU."""
        seconds = 0.0
        for since, until in sorted(self._spans):
            seconds += max(0.0, min(until, end) - max(since, begin))
            begin = max(begin, until)
        return seconds
