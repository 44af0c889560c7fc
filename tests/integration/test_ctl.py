"""unplugctl as an administrator types it: its own process, against the running daemon, xenstored and journald."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemon import Daemon, Run, embedded, eventually, merged, toml, uuid
from tests.lab.journald import Journald
from tests.lab.xenspeak import XenstoreError
from tests.lab.xenstored import Xenstored
from unplugd.ctl.failure import EXITS
from unplugd.ctl.persist import FILE

UNPLUGCTL = str(Path(sys.executable).with_name("unplugctl"))


def ctl(file: Path, *arguments: str, status: int = 0) -> str:
    """What it prints; its error output too where it fails as expected."""
    command = [UNPLUGCTL, *arguments, "--config", str(file)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + (done.stderr if status else "")


def ask(file: Path, *arguments: str, status: int = 0) -> Any:
    return json.loads(ctl(file, *arguments, "-l", status=status))


# --- the daemon


@pytest.fixture
def daemon(run: Run) -> Daemon:
    return run(embedded(7, 8, 9, blacklist={
        "entry": [{"product": "xensource-windows", "build": 86451, "reason": "loses data on resume"}],
    }))  # fmt: skip


def test_list_show_and_status(daemon: Daemon) -> None:
    with daemon.connect(7) as linux, daemon.connect(8) as windows:
        assert linux.announce(3, 1) == 0x49D2
        assert linux.write(0x10, 2, 3) == 3
        assert windows.announce(1, 86451) == 0xD249
        windows.log(b"XEN|hello\x1b[2J\n")
        lines = ctl(daemon.file, "list").splitlines()
        assert lines[0].split() == ["Name", "ID", "Driver", "Build", "Verdict", "Unplugged", "Log"]
        assert lines[1].split() == ["vm7", "7", "linux", "1", "allowed", "ide-disks,nics", "-"]
        assert lines[2].split() == ["vm8", "8", "xensource-windows", "86451", "BLACKLISTED", "-", "1", "line"]
        assert lines[3].split() == ["vm9", "9", "-", "-", "-", "-", "-"]
        shown = ctl(daemon.file, "show", uuid(8))
        assert "on this host's blacklist (loses data on resume)" in shown
        assert "blacklist remove xensource-windows 86451" in shown
        assert "gave product number 1\n" in shown
        assert "gave build number 86451: blacklisted by xenstore, loses data on resume" in shown
        found = ask(daemon.file, "status")
        assert (found["ready"], found["domains"], found["blacklisted"]) == (True, 3, [8])
        assert found["pid"] == daemon.pid
        described = ask(daemon.file, "show", "vm7")
        assert [step["did"] for step in described["history"]] == ["product", "build", "magic", "unplug"]
        del described["history"]    # it has times
        again = daemon.domain(7)
        assert again is not None
        assert described == {key: value for key, value in again.items() if key != "history"}
        eventually(lambda: daemon.guest_lines("vm8"))
        assert "XEN|hello\\x1b[2J" in ctl(daemon.file, "log", "8")
        assert "hello" in ask(daemon.file, "log", "vm8")["message"]
    assert daemon.stop() == 0
    assert "systemctl status unplugd" in ctl(daemon.file, "list", status=3)
    assert "XEN|hello" in ctl(daemon.file, "log", "vm8")


def test_top_in_batches(daemon: Daemon) -> None:
    with daemon.connect(7) as guest:
        guest.log(b"x" * 100 + b"\n")
        tables = ctl(daemon.file, "top", "-b", "-i", "2", "-d", "0.1").strip().split("\n\n")
    assert len(tables) == 2
    assert all(len(table.splitlines()) == 4 for table in tables)


def test_a_reader_that_goes_away(daemon: Daemon) -> None:
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{UNPLUGCTL}" top -b -d 0.05 --config {daemon.file} | head -n 1'],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith("Name")


def test_a_thousand_guests(run: Run) -> None:
    """Under half a second. Measured in processor time of both sides too: here others use the processors as well."""
    daemon = run(embedded(*range(1, 1001)))
    assert len(ask(daemon.file, "list")["domains"]) == 1000
    ticks = os.sysconf("SC_CLK_TCK")

    def used() -> float:
        fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (int(fields[11]) + int(fields[12])) / ticks + children.ru_utime + children.ru_stime

    best = 10.0
    for _ in range(10):
        before, begin = used(), time.monotonic()
        assert ctl(daemon.file, "list").count("\n") == 1001
        best = min(best, time.monotonic() - begin, used() - before)
        if best < 0.5:
            break
    assert best < 0.5


# --- xenstore and conf.d


class Host:
    """A configuration for a real xenstored, and unplugctl with it."""

    def __init__(self, xenstored: Xenstored, directory: Path, run: Run) -> None:
        self.xenstored = xenstored
        self.run = run
        self.settings = {"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}}
        self.file = directory / "unplugd.toml"
        self.file.write_text(toml(self.settings | {"runtime_dir": str(directory / "none")}))

    def node(self, path: str) -> bytes | None:
        try:
            return self.xenstored.dom0.read(path)
        except XenstoreError as error:
            assert error.code == "ENOENT"  # noqa: PT017 # any other error is raised on
            return None


@pytest.fixture
def host(xenstored: Xenstored, tmp_path: Path, run: Run) -> Host:
    return Host(xenstored, tmp_path, run)


LINUX_9 = "/mh/driver-blacklist/linux/9"


def test_xenstore_while_the_daemon_is_down(host: Host) -> None:
    assert "no driver" in ctl(host.file, "blacklist", "list").lower()
    said = ctl(host.file, "blacklist", "add", "linux", "9", "--reason", "tests")
    assert LINUX_9 in said
    assert "until dom0 reboots" in said
    assert host.node(LINUX_9) == b"tests"
    assert "as it was before" in ctl(host.file, "blacklist", "add", "3", "9")
    assert host.node(LINUX_9) == b"tests"
    host.xenstored.dom0.write("/mh/driver-blacklist/odd/17", b"")
    rows = ask(host.file, "blacklist", "list")["entries"]
    assert [(row["product"], row["from"], row["xenstore"], row["reason"]) for row in rows] == [
        ("linux", 9, True, "tests"), ("odd", 17, True, "")]  # fmt: skip
    assert "blacklists nothing" in rows[1]["problem"]
    assert "xenstore node" in ctl(host.file, "blacklist", "check", "linux", "9", status=1)
    ctl(host.file, "blacklist", "remove", "linux", "9")
    assert host.node(LINUX_9) is None
    assert "was not blacklisted" in ctl(host.file, "blacklist", "remove", "linux", "9", status=4)
    assert "every Linux guest" in ctl(host.file, "blacklist", "add", "linux", "1", status=6)
    assert "--persist" in ctl(host.file, "blacklist", "add", "4", "9", status=2)


def test_a_xenstored_that_hangs_does_not_hang_us(host: Host) -> None:
    host.xenstored.pause()
    try:
        begin = time.monotonic()
        assert "systemctl" in ctl(host.file, "blacklist", "list", status=5)
        assert time.monotonic() - begin < 40
    finally:
        host.xenstored.resume()


def test_persist_while_the_daemon_is_down(host: Host) -> None:
    said = ctl(host.file, "blacklist", "add", "-p", "linux", "9", "-r", "kept")
    assert FILE in said
    assert "reads that when it starts" in said
    assert host.node(LINUX_9) == b"kept"
    ctl(host.file, "blacklist", "remove", "-p", "linux", "9")
    assert host.node(LINUX_9) is None
    assert ask(host.file, "blacklist", "list") == {"entries": []}


def test_a_guest_meets_what_was_added(host: Host) -> None:
    host.xenstored.create(7, "web-01", uuid(7))
    daemon = host.run(host.settings)
    with daemon.connect(7) as guest:
        assert guest.announce(3, 9) == 0x49D2
        said = ctl(daemon.file, "blacklist", "add", "linux", "9", "-r", "broken")
        assert "running guests with this driver: web-01 (7)" in said
        assert guest.read(0x10, 2) == 0x49D2
        assert guest.announce(3, 9) == 0xD249
        assert "broken" in ctl(daemon.file, "show", "web-01")
        ctl(daemon.file, "blacklist", "remove", "linux", "9")
        guest.reset()
        assert guest.announce(3, 9) == 0x49D2


def test_guests_are_seen_while_the_daemon_is_down(host: Host) -> None:
    host.xenstored.create(7, "web-01", uuid(7))
    host.xenstored.create(8, "evil\x1b[2J", uuid(8))
    daemon = host.run(host.settings)
    with daemon.connect(7) as guest:
        guest.announce(3, 1)
        guest.write(0x10, 2, 3)
        guest.log(b"still there\n")
        eventually(lambda: host.node("/local/domain/7/unplug/unplugged"))
        eventually(lambda: daemon.guest_lines("web-01"))
    daemon.kill()
    said = ctl(daemon.file, "list", status=3)
    assert said.splitlines()[1].split() == ["web-01", "7", "linux", "1", "allowed", "ide-disks,nics", "?"]
    assert said.splitlines()[2].split() == ["evil\\x1b[2J", "8", "-", "-", "-", "-", "?"]
    assert "systemctl start unplugd" in said
    assert "what it published in xenstore" in said
    assert "announced itself as linux build 1" in ctl(daemon.file, "show", uuid(7), status=3)
    assert "still there" in ctl(daemon.file, "log", "7")


def test_persist_reloads_the_daemon(host: Host) -> None:
    host.xenstored.create(7, "web-01", uuid(7))
    daemon = host.run(host.settings)
    with daemon.connect(7) as guest:
        added = ask(daemon.file, "blacklist", "add", "-p", "linux", "9", "-r", "broken")
        assert added["reloaded"] is True
        assert host.node(LINUX_9) == b"broken"
        daemon.wait_for_record("configuration reloaded")
        # products that xenstore cannot name need nothing but the reload
        assert ask(daemon.file, "blacklist", "add", "-p", "xenserver-windows-v7.0+", "5")["xenstore"] is False
        eventually(lambda: daemon.stderr().count("configuration reloaded") == 2)
        guest.reset()
        assert guest.announce(4, 5) == 0xD249
        guest.reset()
        assert guest.announce(3, 9) == 0xD249
        # what xenstored forgets comes back with the daemon, because it is configured
        assert ask(daemon.file, "blacklist", "remove", "-p", "linux", "9")["reloaded"] is True
        eventually(lambda: daemon.stderr().count("configuration reloaded") == 3)
        assert host.node(LINUX_9) is None
        guest.reset()
        assert guest.announce(3, 9) == 0x49D2


def test_an_added_entry_is_the_daemons_own(host: Host) -> None:
    """Configuration management may take the entry out of conf.d again: the reload then takes the node out."""
    daemon = host.run(host.settings)
    added = ask(daemon.file, "blacklist", "add", "-p", "linux", "9")
    eventually(lambda: host.node(LINUX_9) is not None)
    Path(added["file"]).unlink()
    daemon.reload()
    eventually(lambda: host.node(LINUX_9) is None)


def test_every_exit_status(host: Host) -> None:
    """Each of docs/unplugctl.md's, with what to do next where there is something to be done."""
    if host.xenstored.kind != "c":
        return
    host.xenstored.create(7, "web-01", uuid(7))
    daemon = host.run(merged(host.settings, {"log": {"sinks": ["stderr"]}}))
    file = daemon.file
    seen = {0: ctl(file, "list")}
    host.xenstored.dom0.write(LINUX_9, b"")
    seen[1] = ctl(file, "blacklist", "check", "linux", "9", status=1)
    seen[2] = ctl(file, "blacklist", "add", "linux", "no-number", status=2)
    seen[4] = ctl(file, "show", "nobody", status=4)
    seen[6] = ctl(file, "blacklist", "add", "linux", "1", status=6)
    seen[7] = ctl(file, "log", "web-01", status=7)
    assert daemon.stop() == 0
    seen[3] = ctl(file, "list", status=3)
    host.xenstored.kill()
    seen[5] = ctl(file, "blacklist", "list", status=5)
    assert sorted(seen) == [number for number, _ in EXITS]
    for number in (2, 3, 4, 5, 6, 7):
        problem, *hints = [line for line in seen[number].splitlines() if not line.startswith("Name") and line]
        assert hints, (number, problem)
    page = (Path(__file__).parents[2] / "docs" / "unplugctl.md").read_text().partition("## Exit status")[2]
    for number, meaning in EXITS:
        assert f"| {number} | {meaning} |" in page


