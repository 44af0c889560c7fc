"""Whatever the configuration's files are: `--check` and a reload agree, both end soon, a refusal changes nothing, and
nothing of it ends the daemon (contract section 5)."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.daemon import Daemon, Run, embedded, eventually, free_port
from unplugd.config.load import load

UNPLUGD = str(Path(sys.executable).with_name("unplugd"))
RIGHTS = ["setpriv", "--bounding-set=-all,+chown", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""What the unit leaves unplugd of root's rights."""
SOON = 1.5
"""Seconds of CPU time for a check, start of Python included: other programs may have the CPU meanwhile."""


def check(file: Path) -> tuple[int, str]:
    """Status and message of `unplugd --check`, which ends soon."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*RIGHTS, UNPLUGD, "--config", str(file), "--check"], capture_output=True, text=True,
                          timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SOON
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.removeprefix("unplugd: ").strip()


class Tried:
    """A daemon with the unit's rights, whose files are tried out."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.good = self.daemon.file.read_text()
        self.drop_ins = self.daemon.file.with_name(self.daemon.file.name + ".d")

    def clear(self) -> None:
        """Only the good file."""
        with contextlib.suppress(FileNotFoundError):
            self.drop_ins.chmod(0o755)
            shutil.rmtree(self.drop_ins)
        self.daemon.file.unlink(missing_ok=True)
        self.daemon.file.write_text(self.good)
        self.drop_ins.mkdir()

    def seen(self) -> tuple[Any, ...]:
        """What a guest and an administrator see of the configuration."""
        with self.daemon.connect(7) as wire:
            wire.reset()
            mask, version = wire.write(0x10, 2, 15), wire.read(0x12, 1)
            magic = wire.announce(3, 77)
            wire.reset()
        status = json.loads(self.daemon.get("/api/v1/status")[2])["configuration"]
        return mask, version, magic, status["files"], status["since"], status["reloads"]

    def reload(self) -> str:
        """Why a reload is refused; "" if it is taken."""
        texts = ("configuration reloaded", "configuration not reloaded")
        before = len(self.daemon.stderr().splitlines())
        os.kill(self.daemon.pid, signal.SIGHUP)

        def said() -> str:
            assert self.daemon.process is not None
            assert self.daemon.process.poll() is None, self.daemon.stderr()
            lines = self.daemon.stderr().splitlines()[before:]
            return next((line for line in lines if any(text in line for text in texts)), "")

        line = eventually(said)
        return "" if texts[0] in line else line.partition("stays in effect: ")[2]

    def agree(self) -> str:
        """Check and reload; why both refuse, "" if both accept."""
        before = self.seen()
        status, problem = check(self.daemon.file)
        refused = self.reload()
        assert (status, problem) == ((2, refused) if refused else (0, "")), (status, problem, refused)
        if refused:
            assert self.seen() == before
            assert json.loads(self.daemon.get("/api/v1/configuration")[2])["valid"] is False
            assert "last reload refused: " in eventually(self.daemon.manager.status, lambda said: "refused" in said)
        else:
            config = load(self.daemon.file)
            mask = 15 & config.policy.allow_unplug
            assert self.seen()[:2] == (mask, config.protocol_version)
        return refused


@pytest.fixture
def tried() -> Iterator[Tried]:
    daemon = Daemon(embedded(7), command=lambda argv: [*RIGHTS, *argv])
    try:
        one = Tried(daemon.start())
        one.clear()
        yield one
        one.clear()
    finally:
        daemon.close()


# --- what was seen to end it


TEXTS = {
    "4301 digits": (f"[log]\nrate = {'9' * 4301}\n", "log.rate"),
    "3000 lists": (f"x = {'[' * 3000}\n", "nested too deeply"),
    "4000 hexadecimal digits": (f"[log]\nburst = 0x{'f' * 4000}\n", "log.burst"),
    "a key that takes hours": (".".join("a" * 50_000) + " = 1\n", "too long"),
    "no host": ('[http]\nlisten = "127.0.0..1:9877"\n', "http.listen"),
    "a label of 64 characters": (f'[http]\nlisten = "{"x" * 64}.example:80"\n', "http.listen"),
    "a port of 5000 digits": (f'[http]\nlisten = "127.0.0.1:{"9" * 5000}"\n', "http.listen"),
    "a directory of 500 levels": (f'[log]\ndirectory = "{"/x" * 501}"\n', "log.directory"),
    "a socket's path of 200 bytes": (f'[xenstore]\nsocket = "/{"x" * 200}"\n', "xenstore.socket"),
    "a uuid that is a path": ('[[xenstore.domain]]\ndomid = 9\nuuid = "../../x y"\n', "xenstore.domain #1.uuid"),
    "a name of 5000 bytes": (f'[[xenstore.domain]]\ndomid = 9\nname = "{"x" * 5000}"\n', "xenstore.domain #1.name"),
}


