"""A clean Debian 12 in a directory, and its own systemd as PID 1 of namespaces of its own.

The tree is made once by mmdebstrap (.cache/packaging/base.tar) and unpacked anew for every use. Packages are fetched
while it has this machine's network; booted, it has none.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "packaging"
BASE = CACHE / "base.tar"
DEADLINE = 120.0

INIT = ("systemd", "systemd-sysv", "dbus")
_numbers = itertools.count()

_BOOT = """
set -e
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs sys sys
mount -t cgroup2 -o nsdelegate cgroup2 sys/fs/cgroup || mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev
for node in null zero full random urandom tty; do : >dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 pts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 run run
mkdir -p run/outside
pivot_root . run/outside
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -c '
    umount -l /run/outside && exec /lib/systemd/systemd --unit=multi-user.target' </dev/null
"""


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One at a time, of all processes of this checkout."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_base() -> None:
    """A clean Debian as a tar file, BASE, if it is not there yet."""
    with locked("base"):
        if BASE.exists():
            return
        sources = Path("/etc/apt/sources.list.d/debian.sources")
        new = BASE.with_suffix(".new.tar")
        run("mmdebstrap", "--variant=apt", "--mode=root",
            '--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Check-Valid-Until "false"',
            '--aptopt=Acquire::Check-Date "false"', "--dpkgopt=path-exclude=/usr/share/locale/*",
            "bookworm", new, sources if sources.exists() else "/etc/apt/sources.list", timeout=900)  # fmt: skip
        new.rename(BASE)


def run(*command: str | Path, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command; AssertionError with what it said if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                          timeout=timeout, check=False)  # fmt: skip
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def wait_for(holds: Callable[[], bool], what: str) -> None:
    """Wait until it holds; AssertionError after DEADLINE."""
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


def _hierarchy() -> Path:
    """Where cgroup 2 is mounted here."""
    for directory in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (directory / "cgroup.procs").exists() and (directory / "cgroup.controllers").exists():
            return directory
    raise AssertionError("no cgroup 2 hierarchy: systemd cannot be booted here")


class Debian:
    """A clean tree; as a context manager it is unpacked, and removed at the end. With `like`, a copy of another tree,
    which is not booted yet."""

    def __init__(self, like: Debian | None = None) -> None:
        self._like = like
        self.directory = CACHE / f"tree-{os.getpid()}-{next(_numbers)}"
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup = _hierarchy() / f"unplugd-packaging-{os.getpid()}-{next(_numbers)}"

    def __enter__(self) -> Self:
        if self._like is not None:
            run("cp", "-a", self._like.directory, self.directory)
            return self
        make_base()
        self.directory.mkdir(parents=True)
        run("tar", "-x", "-C", self.directory, "-f", BASE)
        shutil.copy("/etc/resolv.conf", self.directory / "etc/resolv.conf")
        (self.directory / "etc/hosts").write_text("127.0.0.1 localhost\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def fetch(self, *packages: Path, also: Sequence[str] = ()) -> None:
        """Have an init in it, what the first package depends on where its apt looks, and all of them at /root. `also`
        are more of Debian's packages to install."""
        for package in packages:
            shutil.copy(package, self.directory / "root")
        script = 'mount -t proc proc "$1/proc" && exec chroot "$@"'
        install = "apt-get -qy --no-install-recommends"
        wanted = " ".join((*INIT, *also))
        run("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", self.directory, "sh", "-c",
            f"export DEBIAN_FRONTEND=noninteractive && apt-get -q update && {install} install {wanted}"
            f" && {install} --download-only install /root/{packages[0].name}", timeout=900)  # fmt: skip

    def boot(self) -> None:
        """Start its systemd and wait until it has started what it starts."""
        self._cgroup.mkdir()
        with (CACHE / "console").open("wb") as console:
            self._process = subprocess.Popen(
                ["bash", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "lab", str(self._cgroup),
                 "setpriv", "--pdeathsig", "SIGKILL",
                 "unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--mount", "--propagation", "private",
                 "--cgroup", "--ipc", "--uts", "--net", "bash", "-c", _BOOT, "boot", str(self.directory)],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        wait_for(self._find_init, "PID 1")
        wait_for(lambda: self.execute("systemctl", "is-system-running", check=False).stdout.strip()
                 in ("running", "degraded"), "systemd to have booted")  # fmt: skip

    def _find_init(self) -> bool:
        process = self._process
        assert process is not None
        assert process.poll() is None, (CACHE / "console").read_text(errors="replace")
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                self.pid = int(child)
        return bool(self.pid)

    @property
    def enter(self) -> tuple[str, ...]:
        """What runs a command inside the booted tree."""
        return ("nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--net", "--root",
                "--wd")

    def execute(self, *command: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command inside the booted tree."""
        return run(*self.enter, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                   "DEBIAN_FRONTEND=noninteractive",
                   "LC_ALL=C.UTF-8", "HOME=/root", *command, check=check, timeout=timeout)  # fmt: skip

    def path(self, inside: str) -> Path:
        """Where something inside the booted tree is from here."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def stop(self) -> None:
        """End it with all that runs in it."""
        process, self._process = self._process, None
        if process is None:
            return
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait(DEADLINE)
        wait_for(self._remove_cgroup, "its cgroup to be empty")
        self.pid = 0

    def _remove_cgroup(self) -> bool:
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                return False
        return True
