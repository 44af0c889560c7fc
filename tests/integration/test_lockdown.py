"""The unit's lock-down (docs/security.md): what systemd says of it, that the kernel enforces it, and that all works.

The service runs under exactly the settings that are shipped, in the real systemd, with the real xenstoreds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.test_units import FETCH, UNIT, Host
from tests.lab.daemon import eventually
from tests.lab.systemd import why_not
from tests.lab.xenspeak import XenstoreError
from tests.lab.xenstored import KINDS, Kind, Xenstored, needed
from tests.soak.kills import machine

ROOT = Path(__file__).parents[2]
DEVICE_MODEL_UID = 64123
CAP_CHOWN = 1 << 0

Machine = tuple[Host, Xenstored]


@pytest.fixture(params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Machine]:
    if reason := why_not():
        pytest.skip(reason)
    needed()
    kind: Kind = request.param
    with machine(2, kind) as (host, xenstored):
        yield host, xenstored


def test_exposure_is_at_most_one_and_a_half() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=15", str(ROOT / "systemd" / UNIT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-200:]


def status(host: Host) -> dict[str, str]:
    text = host.systemd.path(f"/proc/{host.main_pid()}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_it_is_enforced_and_all_works(running: Machine) -> None:
    host, xenstored = running
    _is_enforced(host)
    _xenstore_works(host, xenstored)
    _a_device_model_of_its_own_uid_is_served(host, xenstored)
    _metrics_come_through_the_passed_socket(host)


def _is_enforced(host: Host) -> None:
    found = status(host)
    assert found["Uid"].split()[0] == "0"
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == CAP_CHOWN
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    inside = ["nsenter", "-t", str(host.main_pid()), "-m", "--"]
    for path in ("/etc/x", "/usr/x", "/var/lib/x", "/var/log/x", "/run/x"):
        assert "Read-only" in host.systemd.execute(*inside, "touch", path, check=False).stderr, path
    for path in ("/run/unplugd/x", "/var/log/xen/unplugd/x"):
        host.systemd.execute(*inside, "touch", path)
        host.systemd.execute(*inside, "rm", path)
    links = host.systemd.execute("nsenter", "-t", str(host.main_pid()), "-n", "ls", "/sys/class/net").stdout
    networks = {os.readlink(host.systemd.path(f"/proc/{pid}/ns/net")) for pid in (1, host.main_pid())}
    assert len(networks) == 2, links


def _xenstore_works(host: Host, xenstored: Xenstored) -> None:
    with host.device_model(1) as device_model:
        device_model.outw(0x12, 3)
        device_model.outl(0x10, 666)
        assert device_model.inw(0x10) == 0xD249
        assert device_model.outw(0x10, 3) == 3
        device_model.outsb(0x12, b"said under lock and key\n")
    eventually(partial(_published, xenstored))
    line = host.systemd.wait_for_journal("SYSLOG_IDENTIFIER=unplugd-guest")
    assert line["MESSAGE"] == "said under lock and key"
    log = host.systemd.path("/var/log/xen/unplugd/guest-vm1.log")
    eventually(lambda: log.exists() and b"said under lock and key" in log.read_bytes())


def _published(xenstored: Xenstored) -> bool:
    try:
        return xenstored.dom0.read("/local/domain/1/unplug/unplugged") == b"3"
    except XenstoreError:
        return False


SPEAK = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(30)
    client.connect(sys.argv[1])
    client.sendall(bytes.fromhex(sys.argv[3]))
    print(client.recv(32, socket.MSG_WAITALL)[8:10].hex())
"""
MAGIC_READ = "1000000000000000000000000000000001000000020000000000000000002100"


def _a_device_model_of_its_own_uid_is_served(host: Host, xenstored: Xenstored) -> None:
    xenstored.dom0.write("/local/domain/2/image/device-model-kill-uid", b"%d" % DEVICE_MODEL_UID)
    path = host.path("dom2.sock")
    eventually(lambda: path.stat().st_uid == DEVICE_MODEL_UID)
    python = [sys.executable, "-I", "-c", SPEAK, "/run/unplugd/dom2.sock", str(DEVICE_MODEL_UID), MAGIC_READ]
    assert host.systemd.execute(*python).stdout.strip() == "d249"


def _metrics_come_through_the_passed_socket(host: Host) -> None:
    url = "http://127.0.0.1:9877/metrics"
    assert "unplugd_domains 2" in host.systemd.execute(sys.executable, "-c", FETCH, url).stdout
    host.systemd.systemctl("restart", UNIT, timeout=60)
    assert "unplugd_domains 2" in host.systemd.execute(sys.executable, "-c", FETCH, url).stdout
    _the_address_is_changed_as_documented(host)
    url = "http://127.0.0.1:9900/metrics"
    # Stopped is stopped: a scrape does not start it again.
    host.systemd.systemctl("stop", UNIT, timeout=60)
    assert "refused" in host.systemd.execute(sys.executable, "-c", FETCH, url, check=False).stderr
    assert host.systemd.property(UNIT, "ActiveState") == "inactive"


def _the_address_is_changed_as_documented(host: Host) -> None:
    inode = host.path("dom1.sock").stat().st_ino
    host.systemd.drop_in("unplugd-http.socket", "address", "[Socket]\nListenStream=\nListenStream=127.0.0.1:9900")
    host.systemd.daemon_reload()
    host.systemd.systemctl("stop", "unplugd-http.socket")
    host.systemd.systemctl("restart", UNIT, timeout=60)
    url = "http://127.0.0.1:9900/metrics"
    assert "unplugd_domains 2" in host.systemd.execute(sys.executable, "-c", FETCH, url).stdout
    # The guests' sockets are still the same.
    assert host.path("dom1.sock").stat().st_ino == inode


def test_without_cap_chown_no_socket_can_be_given_away(running: Machine) -> None:
    """The one capability that is left is needed: this is what it is for."""
    host, xenstored = running
    xenstored.dom0.write("/local/domain/2/image/device-model-kill-uid", b"%d" % DEVICE_MODEL_UID)
    host.settings("none", "[Service]\nCapabilityBoundingSet=")
    host.systemd.systemctl("stop", UNIT, timeout=60)
    host.systemd.systemctl("start", UNIT, timeout=60)
    assert "not permitted" in host.journal("(domain 2): no socket")["MESSAGE"]
    with host.device_model(1) as device_model:
        assert device_model.inw(0x10) == 0x49D2
