"""podman and buildah with a store, a network and processes of their own, on a machine without a container engine.

    with Engine(directory) as engine:
        engine.build("buildah", "build", ...)           # with this machine's network, for apt
        engine.run("podman", "run", ...)                # in its own network, where 127.0.0.1 has its published ports
        engine.fetch("http://127.0.0.1:9877/-/ready")

The machine's own containers, ports and packet filter are not touched. What was started in it ends with it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.packaging.tree import ROOT, run, wait_for

_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{0}/storage"
runroot = "{0}/runroot"
"""

# No cgroups: nothing here limits or counts, and a machine may have both kinds mounted, which crun does not take.
_CONTAINERS = """
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{0}/tmp"
[network]
network_config_dir = "{0}/networks"
"""

_HOLD = """
set -e
if [ -d /sys/fs/cgroup/unified ]; then
    umount -n -R /sys/fs/cgroup 2>/dev/null || umount -n -l /sys/fs/cgroup
    mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
fi
for name in netns containers libpod crun; do
    mkdir -p /run/$name
    mount -n -t tmpfs tmpfs /run/$name
done
ip link set lo up
exec sleep infinity
"""

ULIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
"""For `podman run`: its defaults are more than a root without CAP_SYS_RESOURCE may give."""


@contextmanager
def near(directory: Path) -> Iterator[Path]:
    """The same directory by a path so short that a unix socket's fits behind it."""
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


class Engine:
    """The engine; as a context manager it stands, and is gone at the end with all that it made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._holder: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        for name, text in (("storage.conf", _STORAGE), ("containers.conf", _CONTAINERS)):
            (self.directory / name).write_text(text.format(self.directory))
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "SIGKILL",
             "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc",
             "--propagation", "private", "sh", "-c", _HOLD],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(self._holds, "the namespaces of the containers")
        return self

    def _holds(self) -> bool:
        holder = self._holder
        assert holder is not None
        assert holder.poll() is None, "the namespaces of the containers could not be made"
        for child in Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "sleep":
                self._pid = int(child)
        return bool(self._pid)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._holder is not None
        try:
            self.run("podman", "rm", "--all", "--force", "--time", "1", check=False)
        finally:
            self._holder.kill()
            self._holder.wait(60)
            shutil.rmtree(self.directory)

    def _inside(self, *namespaces: str) -> list[str]:
        return ["nsenter", f"--target={self._pid}", "--mount", "--pid", *namespaces, f"--wd={ROOT}",
                "env", f"CONTAINERS_STORAGE_CONF={self.directory}/storage.conf",
                f"CONTAINERS_CONF={self.directory}/containers.conf",
                # as docker's: OCI's has no health check
                "BUILDAH_ISOLATION=chroot", "BUILDAH_FORMAT=docker"]  # fmt: skip

    def build(self, *command: str | Path, timeout: float = 600) -> str:
        """Run a command that may need this machine's network; what it said."""
        return run(*self._inside(), *command, timeout=timeout).stdout.strip()

    def run(
        self, *command: str | Path, check: bool = True, timeout: float = 400
    ) -> subprocess.CompletedProcess[str]:
        """Run a command beside the containers."""
        return run(*self._inside("--net"), *command, check=check, timeout=timeout)

    def fetch(self, url: str) -> bytes | None:
        """The body of an answer; None while there is none, or none that says 200."""
        script = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=30).read())"
        done = subprocess.run(
            [*self._inside("--net"), "python3", "-c", script, url],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        return None if done.returncode else done.stdout

    def inspect(self, *arguments: str) -> Any:
        """What `podman inspect` says of one thing."""
        (found,) = json.loads(self.run("podman", "inspect", *arguments).stdout)
        return found
