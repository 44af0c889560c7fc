"""The real systemd as PID 1 of namespaces of its own, so that units are tried as they will run.

It sees the machine's files, but its own processes, its own /run, /var/log and network, its own journald, and no units
but those that a test gives it. Nothing of it is left when it has stopped. It needs root and a writable cgroup 2
hierarchy, and takes a third of a second to boot. Resource control (MemoryMax= and the like) cannot be tried here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import pytest

T = TypeVar("T")

DEADLINE = 30.0
"""Seconds that anything here may take on a slow and busy machine."""

LAB = "/run/lab"
"""Where the lab's directory is inside."""

KEPT = tuple(dict.fromkeys((Path(__file__).parents[2], Path(sys.prefix), Path(sys.base_prefix))))
"""What a service of this checkout needs: itself and its Python. `bindings` makes a unit see them."""

_numbers = itertools.count()

_UNITS = {
    "lab.target": """
        [Unit]
        Description=All that the lab boots
        Requires=basic.target systemd-journald.service
        After=basic.target systemd-journald.service
        AllowIsolate=yes
    """,
    # What every unit stands on by default. The machine's own targets would bring its whole boot along.
    "basic.target": "[Unit]\nDescription=Basic system\nRequires=sysinit.target\nAfter=sysinit.target sockets.target",
    "sysinit.target": "[Unit]\nDescription=System initialisation",
    "sockets.target": "[Unit]\nDescription=Sockets",
    "shutdown.target": "[Unit]\nDescription=Shutdown\nDefaultDependencies=no",
    "multi-user.target": "[Unit]\nDescription=Services",
    "systemd-journald.socket": """
        [Unit]
        Description=Journal sockets
        DefaultDependencies=no
        Before=sockets.target
        [Socket]
        ListenStream=/run/systemd/journal/stdout
        ListenDatagram=/run/systemd/journal/socket
        SocketMode=0666
        PassCredentials=yes
        PassSecurity=yes
        ReceiveBuffer=8M
        Service=systemd-journald.service
    """,
    "systemd-journald.service": """
        [Unit]
        Description=Journal
        DefaultDependencies=no
        Requires=systemd-journald.socket
        After=systemd-journald.socket
        [Service]
        Type=notify
        ExecStart={systemd}/systemd-journald
        Restart=always
        RestartSec=0
        StandardOutput=null
        WatchdogSec=3min
    """,
}

_JOURNALD = """
[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
ForwardToSyslog=no
ForwardToWall=no
RuntimeMaxUse=64M
"""

# $1 the lab's directory, $2 systemd's own; then what must stay visible if it is in /tmp. What systemd and its services
# write by themselves is covered.
_BOOT = """
set -e
umount -n -R /sys/fs/cgroup 2>/dev/null || umount -n -l /sys/fs/cgroup
mount -n -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup || mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
mount -n -t tmpfs -o mode=755,nosuid,nodev lab /mnt
mkdir -p /mnt/lab /mnt/systemd/journald.conf.d
mount -n --bind "$1" /mnt/lab
cp /mnt/lab/journald.conf /mnt/systemd/journald.conf.d/lab.conf
mount -n --move /mnt /run
for covered in /var/log /var/lib/systemd; do mount -n -t tmpfs -o mode=755 lab "$covered"; done
mount -n -t tmpfs -o mode=1777 lab /var/tmp
mount -n -t tmpfs -o mode=1777 lab /mnt
systemd=$2; shift 2
for kept; do
    case $kept in /tmp/*) mkdir -p "/mnt${kept#/tmp}"; mount -n --rbind "$kept" "/mnt${kept#/tmp}" ;; esac
done
mount -n --move /mnt /tmp
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb \
    SYSTEMD_UNIT_PATH=/run/lab/units SYSTEMD_GENERATOR_PATH=/nonexistent \
    SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/nonexistent \
    "$systemd/systemd" --system --unit=lab.target --show-status=no --log-target=journal --log-level=info
"""


class LabError(Exception):
    """The lab, not what is tested in it, does not work."""