# --- the journal


def journal_directory(journald: Journald) -> str:
    (directory,) = (journald.directory / "log" / "journal").iterdir()
    return str(directory)


def test_log_and_events_from_the_journal(journald: Journald, tmp_path: Path) -> None:
    daemon = Daemon(
        embedded(7, 8, log={"sinks": ["journal"]}),
        command=lambda argv: journald.command(list(argv)),
    )
    try:
        daemon.start()
        with daemon.connect(7) as guest:
            guest.announce(3, 1)
            guest.log(b"first\nG\xc3\xa4ste \x1b[2J C:\\temp\n")
        with daemon.connect(8) as other:
            other.log(b"somebody else\n")
        journald.wait_for(lambda found: len(found) == 3, "SYSLOG_IDENTIFIER=unplugd-guest")
        directory = journal_directory(journald)

        def lines(*arguments: str) -> list[str]:
            return [line.split("  ", 1)[1] for line in ctl(daemon.file, *arguments, "-D", directory).splitlines()]

        assert lines("log", "vm7") == ["first", "Gäste \\x1b[2J C:\\temp"]
        assert lines("log", "7", "-n", "1") == ["Gäste \\x1b[2J C:\\temp"]
        entry = ask(daemon.file, "log", uuid(8), "-D", directory)
        assert set(entry) == {
            "time", "event", "message", "priority", "domid", "uuid", "name", "product", "product_name", "build"}
        assert (entry["message"], entry["domid"], entry["name"], entry["event"]) == (
            "somebody else", 8, "vm8", "guest-line")
        kinds = [line.split()[0] for line in lines("events", "vm7")]
        assert kinds == ["introduced", "announced"]
        assert [line.split()[0] for line in lines("events", "-k", "announced", "-k", "started")] == [
            "started", "announced"]  # fmt: skip
        forge(journald, daemon)
        assert lines("log", "vm7", "-n", "1") == ["Gäste \\x1b[2J C:\\temp"]
        followed(daemon, directory)
        assert daemon.stop() == 0
        assert "first" in lines("log", "vm7")
        assert lines("log", "nobody") == []
    finally:
        daemon.close()