@pytest.mark.parametrize(("text", "says"), TEXTS.values(), ids=TEXTS)
def test_a_drop_in(tried: Tried, text: str, says: str) -> None:
    bad = tried.drop_ins / "60.toml"
    bad.write_text(text)
    refused = tried.agree()
    assert refused.startswith(f"{bad}: ")
    assert says in refused
    # and the start: status 2, no traceback
    other = Daemon(embedded(7))
    try:
        other.file.write_text(text)
        other.start(ready=False)
        assert other.process is not None
        assert other.process.wait(60) == 2
        assert says in other.stderr()
        assert "Traceback" not in other.stderr()
    finally:
        other.process = None
        other.close()
    bad.unlink()
    assert tried.agree() == ""


def kinds(tried: Tried) -> dict[str, Any]:
    """How a drop-in, or its directory, is made that is no such thing."""
    bad = tried.drop_ins / "60.toml"

    def foreign(path: Path, mode: int) -> None:
        bad.write_text("publish = false\n")
        os.chown(path, 65534, 65534)
        path.chmod(mode)

    def sparse() -> None:
        with bad.open("wb") as stream:
            stream.truncate(3 << 30)

    made: dict[str, Any] = {
        "fifo": lambda: os.mkfifo(bad), "directory": bad.mkdir, "link": lambda: bad.symlink_to("nothing"),
        "device": lambda: bad.symlink_to("/dev/zero"), "3 GiB": sparse, "loop": lambda: bad.symlink_to(bad),
    }
    if RIGHTS:
        made |= {"another's": lambda: foreign(bad, 0o600), "another's directory": lambda: foreign(bad.parent, 0o700),
                 "another's names": lambda: foreign(bad.parent, 0o744)}
    return made


def test_kinds_of_files(tried: Tried) -> None:
    for name, make in kinds(tried).items():
        tried.clear()
        make()
        assert str(tried.drop_ins) in tried.agree(), name
    tried.clear()
    (tried.drop_ins / ".#50-unplugctl.toml").symlink_to("admin@dom0.1:2")
    (tried.drop_ins / "._x.toml").write_bytes(b"\0\5\26\7")
    (tried.drop_ins / "70.toml").write_bytes(b'\xef\xbb\xbf[policy]\nallow_unplug = ["nics"]\n')
    assert tried.agree() == ""


def test_many_signals_at_once_are_one_reload_more(tried: Tried) -> None:
    (tried.drop_ins / "1.toml").write_text('[policy]\nallow_unplug = ["nics"]\n')
    for number in [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2] * 50:
        os.kill(tried.daemon.pid, number)
    eventually(lambda: tried.seen()[0], lambda mask: mask == 2)
    assert 1 <= eventually(lambda: tried.daemon.stderr().count("configuration reloaded")) <= 5


def test_a_reload_asked_for_during_the_start_is_not_lost() -> None:
    """SIGHUP before unplugd can reload would have ended it."""
    daemon = Daemon(embedded(7))
    try:
        daemon.start(ready=False)
        assert daemon.process is not None
        path = Path(f"/proc/{daemon.pid}/status")

        def blocked() -> bool:
            fields = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
            return bool(int(fields["SigBlk"], 16) & 1 << signal.SIGHUP - 1)

        eventually(blocked, pause=0.001)
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for_record("configuration reloaded")
    finally:
        daemon.close()


def test_the_listener_moves(tried: Tried) -> None:
    daemon, port = tried.daemon, free_port()
    for address in ("127.0.0.1", "0.0.0.0", "*", "127.0.0.1", "localhost"):
        (tried.drop_ins / "1.toml").write_text(f'[http]\nlisten = "{address}:{port}"\n')
        assert tried.agree() == "", address
        daemon.port = port
        assert daemon.get("/-/ready", tcp=True)[0] == 200
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tried.drop_ins / "1.toml").write_text(f'[http]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\n')
        before = tried.seen()
        assert "Address already in use" in tried.reload()
        assert tried.seen() == before
    assert daemon.get("/-/ready", tcp=True)[0] == 200


# --- what guests notice


def longest_waits(daemon: Daemon, what: Any) -> float:
    """The longest that a guest's read or announcement takes while `what` is done, in seconds."""
    done = threading.Event()
    waits: list[float] = []

    def guest(announces: bool) -> None:
        with daemon.connect(7 + announces) as wire:
            while not done.is_set():
                began = time.monotonic()
                if announces:
                    wire.write(0x12, 2, 3)
                    wire.read(0x12, 1)
                else:
                    wire.read(0x10, 2)
                waits.append(time.monotonic() - began)
                done.wait(0.001)

    guests = [threading.Thread(target=guest, args=(announces,)) for announces in (False, True)]
    for one in guests:
        one.start()
    try:
        what()
    finally:
        done.set()
        for one in guests:
            one.join()
    return max(waits)


