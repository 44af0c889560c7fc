"""SIGKILL and restarts under load: the real unit, systemd, journald and xenstored, and guests that count.

After the last of them, every line that was acknowledged to a guest is in the journal and in the guest's file; no answer
was wrong, nobody was refused, and nobody waited longer than WAIT for a kill or GAP for an ordered restart.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.integration.test_units import PROGRAMS, UNIT, Host, lab
from tests.lab.daemon import toml, uuid
from tests.lab.systemd import LAB as INSIDE
from tests.lab.systemd import Systemd
from tests.lab.xenstored import Kind, Xenstored
from tests.soak import installed
from tests.soak.load import BLACKLISTED_BUILD, Guest, Load
from tests.soak.timeline import Gap, Victim

WAIT = 2.0
"""Seconds that no guest may wait longer, but for what the machine had no CPU (tests/soak/timeline.py)."""
GAP = 0.3
"""The same, for an ordered restart: the goal, which --long holds it to."""
SLOW_GAP = 1.0
"""What CI, whose machine may be slow, holds it to."""
RESTARTS = 10
"""Ordered restarts, after the kills."""

BUDGET = 100_000
"""Bytes of log that a guest may cause and stay well below its burst of 131072."""

_JOURNAL = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRuntimeMaxUse=1G\nRuntimeKeepFree=1M\n"


@contextmanager
def machine(guests: int, kind: Kind = "c", programs: Path = PROGRAMS) -> Iterator[tuple[Host, Xenstored]]:
    """A booted host with xenstored, so many guests and unplugd, of whose commands `programs` is the directory."""
    # A unix socket's path is at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="u-"))
    try:
        systemd = Systemd(directory)
        (directory / "journald.conf").write_text(_JOURNAL)
        with systemd, Xenstored(kind, directory / "xs") as xenstored:
            for domid in range(1, guests + 1):
                xenstored.create(domid, f"vm{domid}", uuid(domid))
            host = Host(systemd)
            systemd.drop_in(UNIT, "lab", lab(programs))
            host.configuration.write_text(toml({
                "xenstore": {"backend": "socket", "socket": f"{INSIDE}/xs/run/socket"},
                "blacklist": {"entry": [{"product": "linux", "build": BLACKLISTED_BUILD}]},
                "log": {"sinks": ["journal", "file"], "flush_after": 60.0},
                "http": {"listen": ""},
            }))
            systemd.daemon_reload()
            host.start()
            yield host, xenstored
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(kills: int, guests: int = 50, *, gap: float = GAP) -> tuple[dict[str, str], list[str]]:
    """Kill the daemon so often; figures for the table, and what does not hold. `gap`: what a restart may take."""
    problems: list[str] = []
    waits: list[Gap] = []
    gaps: list[Gap] = []
    commands, python = installed.programs()
    with machine(guests, programs=commands) as (host, xenstored):
        interval = max(0.25, kills * 3 / (BUDGET / 64))
        load = Load([
            Guest(domid, host.path(f"dom{domid}.sock"), blacklisted=domid % 5 == 0, interval=interval)
            for domid in range(1, guests + 1)
        ])
        begin = time.monotonic()
        load.start()
        try:
            victim = Victim(host.systemd, UNIT, xenstored.pid)
            chance = random.Random(kills)
            for _ in range(kills):
                time.sleep(chance.uniform(0.02, 0.8))
                waits.append(victim.kill(load))
            host.wait_for("ActiveState", "active")
            restarts = int(host.systemd.property(UNIT, "NRestarts"))  # an ordered one begins to count anew
            for _ in range(RESTARTS):
                time.sleep(chance.uniform(0.2, 0.8))
                gaps.append(victim.restart(load))
        finally:
            load.finish()
        seconds = time.monotonic() - begin
        host.wait_for("ActiveState", "active")
        journal, files = _recorded(host, load.guests)
    lines = sum(line.complete for guest in load.guests for line in guest.lines)
    doubtful = sum(bool(line.doubtful) for guest in load.guests for line in guest.lines)
    for where, found in (("journal", journal), ("files", files)):
        missing = [text for guest in load.guests for text in _missing(guest, found[guest.domid])]
        problems += [f"missing in the {where}: {text}" for text in missing[:5]]
        if len(missing) > 5:
            problems.append(f"missing in the {where}: {len(missing)} in all")
    problems += [text for guest in load.guests for text in guest.wrong][:5]
    refused = sum(guest.refused for guest in load.guests)
    if refused:
        problems.append(f"{refused} connects refused")
    if restarts != kills:
        problems.append(f"{restarts} restarts after {kills} kills")
    for limit, some in ((WAIT, waits), (gap, gaps)):
        slowest = max(some, key=lambda each: each.own)
        if slowest.own > limit:
            problems.append(f"a guest waited {slowest}, without that {slowest.own:.2f} of {limit} s")
    figures = {
        "Python": python,
        "kills": str(kills),
        "guests": str(guests),
        "seconds": f"{seconds:.0f}",
        "answers": str(sum(guest.answers for guest in load.guests)),
        "acknowledged lines": str(lines),
        "of them sent again in part": str(doubtful),
        "recorded twice in the journal": str(_twice(load.guests, journal)),
        "recorded twice in the files": str(_twice(load.guests, files)),
        "refused connects": str(refused),
        "wrong answers": str(sum(len(guest.wrong) for guest in load.guests)),
        **_times("kill", waits),
        **_times("restart", gaps),
        f"restart: within {GAP} s": f"{sum(each.own < GAP for each in gaps)} of {len(gaps)}",
    }
    return figures, problems


def _times(what: str, gaps: Sequence[Gap]) -> dict[str, str]:
    ordered = sorted(gaps, key=lambda gap: gap.wait)
    return {
        f"{what}: longest wait, median and most":
            f"{statistics.median(gap.wait for gap in gaps):.2f} s, {ordered[-1].wait:.2f} s",
        f"{what}: but for what there was no CPU":
            f"{statistics.median(gap.own for gap in gaps):.2f} s, {max(gap.own for gap in gaps):.2f} s",
        f"{what}: the median one": str(ordered[len(ordered) // 2]),
        f"{what}: the slowest": str(ordered[-1]),
    }  # fmt: skip


def _recorded(host: Host, guests: Sequence[Guest]) -> tuple[dict[int, list[bytes]], dict[int, list[bytes]]]:
    """What journal and files have, by domain, once nothing more comes."""
    journal: dict[int, list[bytes]] = {}
    files: dict[int, list[bytes]] = {}

    def all_there() -> bool:
        journal.clear()
        journal.update(_from_journal(host))
        files.update({guest.domid: _from_file(host, guest.domid) for guest in guests})
        return not any(
            _missing(guest, found.get(guest.domid, [])) for guest in guests for found in (journal, files)
        )

    end = time.monotonic() + 20
    while not all_there() and time.monotonic() < end:
        time.sleep(1)
    return defaultdict(list, journal), defaultdict(list, files)


def _from_journal(host: Host) -> Mapping[int, list[bytes]]:
    found: dict[int, list[bytes]] = defaultdict(list)
    output = host.systemd.execute(
        "journalctl", "--output=cat", "--output-fields=XEN_DOMID,MESSAGE", "--no-pager", "--all", "--output=export",
        "SYSLOG_IDENTIFIER=unplugd-guest", timeout=120,
    ).stdout  # fmt: skip
    for entry in output.split("\n\n"):
        fields = dict(line.split("=", 1) for line in entry.splitlines() if "=" in line)
        if "XEN_DOMID" in fields:
            found[int(fields["XEN_DOMID"])].append(fields.get("MESSAGE", "").encode())
    return found


def _from_file(host: Host, domid: int) -> list[bytes]:
    lines: list[bytes] = []
    for suffix in (".1", ""):
        path = host.systemd.path(f"/var/log/xen/unplugd/guest-vm{domid}.log{suffix}")
        if path.exists():
            lines += [line.split(b" ", 1)[-1] for line in path.read_bytes().splitlines()]
    return lines


def _missing(guest: Guest, recorded: Sequence[bytes]) -> list[str]:
    there = set(recorded)
    return [
        line.text.decode()
        for line in guest.lines
        if line.complete and line.text not in there and not any(map(line.matches, recorded if line.doubtful else ()))
    ]


def _twice(guests: Sequence[Guest], recorded: Mapping[int, Sequence[bytes]]) -> int:
    return sum(len(recorded[guest.domid]) - len(set(recorded[guest.domid])) for guest in guests)
