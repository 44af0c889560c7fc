"""Guests' lines into a real journald: lines/s that it stores from unplugd, over those from a C sender.

Each line is one string write of 128 bytes, sent when the one before was answered; the C sender sends the same entries,
field by field, as fast as journald takes them. Both senders have one CPU and journald another, where there are two. How
many lines were stored in how long is what the journal itself says.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.daemons import JOURNAL, MEMORY, daemon, embedded, pinned, sockets, uuid_of
from benchmarks.figures import Figure
from benchmarks.programs import BUILD, measured
from tests.lab.journald import Journald, missing
from unplugd.sinks.records import Event

LINES = 20000
QUEUE = 512
"""Entries that journald's socket holds: net.unix.max_dgram_qlen as systemd sets it."""

_FIELDS = {
    "PRIORITY": Event.GUEST_LINE.priority,
    "SYSLOG_IDENTIFIER": "unplugd-guest",
    "MESSAGE_ID": Event.GUEST_LINE.message_id,
    "XEN_DOMID": "1",
    "XEN_DOMAIN_UUID": uuid_of(1),
    "XEN_DOMAIN_NAME": "vm1",
}


def measure(rounds: int, cpu: int, progress: Callable[[str], None]) -> Iterator[Figure]:
    """The figure, where there can be a journald."""
    if missing() is not None:
        return
    others = os.sched_getaffinity(0) - {cpu}
    with tempfile.TemporaryDirectory(prefix="unplugd-bench-", dir=MEMORY) as name, contextlib.ExitStack() as stack:
        journald = stack.enter_context(Journald(Path(name) / "journald", queue=QUEUE))
        if others:
            os.sched_setaffinity(journald.pid, others)
        with pinned(cpu):
            trial = stack.enter_context(daemon(embedded(1), JOURNAL, journald.command([])))
        fields = [part for field, value in _FIELDS.items() for part in ("-f", f"{field}={value}")]
        sender = [str(BUILD / "journalload"), "-c", str(cpu), "-n", str(LINES), *fields, str(journald.socket)]
        guest = ["-c", str(cpu), "-p", "lines", "-w", "0", "-n", str(LINES)]
        ours, theirs = [], []
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}: lines into the journal")
            theirs.append(_stored(journald, lambda: subprocess.run(sender, check=True)))
            ours.append(_stored(journald, lambda: measured(sockets(trial, 1, 1), *guest)))
    ratios = tuple(one / other for one, other in zip(ours, theirs, strict=True))
    behind = f"{statistics.median(ours):,.0f}/s, C sender {statistics.median(theirs):,.0f}/s"
    yield Figure(
        "guest log lines stored by journald / from a C sender", ratios, 0.38, least=True, reference=tuple(theirs),
        absolute=behind,
    )  # fmt: skip


def _stored(journald: Journald, send: Callable[[], object]) -> float:
    """Lines/s, by the journal's own times; a line that is not there when no more come counts as never stored."""
    since, before = time.time(), -1
    send()
    while len(times := journald.times(since, "SYSLOG_IDENTIFIER=unplugd-guest")) < LINES and len(times) > before:
        before = len(times)
        time.sleep(0.3)
    return (len(times) - 1) / (times[-1] - times[0])
