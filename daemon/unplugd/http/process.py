"""The `process_*` family, as in every Prometheus client.

prometheus_client has it too, but lists /proc/self/fd in one step, which takes 6 ms with the four thousand descriptors
of a thousand domains. It also needs /proc/stat, which the unit's ProcSubset=pid hides. Names and meanings are the same.
Source: proc(5); prometheus.io "Writing client libraries", "Process metrics".
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

SLICE = 500
"""Descriptors counted between two turns of the event loop."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BOOT = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class Process(Collector):
    """The family as objects of prometheus_client; `open_fds` is the last result of count_descriptors()."""

    def __init__(self) -> None:
        self.open_fds = 0

    def collect(self) -> Iterator[Family]:
        """Part of prometheus_client's Collector."""
        # proc_pid_stat(5): the fields after the command's name, which may contain any text; utime is field 14.
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        user, system, start, virtual, resident = (int(fields[number - 3]) for number in (14, 15, 22, 23, 24))
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield CounterMetricFamily(
            "process_cpu_seconds", "Total user and system CPU time spent in seconds.", (user + system) / _TICKS
        )
        for name, help_text, value in (
            ("virtual_memory_bytes", "Virtual memory size in bytes.", virtual),
            ("resident_memory_bytes", "Resident memory size in bytes.", resident * _PAGE),
            ("start_time_seconds", "Start time of the process since unix epoch in seconds.", _BOOT + start / _TICKS),
            ("open_fds", "Number of open file descriptors.", self.open_fds),
            ("max_fds", "Maximum number of open file descriptors.", limit),
        ):
            yield GaugeMetricFamily(f"process_{name}", help_text, value)


def count_descriptors() -> Iterator[int]:
    """The number of descriptors counted so far; the last number is the total."""
    path = "/proc/self/fd"
    # Since Linux 6.2 the directory's size is their number.
    if count := os.stat(path).st_size:
        yield count
        return
    with os.scandir(path) as entries:
        more = True
        while more:
            counted = sum(1 for _ in islice(entries, SLICE))
            count += counted
            more = counted == SLICE
            yield count
