"""The demo: `python3 -m unplugd.demo` shows unplugd's main functions on a terminal, without Xen.

The daemon is the real one, in its own process, with real sockets, logs and metrics. Only its xenstore is the embedded
one, and the guests are simulated. Every claim is checked, so the demo is a test too: it ends with status 0 if all of
them are true. privatedaemon.py starts the daemon; drivers.py has the guests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from unplugd import __version__
from unplugd.core.families import xenbus_build
from unplugd.errors import UnplugdError
from unplugd.simulator.cli import Ending, Outcome, Transcript, play
from unplugd.simulator.devicemodel import DeviceModel
from unplugd.simulator.drivers import (
    CHATTY,
    CITRIX,
    DISKS,
    FREEBSD,
    LINUX,
    NICS,
    NVME,
    XENBUS,
    XENBUS_2026,
    Driver,
    Log,
)
from unplugd.simulator.privatedaemon import PrivateDaemon, fetch
from unplugd.simulator.stage import ClaimFailed, Stage

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")

WIDTH = 110
"""Columns of a line of a guest's log that are shown."""

EVIL = b"login: \x1b[2J\x1b[31mroot\x07\t\\o/ \xff\r\n"
"""A log line that would affect the reader's terminal if it were not escaped."""
EVIL_ESCAPED = r"login: \x1b[2J\x1b[31mroot\x07\t\\o/ \xff"

CONFIGURATION = """\
runtime_dir = {run}

[xenstore]
backend = "embedded"            # no Xen here: these domains exist
{domains}
[blacklist]
[[blacklist.entry]]
product = "xensource-windows"
build = 86451
reason = "loses data on resume"

[[blacklist.entry]]             # these drivers do not obey: refused, they go on all the same,
product = "experimental"
build = 0x09035e
reason = "9.2.350 hangs at resume"

[[blacklist.entry]]             # but where nothing is unplugged for them, they stay away
product = "experimental"
build = 0x09035f
reason = "9.2.351 hangs at resume"
action = "withhold"

[socket]
device_model_uids = [{uid}]     # who plays the device model here

[log]
sinks = {sinks}
directory = {logs}
rate = 2048                     # bytes a second for each guest, and
burst = 8192                    # as much at once: small, so that the limit is reached within seconds

[http]
listen = "127.0.0.1:{port}"
"""

DOMAIN = """\
[[xenstore.domain]]
domid = {domid}
name = "{name}"
uuid = "{uuid}"
"""


@dataclass(frozen=True, slots=True)
class DemoDomain:
    """One domain of the demo and the expected outcome of its guest."""

    domid: int
    name: str
    guest: Driver
    story: str
    expected: Outcome
    uuid: str


def _domains() -> tuple[DemoDomain, ...]:
    allowed = Outcome(Ending.UNPLUGGED, 3, "allowed, unplugged disks and NICs")
    at_once = Outcome(Ending.UNPLUGGED, 3, "asked for no verdict, unplugged disks and NICs")
    refused = Outcome(Ending.BLACKLISTED, 0, "blacklisted by host: stays with emulated devices")
    windows = replace(XENBUS, steps=(*XENBUS.steps, Log((EVIL,))))
    rows = (
        ("web-01", LINUX, "Linux, product 3, build 1", allowed),
        ("win-ts", windows, "Windows with XENBUS, which logs by rep outsb", allowed),
        ("old-win", CITRIX, "Windows with the drivers that the configuration blacklists", refused),
        ("bsd-gw", FREEBSD, "FreeBSD, which asks for no verdict", at_once),
        ("chatty", CHATTY, "a driver that logs without end", allowed),
    )
    return tuple(DemoDomain(n, *row, str(uuid.uuid4())) for n, row in enumerate(rows, 1))


