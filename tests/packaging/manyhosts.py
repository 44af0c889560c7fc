"""Two hosts with the Ansible role of config/ansible: installed, and a list rolled out from "observe" to "enforce". Then
one sends its guests' lines to a central journal on the other.

Each host is a clean Debian 12 with its own systemd. Ansible comes from PyPI and reaches the hosts by ssh. `make
test-fleet` runs this; it takes too long for `make test-packaging`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import DOM0, blocks
from tests.lab.daemon import Wire, uuid
from tests.packaging.tree import CACHE, ROOT, Debian, locked, run, wait_for

pytestmark = pytest.mark.timeout(900)

ANSIBLE = "ansible-core>=2.18,<2.20"
PLAYBOOKS = ROOT / "config" / "ansible"
BAD = 86451

EMBEDDED = f"""
[xenstore]
backend = "embedded"
[[xenstore.domain]]
domid = 7
name = "web-01"
uuid = "{uuid(7)}"
"""
UNCONDITIONAL = "[Unit]\nConditionPathExists=\n"
LIST = f"""
[[blacklist.entry]]
product = "xensource-windows"
build = {BAD}
reason = "loses data on resume"
"""
INVENTORY = """
all:
  vars:
    ansible_user: root
    ansible_python_interpreter: /usr/bin/python3
    unplugd_package: {package}
    unplugd_list: {list}
    unplugd_mode: {everywhere}
  children:
    canary:
      hosts:
        dom0-a: {{ansible_ssh_common_args: {a}}}
      vars:
        unplugd_mode: {canary}
    others:
      hosts:
        dom0-b: {{ansible_ssh_common_args: {b}}}
"""


def installed_ansible() -> Path:
    """The directory of Ansible's commands."""
    directory = CACHE / "ansible"
    with locked("ansible"):
        if not (directory / "bin/ansible-playbook").exists():
            shutil.rmtree(directory, ignore_errors=True)
            run(sys.executable, "-m", "venv", directory)
            run(directory / "bin/pip", "install", "-q", ANSIBLE, timeout=900)
    return directory / "bin"


class Fleet:
    """Two booted hosts, and the machine that Ansible runs on."""

    def __init__(self, a: Debian, b: Debian, package: Path, directory: Path) -> None:
        self.a, self.b = a, b
        self._package = package
        self._directory = directory
        self._ansible = installed_ansible()
        self.list = directory / "blacklist.toml"
        key = directory / "key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        for host in (a, b):
            folder = host.path("/root/.ssh")
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
            host.path("/run/sshd").mkdir(exist_ok=True)

    def _ssh(self, host: Debian) -> str:
        """ssh without a network: sshd serves the pipe of a proxy command."""
        proxy = shlex.join([*host.enter, "/usr/sbin/sshd", "-i", "-o", "UsePAM=no"])
        options = [f"ProxyCommand={proxy}", f"IdentityFile={self._directory}/key", "StrictHostKeyChecking=no",
                   "UserKnownHostsFile=/dev/null"]
        return repr(" ".join("-o " + shlex.quote(option) for option in options))

    def play(self, book: str, *options: str, canary: str = "observe", everywhere: str = "observe") -> tuple[int, str]:
        """Run a playbook; its status and what it printed."""
        inventory = self._directory / "inventory.yml"
        inventory.write_text(INVENTORY.format(package=self._package, list=self.list, a=self._ssh(self.a),
                                              b=self._ssh(self.b), canary=canary, everywhere=everywhere))
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._directory), "LC_ALL": "C.UTF-8",
                       "ANSIBLE_PIPELINING": "1", "ANSIBLE_NOCOWS": "1"}
        done = subprocess.run([self._ansible / "ansible-playbook", "-i", inventory, PLAYBOOKS / book, *options],
                              env=environment, capture_output=True, text=True, timeout=600, check=False)
        return done.returncode, done.stdout + done.stderr

    def rolled_out(self, *, canary: str, everywhere: str) -> dict[str, int]:
        """Roll the list out; how many tasks changed something, by host."""
        status, said = self.play("rollout.yml", canary=canary, everywhere=everywhere)
        assert status == 0, said
        return {host: int(count) for host, count in re.findall(r"^(dom0-.) +: .*changed=(\d+)", said, re.MULTILINE)}