def test_the_longest_line_is_whole(journald: Journald, tmp_path: Path) -> None:
    """journalctl -o json without --all shows null in the place of a field of over 4096 bytes: escaping makes a line
    longer than what the guest wrote."""
    daemon = Daemon(embedded(7, log={"sinks": ["journal"]}), command=lambda argv: journald.command(list(argv)))
    try:
        daemon.start()
        written = b"\xc3\xa4\x1b" * 1365
        assert len(written) == 4095
        with daemon.connect(7) as guest:
            guest.log(written + b"\n")
        journald.wait_for(lambda found: len(found) == 1, "SYSLOG_IDENTIFIER=unplugd-guest")
        directory = journal_directory(journald)
        assert ask(daemon.file, "log", "vm7", "-D", directory)["message"] == "\u00e4\\x1b" * 1365
        command = ["journalctl", f"--directory={directory}", "-o", "json", "SYSLOG_IDENTIFIER=unplugd-guest"]
        raw = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert json.loads(raw)["MESSAGE"] is None, "docs/logging.md says so"
    finally:
        daemon.close()


def forge(journald: Journald, daemon: Daemon) -> None:
    """A local user writes entries that look like unplugd's."""
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        f"s.sendto(b'MESSAGE=forged\\nSYSLOG_IDENTIFIER=unplugd-guest\\nXEN_DOMAIN_UUID={uuid(7)}\\n',"
        "'/run/systemd/journal/socket')"
    )
    command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-S", "-c", script]
    if subprocess.run(journald.command(command), check=False, capture_output=True).returncode == 0:
        journald.wait_for(bool, "MESSAGE=forged")


