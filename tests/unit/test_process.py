"""The process_* family, against the operating system and prometheus_client's own."""

from __future__ import annotations

import os
import resource
import time
from types import SimpleNamespace

import pytest
from prometheus_client.process_collector import ProcessCollector

from unplugd.http import process
from unplugd.http.process import Process, count_descriptors


def test_it_is_what_prometheus_client_says() -> None:
    ours = {family.name: family for family in Process().collect()}
    theirs = {family.name: family for family in ProcessCollector(registry=None).collect()}
    assert {(name, family.type, family.documentation) for name, family in ours.items()} == {
        (name, family.type, family.documentation) for name, family in theirs.items()
    }
    for name in ("process_virtual_memory_bytes", "process_resident_memory_bytes", "process_max_fds"):
        assert ours[name].samples[0].value == pytest.approx(theirs[name].samples[0].value, rel=0.1)
    assert ours["process_cpu_seconds"].samples[0].value == pytest.approx(time.process_time(), abs=1)


def test_the_start_is_in_the_past_and_stays_the_same() -> None:
    first, second = (
        next(family for family in Process().collect() if family.name == "process_start_time_seconds").samples[0].value
        for _ in range(2)
    )
    assert first == second
    assert time.time() - 24 * 3600 < first < time.time()


def test_open_descriptors_are_those_that_were_counted() -> None:
    counted = Process()
    counted.open_fds = 42
    (family,) = (family for family in counted.collect() if family.name == "process_open_fds")
    assert family.samples[0].value == 42


@pytest.mark.parametrize("sized", [True, False])
def test_descriptors_are_counted_with_and_without_the_directory_s_size(
    sized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = min(2 * process.SLICE + 10, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    if not sized:   # before Linux 6.2
        monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_size=0))
    before = list(count_descriptors())[-1]
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(extra)]
    try:
        counts = list(count_descriptors())
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert counts[-1] - before == extra
    assert len(counts) == 1 or all(
        later - earlier <= process.SLICE for earlier, later in zip([0, *counts], counts, strict=False)
    )