def test_guests_do_not_wait_for_a_reload(run: Run) -> None:
    """Neither for a megabyte of drop-ins nor for a file that takes long.

    In a few tries, and beyond what a program beside unplugd costs them that needs as much CPU time: a check.
    """
    daemon = run(embedded(7, 8))
    drop_ins = daemon.file.with_name(daemon.file.name + ".d")

    def write(reason: str) -> None:
        drop_ins.mkdir(exist_ok=True)
        for file in range(10):
            (drop_ins / f"{file}.toml").write_text("".join(
                f'[[blacklist.entry]]\nproduct = "experimental"\nbuild = {file * 1000 + entry}\nreason = "{reason}"\n'
                for entry in range(1000)))

    waits: dict[str, float] = {}
    for attempt in range(5):
        write(f"loses data on resume, as ticket {attempt} says")
        beside = longest_waits(daemon, lambda: subprocess.run([UNPLUGD, "--config", str(daemon.file), "--check"],
                                                              capture_output=True, check=True, timeout=60))
        waits = {"ten thousand entries": longest_waits(daemon, daemon.reload)}
        eventually(lambda: daemon.value("unplugd_blacklist_entries"), lambda count: count == 10_000)
        shutil.rmtree(drop_ins)
        waits["none again"] = longest_waits(daemon, daemon.reload)
        drop_ins.mkdir()
        (drop_ins / "slow.toml").write_text(".".join("a" * 100_000) + " = 1\n")
        waits["a slow file"] = longest_waits(daemon, lambda: daemon.reload(applied=False))
        shutil.rmtree(drop_ins)
        if max(waits.values()) < 0.05 + beside:
            return
        waits["beside a check"] = beside
    raise AssertionError(waits)


# --- fuzzing

NAMES = st.sampled_from([
    "publish", "protocol_version", "policy.allow_unplug", "policy.legacy_unplug", "log.rate", "log.burst",
    "log.on_limit", "log.flush_after", "log.max_file_bytes", "blacklist.lookup_timeout", "blacklist.on_error",
    "blacklist.entry", "blacklist.range", "products", "socket.device_model_uids", "attach.user", "attach.monitor",
    "http.listen", "log", "nonsense", "xenstore.domain", "blacklist.mode", "blacklist.action", "guest",
])  # fmt: skip
FIELDS = ["product", "build", "reason", "from", "to", "action", "guests", "match", "blacklist", "rate", "x"]
SCALARS = st.one_of(
    st.booleans().map(lambda value: str(value).lower()), st.integers(-5, 2**33).map(str),
    st.floats().map(str), st.text(max_size=12).map(json.dumps),
    st.sampled_from(['"nics"', '"allow"', '"deny"', '"drop"', '"delay"', '"auto"', '"linux"', "1979-05-27T07:32:00Z",
                     "07:32:00", "0x" + "f" * 5000, "9" * 5000, "[" * 2000, '""', "{}", "[[[[]]]]", '"\\ud800"']),
)  # fmt: skip
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    st.lists(st.tuples(st.sampled_from(FIELDS), SCALARS), max_size=4).map(
        lambda pairs: "[{" + ", ".join(f"{name} = {value}" for name, value in pairs) + "}]"),
    st.sampled_from(['[{match = ["web-[*"], blacklist = "exempt"}]', '[{match = ["["], rate = 5, on_limit = "delay"}]',
                     '["nics"]', '["ide-disks", "nvme-disks"]', '[{product = "linux", build = 77}]']),
)  # fmt: skip
DOCUMENTS = st.one_of(
    st.lists(st.tuples(NAMES, VALUES), max_size=4).map(
        lambda pairs: "".join(f"{name} = {value}\n" for name, value in pairs).encode("utf-8", "surrogatepass")),
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"\xef\xbb\xbfpublish = true\n", b".".join([b"k"] * 20_000) + b" = 1", b"[" * 5000,
                     b"#" * (3 << 20), b"[policy]\nallow_unplug = ['nics']\n"]),
)  # fmt: skip
ODD = st.sampled_from([None] * 8 + ["fifo", "directory", "link", "device", "another's", "another's directory"])


def test_check_and_reload_agree_about_anything(tried: Tried) -> None:
    @settings(max_examples=int(os.environ.get("UNPLUGD_TEST_CONFIGURATIONS", "40")), deadline=None,
              suppress_health_check=list(HealthCheck), database=None)
    @given(documents=st.lists(DOCUMENTS, max_size=2), odd=ODD)
    def agree(documents: list[bytes], odd: str | None) -> None:
        tried.clear()
        for number, document in enumerate(documents):
            (tried.drop_ins / f"{number}.toml").write_bytes(document)
        make = kinds(tried).get(odd or "")
        if make is not None:
            make()
        tried.agree()

    agree()