class Demo:
    """One performance in `directory`, which it fills and its caller removes."""

    def __init__(self, directory: Path, stage: Stage) -> None:
        self.stage = stage
        self.domains = _domains()
        self.run = directory / "run"
        self.logs = directory / "log"
        self.port = _free_port()
        self.journal = JOURNAL_SOCKET.exists()
        self.trial = PrivateDaemon(
            directory,
            CONFIGURATION.format(
                run=json.dumps(str(self.run)),
                logs=json.dumps(str(self.logs)),
                domains="".join(
                    DOMAIN.format(domid=one.domid, name=one.name, uuid=one.uuid) for one in self.domains
                ),
                uid=os.getuid(),
                sinks=json.dumps(["file", "journal"] if self.journal else ["file"]),
                port=self.port,
            ),
        )

    def perform(self, *, stay: bool = False) -> None:
        """The whole demo; with `stay` the daemon then runs until it is interrupted.

        Raises ClaimFailed, or UnplugdError if the daemon or the simulator could not run.
        """
        stage = self.stage
        stage.headline(f"unplugd {__version__}: the daemon is real, the guests are simulated")
        with self.trial:
            stage.row(f"process {self.trial.pid}, ready after {self.trial.ready_after:.2f} s")
            stage.row(f"configuration {self.trial.configuration}")
            stage.row(f"sockets {self.run}/dom1.sock ... dom{len(self.domains)}.sock")
            *others, chatty = self.domains
            for domain in others:
                self._play(domain)
            self._chatty(chatty)
            self._files()
            self._own_records()
            self._metrics(chatty)
            self._api()
            self._refusals()
            if stay:
                self._stay()
            stage.headline("SIGTERM")
            status = self.trial.stop()
            stage.claim(status == 0, "unplugd stopped cleanly", f"exit status {status}")
            left = sorted(path.name for path in self.run.glob("*.sock"))
            stage.claim(not left, "and took its sockets with it", left)

    def _play(self, domain: DemoDomain) -> None:
        self.stage.headline(f"{domain.name}: {domain.story}")
        transcript = Transcript(self.stage.row, shown=4)
        with DeviceModel(self._socket(domain)) as device:
            outcome = play(domain.guest, device, transcript)
        transcript.finish()
        self.stage.claim(outcome == domain.expected, str(domain.expected), outcome)

    def _socket(self, domain: DemoDomain) -> Path:
        return self.run / f"dom{domain.domid}.sock"

    def _chatty(self, domain: DemoDomain) -> None:
        self._play(domain)
        sent = sum(len(step.lines) for step in domain.guest.steps if isinstance(step, Log))
        kept = dropped = 0
        say_again = 0.0

        def accounted() -> bool:
            # The record of what was dropped comes before the next line that passes: the guest must say one more,
            # and again where that one was dropped too. Lines are on their way to the file for a moment.
            nonlocal kept, dropped, sent, say_again
            if time.monotonic() > say_again:
                device.outsb(0x12, b"XENVIF|ReceiverRing: quiet again\r\n")
                sent += 1
                say_again = time.monotonic() + 2
            dropped = self._told_dropped(domain)
            kept = sum("XENVIF|" in line for line in self._log_of(domain))
            return kept + dropped == sent

        with DeviceModel(self._socket(domain)) as device:
            time.sleep(0.5)  # for the bucket: room for a line and the record
            self._until(accounted, f"the lines that {domain.name} logged, kept or dropped, add up")
        said = self._log_of(domain)
        for line in [line for line in said if _DROPPED.search(line)][-1:] + said[-1:]:
            self.stage.row(line)
        self.stage.claim(
            dropped > 0, f"{sent} lines: {kept} kept, {dropped} dropped, and its own log says so"
        )

    def _files(self) -> None:
        self.stage.headline(f"Guest logs: {self.logs}")
        evil: list[str] = []

        def written() -> bool:
            evil[:] = [line for line in self._log_of(self.domains[1]) if "login" in line]
            return bool(evil)

        self._until(written, "win-ts's last line is in its file")
        for domain in self.domains:
            lines = self._log_of(domain)
            if not lines:
                continue
            self.stage.row(f"guest-{domain.name}.log, {len(lines)} lines")
            for line in lines[:2] if domain.name == "chatty" else lines:
                self.stage.row(f"  {line if len(line) <= WIDTH else line[:WIDTH - 3] + '...'}")
        self.stage.claim(
            [line.split(" ", 1)[1] for line in evil] == [EVIL_ESCAPED],
            "what was meant for the reader's terminal is escaped",
            evil,
        )

    def _log_of(self, domain: DemoDomain) -> list[str]:
        path = self.logs / f"guest-{domain.name}.log"
        return path.read_text().splitlines() if path.exists() else []

    def _told_dropped(self, domain: DemoDomain) -> int:
        """The number of dropped lines according to the guest's own log."""
        return sum(int(number) for line in self._log_of(domain) for number in _DROPPED.findall(line))

    def _own_records(self) -> None:
        self.stage.headline(
            "What unplugd itself has to say" + (" (journalctl)" if self.journal else " (stderr)")
        )

        def told() -> bool:
            records[:] = [line for line in self._records() if "(domain " in line]
            return any("blacklisted" in line for line in records)

        records: list[str] = []
        if self.journal and not self._records():
            self.stage.row("the journal cannot be read by this user")
            return
        self._until(told, "unplugd's own log tells of the blacklisted driver")
        if self.journal:
            self.stage.row(
                "and the guests' lines, with their domain's fields: journalctl -t unplugd-guest -o verbose"
            )
        for line in records:
            if "allowed" in line or "blacklisted" in line or "limit" in line:
                self.stage.row(line)
        judged = [line for line in records if "86451" in line]
        self.stage.claim("old-win" in judged[0], "the blacklisted driver is on record", records)

    def _records(self) -> list[str]:
        if not self.journal:
            return self.trial.log.read_text(errors="backslashreplace").splitlines()
        command = ["journalctl", "--no-pager", "--quiet", "-o", "short-iso", f"_PID={self.trial.pid}"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=20, check=False)  # noqa: S603 # no shell
        except (OSError, subprocess.TimeoutExpired):
            return []
        return done.stdout.decode(errors="backslashreplace").splitlines()

    def _metrics(self, chatty: DemoDomain) -> None:
        self.stage.headline(f"GET http://127.0.0.1:{self.port}/metrics")
        status, text = fetch(("127.0.0.1", self.port), "/metrics")
        self.stage.claim(status == 200, "Prometheus can scrape it", status)
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        for pattern in _SHOWN_METRICS:
            for line in lines:
                if re.match(pattern, line) and not line.endswith((" 0", " 0.0")):
                    self.stage.row(line)
        values = dict(line.rsplit(" ", 1) for line in lines)
        for name, least in _EXPECTED_METRICS:
            found = values.get(name)
            self.stage.claim(
                found is not None and float(found) >= least, f"{name} is {float(found or 0):g}", found
            )
        dropped = [line for line in lines if "log_dropped_lines_total" in line and f'"{chatty.uuid}"' in line]
        told = self._told_dropped(chatty)
        self.stage.claim(
            sum(float(line.rsplit(" ", 1)[1]) for line in dropped) == told,
            f"the metric and {chatty.name}'s own log agree on {told} dropped lines",
            dropped,
        )

    def _api(self) -> None:
        path = self.run / "control.sock"
        self.stage.headline(f"GET /api/v1/domains on {path}")
        status, text = fetch(path, "/api/v1/domains")
        self.stage.claim(status == 200, "the control socket answers", status)
        described = json.loads(text)["domains"]
        columns = ("domid", "name", "product", "build", "blacklisted", "unplugged")
        self.stage.table([columns, *([one.get(column) for column in columns] for one in described)])
        names = [one.get("name") for one in described]
        self.stage.claim(names == [one.name for one in self.domains], "all of its guests are there", names)
        judged = [one.get("name") for one in described if one.get("blacklisted")]
        self.stage.claim(judged == ["old-win"], "old-win alone is blacklisted", judged)

    def _refusals(self) -> None:
        """A driver that does not obey: what `refuse` and `withhold` come to."""
        domain = self.domains[1]
        for version, verdict, order, what in (
            ((9, 2, 350), "ignored", DISKS | NICS | NVME, "refused: it unplugs all the same, and runs"),
            ((9, 2, 351), "withheld", 0, "withheld: nothing is unplugged, and it stays with its emulated devices"),
        ):
            name = ".".join(map(str, version))
            self.stage.headline(f"{domain.name} with XENBUS {name}, which is blacklisted and does not obey")
            guest = XENBUS_2026.announcing(build=xenbus_build(*version)).after_reset()
            transcript = Transcript(self.stage.row, shown=0)
            with DeviceModel(self._socket(domain)) as device:
                outcome = play(guest, device, transcript)
            transcript.finish()
            self.stage.row(str(outcome))
            _, text = fetch(self.run / "control.sock", f"/api/v1/domains/{domain.domid}")
            described = json.loads(text)
            self.stage.row(f"verdict {described['verdict']}, by {described['rule']}")
            self.stage.claim((outcome.order, described["verdict"]) == (order, verdict), what, (outcome, described))

    def _stay(self) -> None:
        try:
            self.stage.headline("The daemon stays until you press Ctrl-C. In another terminal:")
            for command in (
                f"{_python()} -m unplugd.ctl --socket {self.run}/control.sock list",
                f"{_python()} -m unplugd.ctl --socket {self.run}/control.sock show old-win",
                f"{_python()} -m unplugd.simulator {self.run}/dom1.sock xenbus --reset",
                f"{_python()} -m unplugd.simulator {self.run}/dom1.sock linux --reset --log 'hello dom0'",
                f"tail -f {self.logs}/guest-web-01.log",
                f"curl http://127.0.0.1:{self.port}/metrics",
                f"curl --unix-socket {self.run}/control.sock http://localhost/api/v1/domains/1",
            ):
                self.stage.row(command)
            sys.stdout.flush()
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print()

    def _until(self, holds: Callable[[], bool], what: str, *, pause: float = 0.1) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            if time.monotonic() > deadline:
                raise ClaimFailed(f"{what}: not within 20 s")
            time.sleep(pause)