def announced(host: Debian) -> int:
    """The magic number that the guest reads after its driver has announced itself anew."""
    with Wire(host.path("/run/unplugd/dom7.sock")) as guest:
        guest.reset()
        return guest.announce(1, BAD)


def state(host: Debian) -> str:
    """What the role could change."""
    command = "ls -lR --time-style=full-iso /etc/unplugd /var/cache/*.deb; dpkg-query -W; ls /tmp"
    return host.execute("sh", "-c", command, check=False).stdout


@pytest.fixture(scope="module")
def fleet(package: Path) -> Iterator[Fleet]:
    # a short path, for the socket of ssh's master connection
    with tempfile.TemporaryDirectory(prefix="fleet") as directory, Debian() as a:
        a.fetch(package, also=("python3", "python3-apt", "openssh-server", "iproute2", "systemd-journal-remote"))
        (a.directory / "root" / package.name).unlink()
        for name in ("unplugd.service.d", "unplugd-http.socket.d"):
            drop_in = a.directory / "etc/systemd/system" / name
            drop_in.mkdir()
            (drop_in / "everywhere.conf").write_text(UNCONDITIONAL)
        own = a.directory / "etc/unplugd/conf.d"
        own.mkdir(parents=True)
        (own / "10-embedded.toml").write_text(EMBEDDED)
        with Debian(like=a) as b:
            a.boot()
            b.boot()
            yield Fleet(a, b, package, Path(directory))


def test_a_list_that_is_wrong_anywhere_changes_nothing(fleet: Fleet) -> None:
    fleet.list.write_text(LIST.replace("build =", "biuld ="))
    before = state(fleet.a), state(fleet.b)
    status, said = fleet.play("rollout.yml")
    assert (status != 0, "biuld: is not a key" in said) == (True, True), said
    assert (state(fleet.a), state(fleet.b)) == before

    # wrong only together with what one host has
    fleet.list.write_text(LIST)
    own = fleet.b.path("/etc/unplugd/conf.d/15-own.toml")
    own.write_text("[products]\nxensource-windows = 5\n")
    before = state(fleet.a), state(fleet.b)
    status, said = fleet.play("rollout.yml")
    assert (status != 0, "15-own.toml" in said) == (True, True), said
    assert (state(fleet.a), state(fleet.b)) == before
    own.unlink()


def test_from_observing_to_enforcing(fleet: Fleet) -> None:
    a, b = fleet.a, fleet.b
    fleet.list.write_text(LIST)
    changed = fleet.rolled_out(canary="observe", everywhere="observe")
    assert min(changed.values()) > 2, changed
    assert fleet.rolled_out(canary="observe", everywhere="observe") == {"dom0-a": 0, "dom0-b": 0}
    assert [announced(host) for host in (a, b)] == [0x49D2, 0x49D2]
    assert "reported" in a.execute("unplugctl", "list").stdout.lower()

    status, said = fleet.play("look.yml")
    assert status == 0, said
    assert len(re.findall(rf"web-01: xensource-windows {BAD}, reported now, would be", said)) == 2, said

    assert fleet.rolled_out(canary="enforce", everywhere="observe") == {"dom0-a": 2, "dom0-b": 0}
    assert [announced(host) for host in (a, b)] == [0xD249, 0x49D2]
    assert fleet.rolled_out(canary="enforce", everywhere="enforce") == {"dom0-a": 0, "dom0-b": 2}
    assert [announced(host) for host in (a, b)] == [0xD249, 0xD249]

    # a file that an interrupted run has left, which unplugd has not read
    mode = a.path("/etc/unplugd/conf.d/21-fleet-mode.toml")
    mode.write_text(mode.read_text().replace("enforce", "observe"))
    assert fleet.rolled_out(canary="observe", everywhere="enforce") == {"dom0-a": 1, "dom0-b": 0}
    assert announced(a) == 0x49D2


