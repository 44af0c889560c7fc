"""The Debian package in a clean Debian 12: installed, serving, upgraded, removed, purged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemon import Wire, uuid
from tests.lab.frames import frame
from tests.packaging.tree import Debian, run, wait_for

EMBEDDED = f"""
[xenstore]
backend = "embedded"
[[xenstore.domain]]
domid = 7
name = "web-01"
uuid = "{uuid(7)}"
[[blacklist.entry]]
product = "xensource-windows"
build = 86451
reason = "loses data on resume"
"""
UNCONDITIONAL = "[Unit]\nConditionPathExists=\n"

# what the tree's own tools remember of any package
FORGIVEN = ("/var/log/", "/var/cache/apt/", "/var/cache/ldconfig", "/var/lib/apt/", "/var/lib/dpkg/", "/root/", "/tmp/",
            "/proc/", "/sys/", "/run/", "/dev/")


# While the package is upgraded: who connects as a device model or as Prometheus is never turned away.
NEIGHBOURS = f"magic = {frame(0x10, 2, read=True)!r}" + """
import json, os, socket, time
asked, refused, longest = 0, [], 0.0
while not os.path.exists("/root/enough"):
    for family, address, request in ((socket.AF_UNIX, "/run/unplugd/dom7.sock", magic),
                                     (socket.AF_INET, ("127.0.0.1", 9877), b"GET /-/healthy HTTP/1.0\\r\\n\\r\\n")):
        begin, answered = time.monotonic(), False
        # a connection to a process that ends is made again, as a device model does
        while not answered:
            with socket.socket(family) as neighbour:
                neighbour.settimeout(60)
                try:
                    neighbour.connect(address)
                except OSError as error:
                    refused.append(f"{address}: {error}")
                    break
                try:
                    neighbour.sendall(request)
                    answered = bool(neighbour.recv(4096))
                except ConnectionError:
                    pass
        asked += 1
        longest = max(longest, time.monotonic() - begin)
    time.sleep(0.01)
print(json.dumps({"asked": asked, "refused": refused, "longest": longest}))
"""


@pytest.fixture
def older(package: Path, tmp_path: Path) -> Path:
    """The same package with the version before."""
    run("dpkg-deb", "--raw-extract", package, tmp_path / "tree")
    control = tmp_path / "tree" / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: (.*)$", r"Version: \1~before", control.read_text()))
    run("dpkg-deb", "--root-owner-group", "--build", tmp_path / "tree", tmp_path / "unplugd_older.deb")
    return tmp_path / "unplugd_older.deb"


def test_the_package_follows_policy(package: Path) -> None:
    if subprocess.run(["sh", "-c", "command -v lintian"], capture_output=True, check=False).returncode:
        pytest.skip("lintian is not installed")
    done = run("lintian", "--allow-root", "--fail-on", "error,warning", package, check=False)
    assert done.returncode == 0, done.stdout


def ctl(debian: Debian, *arguments: str, status: int = 0) -> str:
    done = debian.execute("unplugctl", *arguments, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def ask(debian: Debian, *arguments: str) -> Any:
    return json.loads(ctl(debian, *arguments, "-l"))


def files(debian: Debian) -> set[str]:
    """All that the tree has, but what its own tools remember of any package."""
    found = debian.execute("find", "/", "-xdev", "-not", "-path", "/proc/*", "-not", "-path", "/sys/*").stdout
    return {line for line in found.splitlines() if not line.startswith(FORGIVEN) and "__pycache__" not in line}


def units(debian: Debian) -> dict[str, str]:
    shown = debian.execute("systemctl", "show", "unplugd", "--property=ActiveState,UnitFileState,MainPID,NRestarts")
    return dict(line.split("=", 1) for line in shown.stdout.splitlines())


def test_from_install_to_purge(package: Path, older: Path) -> None:
    with Debian() as debian:
        debian.fetch(package, older)
        debian.boot()
        before = files(debian)
        installed(debian, older)
        serving(debian)
        told(debian)
        upgraded(debian, package)
        removed(debian)
        debian.execute("apt-get", "-qy", "purge", "unplugd")
        left = {path for path in files(debian) - before if "unplug" in path}
        assert left == set()
        assert "unplugd" not in debian.execute("dpkg-query", "-W", "-f", "${Package} ").stdout
        debian.execute("apt-get", "-qy", "autoremove", "--purge")
        more = {path for path in files(debian) - before if not path.startswith(("/etc/", "/var/lib/systemd/"))}
        assert {path for path in more if "python" not in path} == set()


def installed(debian: Debian, package: Path) -> None:
    done = debian.execute("apt-get", "-qy", "--no-install-recommends", "install", f"/root/{package.name}", timeout=900)
    assert "Setting up unplugd" in done.stdout
    # this tree is no dom0, so the unit has nothing to serve; it is enabled all the same
    assert units(debian)["UnitFileState"] == "enabled"
    assert units(debian)["ActiveState"] == "inactive"
    attach = debian.execute("systemctl", "is-enabled", "unplugd-attach", check=False)
    assert attach.stdout.strip() == "disabled"
    assert "unplugd does not run" in ctl(debian, "list", status=3)
    assert debian.execute("dpkg", "--verify", "unplugd").stdout == ""
    assert "no file" not in ctl(debian, "config", "check")
    for command in ("unplugd", "unplugctl", "unplugd-attach"):
        assert debian.execute(command, "--help").stdout.startswith(f"usage: {command}")
        assert debian.path(f"/usr/share/man/man{'1' if command == 'unplugctl' else '8'}/{command}.8.gz").exists() or (
            command == "unplugctl")
    assert debian.execute("id", "unplugd-attach").stdout


def serving(debian: Debian) -> None:
    """As `systemctl edit` and an administrator's file in conf.d do it."""
    debian.path("/etc/unplugd/conf.d/10-embedded.toml").write_text(EMBEDDED)
    drop_in = debian.path("/etc/systemd/system/unplugd.service.d")
    drop_in.mkdir(parents=True)
    (drop_in / "everywhere.conf").write_text(UNCONDITIONAL)
    socket = debian.path("/etc/systemd/system/unplugd-http.socket.d")
    socket.mkdir()
    (socket / "everywhere.conf").write_text(UNCONDITIONAL)
    debian.execute("systemctl", "daemon-reload")
    debian.execute("systemctl", "start", "unplugd-http.socket", "unplugd")
    assert units(debian)["ActiveState"] == "active"
    with Wire(debian.path("/run/unplugd/dom7.sock")) as guest:
        assert guest.announce(1, 86451) == 0xD249
        guest.log(b"hello from the guest\n")
    assert "web-01" in ctl(debian, "list")
    assert "loses data on resume" in ctl(debian, "show", "web-01")
    wait_for(lambda: "hello from the guest" in ctl(debian, "log", "web-01"), "the guest's line in the journal")
    kinds = [json.loads(line)["event"] for line in ctl(debian, "events", "-l").splitlines()]
    assert {"started", "introduced", "announced", "blacklisted"} <= set(kinds)
    explained = debian.execute("journalctl", "-x", "--no-pager", "SYSLOG_IDENTIFIER=unplugd").stdout
    assert "A guest's PV driver is blacklisted" in explained
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9877/metrics').read().decode())"
    assert "unplugd_domain_blacklisted" in debian.execute("python3", "-c", fetch).stdout