def _directory() -> Path:
    """A directory for the demo, with a short path: a socket's path may have 107 bytes."""
    short = len(tempfile.gettempdir()) <= 66
    return Path(tempfile.mkdtemp(prefix="unplugd-demo-", dir=None if short else "/tmp"))  # noqa: S108 - mkdtemp makes it private


_DROPPED = re.compile(r"unplugd: (\d+) lines \(\d+ bytes\) dropped: rate limit")

_SHOWN_METRICS = (
    "unplugd_domains ",
    "unplugd_domain_info",
    "unplugd_domain_blacklisted",
    "unplugd_ioreqs_total",
    "unplugd_blacklist_lookups_total",
    "unplugd_log_dropped",
)
_EXPECTED_METRICS = (
    ("unplugd_domains", 5),
    ('unplugd_blacklist_lookups_total{result="allowed"}', 3),
    ('unplugd_blacklist_lookups_total{result="blacklisted"}', 1),
    ('unplugd_ioreqs_total{kind="unplug"}', 6),
)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert isinstance(port, int)  # noqa: S101 # getsockname() is Any to mypy
    return port


def _python() -> str:
    """This interpreter, as one types it here."""
    here = os.path.relpath(sys.executable)
    return here if not here.startswith("..") else sys.executable


def _look_further() -> None:
    python = _python()
    print(f"""
To look further:
  {python} -m unplugd.demo --stay         the same, and the daemon stays for you to try
  {python} -m unplugd.simulator --help    guests to play against any socket of unplugd
  {python} -m unplugd --help              the daemon
The configuration is explained in docs/configuration.md, the protocol in docs/protocol.md.""")


def _leave(number: int, frame: FrameType | None) -> None:
    """A signal to end: stop the daemon and clean up."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 if a claim was false or unplugd could not run."""
    parser = argparse.ArgumentParser(
        prog="python3 -m unplugd.demo",
        description="Show what unplugd does, with simulated guests and without Xen.",
    )
    parser.add_argument(
        "--stay", action="store_true", help="leave the daemon running at the end, until Ctrl-C"
    )
    parser.add_argument("--keep", action="store_true", help="leave the directory with configuration and logs")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    stage = Stage(colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    directory = _directory()
    began = time.monotonic()
    try:
        Demo(directory, stage).perform(stay=options.stay)
    except (ClaimFailed, UnplugdError, OSError) as error:
        print(f"\nThe demo failed: {error}\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    print(f"\n{stage.claims} claims held, in {time.monotonic() - began:.1f} s.")
    if options.keep:
        print(f"Configuration and logs are in {directory}.")
    _look_further()
    return 0
