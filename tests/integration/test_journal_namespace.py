"""The optional drop-in that gives unplugd a journal of its own: guests' lines are there, and not in the host's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.test_units import ROOT, UNIT, Host
from tests.lab.systemd import Systemd, wait_for

DROP_IN = ROOT / "systemd" / "examples" / "journal-namespace.conf"
JOURNALD = ("systemd-journald@.service", "systemd-journald@.socket", "systemd-journald-varlink@.socket")
LATER = ("systemd-journald-sync@.service",)
"""What newer systemds (257) have besides, and want of the others."""


def test_guests_have_a_journal_of_their_own(systemd: Systemd) -> None:
    for name in (*JOURNALD, *LATER):
        unit = Path("/lib/systemd/system", name)
        if unit.exists():
            shutil.copy(unit, systemd.units)
        elif name in JOURNALD:
            pytest.skip("this systemd has no journal namespaces")
    host = Host(systemd)
    host.settings("journal-namespace", DROP_IN.read_text())
    host.start()
    with host.device_model() as device:
        device.outsb(0x12, b"in a journal of its own\n")
    matches = ("SYSLOG_IDENTIFIER=unplugd-guest",)
    (entry,) = wait_for(lambda: systemd.journal("--namespace=unplugd", *matches), "the guest's line")
    assert (entry["MESSAGE"], entry["_NAMESPACE"]) == ("in a journal of its own", "unplugd")
    assert systemd.journal("--namespace=unplugd", "SYSLOG_IDENTIFIER=unplugd")
    assert systemd.journal(*matches) == []
    command = (str(Path(systemd.property(UNIT, "ExecStart").split("path=")[1].split()[0]).with_name("unplugctl")),
               "--socket", "/run/unplugd/control.sock")  # fmt: skip
    shown = systemd.execute(*command, "log", "web-01", "--namespace", "unplugd").stdout
    assert "in a journal of its own" in shown
    assert "in a journal of its own" not in systemd.execute(*command, "log", "web-01").stdout