def told(debian: Debian) -> None:
    assert ask(debian, "status")["ready"] is True
    added = ask(debian, "blacklist", "add", "--persist", "linux", "9")
    assert added["reloaded"] is True
    assert added["file"] == "/etc/unplugd/conf.d/50-unplugctl.toml"
    wait_for(lambda: "configuration reloaded" in ctl(debian, "events"), "the reload")
    completed = debian.execute("bash", "-c", "source /usr/share/bash-completion/completions/unplugctl;"
                               "COMP_WORDS=(unplugctl show w) COMP_CWORD=2; _unplugctl; echo ${COMPREPLY[@]}")
    assert completed.stdout.strip() == "web-01"


def upgraded(debian: Debian, package: Path) -> None:
    """The administrator's changes stay, and neither guests nor Prometheus notice."""
    config = debian.path("/etc/unplugd/unplugd.toml")
    config.write_text(config.read_text() + "# an administrator's comment\n")
    with Wire(debian.path("/run/unplugd/dom7.sock")) as guest:
        guest.reset()
        assert guest.announce(3, 1) == 0x49D2
        assert guest.write(0x10, 2, 3) == 3
    before = units(debian)["MainPID"]
    with ThreadPoolExecutor(1) as pool:
        neighbours = pool.submit(debian.execute, "python3", "-c", NEIGHBOURS, timeout=900)
        try:
            done = debian.execute("apt-get", "-qy", "install", f"/root/{package.name}", timeout=900)
            assert "1 upgraded" in done.stdout
            wait_for(lambda: ask(debian, "status")["ready"] is True, "the new one to be ready")
        finally:
            debian.path("/root/enough").touch()
        noticed = json.loads(neighbours.result().stdout)
    assert noticed["refused"] == []
    assert noticed["asked"] > 10
    assert config.read_text().endswith("# an administrator's comment\n")
    after = units(debian)
    assert after["ActiveState"] == "active"
    assert after["MainPID"] != before
    assert ask(debian, "show", "7")["unplugged"] == ["ide-disks", "nics"]


def removed(debian: Debian) -> None:
    debian.execute("apt-get", "-qy", "remove", "unplugd")
    assert not debian.path("/run/unplugd").exists()
    assert debian.path("/etc/unplugd/unplugd.toml").read_text().endswith("# an administrator's comment\n")
    assert debian.path("/etc/unplugd/conf.d/50-unplugctl.toml").exists()
    for drop_in in ("unplugd.service.d", "unplugd-http.socket.d"):
        shutil.rmtree(debian.path(f"/etc/systemd/system/{drop_in}"))
