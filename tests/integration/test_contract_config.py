"""Contract sections 5 and 6: commands, configuration, reload, and who may connect."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import xenstored as lab
from tests.lab.daemon import Daemon, Run, embedded, eventually, merged, toml, uuid
from tests.lab.frames import frame
from tests.lab.xenstored import Xenstored

UNPLUGD = str(Path(sys.executable).with_name("unplugd"))


@pytest.fixture
def place() -> Iterator[Path]:
    """A short directory."""
    path = Path(tempfile.mkdtemp(prefix="u-"))
    yield path
    shutil.rmtree(path)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `unplugd` to its end."""
    return subprocess.run([UNPLUGD, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


# --- --check


def test_check_says_that_a_configuration_is_good(place: Path) -> None:
    file = place / "u.toml"
    file.write_text(toml(merged(embedded(7), {"runtime_dir": str(place / "run")})))
    done = command("--config", file, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (place / "run").exists()
    file.write_text("")
    assert command("--config", file, "--check").returncode == 0


BAD = [
    ("runtime = '/x'", "runtime", "runtime_dir"),
    ("runtime_dir = 'relative'", "runtime_dir", "absolute"),
    ("runtime_dir = 5", "runtime_dir", "absolute|string"),
    ("publish = 1", "publish", "true"),
    ("protocol_version = 2", "protocol_version", "0"),
    ("protocol_version = true", "protocol_version", "0"),
    ("[xenstore]\nbackend = 'tdb'", "xenstore.backend", "embedded"),
    ("[xenstore]\nsockets = ''", "xenstore.sockets", "socket"),
    ("[blacklist]\nlookup_timeout = 0", "blacklist.lookup_timeout", "0.001"),
    ("[blacklist]\nlookup_timeout = nan", "blacklist.lookup_timeout", "number"),
    ("[blacklist]\non_error = 'panic'", "blacklist.on_error", "mirror"),
    ("[[blacklist.entry]]\nproduct = 'linux'", "blacklist.entry", "build"),
    ("[[blacklist.entry]]\nproduct = 'nobodys'\nbuild = 1", "blacklist.entry", "linux"),
    ("[[blacklist.entry]]\nproduct = 'linux'\nbuild = 4294967296", "blacklist.entry", "4294967295"),
    ("[[blacklist.entry]]\nproduct = 'linux'\nbuild = -1", "blacklist.entry", "4294967295"),
    ("[[blacklist.range]]\nproduct = 'linux'\nfrom = 5\nto = 4", "blacklist.range", "to"),
    ("[products]\n'mine' = 0", "products", "65535"),
    ("[products]\n'mine' = 65536", "products", "65535"),
    ("[products]\n'mine' = 3", "products", "linux"),
    ("[products]\n'linux' = 77", "products", "3"),
    ("[products]\n'a/b' = 77", "products", "slash"),
    ("[policy]\nallow_unplug = ['cdroms']", "policy.allow_unplug", "nvme-disks"),
    ("[policy]\nallow_unplug = 'nics'", "policy.allow_unplug", "list"),
    ("[policy]\nblacklisted_unplug = 'perhaps'", "policy.blacklisted_unplug", "deny"),
    ("[policy]\nlegacy_unplug = 'yes'", "policy.legacy_unplug", "true"),
    ("[socket]\ndevice_model_uids = 'root'", "socket.device_model_uids", "auto"),
    ("[socket]\ndevice_model_uids = []", "socket.device_model_uids", "list"),
    ("[socket]\ndevice_model_uids = [-1]", "socket.device_model_uids", "list"),
    ("[log]\nsinks = ['syslog']", "log.sinks", "journal"),
    ("[log]\nrate = -1", "log.rate", "0"),
    ("[log]\nburst = 'many'", "log.burst", "number"),
    ("[log]\non_limit = 'block'", "log.on_limit", "delay"),
    ("[log]\nflush_after = 0", "log.flush_after", "number"),
    ("[log]\nmax_file_bytes = 0", "log.max_file_bytes", "number"),
    ("[log]\ndirectory = 'here'", "log.directory", "absolute"),
    ("[http]\nlisten = '9877'", "http.listen", "address:port"),
    ("[http]\nlisten = '127.0.0.1:65536'", "http.listen", "address:port"),
    ("[http]\nport = 9877", "http.port", "listen"),
    ("log = 5", "log", "table"),
    ("publish = ", "", "TOML"),
]


def test_check_names_file_key_and_what_is_allowed(place: Path) -> None:
    # One process a case is dear: what loads a configuration is the same for all.
    from unplugd.config.load import load
    from unplugd.errors import ConfigError

    file = place / "u.toml"
    for text, key, allowed in BAD:
        file.write_text(text + "\n")
        with pytest.raises(ConfigError) as raised:
            load(file)
        said = str(raised.value)
        assert str(file) in said
        assert key in said, (text, said)
        assert any(word in said for word in allowed.split("|")), (text, said)


@pytest.mark.parametrize("number", range(0, len(BAD), 10))
def test_check_exits_with_2(place: Path, number: int) -> None:
    text, key, _ = BAD[number]
    file = place / "u.toml"
    file.write_text(text + "\n")
    for arguments in (("--check",), ()):
        done = command("--config", file, *arguments)
        assert done.returncode == 2
        assert str(file) in done.stderr
        assert key in done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_that_is_not_there(place: Path) -> None:
    done = command("--config", place / "none.toml", "--check")
    assert done.returncode == 2
    assert "none.toml" in done.stderr


def test_drop_ins_in_lexical_order(place: Path) -> None:
    file, drop_ins = place / "u.toml", place / "u.toml.d"
    drop_ins.mkdir()
    file.write_text("[log]\nrate = 1\n")
    (drop_ins / "20-last.toml").write_text("publish = 5\n")
    (drop_ins / "10-first.toml").write_text("[log]\nrate = 2\n")
    (drop_ins / "30-ignored.conf").write_text("nonsense")
    done = command("--config", file, "--check")
    assert done.returncode == 2
    assert "20-last.toml" in done.stderr
    (drop_ins / "20-last.toml").write_text("[log]\nburst = 3\n")
    assert command("--config", file, "--check").returncode == 0


def test_drop_ins_win_and_lists_add_up(run: Run) -> None:
    entries = [{"product": "linux", "build": 1}]
    daemon = run(embedded(7, policy={"allow_unplug": ["nics"]}, blacklist={"entry": entries}))
    drop_ins = daemon.file.with_name(daemon.file.name + ".d")
    drop_ins.mkdir()
    (drop_ins / "10.toml").write_text('[policy]\nallow_unplug = ["ide-disks"]\n')
    (drop_ins / "20.toml").write_text('[policy]\nallow_unplug = ["nvme-disks"]\n')
    (drop_ins / "30.toml").write_text('[[blacklist.entry]]\nproduct = "linux"\nbuild = 2\n')
    daemon.reload()
    with daemon.connect(7) as wire:
        assert wire.write(0x10, 2, 15) == 8
        for build, magic in ((3, 0x49D2), (2, 0xD249), (1, 0xD249)):
            wire.reset()
            assert wire.announce(3, build) == magic


# --- a host that does not give what is needed


def refused(config: dict[str, Any]) -> str:
    """What the daemon says when it ends with status 2."""
    daemon = Daemon(config)
    try:
        daemon.start(ready=False)
        assert daemon.process is not None
        assert daemon.process.wait(60) == 2
        said = daemon.stderr()
        assert "Traceback" not in said
        return said
    finally:
        daemon.close()


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused(embedded(7, http={"listen": address}))
    assert address in said
    assert "in use" in said


def test_directories_that_cannot_be_made(place: Path) -> None:
    (place / "file").write_text("")
    assert str(place / "file" / "run") in refused(embedded(7, runtime_dir=str(place / "file" / "run")))
    assert str(place / "file") in refused(embedded(7, runtime_dir=str(place / "file")))
    assert str(place / "file" / "log") in refused(embedded(7, log={"directory": str(place / "file" / "log")}))


def test_a_second_unplugd_with_the_same_directory(run: Run) -> None:
    daemon = run(embedded(7))
    assert str(daemon.runtime) in refused(embedded(7, runtime_dir=str(daemon.runtime)))
    with daemon.connect(7) as wire:
        assert wire.read(0x10, 2) == 0x49D2


def test_a_store_that_is_not_there_yet(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xenstored = Xenstored("c", place / "x")
    monkeypatch.setenv("XENSTORED_PATH", str(xenstored.socket))
    daemon = Daemon({"xenstore": {"backend": "socket"}})
    try:
        daemon.start(ready=False)
        daemon.wait_for_record(str(xenstored.socket))
        eventually((daemon.runtime / "control.sock").exists)
        assert daemon.get("/-/ready")[0] == 503
        assert str(xenstored.socket).encode() in daemon.get("/-/ready")[2]
        assert daemon.get("/-/healthy")[0] == 200
        assert daemon.value("unplugd_xenstore_up") == 0
        assert "READY=1" not in daemon.manager.said
        eventually(daemon.manager.status, lambda said: "xenstore" in said)
        with xenstored:
            xenstored.create(7, "vm7", uuid(7))
            eventually(lambda: "READY=1" in daemon.manager.said)
            assert daemon.get("/-/ready")[0] == 200
            assert daemon.value("unplugd_xenstore_up") == 1
            with daemon.connect(7) as wire:
                assert wire.read(0x10, 2) == 0x49D2
            assert daemon.stop() == 0
    finally:
        daemon.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_as_asked_and_the_clients_notice(run: Run, number: signal.Signals) -> None:
    daemon = run(embedded(7))
    with daemon.connect(7) as wire:
        wire.read(0x10, 2)
        assert daemon.process is not None
        daemon.process.send_signal(number)
        assert daemon.process.wait(30) == 0
        assert wire.take(1) == b""
    assert "STOPPING=1" in daemon.manager.said


# --- reload


def test_reload_applies_to_connections_that_are_open(run: Run) -> None:
    daemon = run(embedded(7))
    with daemon.connect(7) as wire:
        assert wire.write(0x10, 2, 3) == 3
        assert wire.write(0x10004, 4, 1) == 0
        changes = {
            "policy": {"allow_unplug": ["nics"], "legacy_unplug": True},
            "protocol_version": 0,
            "blacklist": {"range": [{"product": "linux"}]},
        }
        daemon.configure(changes)
        daemon.reload()
        assert (wire.write(0x10, 2, 3), wire.write(0x10004, 4, 1), wire.read(0x12, 1)) == (2, 2, 0)
        daemon.configure({"protocol_version": 1})
        daemon.reload()
        assert wire.announce(3, 1) == 0xD249
        assert any(line.startswith("RELOADING=1") for line in daemon.manager.said)


def test_a_bad_configuration_changes_nothing(run: Run) -> None:
    daemon = run(embedded(7))
    good = daemon.file.read_text()
    with daemon.connect(7) as wire:
        for bad, says in (
            ("publish = 7\n" + good.replace("[log]", "[policy]\nallow_unplug = []\n[log]"), "publish"),
            ("[policy]\nallow_unplug = []\n" + good.split("[[")[0].replace("runtime_dir", "runtime"), "runtime"),
            ("nonsense", "TOML"),
        ):
            daemon.file.write_text(bad)
            daemon.reload(applied=False)
            assert str(daemon.file) in daemon.stderr().splitlines()[-1]
            assert says in daemon.stderr().splitlines()[-1]
            assert wire.write(0x10, 2, 15) == 15
        daemon.file.write_text(good)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = {"listen": f"127.0.0.1:{taken.getsockname()[1]}"}
            daemon.configure({"http": listen, "policy": {"allow_unplug": []}})
            daemon.reload(applied=False)
            assert wire.write(0x10, 2, 15) == 15
        not_a_directory = daemon.directory / "notify"
        daemon.configure({"http": {"listen": ""}, "log": {"directory": str(not_a_directory)}})
        daemon.reload(applied=False)
        assert wire.write(0x10, 2, 15) == 15
        daemon.configure({"log": {"directory": str(daemon.log_directory)}, "policy": {"allow_unplug": ["nics"]}})
        daemon.reload()
        assert wire.write(0x10, 2, 15) == 2


def test_reload_of_listener_log_and_domains(run: Run) -> None:
    daemon = run(embedded(7, 8, log={"rate": 0.001, "burst": 200}))
    daemon.listen()
    domains = [*daemon.config["xenstore"]["domain"][1:], {"domid": 9, "name": "vm9", "uuid": uuid(9)}]
    daemon.configure({"xenstore": {"domain": domains}, "log": {"sinks": ["file", "stderr"], "rate": 1e9, "burst": 1e9}})
    daemon.reload()
    assert daemon.get("/metrics", tcp=True)[0] == 200
    eventually(lambda: not daemon.socket(7).exists())
    with daemon.connect(8) as wire, daemon.connect(9) as other:
        wire.log(b"x" * 999 + b"\nseen by both sinks\n")
        daemon.wait_for_record("seen by both sinks")
        eventually(lambda: "seen by both sinks" in daemon.guest_lines("vm8"))
        assert other.read(0x10, 2) == 0x49D2


# --- section 6

CLIENT = """
import os, socket, sys
path, uid, request = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
client = socket.socket(socket.AF_UNIX)
client.settimeout(30)
try:
    client.connect(path)
except PermissionError:
    print("no permission")
    sys.exit()
answer = b""
try:
    client.sendall(request)
    answer = client.recv(32)
except (ConnectionResetError, BrokenPipeError):
    pass
print("answered" if len(answer) == 32 else "closed")
"""


def speak(daemon: Daemon, domid: int, uid: int) -> str:
    """What becomes of a client of this uid: "answered", "closed" or "no permission"."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(daemon.socket(domid)), str(uid), frame(read=True).hex()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.strip()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def owner(daemon: Daemon, domid: int) -> tuple[int, int]:
    """Uid and mode of a domain's socket."""
    status = daemon.socket(domid).stat()
    return status.st_uid, stat.S_IMODE(status.st_mode)


@needs_root
def test_peers_decide_not_the_path(run: Run) -> None:
    daemon = run(embedded(7))
    assert speak(daemon, 7, 0) == "answered"
    assert speak(daemon, 7, 1234) == "no permission"
    daemon.socket(7).chmod(0o666)
    assert speak(daemon, 7, 1234) == "closed"
    assert speak(daemon, 7, 65534) == "closed"
    assert daemon.value("unplugd_denied_connections_total") == 2
    daemon.wait_for_record("1234")
    assert speak(daemon, 7, 0) == "answered"


@needs_root
def test_the_uid_that_xenstore_names() -> None:
    with lab.running("c") as xenstored:
        for domid in (7, 8):
            xenstored.create(domid, f"vm{domid}", uuid(domid))
        node = "/local/domain/{}/image/device-model-kill-uid"
        xenstored.dom0.write(node.format(7), b"2345")
        daemon = Daemon({"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}})
        try:
            daemon.start()
            assert owner(daemon, 7) == (2345, 0o600)
            assert owner(daemon, 8) == (0, 0o600)
            assert speak(daemon, 7, 2345) == "answered"
            daemon.socket(7).chmod(0o666)
            daemon.socket(8).chmod(0o666)
            assert speak(daemon, 7, 2346) == "closed"
            assert speak(daemon, 8, 2345) == "closed"  # another domain's
            assert speak(daemon, 7, 0) == "answered"
            xenstored.dom0.write(node.format(8), b"2346")  # libxl writes it after the introduction
            eventually(lambda: owner(daemon, 8)[0], lambda uid: uid == 2346)
            assert speak(daemon, 8, 2346) == "answered"
            assert speak(daemon, 8, 2345) == "closed"
            assert daemon.value("unplugd_denied_connections_total") == 3
        finally:
            daemon.close()


@needs_root
def test_a_list_of_uids(run: Run) -> None:
    daemon = run(embedded(7, socket={"device_model_uids": [3456, 3457]}))
    assert owner(daemon, 7) == (3456, 0o600)
    assert speak(daemon, 7, 3456) == "answered"
    assert speak(daemon, 7, 3457) == "no permission"
    daemon.socket(7).chmod(0o666)
    assert [speak(daemon, 7, uid) for uid in (3456, 3457, 3458, 0)] == ["answered", "answered", "closed", "answered"]
    daemon.configure({"socket": {"device_model_uids": [3458]}})
    daemon.reload()
    assert owner(daemon, 7)[0] == 3458
    assert [speak(daemon, 7, uid) for uid in (3456, 3458)] == ["closed", "answered"]


@needs_root
def test_users_of_xens_qemu(place: Path) -> None:
    passwd = place / "passwd"
    passwd.write_text(
        Path("/etc/passwd").read_text()
        + "xen-qemuuser-range-base:x:70000:70000::/:/bin/false\nxen-qemuuser-shared:x:69999:69999::/:/bin/false\n"
    )
    passwd.chmod(0o644)
    script = f'mount --bind {passwd} /etc/passwd && exec "$@"'
    with lab.running("c") as xenstored:
        for domid in (7, 8):
            xenstored.create(domid, f"vm{domid}", uuid(domid))
        xenstored.dom0.write("/local/domain/8/image/device-model-kill-uid", b"69999")
        daemon = Daemon(
            {"xenstore": {"backend": "socket", "socket": str(xenstored.socket)}},
            command=lambda argv: ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *argv],
        )
        try:
            daemon.start()
            assert owner(daemon, 7) == (70007, 0o600)
            assert speak(daemon, 7, 70007) == "answered"
            for domid in (7, 8):
                daemon.socket(domid).chmod(0o666)
            assert speak(daemon, 7, 70008) == "closed"
            assert speak(daemon, 7, 69999) == "closed"
            assert speak(daemon, 8, 69999) == "closed"  # several domains share it: it says nothing
            assert speak(daemon, 8, 0) == "answered"
            daemon.configure({"socket": {"device_model_uids": [69999]}})
            daemon.reload()
            assert speak(daemon, 8, 69999) == "answered"
            assert speak(daemon, 7, 70007) == "closed"
        finally:
            daemon.close()
