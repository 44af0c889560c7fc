"""systemd/: the unit as it is shipped, run by the real systemd.

What differs from a dom0 is in `LAB` below: the program is this checkout's, and the store is the embedded one. All else,
hardening included, is the unit's own.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.lab.systemd import LAB as INSIDE
from tests.lab.systemd import Systemd, bindings, wait_for
from unplugd.simulator.devicemodel import DeviceModel, PortAccess, encode

ROOT = Path(__file__).parents[2]
UNITS = sorted(path for path in (ROOT / "systemd").iterdir() if path.suffix in {".service", ".socket"})
PROGRAMS = Path(sys.executable).parent
UNIT = "unplugd.service"


def lab(programs: Path = PROGRAMS) -> str:
    """What differs from a dom0."""
    return f"""
[Unit]
ConditionPathExists=
[Service]
ExecStart=
ExecStart={programs}/unplugd --config {INSIDE}/unplugd.toml
{bindings()}
"""


LAB = lab()

CONFIGURATION = """
[xenstore]
backend = "embedded"
[[xenstore.domain]]
domid = 7
name = "web-01"
uuid = "4f0e0c5e-0000-4000-8000-000000000007"
[[blacklist.entry]]
product = "xensource-windows"
build = 86451
"""

SECOND_DOMAIN = """
[[xenstore.domain]]
domid = 8
name = "web-02"
"""


class Host:
    """A booted host that has the unit and its configuration, but has not started it."""

    def __init__(self, systemd: Systemd) -> None:
        self.systemd = systemd
        self.configuration = systemd.directory / "unplugd.toml"
        self.configuration.write_text(CONFIGURATION)
        for unit in UNITS:
            shutil.copy(unit, systemd.units)
        systemd.drop_in(UNIT, "lab", LAB)
        systemd.drop_in("unplugd-http.socket", "lab", "[Unit]\nConditionPathExists=")
        systemd.daemon_reload()

    def settings(self, name: str, text: str) -> None:
        """Add a drop-in, as an administrator would."""
        self.systemd.drop_in(UNIT, name, text)
        self.systemd.daemon_reload()

    def start(self) -> None:
        """`systemctl start`, which waits for READY=1."""
        self.systemd.systemctl("start", UNIT, timeout=60)

    def wait_for(self, name: str, value: str) -> None:
        self.systemd.wait_for_property(UNIT, name, value, 60)

    def main_pid(self) -> int:
        """The daemon's process id, inside."""
        return int(self.systemd.property(UNIT, "MainPID"))

    def kill(self, number: signal.Signals) -> None:
        self.systemd.systemctl("kill", "--kill-whom=main", f"--signal={number.name}", UNIT)

    def path(self, name: str) -> Path:
        """A file of the runtime directory."""
        return self.systemd.path("/run/unplugd") / name

    def device_model(self, domid: int = 7) -> DeviceModel:
        return DeviceModel(self.path(f"dom{domid}.sock"), timeout=30, reconnect=60)

    def get(self, target: str) -> tuple[int, bytes]:
        """Status and body of a GET over control.sock."""
        connection = http.client.HTTPConnection("unplugd", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        try:
            connection.sock.connect(str(self.path("control.sock")))
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def journal(self, contains: str) -> dict[str, str]:
        return self.systemd.wait_for_journal("SYSLOG_IDENTIFIER=unplugd", contains=contains)


@pytest.fixture
def host(systemd: Systemd) -> Host:
    return Host(systemd)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_to_say(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for other in UNITS:
        (tmp_path / other.name).write_text(other.read_text().replace("/usr/bin/unplugd", f"{PROGRAMS}/unplugd"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_started_it_is_ready_and_serves(host: Host) -> None:
    host.start()
    properties = host.systemd.properties(UNIT, "ActiveState", "SubState", "StatusText", "NRestarts")
    assert properties["ActiveState"] == "active"
    assert properties["SubState"] == "running"
    assert properties["NRestarts"] == "0"
    # READY=1 comes when the domains have been read: at once there are sockets, and the status counts the domains.
    assert re.match(r"1 domains?\b.*\b0 throttled\b.*xenstore connected", properties["StatusText"])
    assert host.get("/-/ready")[0] == 200
    with host.device_model() as device_model:
        assert device_model.inw(0x10) == 0x49D2
        device_model.outw(0x12, 1)
        device_model.outl(0x10, 86451)
        assert device_model.inw(0x10) == 0xD249
        device_model.outsb(0x12, b"hello from the guest\n")
    line = host.systemd.wait_for_journal("SYSLOG_IDENTIFIER=unplugd-guest")
    assert line["MESSAGE"] == "hello from the guest"
    assert line["XEN_DOMAIN_NAME"] == "web-01"
    assert line["_SYSTEMD_UNIT"] == UNIT


def test_status_follows_the_domains(host: Host) -> None:
    host.start()
    host.configuration.write_text(CONFIGURATION + SECOND_DOMAIN)
    host.systemd.systemctl("reload", UNIT)
    wait_for(lambda: host.systemd.property(UNIT, "StatusText").startswith("2 domains"), "two domains in STATUS=")


def test_directories(host: Host) -> None:
    host.start()
    modes = {
        path: stat.S_IMODE(host.systemd.path(path).stat().st_mode)
        for path in ("/run/unplugd", "/run/unplugd/dom7.sock", "/run/unplugd/control.sock", "/var/log/xen/unplugd")
    }
    assert modes == {
        "/run/unplugd": 0o755,
        "/run/unplugd/dom7.sock": 0o600,
        "/run/unplugd/control.sock": 0o600,
        "/var/log/xen/unplugd": 0o750,
    }


def test_file_descriptors_for_a_thousand_guests(host: Host) -> None:
    host.start()
    limits = host.systemd.path(f"/proc/{host.main_pid()}/limits").read_text()
    found = re.search(r"^Max open files +(\d+) ", limits, re.MULTILINE)
    assert found is not None
    # Where the tests themselves run under a lower hard limit, systemd gives as much as it may.
    assert int(found[1]) >= min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_a_stuck_loop_is_killed_and_started_again(host: Host) -> None:
    host.settings("watchdog", "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=5s\nLimitCORE=0")
    host.start()
    first = host.main_pid()
    host.kill(signal.SIGSTOP)
    host.wait_for("NRestarts", "1")
    host.wait_for("ActiveState", "active")
    assert host.main_pid() not in (0, first)
    host.systemd.wait_for_journal("_PID=1", contains="Watchdog timeout")
    with host.device_model() as device_model:
        assert device_model.inw(0x10) == 0x49D2


def test_progress_keeps_the_watchdog_quiet(host: Host) -> None:
    host.settings("watchdog", "[Service]\nWatchdogSec=2s")
    host.start()
    begin = int(host.systemd.property(UNIT, "WatchdogTimestampMonotonic"))

    def pinged() -> bool:
        # In microseconds. Two and a half times the limit later it still pings, and is the same process.
        return int(host.systemd.property(UNIT, "WatchdogTimestampMonotonic")) - begin > 5_000_000

    wait_for(pinged, "pings for 5 s")
    assert host.systemd.property(UNIT, "NRestarts") == "0"


def test_killed_it_comes_back_and_remembers(host: Host) -> None:
    host.start()
    with host.device_model() as device_model:
        device_model.outw(0x12, 3)
        device_model.outl(0x10, 1)
        assert device_model.outw(0x10, 3) == 3
        host.kill(signal.SIGKILL)
        # The device model connects again by itself; its path outlived the process.
        assert device_model.inw(0x10) == 0x49D2
    host.wait_for("ActiveState", "active")
    status, body = host.get("/api/v1/domains/7")
    domain = json.loads(body)
    assert status == 200
    assert (domain["product"], domain["build"], domain["unplugged_mask"]) == (3, 1, 3)


def test_while_it_restarts_nobody_is_refused(host: Host) -> None:
    host.settings("slow", "[Service]\nRestartSec=3s")
    host.start()
    host.kill(signal.SIGKILL)
    host.wait_for("SubState", "auto-restart")
    # There is no process, but a socket that takes connections: it is systemd that holds it.
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(host.path("dom7.sock")))
        assert host.main_pid() == 0
        client.sendall(encode(PortAccess(0x10, 2, read=True)))
        answer = client.recv(32, socket.MSG_WAITALL)
    assert answer[8:10] == b"\xd2\x49"
    assert host.systemd.property(UNIT, "NRestarts") == "1"


def test_an_ordered_restart_refuses_nobody_either(host: Host) -> None:
    host.start()
    inode = host.path("dom7.sock").stat().st_ino
    host.systemd.systemctl("restart", UNIT, timeout=60)
    assert host.path("dom7.sock").stat().st_ino == inode
    with host.device_model() as device_model:
        assert device_model.inw(0x10) == 0x49D2


def test_without_a_store_of_descriptors_it_restarts_all_the_same(host: Host) -> None:
    host.settings("store", "[Service]\nFileDescriptorStoreMax=0")
    host.start()
    with host.device_model() as device_model:
        device_model.outw(0x12, 3)
        host.kill(signal.SIGKILL)
        device_model.outl(0x10, 1)
        assert device_model.inw(0x10) == 0x49D2
    assert json.loads(host.get("/api/v1/domains/7")[1])["build"] == 1


def test_reload_applies_a_new_configuration(host: Host) -> None:
    host.start()
    pid = host.main_pid()
    host.configuration.write_text(CONFIGURATION + SECOND_DOMAIN)
    host.systemd.systemctl("reload", UNIT)
    wait_for(host.path("dom8.sock").exists, "a socket for the new domain")
    with host.device_model(8) as device_model:
        assert device_model.inw(0x10) == 0x49D2
    assert host.main_pid() == pid


def test_a_reload_that_is_refused_fails_and_the_status_says_why(host: Host) -> None:
    host.start()
    pid = host.main_pid()
    host.configuration.write_text(CONFIGURATION + '[log]\non_limit = "wait"\n' + SECOND_DOMAIN)
    for _ in range(2):
        assert host.systemd.execute("systemctl", "reload", UNIT, check=False).returncode != 0
        status = host.systemd.property(UNIT, "StatusText")
        assert f"last reload refused: {INSIDE}/unplugd.toml: log.on_limit: " in status
        assert host.systemd.property(UNIT, "ActiveState") == "active"
    record = host.journal("log.on_limit")
    assert f"{INSIDE}/unplugd.toml" in record["MESSAGE"]
    assert not host.path("dom8.sock").exists()
    with host.device_model() as device_model:
        assert device_model.inw(0x10) == 0x49D2
    # what only the running service can know refuses too
    host.configuration.write_text('runtime_dir = "/run/elsewhere"\n' + CONFIGURATION)
    assert host.systemd.execute("systemctl", "reload", UNIT, check=False).returncode != 0
    assert "restart unplugd" in host.systemd.property(UNIT, "StatusText")
    host.configuration.write_text(CONFIGURATION + SECOND_DOMAIN)
    host.systemd.systemctl("reload", UNIT)
    assert "refused" not in host.systemd.property(UNIT, "StatusText")
    assert host.path("dom8.sock").exists()
    assert not host.path("reload").exists()
    assert not host.path("reload.refused").exists()
    assert host.main_pid() == pid


def test_drop_ins_that_the_service_may_not_read_refuse_the_reload(host: Host) -> None:
    host.start()
    drop_ins = host.configuration.with_name("unplugd.toml.d")
    drop_ins.mkdir()
    (drop_ins / "10.toml").write_text("[[blacklist.entry]]\nproduct = 'linux'\nbuild = 5\n")
    host.systemd.systemctl("reload", UNIT)
    with host.device_model() as device_model:
        device_model.outw(0x12, 3)
        device_model.outl(0x10, 5)
        assert device_model.inw(0x10) == 0xD249
    os.chown(drop_ins, 65534, 65534)
    drop_ins.chmod(0o700)
    assert host.systemd.execute("systemctl", "reload", UNIT, check=False).returncode != 0
    assert "unplugd.toml.d: cannot be listed: Permission denied" in host.systemd.property(UNIT, "StatusText")
    # root in a shell may list it, so the service is asked
    file = f"{INSIDE}/unplugd.toml"
    done = host.systemd.execute(f"{PROGRAMS}/unplugctl", "--config", file, "config", "check", check=False)
    assert done.returncode == 2
    assert "cannot be listed: Permission denied" in done.stderr
    with host.device_model() as device_model:
        device_model.outw(0x12, 3)
        device_model.outl(0x10, 5)
        assert device_model.inw(0x10) == 0xD249
    host.systemd.systemctl("stop", UNIT, timeout=60)
    host.systemd.systemctl("start", UNIT, check=False, timeout=60)
    host.wait_for("ActiveState", "failed")
    assert host.systemd.properties(UNIT, "ExecMainStatus", "NRestarts") == {"ExecMainStatus": "2", "NRestarts": "0"}


def test_a_wrong_configuration_is_not_tried_again_and_again(host: Host) -> None:
    host.configuration.write_text("[log]\nrate = -1\n")
    host.systemd.systemctl("start", UNIT, check=False, timeout=60)
    host.wait_for("ActiveState", "failed")
    properties = host.systemd.properties(UNIT, "ExecMainStatus", "NRestarts", "Result")
    assert properties == {"ExecMainStatus": "2", "NRestarts": "0", "Result": "exit-code"}
    assert "log.rate" in host.journal("unplugd.toml")["MESSAGE"]


def test_stopped_it_ends_well_and_what_must_outlive_it_does(host: Host) -> None:
    host.start()
    with host.device_model() as device_model:
        device_model.outsb(0x12, b"a line without its end")
    host.systemd.systemctl("stop", UNIT, timeout=60)
    properties = host.systemd.properties(UNIT, "ActiveState", "Result", "ExecMainStatus", "NRestarts")
    assert properties == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0", "NRestarts": "0"}
    assert host.path("").is_dir()


def test_without_xen_there_is_nothing_to_serve(host: Host) -> None:
    # The conditions are the unit's own again, and of the three paths a test machine has none.
    if any(Path(path).exists() for path in ("/proc/xen", "/dev/xen/xenbus", "/sys/hypervisor/uuid")):
        pytest.skip("this machine is a Xen domain itself")
    host.systemd.drop_in(UNIT, "lab", LAB.replace("[Unit]\nConditionPathExists=\n", ""))
    host.systemd.daemon_reload()
    host.start()
    properties = host.systemd.properties(UNIT, "ActiveState", "ConditionResult")
    assert properties == {"ActiveState": "inactive", "ConditionResult": "no"}


FETCH = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"


def test_a_passed_socket_takes_the_place_of_the_tcp_listener(host: Host) -> None:
    host.systemd.unit(
        "unplugd-http.socket",
        """
        [Socket]
        ListenStream=127.0.0.1:9000
        FileDescriptorName=http
        Service=unplugd.service
        """,
    )
    host.systemd.daemon_reload()
    host.start()
    metrics = host.systemd.execute(sys.executable, "-c", FETCH, "http://127.0.0.1:9000/metrics").stdout
    assert re.search(r"^unplugd_domains 1(\.0)?$", metrics, re.MULTILINE)
    with pytest.raises(Exception, match="refused"):
        host.systemd.execute(sys.executable, "-c", FETCH, "http://127.0.0.1:9877/metrics")


def test_the_lab_leaves_nothing(tmp_path: Path, systemd: Systemd) -> None:
    """The lab itself: two of them at a time do not meet, and a stopped one is gone."""
    directory = tmp_path / "second"
    directory.mkdir()
    with Systemd(directory) as second:
        second.unit("sleep.service", "[Service]\nExecStart=/bin/sleep infinity\nPrivateTmp=yes")
        second.daemon_reload()
        second.systemctl("start", "sleep.service")
        assert systemd.execute("systemctl", "is-active", "sleep.service", check=False).stdout.strip() == "inactive"
        pid = second.pid
    assert not Path(f"/proc/{pid}").exists()
    assert [path for path in os.listdir("/tmp") if "sleep.service" in path] == []


def test_the_unit_says_why() -> None:
    """A setting that is not obvious has a comment above its group; the three that break unplugd are not there."""
    text = (ROOT / "systemd" / UNIT).read_text()
    settings = {line.split("=")[0] for line in text.splitlines() if re.match(r"[A-Z]\w+=", line)}
    assert settings.isdisjoint({"PrivateUsers", "PrivateDevices", "ProtectClock"})
    groups = [group for group in textwrap.dedent(text).split("\n\n") if not group.startswith("#")]
    for group in groups:
        assert group.startswith(("[Unit]", "[Service]", "[Install]")), group
