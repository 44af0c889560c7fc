"""A restart while xenstored is silent: guests whose sockets systemd kept go on at once, by what was kept of them."""

from __future__ import annotations

import pytest

from tests.integration.test_units import CONFIGURATION, UNIT, Host
from tests.lab.daemon import eventually
from tests.lab.systemd import Systemd

SILENT = '[xenstore]\nbackend = "socket"\nsocket = "/run/lab/nobody"\n[blacklist]\nlookup_timeout = 0.1\n'


@pytest.fixture
def host(systemd: Systemd) -> Host:
    return Host(systemd)


def test_guests_are_answered_before_xenstore_is_there(host: Host) -> None:
    host.configuration.write_text(CONFIGURATION + '[[blacklist.entry]]\nproduct = "linux"\nbuild = 666\n')
    host.start()
    with host.device_model() as guest:
        guest.outw(0x12, 3)
        guest.outl(0x10, 666)
        assert guest.inw(0x10) == 0xD249
        guest.reset()
        host.configuration.write_text(SILENT)
        host.systemd.systemctl("restart", "--no-block", UNIT)
        host.wait_for("ActiveState", "activating")
        assert guest.inw(0x10) == 0x49D2
        guest.outw(0x12, 3)
        guest.outl(0x10, 666)
        assert guest.inw(0x10) == 0xD249, "by what xenstore had last"
        guest.outw(0x12, 3)
        guest.outl(0x10, 1)
    status, _ = host.get("/-/ready")
    assert status == 503
    # A xenstore that comes and does not have it: it went meanwhile.
    host.configuration.write_text('[xenstore]\nbackend = "embedded"\n[[xenstore.domain]]\ndomid = 8\nname = "other"\n')
    host.systemd.systemctl("restart", UNIT, timeout=60)
    eventually(lambda: not host.path("dom7.sock").exists())
    assert host.path("dom8.sock").exists()