def certificates(directory: Path) -> None:
    """A certificate authority, and a key and certificate that it signed for each host."""
    def openssl(*arguments: str | Path) -> None:
        run("openssl", *arguments)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=lab",
            "-keyout", directory / "ca.key", "-out", directory / "ca.pem")
    for name in ("dom0-a", "dom0-b"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
                "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.csr")
        openssl("x509", "-req", "-days", "2", "-copy_extensions", "copy", "-in", directory / f"{name}.csr",
                "-CA", directory / "ca.pem", "-CAkey", directory / "ca.key", "-CAcreateserial",
                "-out", directory / f"{name}.pem")  # fmt: skip


def recipe() -> list[tuple[str, str]]:
    """The commands of docs/fleet.md, and where they run."""
    found = [(block.note, block.text) for block in blocks(ROOT / "docs/fleet.md")]
    marked = [(note.split(";")[0].removeprefix(DOM0), text) for note, text in found if note.endswith("runs it")]
    assert [where for where, _ in marked] == ["on the central host", "on each host"]
    return marked


def test_guest_lines_at_a_central_journal(fleet: Fleet, tmp_path: Path) -> None:
    """With the commands of the documentation, TLS on both sides, and the central host away for a while."""
    central, host = fleet.b, fleet.a
    fleet.list.write_text(LIST)
    fleet.rolled_out(canary="observe", everywhere="observe")
    run("ip", "link", "add", "lab0", "netns", str(host.pid), "type", "veth", "peer", "name", "lab0",
        "netns", str(central.pid))  # fmt: skip
    certificates(tmp_path)
    for number, (name, tree) in enumerate((("dom0-a", host), ("dom0-b", central)), 1):
        tree.execute("ip", "addr", "add", f"10.97.0.{number}/24", "dev", "lab0")
        tree.execute("ip", "link", "set", "lab0", "up")
        tree.execute("hostname", name)
        hosts = tree.path("/etc/hosts")
        hosts.write_text(hosts.read_text() + "10.97.0.1 dom0-a\n10.97.0.2 dom0-b logs.example.org\n")
        folder = tree.path("/root/tls")
        folder.mkdir()
        for source, target in ((f"{name}.key", "key.pem"), (f"{name}.pem", "cert.pem"), ("ca.pem", "ca.pem")):
            shutil.copy(tmp_path / source, folder / target)
    for where, commands in recipe():
        tree = central if where == "on the central host" else host
        tree.execute("sh", "-ec", "cd /root/tls\n" + commands.replace("logs.example.org", "dom0-b"))

    def received(text: str) -> bool:
        done = central.execute("journalctl", "-D", "/var/log/journal/remote", "-o", "json", "--all", "--quiet",
                               "SYSLOG_IDENTIFIER=unplugd-guest", "XEN_DOMAIN_NAME=web-01", check=False)
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        assert {(one["_HOSTNAME"], one["XEN_DOMAIN_UUID"]) for one in entries} <= {("dom0-a", uuid(7))}
        return any(one["MESSAGE"] == text for one in entries)

    with Wire(host.path("/run/unplugd/dom7.sock")) as guest:
        guest.log(b"seen from afar\n")
    wait_for(lambda: received("seen from afar"), "the guest's line at the central host")
    others = central.execute("journalctl", "-D", "/var/log/journal/remote", "-o", "json", "--quiet").stdout
    units = {json.loads(line).get("_SYSTEMD_UNIT") for line in others.splitlines()}
    assert units == {"unplugd.service", "systemd-journald@unplugd.service"}

    central.execute("systemctl", "stop", "systemd-journal-remote.socket", "systemd-journal-remote.service")
    with Wire(host.path("/run/unplugd/dom7.sock")) as guest:
        guest.log(b"while it was away\n")
    wait_for(lambda: host.execute("systemctl", "show", "-P", "NRestarts", "systemd-journal-upload").stdout != "0\n",
             "the upload to fail")
    central.execute("systemctl", "start", "systemd-journal-remote.socket")
    wait_for(lambda: received("while it was away"), "the line from before")
