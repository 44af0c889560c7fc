"""The image: Dockerfile built by buildah on a Debian made here, and run by crun, read-only and without rights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemon import Wire
from tests.packaging.tree import CACHE, ROOT, make_base, run

SLIM = CACHE / "slim.tar"
BASE = "localhost/debian:bookworm-slim"
IMAGE = "localhost/unplugd"
DEMO = ROOT / "config" / "container" / "demo.toml"


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, directory: Path) -> None:
        self.options = ["--root", str(directory / "root"), "--runroot", str(directory / "run"),
                        "--storage-driver", "vfs"]  # fmt: skip

    def __call__(self, *arguments: str | Path, timeout: float = 300) -> str:
        return run("buildah", *self.options, *arguments, timeout=timeout).stdout.strip()


@pytest.fixture(scope="module")
def buildah() -> Iterator[Buildah]:
    for program in ("buildah", "crun"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    directory = CACHE / "containers"
    shutil.rmtree(directory, ignore_errors=True)
    yield Buildah(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def image(buildah: Buildah) -> str:
    """The image, built as `make image` builds it, on a base made here."""
    make_base(SLIM, without=("locale", "doc", "man"))
    container = buildah("from", "scratch")
    buildah("add", container, SLIM)
    buildah("commit", "--rm", container, BASE)
    subprocess.run([ROOT / "scripts" / "deb.sh"], check=True, stdout=subprocess.DEVNULL, timeout=600)
    done = subprocess.run(
        [ROOT / "scripts" / "image.sh", *buildah.options], env={"BASE": BASE, "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return IMAGE


def test_what_the_image_says_of_itself(buildah: Buildah, image: str) -> None:
    config = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    assert config["User"] == "unplugd"
    assert config["Entrypoint"] == ["unplugd"]
    assert config["Healthcheck"]["Test"] == ["CMD", "unplugctl", "status"]
    assert "9877/tcp" in config["ExposedPorts"]
    assert "/run/unplugd" in config["Volumes"]


_ONLY_CGROUP_2 = """
umount -n -R /sys/fs/cgroup 2>/dev/null || umount -n -l /sys/fs/cgroup
mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
exec crun --cgroup-manager=disabled "$@"
"""


def crun(*arguments: str | Path) -> list[str]:
    """The command line of crun; where both kinds of cgroups are mounted, which it does not take, it sees one."""
    words = [str(argument) for argument in arguments]
    if not Path("/sys/fs/cgroup/unified").exists():
        return ["crun", "--cgroup-manager=disabled", *words]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ONLY_CGROUP_2, "sh", *words]


class Container:
    """The image run by crun: its own user, a read-only root, no capability, two guests of the embedded store."""

    def __init__(self, rootfs: Path, directory: Path) -> None:
        self.name = f"unplugd-{directory.name}"
        self.runtime = directory / "runtime"
        self.bundle = directory / "bundle"
        self.bundle.mkdir()
        users = (rootfs / "etc/passwd").read_text()
        found = re.search(r"^unplugd:x:(\d+):(\d+):", users, re.MULTILINE)
        assert found
        self.uid = int(found[1])
        self.user = f"{found[1]}:{found[2]}"
        self.runtime.mkdir()
        shutil.chown(self.runtime, self.uid, int(found[2]))
        run(*crun("spec", "--bundle", self.bundle))
        file = self.bundle / "config.json"
        spec: dict[str, Any] = json.loads(file.read_text())
        spec["root"] = {"path": str(rootfs), "readonly": True}
        spec["process"] |= {
            "terminal": False, "args": ["unplugd"], "user": {"uid": self.uid, "gid": int(found[2])},
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted")},
            "noNewPrivileges": True,
        }  # fmt: skip
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"] + [
            {"destination": "/run/unplugd", "type": "bind", "source": str(self.runtime), "options": ["bind", "rw"]},
            {"destination": "/etc/unplugd/conf.d/10-demo.toml", "type": "bind", "source": str(DEMO),
             "options": ["bind", "ro"]},
        ]  # fmt: skip
        file.write_text(json.dumps(spec))
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                crun("run", "--bundle", self.bundle, self.name),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        return run(*crun("exec", "--user", self.user, self.name, *command), check=False, timeout=60)

    def stop(self) -> int:
        run(*crun("kill", self.name, "TERM"))
        return self.process.wait(60)


def test_it_serves_without_rights(buildah: Buildah, image: str, tmp_path: Path) -> None:
    working = buildah("from", image)
    rootfs = Path(buildah("mount", working))
    # where compose.yaml mounts the demo's file
    (rootfs / "etc/unplugd/conf.d/10-demo.toml").touch()
    container = Container(rootfs, tmp_path)
    try:
        end = time.monotonic() + 60
        while (status := container.execute("unplugctl", "status")).returncode:
            assert time.monotonic() < end, status.stdout + status.stderr + container.log.read_text()
            time.sleep(0.5)
        assert container.execute("id", "-u").stdout.strip() == str(container.uid) != "0"
        with Wire(container.runtime / "dom8.sock") as guest:
            assert guest.announce(1, 86451) == 0xD249
            guest.log(b"hello from the guest\n")
        assert "BLACKLISTED" in container.execute("unplugctl", "list").stdout
        fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9877/metrics').read().decode())"
        assert 'unplugd_domain_blacklisted{domid="8"' in container.execute("python3", "-c", fetch).stdout
        assert container.stop() == 0
        assert "hello from the guest" in container.log.read_text()
    finally:
        run(*crun("delete", "--force", container.name), check=False)
        container.process.kill()
        container.process.wait(60)
        buildah("umount", working)


def test_compose_names_files_that_are_there() -> None:
    text = (ROOT / "compose.yaml").read_text()
    sources = re.findall(r"^      - \./([^:]+):", text, re.MULTILINE)
    assert len(sources) >= 5
    assert all((ROOT / source).is_file() for source in sources)
    prometheus = (ROOT / "config" / "container" / "prometheus.yml").read_text()
    assert "unplugd:9877" in prometheus
