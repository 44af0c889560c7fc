"""The demo as a user runs it: the real daemon, every claim of it held, nothing left behind."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.journald import Journald
from unplugd.simulator.devicemodel import DeviceModel


def environment(tmp_path: Path) -> dict[str, str]:
    """The user's, with a directory of one's own for what the demo makes."""
    return {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}


def test_the_demo_shows_the_main_job_and_ends_by_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unplugd.demo"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert done.stderr == ""
    out = done.stdout
    for told in (
        "inw 0x10 -> 0x49d2              unplug protocol present",
        "ok allowed, unplugged disks and NICs",
        "inw 0x10 -> 0xd249              blacklisted by host",
        "ok blacklisted by host: stays with emulated devices",
        "ok asked for no verdict, unplugged disks and NICs",
        r"login: \x1b[2J\x1b[31mroot\x07\t\\o/ \xff",
        "dropped: rate limit",
        'unplugd_blacklist_lookups_total{result="blacklisted"} 1',
        "ok unplugd stopped cleanly",
        "To look further:",
    ):
        assert told in out
    assert "\x1b" not in out  # neither colour, for this is no terminal, nor the evil line
    assert list(tmp_path.iterdir()) == []  # the demo cleans up after itself
    commands = re.findall(r"^  (\S+) -m (unplugd\S*) --", out, re.MULTILINE)
    assert len(commands) == 3
    for python, module in commands:
        more = subprocess.run([python, "-m", module, "--help"], capture_output=True, timeout=60, check=True)
        assert b"usage:" in more.stdout


def test_where_journald_runs_the_records_are_in_the_journal(journald: Journald, tmp_path: Path) -> None:
    done = subprocess.run(
        journald.command([sys.executable, "-m", "unplugd.demo"], cwd=Path.cwd()),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What unplugd itself has to say (journalctl)" in done.stdout
    assert "ok the blacklisted driver is on record" in done.stdout
    [evil] = journald.entries("SYSLOG_IDENTIFIER=unplugd-guest", "XEN_DOMAIN_NAME=win-ts", "XEN_DOMID=2")[-1:]
    assert evil["UNPLUG_PRODUCT_NAME"] == "experimental"
    assert "\x1b" not in evil["MESSAGE"]


def test_the_daemon_can_stay(tmp_path: Path) -> None:
    """`--stay` waits for Ctrl-C, and meanwhile the sockets that it names are there."""
    with subprocess.Popen(
        [sys.executable, "-m", "unplugd.demo", "--stay"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        try:
            out = _read_until(process.stdout.fileno(), rb"(?s)stays until.*curl --unix-socket", 80)
            found = re.search(rb"unplugd\.simulator (\S+/dom1\.sock) xenbus", out)
            assert found is not None
            with DeviceModel(found[1].decode()) as device:
                assert device.inw(0x10) == 0x49D2
            process.send_signal(signal.SIGINT)
            out += _read_until(process.stdout.fileno(), rb"To look further", 60)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert b"ok unplugd stopped cleanly" in out
    assert list(tmp_path.iterdir()) == []


def _read_until(fd: int, pattern: bytes, patience: float) -> bytes:
    out = b""
    deadline = time.monotonic() + patience
    while not re.search(pattern, out):
        if time.monotonic() > deadline:
            pytest.fail(f"{pattern!r} did not come; what came: {out.decode(errors='replace')}")
        if select.select([fd], [], [], 0.2)[0]:
            if not (data := os.read(fd, 65536)):
                pytest.fail(f"the demo ended: {out.decode(errors='replace')}")
            out += data
    return out