def why_not() -> str:
    """Why systemd cannot be booted here; "" if it can."""
    if os.geteuid() != 0:
        return "booting systemd needs root"
    if _systemd() is None:
        return "systemd is not installed"
    if any(shutil.which(tool) is None for tool in ("unshare", "nsenter", "setpriv", "systemctl", "journalctl")):
        return "util-linux or systemctl is not installed"
    hierarchy = _cgroup_hierarchy()
    if hierarchy is None or not os.access(hierarchy, os.W_OK):
        return "there is no cgroup 2 hierarchy"
    probe = hierarchy / f"unplugd-lab-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return f"no cgroup can be made: {error}"
    return ""


def bindings() -> str:
    """Settings by which a unit with ProtectHome= and PrivateTmp= sees this checkout and its Python all the same."""
    return "\n".join(["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={path}" for path in KEPT)])


def _systemd() -> Path | None:
    for directory in (Path("/usr/lib/systemd"), Path("/lib/systemd")):
        if (directory / "systemd").exists() and (directory / "systemd-journald").exists():
            return directory
    return None


def _cgroup_hierarchy() -> Path | None:
    for directory in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (directory / "cgroup.procs").exists() and (directory / "cgroup.controllers").exists():
            return directory
    return None


def wait_for(condition: Callable[[], T], what: str, deadline: float = DEADLINE, *, pause: float = 0.02) -> T:
    """The first true value of `condition`, which is asked again and again; LabError after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise LabError(f"not within {deadline:g} s: {what} (last: {value!r})")
        time.sleep(pause)
    return value


class Systemd:
    """A booted systemd; a context manager.

    `directory` is empty and the lab's own; inside, it is /run/lab. Units are files of `directory`/units. A unit that
    is there before `start` is known at once, later ones after `daemon_reload`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.units = directory / "units"
        self.units.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """Of the lab's PID 1, outside."""
        self._cgroup = Path()
        systemd = _systemd()
        if systemd is None:
            raise LabError(why_not())
        self._systemd = systemd
        for name, text in _UNITS.items():
            self.unit(name, text.format(systemd=systemd))
        (directory / "journald.conf").write_text(_JOURNALD)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def cgroup(self) -> Path:
        """The lab's cgroup, outside; below it are systemd's slices."""
        return self._cgroup

    # --- units ---

    def unit(self, name: str, text: str) -> None:
        """Write a unit; indentation is taken away."""
        (self.units / name).write_text("\n".join(line.strip() for line in text.splitlines()) + "\n")

    def drop_in(self, unit: str, name: str, text: str) -> None:
        """Write `unit`.d/`name`.conf."""
        folder = self.units / f"{unit}.d"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.conf").write_text("\n".join(line.strip() for line in text.splitlines()) + "\n")

    def daemon_reload(self) -> None:
        """Make systemd read the units anew."""
        self.systemctl("daemon-reload")

    # --- the machine ---

    def start(self) -> None:
        """Boot; returns when everything that the lab has of its own runs. Raises LabError with what was said."""
        hierarchy = _cgroup_hierarchy()
        if hierarchy is None:
            raise LabError(why_not())
        self._cgroup = hierarchy / f"unplugd-lab-{os.getpid()}-{next(_numbers)}"
        self._cgroup.mkdir()
        # With setpriv, a test run that is killed takes unshare along, and that its PID 1 and so all of it.
        command = [
            "bash", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "lab", str(self._cgroup),
            "setpriv", "--pdeathsig", "SIGKILL",
            "unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount", "--mount-proc", "--propagation", "private",
            "--cgroup", "--ipc", "--uts", "--net",
            "bash", "-c", _BOOT, "boot", str(self.directory), str(self._systemd), *map(str, KEPT),
        ]  # fmt: skip
        with (self.directory / "console").open("wb") as console:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        try:
            self.pid = wait_for(self._find_init, "PID 1 of the lab")
            wait_for(self._is_up, "lab.target reached")
        except BaseException as error:
            self.stop()
            if isinstance(error, LabError):
                raise LabError(f"systemd does not boot: {error}\n{self.console()[-2000:]}") from None
            raise

    def _find_init(self) -> int:
        process = self._process
        if process is None or process.poll() is not None:
            raise LabError("it ended")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        return 0

    def _is_up(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise LabError("it ended")
        return self.execute("systemctl", "is-active", "--quiet", "lab.target", check=False).returncode == 0

    def stop(self) -> None:
        """End it, whatever state it is in, and leave no process, mount, cgroup or temporary file of it."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                # In order where that works: a service that is killed leaves no coverage data, for one.
                if self.pid and process.poll() is None:
                    self.execute("systemctl", "isolate", "lab.target", check=False, timeout=15)
            with contextlib.suppress(ProcessLookupError):
                if self.pid:
                    os.kill(self.pid, signal.SIGKILL)
            # unshare takes the dead PID 1 away and ends by itself; it only needs help where there is no PID 1 yet.
            try:
                process.wait(DEADLINE if self.pid else 0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.pid = 0
        self._remove_cgroup()

    def _remove_cgroup(self) -> None:
        def is_gone() -> bool:
            for folder, _, _ in os.walk(self._cgroup, topdown=False):
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    pass
                except OSError:  # a process in it has not been reaped yet
                    return False
            return True

        if self._cgroup != Path():
            wait_for(is_gone, f"{self._cgroup} empty")
            self._cgroup = Path()

    def console(self) -> str:
        """What was said before there was a journal."""
        return (self.directory / "console").read_text(errors="replace")

    # --- inside ---

    def path(self, inside: str | Path) -> Path:
        """The path, seen from outside, of what is `inside`; also good for connecting to a socket there."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def execute(
        self, *command: str, check: bool = True, timeout: float = DEADLINE
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside. With `check`, a status other than 0 is a LabError that has its output."""
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--net", *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = DEADLINE) -> str:
        """What systemctl prints."""
        return self.execute("systemctl", "--no-pager", *arguments, check=check, timeout=timeout).stdout

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """The unit's properties of these names."""
        lines = self.systemctl("show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def property(self, unit: str, name: str) -> str:
        """One property of the unit."""
        return self.properties(unit, name)[name]

    def journal(self, *matches: str) -> list[dict[str, str]]:
        """The journal's entries that match ("SYSLOG_IDENTIFIER=unplugd"), oldest first.

        A field that is not text is given as what its bytes are in Latin-1.
        """
        output = self.execute("journalctl", "--output=json", "--all", "--no-pager", *matches, check=False).stdout
        return [
            {name: _text(value) for name, value in json.loads(line).items()}
            for line in output.splitlines()
            if line.startswith("{")
        ]

    def wait_for_journal(self, *matches: str, contains: str = "") -> dict[str, str]:
        """The first entry that matches and whose MESSAGE contains the text, waited for."""

        def found() -> dict[str, str] | None:
            return next((entry for entry in self.journal(*matches) if contains in entry.get("MESSAGE", "")), None)

        entry = wait_for(found, f"a journal entry {' '.join(matches)} with {contains!r}")
        if entry is None:
            raise LabError("wait_for gave nothing")
        return entry

    def wait_for_property(self, unit: str, name: str, value: str, deadline: float = DEADLINE) -> None:
        """Wait until the unit's property has this value; LabError with the unit's state after the deadline."""
        try:
            wait_for(lambda: self.property(unit, name) == value, f"{unit} {name}={value}", deadline)
        except LabError as error:
            raise LabError(f"{error}\n{self.systemctl('status', '--lines=20', unit, check=False)}") from None


def _text(value: str | Sequence[int] | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else bytes(value).decode("latin-1")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A booted systemd that has no units but the lab's own yet. Skips where there can be none; fails there on CI."""
    reason = why_not()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed", exc_type=ImportError)
    directory = tmp_path / "systemd"
    directory.mkdir()
    with Systemd(directory) as manager:
        yield manager