def followed(daemon: Daemon, directory: str) -> None:
    command: Sequence[str] = [UNPLUGCTL, "log", "vm7", "-f", "-n", "0", "-D", directory, "--config", str(daemon.file)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        heard = b""
        end = time.monotonic() + 30
        with daemon.connect(7) as guest:
            # journalctl says nothing when it has begun to follow: say it until it is heard
            while b"now" not in heard and time.monotonic() < end:
                guest.log(b"now\n")
                if select.select([process.stdout], [], [], 0.2)[0]:
                    heard += os.read(process.stdout.fileno(), 65536)
        assert b"now" in heard
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# --- a report of a fault


def test_report(run: Run, tmp_path: Path) -> None:
    settings = embedded(7, blacklist={"entry": [{"product": "linux", "build": 5, "reason": "for the reader"}]})
    settings["xenstore"]["domain"][0]["name"] = "web\u202e-01"
    daemon = run(settings)
    with daemon.file.open("a") as stream:
        stream.write("# password: hunter2\n")
    with daemon.connect(7) as wire:
        wire.announce(3, 5)
        wire.log(b"what a guest wrote\n")
    out = tmp_path / "report.tar"
    assert "nothing that they wrote" in ctl(daemon.file, "report", "-o", str(out))
    with tarfile.open(out) as tar:
        found = {}
        for member in tar.getmembers():
            part = tar.extractfile(member)
            assert part is not None
            found[member.name.split("/")[1]] = part.read().decode()
            assert member.size <= 1 << 20
    assert json.loads(found["status.json"])["pid"] == daemon.pid
    assert json.loads(found["domains.json"])["domains"][0]["blacklist_reason"] == "for the reader"
    assert json.loads(found["configuration-check.json"])["valid"] is True
    assert 'reason = "for the reader"' in found["configuration.toml"]
    assert "unplugd_domains 1" in found["metrics.txt"]
    assert f"process {daemon.pid}, uid 0" in found["process.txt"]
    assert "dom7.sock" in found["directories.txt"]
    everything = "".join(found.values())
    assert "hunter2" not in everything
    assert "what a guest wrote" not in everything
    assert "\u202e" not in everything


def test_report_has_xenstore(run: Run, xenstored: Xenstored, tmp_path: Path) -> None:
    xenstored.create(7, "vm7", uuid(7))
    xenstored.dom0.write("/mh/driver-blacklist/linux/5", b"a reason")
    xenstored.dom0.write("/local/domain/7/control/secret", b"hunter2")
    daemon = run({"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}})
    out = tmp_path / "report.tar"
    ctl(daemon.file, "report", "-o", str(out))
    with tarfile.open(out) as tar:
        part = tar.extractfile(next(one for one in tar.getmembers() if one.name.endswith("/xenstore.txt")))
        assert part is not None
        text = part.read().decode()
    assert '/mh/driver-blacklist/linux/5 = "a reason"' in text
    assert '/local/domain/7/name = "vm7"' in text
    assert "hunter2" not in text


# --- standard output that is full or closed, locales


@pytest.mark.parametrize("arguments", ["list", "config show -e", "status", "show 7", "completion bash", "report -o -"])
def test_output_that_cannot_be_written(daemon: Daemon, arguments: str) -> None:
    command = f"{UNPLUGCTL} --config {daemon.file} {arguments}"

    def said(redirection: str) -> tuple[int, str]:
        done = subprocess.run(["bash", "-c", f"{command} {redirection}"], capture_output=True, text=True, check=False,
                              timeout=60)
        return done.returncode, done.stderr

    assert said(">/dev/full") == (7, "unplugctl: standard output: No space left on device\n")
    assert said(">&-") == (7, "unplugctl: standard output is closed\n")
    assert said(">&- 2>&-") == (7, "")
    assert said("2>&- <&-") == (0, "")


def test_unplugds_output_that_cannot_be_written(daemon: Daemon) -> None:
    command = str(Path(UNPLUGCTL).with_name("unplugd")) + f" --config {daemon.file} --check"
    for redirection, status, error in ((">/dev/full", 1, "unplugd: standard output: No space left on device\n"),
                                       (">&-", 0, ""), (">&- 2>&- <&-", 0, "")):
        done = subprocess.run(["bash", "-c", f"{command} {redirection}"], capture_output=True, text=True, check=False,
                              timeout=60)
        assert (done.returncode, done.stderr) == (status, error)


def test_files_are_utf_8_whatever_the_locale(xenstored: Xenstored, tmp_path: Path) -> None:
    file = tmp_path / "u.toml"
    file.write_text(toml({"xenstore": {"backend": "socket", "socket": str(xenstored.socket)},
                          "runtime_dir": str(tmp_path / "run")}))
    latin = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}

    def run(*arguments: str) -> str:
        done = subprocess.run([UNPLUGCTL, "--config", str(file), *arguments], capture_output=True, check=False,
                              timeout=60, env=latin)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
        return done.stdout.decode("latin-1")

    run("blacklist", "add", "--persist", "gplpv-windows", "17", "--reason", "verliert Daten: gr\u00f6\u00dfer")
    persisted = tmp_path / "u.toml.d" / FILE
    assert 'reason = "verliert Daten: gr\u00f6\u00dfer"' in persisted.read_text("utf-8")
    assert "gr\u00f6\u00dfer" in run("blacklist", "list")
    run("blacklist", "add", "--persist", "gplpv-windows", "18")
    assert "gr\u00f6\u00dfer" in run("config", "show")
    run("blacklist", "remove", "--persist", "gplpv-windows", "17")
    assert "17" not in persisted.read_text("utf-8")


# --- the blacklist, half of it


def test_what_was_kept_and_what_was_not_is_said(tmp_path: Path) -> None:
    file = tmp_path / "u.toml"
    file.write_text(toml({"xenstore": {"backend": "socket", "socket": str(tmp_path / "none")},
                          "runtime_dir": str(tmp_path / "run")}))
    persisted = tmp_path / "u.toml.d" / FILE
    said = ctl(file, "blacklist", "add", "--persist", "gplpv-windows", "17", status=5)
    assert f"gplpv-windows build 17 is kept in {persisted}, but it is not in xenstore: " in said
    assert "build = 17" in persisted.read_text()
    said = ctl(file, "blacklist", "add", "--persist", "gplpv-windows", "17", status=5)
    assert "is kept in the configuration already, but it is not in xenstore" in said
    said = ctl(file, "blacklist", "remove", "--persist", "gplpv-windows", "17", status=5)
    assert f"gplpv-windows build 17 is taken out of {persisted}, but perhaps not of xenstore: " in said
    assert "17" not in persisted.read_text()
    assert "is kept" not in ctl(file, "blacklist", "add", "gplpv-windows", "17", status=5)


def test_malformed_nodes_are_warned_of_and_not_counted(run: Run, xenstored: Xenstored) -> None:
    xenstored.create(7, "vm7", uuid(7))
    bad = ["experimental/0590085", "linux/all", "linux/4294967296", "linux/-1", "linux/0x5"]
    for node in (*bad, "linux/5"):
        xenstored.dom0.write(f"/mh/driver-blacklist/{node}", b"")
    daemon = run({"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}})
    assert daemon.value("unplugd_blacklist_entries") == 1
    record = daemon.wait_for_record("blacklists nothing")
    found = ask(daemon.file, "blacklist", "list")
    assert [(row["product"], row["from"]) for row in found["entries"]] == [("linux", 5)]
    assert found["malformed"] == sorted(f"/mh/driver-blacklist/{node}" for node in bad)
    for node in found["malformed"]:
        assert node in record
    done = subprocess.run([UNPLUGCTL, "--config", str(daemon.file), "blacklist", "list"], capture_output=True,
                          text=True, check=True, timeout=60)
    assert done.stderr.count("blacklists nothing") == len(bad)
    with daemon.connect(7) as wire:
        assert wire.announce(0xFFFF, 590085) == 0x49D2
        wire.reset()
        assert wire.announce(3, 5) == 0xD249
    # another one is said by itself
    xenstored.dom0.write("/mh/driver-blacklist/linux/oops", b"")
    assert "0590085" not in daemon.wait_for_record("linux/oops")
